"""What a build says, line by line, within bounds."""

from pathlib import Path

import pytest

from ship_sandboxd.builds import build_log
from ship_sandboxd.builds.build_log import MAX_LINE, BuildLog, Lines


def messages(log: BuildLog) -> list[tuple[str, str]]:
    return [(entry.level, entry.message) for entry in log.entries]


def test_output_is_cut_into_lines_however_it_comes(tmp_path: Path) -> None:
    log = BuildLog(tmp_path / "log")
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


def test_output_without_an_end_of_line_is_bounded(tmp_path: Path) -> None:
    log = BuildLog(tmp_path / "log")
    lines = Lines(log, "", "1")
    for _ in range(10):
        lines.heard("stdout", b"x" * MAX_LINE)
    assert len(log.entries) == 9
    assert all(len(entry.message) <= MAX_LINE for entry in log.entries)


def test_a_log_that_is_too_long_says_so_and_still_tells_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_log, "MAX_ENTRIES", 3)
    log = BuildLog(tmp_path / "log")
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


def test_a_line_that_a_crash_cut_short_is_left_out(tmp_path: Path) -> None:
    log = BuildLog(tmp_path / "log")
    log.add("info", "whole")
    with (tmp_path / "log").open("a") as file:
        file.write('{"time": 1, "lev')
    assert messages(BuildLog.read(tmp_path / "log")) == [("info", "whole")]
