"""The file of a sandbox's record: what is saved is there, and what was there before survives whatever tears the file."""

import errno
import json
import os
from pathlib import Path

import pytest

from ship_sandboxd import durable
from ship_sandboxd.lifecycle import records
from ship_sandboxd.lifecycle.records import FILE_NAME, RecordFile, SandboxRecord
from ship_sandboxd.moments import Moment
from ship_sandboxd.templates import Template


def make_record() -> SandboxRecord:
    return SandboxRecord(
        id="x",
        template="base",
        token="t",
        traffic_token="u",
        started_at=1.0,
        end=Moment.after(60),
        timeout_s=60,
        cpu_count=1,
        memory_mb=512,
        disk_mb=512,
        uid=None,
        made_of=Template("base"),
        metadata={"text": "two\nlines"},
    )


def saved(folder: Path, count: int) -> tuple[SandboxRecord, RecordFile]:
    """A record that was saved so often; its timeout is the number of the last time."""
    record, file = make_record(), RecordFile(folder)
    for number in range(count):
        record.timeout_s = number + 1
        file.save(record)
    return record, file


@pytest.mark.parametrize("count", [1, 2, 100])
def test_the_last_version_is_read(tmp_path: Path, count: int) -> None:
    record, _ = saved(tmp_path, count)
    assert records.load(tmp_path) == record
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_the_file_grows_no_further_than_its_room(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    size = (tmp_path / FILE_NAME).stat().st_size
    saved(tmp_path, 100)
    assert (tmp_path / FILE_NAME).stat().st_size < 1.1 * size, (
        "a line is a little longer or shorter each time"
    )


def test_a_record_that_outgrows_its_room_gets_more(tmp_path: Path) -> None:
    record, file = saved(tmp_path, 2)
    record.metadata["long"] = "y" * 1_000_000
    file.save(record)
    file.save(record)
    assert records.load(tmp_path) == record


def test_another_process_goes_on_where_the_first_one_was(tmp_path: Path) -> None:
    record, _ = saved(tmp_path, 3)
    made = (tmp_path / FILE_NAME).stat().st_ino
    record.timeout_s = 77
    RecordFile(tmp_path).save(record)
    assert records.load(tmp_path) == record
    assert (tmp_path / FILE_NAME).stat().st_ino == made


@pytest.mark.parametrize("filling", ["z", "7", "[", "{}\n", '"', '{"id": "x"}'])
@pytest.mark.parametrize("shift", range(4))
def test_a_line_that_was_torn_anywhere_leaves_the_one_before(
    tmp_path: Path, filling: str, shift: int
) -> None:
    """Blocks of it may reach the disk in any order, and any of them may stay as it was; a tenant says what stands in it."""
    record, file = saved(tmp_path, 2)
    path = tmp_path / FILE_NAME
    before = path.read_bytes()
    record.timeout_s, record.metadata = 3, {"long": "y" * shift + filling * (6000 // len(filling))}
    file.save(record)
    after = path.read_bytes()
    assert len(after) == len(before), "the third line was to be written in place"
    begin, end = len(before.rstrip(b"\n")) + 1, len(after.rstrip(b"\n"))
    assert end - begin > 2 * 512
    blocks = [range(at, min(at + 512, end)) for at in range(begin, end, 512)]
    for lost in blocks:
        torn = bytearray(after)
        torn[lost.start : lost.stop] = b"\n" * len(lost)
        path.write_bytes(torn)
        assert loaded_timeout(tmp_path) == 2
        torn = bytearray(before)
        torn[lost.start : lost.stop] = after[lost.start : lost.stop]
        path.write_bytes(torn)
        assert loaded_timeout(tmp_path) == 2
    path.write_bytes(after)
    assert loaded_timeout(tmp_path) == 3


def loaded_timeout(folder: Path) -> int:
    record = records.load(folder)
    assert record is not None
    return record.timeout_s


def test_a_save_that_fails_leaves_the_version_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, file = saved(tmp_path, 2)
    record.timeout_s = 3
    with monkeypatch.context() as broken:

        def fail(fd: int) -> None:
            raise OSError(errno.EIO, "the disk is gone")

        broken.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError, match="the disk is gone"):
            file.save(record)
    assert loaded_timeout(tmp_path) == 2
    file.save(record)
    assert loaded_timeout(tmp_path) == 3


def test_nothing_is_saved_where_the_folder_has_gone(tmp_path: Path) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    record, file = saved(folder, 2)
    folder.rename(tmp_path / "gone")
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            file.save(record)
    assert not folder.exists()


def test_the_file_of_an_earlier_version_is_one_line(tmp_path: Path) -> None:
    record, _ = saved(tmp_path, 1)
    values = records.last_version((tmp_path / FILE_NAME).read_bytes())
    (tmp_path / FILE_NAME).write_text(json.dumps(values))
    assert records.load(tmp_path) == record


@pytest.mark.parametrize(
    "content", [None, "", "\n\n", "{", json.dumps({"id": "x", "new_field": 1}), "7", "[]"]
)
def test_what_is_no_record_is_not_taken_for_one(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / FILE_NAME).write_text(content)
    assert records.load(tmp_path) is None


def test_a_write_that_is_cut_short_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems need room even to overwrite."""
    record, file = saved(tmp_path, 2)
    record.timeout_s = 3
    whole = os.pwrite
    with monkeypatch.context() as broken:
        broken.setattr(os, "pwrite", lambda fd, data, at: whole(fd, data[:100], at))
        with pytest.raises(OSError, match="No space left"):
            file.save(record)
    assert loaded_timeout(tmp_path) == 2
    file.save(record)
    assert loaded_timeout(tmp_path) == 3


def test_a_new_file_is_known_to_its_folder_before_anything_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is saved later commits data alone: a power cut must not find the folder without the file."""
    synced = []
    monkeypatch.setattr(durable, "sync", lambda path: synced.append((path, (path / FILE_NAME).exists())))
    saved(tmp_path, 2)
    assert synced == [(tmp_path, True)]


def test_the_room_of_a_large_record_is_bounded(tmp_path: Path) -> None:
    record = make_record()
    record.metadata["long"] = "y" * 1_000_000
    RecordFile(tmp_path).save(record)
    assert (tmp_path / FILE_NAME).stat().st_size < 1_500_000
