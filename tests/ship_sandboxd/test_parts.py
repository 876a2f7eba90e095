"""The small parts of the host and the daemon, each by itself."""

import asyncio
import contextlib
import signal
import subprocess
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ship_sandboxd import durable, templates
from ship_sandboxd.envd.multipart import parts
from ship_sandboxd.envd.output import KEPT_BYTES, LAG_BYTES, Output
from ship_sandboxd.errors import Conflict, NotFound
from ship_sandboxd.idempotency import Idempotency
from ship_sandboxd.isolation import cgroups
from ship_sandboxd.isolation.cgroups import Limits
from ship_sandboxd.pids import ProcessIdentity


async def drain(output: Output) -> bytes:
    subscriber = output.subscribe()
    data = b""
    while (piece := await subscriber.next(1)) is not None:
        data += piece[1]
    subscriber.close()
    return data


async def test_output_is_kept_up_to_a_bound_and_the_oldest_goes_first() -> None:
    output = Output()
    for number in range(200):
        output.append("stdout", bytes([number]) * 65536)
    output.close()
    data = await drain(output)
    assert KEPT_BYTES * 0.98 < len(data) < output.kept_bytes <= KEPT_BYTES
    assert (data[0], data[-1]) == (137, 199)


@pytest.mark.parametrize("kinds", [("stdout",), ("stdout", "stderr")], ids=["one", "two in turn"])
async def test_output_that_comes_byte_by_byte_takes_no_more_memory(kinds: tuple[str, ...]) -> None:
    tracemalloc.start()
    output = Output()
    for number in range(200_000):
        output.append(kinds[number % len(kinds)], b"x")
    output.close()
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert used < 1.5 * KEPT_BYTES
    if len(kinds) == 1:
        subscriber = output.subscribe()
        assert [len((await subscriber.next(1) or ("", b""))[1]) for _ in range(5)] == [65536] * 3 + [3392, 0]


async def test_a_watcher_gets_each_byte_when_it_comes_and_each_but_once() -> None:
    output = Output()
    watching = output.subscribe()
    for kind, data in (("stdout", b"a"), ("stdout", b"bc"), ("stderr", b"d")):
        output.append(kind, data)
        assert await watching.next(1) == (kind, data)
    output.append("stderr", b"e")
    assert await watching.next(1) == ("stderr", b"e")
    assert not output.congested
    assert watching.read_bytes == output.kept_bytes
    late = output.subscribe()
    assert [await late.next(1) for _ in range(2)] == [("stdout", b"abc"), ("stderr", b"de")]
    output.close()
    assert [await each.next(1) for each in (watching, late)] == [None, None]


async def test_a_watcher_that_falls_behind_holds_up_the_process_and_lets_it_go_on_when_it_leaves() -> None:
    output, relieved = Output(), []
    output.on_relief = lambda: relieved.append(output.congested)
    subscriber = output.subscribe()
    while not output.congested:
        output.append("stdout", b"x" * 65536)
    assert output.kept_bytes > LAG_BYTES
    await subscriber.next(1)
    assert relieved == [False]
    output.append("stdout", b"x" * 65536)
    subscriber.close()
    assert relieved == [False, False]


async def test_a_watcher_waits_for_more_and_for_the_end() -> None:
    output = Output()
    subscriber = output.subscribe()
    with pytest.raises(TimeoutError):
        await subscriber.next(0.01)
    waiting = asyncio.create_task(subscriber.next(5))
    await asyncio.sleep(0)
    output.append("stderr", b"x")
    assert await waiting == ("stderr", b"x")
    output.close()
    assert await subscriber.next(5) is None


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
async def test_multipart_bodies_are_read_however_they_are_cut(size: int) -> None:
    contents = [b"", b"\r\n--bound", b"\r\n--boundar" * 50, b"plain"]
    body = b"preamble\r\n"
    for number, content in enumerate(contents):
        head = (
            f'--boundary\r\nContent-Disposition: form-data; name="file"; filename="/a/{number} %22ü"\r\n\r\n'
        )
        body += head.encode() + content + b"\r\n"
    body += b"--boundary--\r\nepilogue"

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    found = [
        (part.filename, b"".join([data async for data in part.data]))
        async for part in parts(pieces(), "boundary")
    ]
    assert found == [(f'/a/{number} "ü', content) for number, content in enumerate(contents)]


def test_cgroups_of_version_1_are_made_below_the_own_group(tmp_path: Path) -> None:
    folder = tmp_path / "memory" / "own"
    folder.mkdir(parents=True)
    found = cgroups.detect("4:memory:/own\n0::/\n", f"cgroup {tmp_path}/memory cgroup rw,memory 0 0\n")
    assert found.controllers == {"memory"}
    group = folder / "ship-sandboxd" / "name"
    group.mkdir()
    (group / "memory.limit_in_bytes").touch()
    assert found.folders("name") == [str(group)]
    found.create("name", Limits(64, 10, 1))
    assert (group / "memory.limit_in_bytes").read_text() == str(64 * 1024 * 1024)


def test_cgroups_of_version_2_take_the_controllers_that_are_handed_on(tmp_path: Path) -> None:
    own = tmp_path / "service"
    for folder in (own, own / "ship-sandboxd"):
        folder.mkdir(parents=True)
        (folder / "cgroup.controllers").write_text("cpu memory pids io")
        (folder / "cgroup.subtree_control").write_text("cpu memory pids")
    found = cgroups.detect("0::/service\n", f"cgroup2 {tmp_path} cgroup2 rw 0 0\n")
    assert found.controllers == {"memory", "pids", "cpu"}
    group = own / "ship-sandboxd" / "name"
    group.mkdir()
    for file in ("memory.max", "pids.max", "cpu.max"):
        (group / file).touch()
    found.create("name", Limits(64, 10, 2))
    assert [(group / file).read_text() for file in ("memory.max", "pids.max", "cpu.max")] == [
        str(64 * 1024 * 1024),
        "10",
        "200000 100000",
    ]


@pytest.mark.parametrize("slice_offers", ["cpu memory pids", "pids"])
def test_cgroups_of_version_2_are_made_where_one_above_the_own_hands_most_on(
    tmp_path: Path, slice_offers: str
) -> None:
    """The own one has processes, so it may hand nothing on: here it has no file to say so."""
    own = tmp_path / "slice" / "service"
    own.mkdir(parents=True)
    (own / "cgroup.controllers").write_text(slice_offers)
    for folder, offered in ((tmp_path, "cpu memory pids io"), (own.parent, slice_offers)):
        (folder / "ship-sandboxd").mkdir()
        for group in (folder, folder / "ship-sandboxd"):
            (group / "cgroup.controllers").write_text(offered)
            (group / "cgroup.subtree_control").write_text(offered)
    found = cgroups.detect("0::/slice/service\n", f"cgroup2 {tmp_path} cgroup2 rw 0 0\n")
    assert found.controllers == {"memory", "pids", "cpu"}
    chosen = tmp_path if slice_offers == "pids" else own.parent
    assert found.folders("name") == [str(chosen / "ship-sandboxd" / "name")]


def test_without_cgroups_nothing_is_limited_and_nothing_fails(tmp_path: Path) -> None:
    found = cgroups.detect("0::/\n", f"cgroup2 {tmp_path}/none cgroup2 rw 0 0\n")
    assert found.controllers == set()
    assert found.folders("name") == []
    found.create("name", Limits(64, 10, 1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "JSON object"),
        ({"mount": []}, "unknown keys: mount"),
        ({"memory_mb": 0}, "memory_mb"),
        ({"env": {"A": 1}}, "env"),
        ({"start_command": ["sleep", "1"]}, "start_command must be a string"),
        ({"mounts": [{"source": "/a"}]}, "source"),
        ({"mounts": [{"source": "a", "target": "/b"}]}, "absolute"),
        ({"mounts": [{"source": "/a", "target": "/opt/../usr/bin"}]}, "/usr/bin"),
        ({"mounts": [{"source": "/a", "target": "//proc/self"}]}, "/proc"),
    ],
)
def test_a_template_that_makes_no_sense_is_refused(values: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        templates.parse("x", values)


@pytest.mark.parametrize("name", ["../base", "", "A", ".hidden", "a/b"])
def test_a_template_name_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFound):
        templates.read(tmp_path, name)


def test_a_process_that_has_another_start_is_another_process() -> None:
    own = ProcessIdentity.of(1)
    assert own is not None
    assert own.alive
    assert not ProcessIdentity(own.pid, own.started + 1).alive
    assert not ProcessIdentity(own.pid, own.started, "another boot").alive
    assert ProcessIdentity.of(2**22 + 1) is None


def test_a_process_that_ends_just_before_its_signal_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def ends_now(identity: ProcessIdentity) -> bool:
        process.kill()
        process.wait()
        return True

    monkeypatch.setattr(ProcessIdentity, "alive", property(ends_now))
    for end in (
        lambda identity: asyncio.run(identity.kill()),
        lambda identity: identity.signal(signal.SIGKILL),
    ):
        process = subprocess.Popen(["sleep", "1000"])
        end(ProcessIdentity.of(process.pid))


async def test_one_key_makes_one_value_and_a_failure_may_be_tried_again() -> None:
    made = []

    async def make() -> int:
        await asyncio.sleep(0)
        made.append(1)
        if len(made) == 1:
            raise NotFound("not yet")
        return len(made)

    keys: Idempotency[int] = Idempotency()
    with pytest.raises(NotFound):
        await keys.once("key", "digest", make)
    assert await asyncio.gather(*(keys.once("key", "digest", make) for _ in range(3))) == [2, 2, 2]
    with pytest.raises(Conflict):
        await keys.once("key", "other", make)


def test_a_folder_has_its_name_only_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, synced = tmp_path / "parts" / "folder", []
    monkeypatch.setattr(durable, "sync", synced.append)
    with contextlib.suppress(ZeroDivisionError), durable.made(folder) as scratch:
        (scratch / "half").touch()
        raise ZeroDivisionError
    assert not [*folder.parent.iterdir()]
    for text in ("first", "second"):
        with durable.made(folder) as scratch:
            (scratch / "whole").write_text(text)
        assert synced[-3:] == [scratch, scratch / "whole", folder.parent]
    assert [*folder.parent.iterdir()] == [folder]
    assert (folder / "whole").read_text() == "first"
