"""The runner's memory on disk."""

import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from ship.events.facts import TextFinished
from ship.events.frames import Delta, Reported
from ship.events.record import decode_fact
from ship_runner import facts
from ship_runner.spool import Spool

Open = Callable[..., Spool]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens ``tmp_path / "spool"``, as often as it is called."""
    spools: list[Spool] = []

    def open_one(**limits: int) -> Spool:
        spools.append(Spool(tmp_path / "spool", **limits))
        return spools[-1]

    yield open_one
    for spool in spools:
        spool.close()


def numbers(spool: Spool, after: int = 0) -> list[int]:
    return [frame.n for frame in spool.pending(after)]


def test_frames_are_numbered_from_one_and_forgotten_when_acknowledged(opened: Open) -> None:
    spool = opened()
    for task in ("a", "b", "c"):
        assert spool.report(facts.task_completed(task))
    assert numbers(spool) == [1, 2, 3]
    spool.acknowledge(2)
    assert numbers(spool) == [3]
    assert (spool.last, spool.acked) == (3, 2)


def test_everything_is_there_after_a_restart(opened: Open) -> None:
    spool = opened()
    spool.report(facts.task_completed("ä\n\u2028"), key="end:a", notes={"task": {"id": 1}, "gone": 1})
    spool.report(facts.task_completed("b"))
    spool.note(gone=None, more=[1])
    spool.acknowledge(1)
    again = opened()
    assert numbers(again) == [2]
    assert again.last == 2
    assert again.notes == {"task": {"id": 1}, "more": [1]}
    assert not again.report(facts.task_completed("ä"), key="end:a")
    again.report(facts.task_completed("c"))
    assert again.last == 3


@pytest.mark.parametrize("torn", [1, 8, 9, 30])
def test_a_torn_tail_is_cut_off(tmp_path: Path, opened: Open, torn: int) -> None:
    path = tmp_path / "spool"
    spool = opened()
    spool.report(facts.task_completed("a"), key="one")
    spool.report(facts.task_completed("b"), key="two")
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    path.write_bytes(content[: first + torn])
    again = opened()
    assert numbers(again) == [1]
    assert path.read_bytes() == content[:first]
    assert again.report(facts.task_completed("b"), key="two")
    assert numbers(opened()) == [1, 2]


def test_a_changed_byte_is_noticed(tmp_path: Path, opened: Open) -> None:
    path = tmp_path / "spool"
    spool = opened()
    spool.report(facts.task_completed("a"))
    spool.report(facts.task_completed("b"))
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert numbers(opened()) == [1]


def test_numbers_go_on_from_what_the_control_plane_has(opened: Open) -> None:
    spool = opened()
    spool.acknowledge(7)
    spool.report(facts.task_completed("a"))
    assert numbers(spool) == [8]


def test_a_long_file_is_shortened_without_losing_anything(tmp_path: Path, opened: Open) -> None:
    path = tmp_path / "spool"
    spool = opened(compact_bytes=2000)
    for n in range(50):
        spool.report(facts.task_completed(f"task {n}"), key=f"key {n}", notes={"last": n})
        if n < 48:
            spool.acknowledge(n + 1)
    assert path.stat().st_size < 4000
    again = opened()
    assert numbers(again) == [49, 50]
    assert again.notes == {"last": 49}
    assert again.reported("key 3")
    spool.forget_keys()
    assert not opened().reported("key 3")


def test_only_its_owner_may_read_it(tmp_path: Path, opened: Open) -> None:
    opened().report(facts.task_completed("a"))
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_keeps_reports_in_memory_until_there_is_room(tmp_path: Path, opened: Open) -> None:
    path = tmp_path / "spool"
    spool = opened()
    spool.report(facts.task_completed("a"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))
    try:
        spool.report(facts.task_completed("b"))
        assert spool.full
        assert numbers(spool) == [1, 2]
        assert numbers(opened()) == [1]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    spool.report(facts.task_completed("c"))
    assert not spool.full
    assert numbers(opened()) == [1, 2, 3]


def test_there_is_no_room_while_nobody_acknowledges(opened: Open) -> None:
    spool = opened(room_bytes=500)
    while spool.has_room:
        spool.report(facts.task_completed("x" * 50))
    spool.acknowledge(spool.last)
    assert spool.has_room


def test_a_frame_is_what_the_control_plane_decodes(opened: Open) -> None:
    spool = opened()
    spool.report(facts.text_finished("tsk", "msg", "prt", "half a character: \ud83d"))
    frame = msgspec.json.decode(spool.pending(0)[0].text, type=Reported | Delta)
    assert isinstance(frame, Reported)
    assert frame.n == 1
    assert decode_fact(frame.type, frame.v, bytes(frame.data)) == TextFinished(
        task_id="tsk", message_id="msg", part_id="prt", text="half a character: ?"
    )


def test_a_report_is_cut_to_its_bounds(opened: Open) -> None:
    spool = opened()
    spool.report(facts.text_finished("tsk", "msg", "prt", "x" * (9 << 20)))
    assert len(spool.pending(0)[0].text) < 1 << 20
    assert opened().pending(0) == spool.pending(0)
