"""What a build says, line by line, within bounds."""

import contextlib
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from ship_sandboxd.builds import build_log
from ship_sandboxd.builds.build_log import MAX_LINE, BuildLog, Lines


@pytest.fixture
def log(tmp_path: Path) -> Iterator[BuildLog]:
    with contextlib.closing(BuildLog(tmp_path / "log")) as log:
        yield log


def messages(log: BuildLog) -> list[tuple[str, str]]:
    return [(entry.level, entry.message) for entry in log.entries]


def test_output_is_cut_into_lines_however_it_comes(log: BuildLog, tmp_path: Path) -> None:
    lines = Lines(log, "[1/2]", "1")
    for kind, data in (
        ("stdout", b"fir"),
        ("stderr", b"oops\r\n"),
        ("stdout", b"st\nsecond\n10%\r50%\r100%\nend"),
    ):
        lines.heard(kind, data)
    lines.end()
    lines.end()
    assert messages(log) == [
        ("warn", "[1/2] [stderr]: oops"),
        ("info", "[1/2] [stdout]: first"),
        ("info", "[1/2] [stdout]: second"),
        ("info", "[1/2] [stdout]: 100%"),
        ("info", "[1/2] [stdout]: end"),
    ]
    assert messages(BuildLog.read(tmp_path / "log")) == messages(log)


def test_output_without_an_end_of_line_is_bounded(log: BuildLog) -> None:
    lines = Lines(log, "", "1")
    for _ in range(10):
        lines.heard("stdout", b"x" * MAX_LINE)
    assert len(log.entries) == 9
    assert all(len(entry.message) <= MAX_LINE for entry in log.entries)


def test_a_log_that_is_too_long_says_so_and_still_tells_errors(
    log: BuildLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_log, "MAX_ENTRIES", 3)
    for number in range(10):
        log.add("info", str(number))
    log.add("error", "the end")
    assert [message for _, message in messages(log)] == [
        "0",
        "1",
        "2",
        "the log is too long: what follows is left out",
        "the end",
    ]


def test_a_disk_that_takes_no_more_loses_the_file_and_not_the_words(tmp_path: Path) -> None:
    log = BuildLog(tmp_path / "gone" / "log")
    log.add("error", "why it failed")
    assert messages(log) == [("error", "why it failed")]


def test_a_line_that_a_crash_cut_short_is_left_out(log: BuildLog, tmp_path: Path) -> None:
    log.add("info", "whole")
    with (tmp_path / "log").open("a") as file:
        file.write('{"time": 1, "lev')
    assert messages(BuildLog.read(tmp_path / "log")) == [("info", "whole")]


def test_a_log_takes_no_more_than_its_bytes_whatever_the_words(log: BuildLog, tmp_path: Path) -> None:
    for _ in range(2_000):
        log.add("info", "\N{GRINNING FACE}" * MAX_LINE)
    log.add("error", "the end")
    said = messages(log)
    assert said[-2:] == [("warn", "the log is too long: what follows is left out"), ("error", "the end")]
    assert 200 < len(said) < 300
    assert (tmp_path / "log").stat().st_size < build_log.MAX_BYTES + 1000
    assert messages(BuildLog.read(tmp_path / "log")) == said


def test_every_character_is_read_as_it_was_said(log: BuildLog, tmp_path: Path) -> None:
    odd = "\u2028 \x85 \x1c \x00 \n \ud800 \N{GRINNING FACE}"
    log.add("info", odd)
    assert messages(BuildLog.read(tmp_path / "log")) == [("info", odd)]


def test_of_a_file_that_is_larger_than_a_log_can_be_only_so_much_is_read(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        file.write(b'{"time": 1, "level": "info", "message": "first"}\n')
        file.truncate(300 * 1024 * 1024)
    tracemalloc.start()
    try:
        assert messages(BuildLog.read(tmp_path / "log")) == [("info", "first")]
        assert tracemalloc.get_traced_memory()[1] < 3 * build_log.MAX_BYTES
    finally:
        tracemalloc.stop()
