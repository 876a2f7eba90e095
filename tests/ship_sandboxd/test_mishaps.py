"""What becomes of sandboxes when the machine fails the host: backends and disks that misbehave, by how they do it."""

import asyncio
import errno
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from conftest import eventually

from ship_sandboxd import durable
from ship_sandboxd.errors import Conflict, FreezeFailed, LaunchFailed, NotFound
from ship_sandboxd.isolation.backend import Backends, Launched, LaunchSpec
from ship_sandboxd.isolation.cgroups import Cgroups
from ship_sandboxd.isolation.disks import Disks
from ship_sandboxd.lifecycle import sandboxes as sandboxes_module
from ship_sandboxd.lifecycle.captures import Captures
from ship_sandboxd.lifecycle.launches import Launches
from ship_sandboxd.lifecycle.new_sandbox import NewSandbox
from ship_sandboxd.lifecycle.records import FILE_NAME, PAUSED, RESUMING, RUNNING, SandboxRecord, load
from ship_sandboxd.lifecycle.sandbox import Sandbox
from ship_sandboxd.lifecycle.sandboxes import Sandboxes
from ship_sandboxd.network.gateway import Gateway
from ship_sandboxd.network.listeners import Listeners
from ship_sandboxd.pids import ProcessIdentity
from ship_sandboxd.quotas import Quotas
from ship_sandboxd.storage.blobs import FolderBlobs
from ship_sandboxd.storage.layers import Layers
from ship_sandboxd.templates import Template


class SleepBackend:
    """A process that sleeps stands for the processes of a sandbox; nothing isolates it."""

    name = "sleep"
    keeps_memory = shares_kernel = True
    prepares = parks_memory = redirects = False

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []

    async def launch(self, spec: LaunchSpec) -> Launched:
        process = subprocess.Popen(["sleep", "1000"])  # noqa: ASYNC220 - of its end pids.py takes care
        self.processes.append(process)
        init = ProcessIdentity.of(process.pid)
        assert init is not None
        return Launched(init, init, Listeners(socket.create_server(("127.0.0.1", 0))))

    async def furnish(self, spec: LaunchSpec) -> Launched:
        await asyncio.sleep(0.01)
        raise LaunchFailed("nothing waits here")

    async def end(
        self, name: str, init: ProcessIdentity | None, monitor: ProcessIdentity | None, cgroups: list[str]
    ) -> None:
        if init is not None:
            await init.kill()

    async def listeners(self, folder: Path, token: str, init: ProcessIdentity) -> Listeners:
        return Listeners(socket.create_server(("127.0.0.1", 0)))

    def abandon(self, folder: Path, monitor: ProcessIdentity) -> None:
        pass

    async def freeze(self, cgroups: list[str]) -> None:
        pass

    async def thaw(self, cgroups: list[str]) -> None:
        pass


class RestlessBackend(SleepBackend):
    """The processes do not stand still the first time."""

    asked = 0

    async def freeze(self, cgroups: list[str]) -> None:
        self.asked += 1
        if self.asked == 1:
            raise FreezeFailed("they do not stand still")


@asynccontextmanager
async def hosted(data: Path, backend: SleepBackend, park_after_s: float = 600) -> AsyncIterator[Sandboxes]:
    """All that makes sandboxes, in this process."""
    layers = Layers(data / "layers", FolderBlobs(data / "blobs"))

    async def find(name: str, tenant: str) -> Template:
        return Template(name, memory_mb=10**9 if name == "huge" else 1)

    sandboxes = Sandboxes(
        data,
        Backends(backend),
        Launches(Cgroups([]), Gateway(), layers),
        Captures(layers, Disks(data, None, limited=False), "nothing is laid of layers here"),
        find,
        False,
        Quotas(data),
        park_after_s,
    )
    try:
        yield sandboxes
    finally:
        await sandboxes.leave()
        for process in backend.processes:
            process.kill()
            process.wait()


async def come_true(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandboxes_module, "_RETRY_S", 0.05)


class FullDisk:
    """A disk that takes no record of a sandbox until there is room."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self.refused: list[str] = []
        self._save = Sandbox.save
        monkeypatch.setattr(Sandbox, "save", lambda box, **options: self.save(box, **options))

    def save(self, box: Sandbox, *, lasting: bool = True) -> None:
        if self.full:
            self.refused.append(box.id)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._save(box, lasting=lasting)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FullDisk:
    return FullDisk(monkeypatch)


async def test_a_sandbox_that_does_not_stand_still_when_its_time_is_over_is_asked_again(
    tmp_path: Path,
) -> None:
    async with hosted(tmp_path, RestlessBackend()) as sandboxes:
        sandbox = await sandboxes.create(NewSandbox(timeout_s=0, auto_pause=True))
        await come_true(lambda: sandbox.record.state == PAUSED)
        assert "they do not stand still" in [line.get("reason") for line in sandbox.journal.read()]


async def test_what_a_full_disk_did_not_let_pause_is_paused_once_there_is_room(
    tmp_path: Path, disk: FullDisk
) -> None:
    async with hosted(tmp_path, SleepBackend()) as sandboxes:
        sandbox = await sandboxes.create(NewSandbox(auto_pause=True))
        sandboxes.set_timeout(sandbox.id, 0)
        disk.full = True
        await come_true(lambda: len(disk.refused) > 1)
        assert sandbox.record.state == RUNNING
        disk.full = False
        await come_true(lambda: sandbox.record.frozen)


async def test_what_a_full_disk_did_not_let_park_is_parked_once_there_is_room(
    tmp_path: Path, disk: FullDisk
) -> None:
    async with hosted(tmp_path, SleepBackend(), park_after_s=0.1) as sandboxes:
        paused = await sandboxes.create(NewSandbox())
        await sandboxes.pause(paused.id)
        ended = await sandboxes.create(NewSandbox(auto_pause=True))
        disk.full = True
        _kill(ended)
        await come_true(lambda: {paused.id, ended.id} <= set(disk.refused[2:]))
        disk.full = False
        for sandbox in (paused, ended):
            await come_true(lambda sandbox=sandbox: _is_parked(sandbox.record))


async def test_a_disk_that_fills_up_while_a_sandbox_is_parked_does_not_undo_it(
    tmp_path: Path, disk: FullDisk
) -> None:
    class FillingBackend(SleepBackend):
        async def end(self, *arguments: object) -> None:
            await super().end(*arguments)
            disk.full = True

    async with hosted(tmp_path, FillingBackend()) as sandboxes:
        sandbox = await sandboxes.create(NewSandbox())
        await sandboxes.pause(sandbox.id, keep_memory=False)
        assert disk.refused == [sandbox.id]
        disk.full = False
        assert _is_parked(sandbox.record)
        assert await sandboxes.resume(sandbox.id, 60)


async def test_that_a_sandbox_ran_out_of_memory_is_told_to_its_own_tenant(tmp_path: Path) -> None:
    async with hosted(tmp_path, SleepBackend()) as sandboxes:
        sandbox = await sandboxes.create(NewSandbox(tenant="red"))
        sandbox.memory_ran_out_at = time.monotonic()
        _kill(sandbox)
        await come_true(lambda: not sandboxes.all())
        for tenant, why in {"red": ": it ran out of memory", "blue": ""}.items():
            with pytest.raises(NotFound, match=f"not found{why}$"):
                sandboxes.get(sandbox.id, tenant)


async def test_requests_that_a_pause_overtakes_resume_the_sandbox_again(tmp_path: Path) -> None:
    async with hosted(tmp_path, SleepBackend()) as sandboxes:
        sandbox = await sandboxes.create(NewSandbox(auto_resume=True))
        await sandboxes.pause(sandbox.id)
        waking = [asyncio.create_task(sandboxes.awake(sandbox.id)) for _ in range(2)]
        await asyncio.sleep(0)
        await sandboxes.pause(sandbox.id)
        assert await asyncio.gather(*waking) == [sandbox] * 2
        assert sandbox.record.state == RUNNING


async def test_one_that_is_resumed_before_its_end_is_noticed_starts_anew(tmp_path: Path) -> None:
    async with hosted(tmp_path, SleepBackend()) as sandboxes:
        sandbox = await sandboxes.create(NewSandbox())
        await sandboxes.pause(sandbox.id)
        _kill(sandbox)
        assert await sandboxes.resume(sandbox.id, 60)
        await asyncio.sleep(0.05)  # what would be done about its end is done by then
        assert sandboxes.running(sandbox.id).record.init is not None
        assert not sandbox.record.memory_kept


async def test_one_that_was_resumed_when_its_end_is_seen_to_runs_on(tmp_path: Path) -> None:
    async with hosted(tmp_path, SleepBackend()) as sandboxes:
        sandbox = await sandboxes.create(NewSandbox())
        await sandboxes.pause(sandbox.id)
        earlier, go_on = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            earlier.set()
            await go_on.wait()

        async with asyncio.TaskGroup() as doing:
            doing.create_task(sandbox.change(wait))
            await earlier.wait()
            doing.create_task(sandboxes.resume(sandbox.id, 60))
            await asyncio.sleep(0)
            _kill(sandbox)
            await come_true(lambda: sandbox.watch is None)
            await asyncio.sleep(0.05)  # its end is seen to after the resume
            go_on.set()
        await asyncio.sleep(0.05)
        assert sandboxes.running(sandbox.id).record.init is not None


def _kill(sandbox: Sandbox) -> None:
    """Returns when it has ended, and nobody has noticed yet."""
    init = sandbox.record.init
    assert init is not None
    init.signal(signal.SIGKILL)
    eventually(lambda: not init.alive)


class WritingBackend(SleepBackend):
    """Writes the memory of sandboxes out."""

    parks_memory = True

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    async def checkpoint(self, folder: Path, token: str, cgroups: list[str]) -> None:
        self.written.append(folder.name)


async def test_memory_that_would_use_up_the_disk_is_not_written_out(tmp_path: Path) -> None:
    backend = WritingBackend()
    async with hosted(tmp_path, backend, park_after_s=0) as sandboxes:
        for template, fits in (("base", True), ("huge", False)):
            sandbox = await sandboxes.create(NewSandbox(template))
            await sandboxes.pause(sandbox.id)
            await come_true(lambda sandbox=sandbox: sandbox.record.init is None)
            assert (sandbox.record.memory_kept, sandbox.id in backend.written) == (fits, fits)
        told = {line["event"]: line.get("reason", "") for line in sandbox.journal.read()}
        assert "and 1000000000 MB are needed" in told["the sandbox's memory cannot be written out"]


async def test_memory_that_cannot_be_written_out_is_given_up(tmp_path: Path) -> None:
    class ForgetfulBackend(WritingBackend):
        async def checkpoint(self, folder: Path, token: str, cgroups: list[str]) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with hosted(tmp_path, ForgetfulBackend(), park_after_s=0) as sandboxes:
        sandbox = await sandboxes.create(NewSandbox())
        await sandboxes.pause(sandbox.id)
        await come_true(lambda: _is_parked(sandbox.record))


async def test_what_happened_to_a_paused_sandbox_survives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    async with hosted(tmp_path, SleepBackend()) as sandboxes:
        sandbox = await sandboxes.create(NewSandbox())
        monkeypatch.setattr(durable, "sync", synced.append)
        await sandboxes.pause(sandbox.id)
        await come_true(lambda: sandbox.folder in synced)
    assert {sandbox.folder / FILE_NAME, sandbox.folder / "log.jsonl"} <= set(synced)


class TenaciousBackend(SleepBackend):
    """The first end of a sandbox fails."""

    ended = 0

    async def end(
        self, name: str, init: ProcessIdentity | None, monitor: ProcessIdentity | None, cgroups: list[str]
    ) -> None:
        self.ended += 1
        if self.ended == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        await super().end(name, init, monitor, cgroups)


async def test_an_end_that_failed_is_tried_again_by_who_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandboxes_module, "_RETRY_S", 1000)
    async with hosted(tmp_path, TenaciousBackend()) as sandboxes:
        sandbox = await sandboxes.create(NewSandbox())
        with pytest.raises(OSError, match="Input/output error"):
            await sandboxes.kill(sandbox.id)
        assert sandboxes.all() == []
        with pytest.raises(NotFound):
            await sandboxes.pause(sandbox.id)
        with pytest.raises(NotFound):
            await sandboxes.kill(sandbox.id, "a stranger")
        await sandboxes.kill(sandbox.id)
        assert not sandbox.folder.exists()
        with pytest.raises(NotFound):
            await sandboxes.kill(sandbox.id)


async def test_an_end_that_failed_is_tried_again_by_the_host(tmp_path: Path) -> None:
    async with hosted(tmp_path, TenaciousBackend()) as sandboxes:
        sandbox = await sandboxes.create(NewSandbox(timeout_s=0))
        assert sandbox.record.init is not None
        await come_true(lambda: not sandbox.folder.exists())
        assert sandbox.record.init is None


async def test_a_pause_whose_end_of_the_processes_failed_is_brought_to_its_end(tmp_path: Path) -> None:
    async with hosted(tmp_path, TenaciousBackend()) as sandboxes:
        sandbox = await sandboxes.create(NewSandbox())
        init = sandbox.record.init
        assert init is not None
        with pytest.raises(OSError, match="Input/output error"):
            await sandboxes.pause(sandbox.id, keep_memory=False)
        assert (sandbox.record.state, init.alive) == (PAUSED, True)
        await come_true(lambda: _is_parked(sandbox.record))
        assert not init.alive
        assert "an earlier attempt to end its processes failed" in [
            line.get("reason") for line in sandbox.journal.read()
        ]


async def test_what_cannot_be_ended_is_not_tried_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ImmortalBackend(SleepBackend):
        ended = 0

        async def end(self, *arguments: object) -> None:
            self.ended += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(sandboxes_module, "_RETRY_S", 1000)
    backend = ImmortalBackend()
    async with hosted(tmp_path, backend) as sandboxes:
        sandbox = await sandboxes.create(NewSandbox())
        await sandboxes.pause(sandbox.id)
        _kill(sandbox)
        await come_true(lambda: backend.ended)
        with pytest.raises(OSError, match="Input/output error"):
            await sandboxes.resume(sandbox.id, 60)
        await asyncio.sleep(0.05)
        assert backend.ended == 2


class LameBackend(TenaciousBackend):
    """Starts processes once; later ones come up and are not known, and the first end of these fails."""

    ended = -1

    async def launch(self, spec: LaunchSpec) -> Launched:
        launched = await super().launch(spec)
        if len(self.processes) == 2:
            launched.listeners.proxy.close()
            raise LaunchFailed("the daemon in the sandbox did not start")
        return launched

    async def end(
        self, name: str, init: ProcessIdentity | None, monitor: ProcessIdentity | None, cgroups: list[str]
    ) -> None:
        await super().end(name, init, monitor, cgroups)
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize("by_whom", ["the host", "a client", "a new host"])
async def test_a_failed_resume_whose_processes_did_not_end_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_whom: str
) -> None:
    if by_whom != "the host":
        monkeypatch.setattr(sandboxes_module, "_RETRY_S", 1000)
    backend = LameBackend()
    async with hosted(tmp_path, backend) as sandboxes:
        sandbox = await sandboxes.create(NewSandbox())
        await sandboxes.pause(sandbox.id, keep_memory=False)
        with pytest.raises(OSError, match="Input/output error"):
            await sandboxes.resume(sandbox.id, 60)
        half_started = backend.processes[-1]
        assert half_started.poll() is None
        with pytest.raises(Conflict, match="paused already"):
            await sandboxes.pause(sandbox.id)
        if by_whom == "the host":
            await come_true(lambda: _is_parked(sandbox.record))
        elif by_whom == "a new host":
            await sandboxes.leave()
            async with hosted(tmp_path, backend) as later:
                await later.recover()
                assert _is_parked(later.get(sandbox.id).record)
                assert half_started.poll() is not None
            return
        assert await sandboxes.resume(sandbox.id, 60)
        assert half_started.poll() is not None, "two daemons would write to one disk"
        assert sandboxes.running(sandbox.id).record.end.left_s > 30


class IcyBackend(SleepBackend):
    """What is frozen stays so."""

    async def thaw(self, cgroups: list[str]) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


async def test_a_sandbox_that_cannot_be_taken_up_again_holds_up_no_other(
    tmp_path: Path, disk: FullDisk
) -> None:
    async with hosted(tmp_path, SleepBackend()) as earlier:
        running, ended, resuming = [await earlier.create(NewSandbox(auto_pause=True)) for _ in range(3)]
        resuming.record.state = RESUMING
        resuming.save()
        (tmp_path / "sandboxes" / "halfmade").mkdir()
        await earlier.leave()
        _kill(ended)
        async with hosted(tmp_path, SleepBackend()) as later:
            disk.full = True
            await later.recover()
            assert later.get(running.id).record.state == RUNNING
            await come_true(lambda: {ended.id, resuming.id} <= set(disk.refused[2:]))
            disk.full = False
            for sandbox_id in (ended.id, resuming.id):
                await come_true(lambda sandbox_id=sandbox_id: _is_parked(later.get(sandbox_id).record))
        async with hosted(tmp_path, IcyBackend()) as icy:
            await icy.recover()
            assert icy.get(ended.id).record.state == PAUSED


async def test_what_the_disk_does_not_tell_of_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with hosted(tmp_path, SleepBackend()) as earlier:
        known, unknown = [await earlier.create(NewSandbox()) for _ in range(2)]
        for sandbox in (known, unknown):
            await earlier.pause(sandbox.id)
        stray, record = tmp_path / "sandboxes" / "notes.txt", unknown.folder / FILE_NAME
        stray.write_text("a person's")
        record.rename(unknown.folder / "away")
        record.mkdir()  # reading it fails
        await earlier.leave()
        async with hosted(tmp_path, SleepBackend()) as later:
            await later.recover()
            assert [sandbox.id for sandbox in later.all()] == [known.id]
            with pytest.raises(OSError, match=f"could not be read at the start: {unknown.id}"):
                list(later.layers_in_use())
        assert unknown.record.init is not None
        assert unknown.record.init.alive
        assert (stray.read_text(), record.exists()) == ("a person's", True)
        told = [entry.folder for entry in caplog.records if "it is left alone" in entry.message]
        assert told == sorted((str(stray), str(unknown.folder)))
        record.rmdir()
        (unknown.folder / "away").rename(record)
        async with hosted(tmp_path, SleepBackend()) as repaired:
            await repaired.recover()
            assert {sandbox.id for sandbox in repaired.all()} == {known.id, unknown.id}
            assert list(repaired.layers_in_use()) == []


async def test_what_does_not_thaw_is_still_paused(tmp_path: Path) -> None:
    async with hosted(tmp_path, IcyBackend(), park_after_s=0.2) as sandboxes:
        sandbox = await sandboxes.create(NewSandbox(timeout_s=60))
        sandboxes.set_timeout(sandbox.id, 0)
        await sandboxes.pause(sandbox.id)
        with pytest.raises(OSError, match="Input/output error"):
            await sandboxes.resume(sandbox.id, 60)
        kept = load(sandbox.folder)
        assert (sandbox.record.frozen, kept is not None and kept.frozen) == (True, True)
        await come_true(lambda: _is_parked(sandbox.record))


async def test_one_end_that_fails_keeps_no_other_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandboxes_module, "_RETRY_S", 600.0)
    async with hosted(tmp_path, TenaciousBackend()) as sandboxes:
        made = [await sandboxes.create(NewSandbox()) for _ in range(3)]
        with pytest.raises(OSError, match="Input/output error"):
            await sandboxes.kill_all()
        assert [sandbox.folder.exists() for sandbox in made] == [True, False, False]


def _is_parked(record: SandboxRecord) -> bool:
    return record.state == PAUSED and record.init is None and not record.memory_kept
