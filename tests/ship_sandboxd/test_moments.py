"""Times that a clock which is set anew does not move, and the log of one sandbox."""

import json
import os
import time
from pathlib import Path

import pytest
from conftest import Host, eventually

from ship_sandboxd import journal
from ship_sandboxd.journal import Journal
from ship_sandboxd.moments import Moment


@pytest.mark.parametrize("jump_s", [-1e9, -3600, 3600, 1e9])
def test_a_jump_of_the_wall_clock_moves_nothing(monkeypatch: pytest.MonkeyPatch, jump_s: float) -> None:
    moment = Moment.after(60)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + jump_s)
    assert 59 < moment.left_s <= 60


# Python runs a module of this name first. The clock is set anew by what is written into the file.
CLOCK = """
import pathlib, time
set_by, real = pathlib.Path({path!r}), time.time
time.time = lambda: real() + float(set_by.read_text())
"""


@pytest.mark.system
def test_a_clock_that_is_set_anew_ends_no_sandbox_before_its_time_and_none_after(tmp_path: Path) -> None:
    set_by = tmp_path / "set_by"
    set_by.write_text("0")
    (tmp_path / "sitecustomize.py").write_text(CLOCK.format(path=str(set_by)))
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    host = Host(tmp_path / "host" / "data", ("--spares", "0"), ("env", f"PYTHONPATH={path}"))
    try:
        stays, ends = host.create(timeout=3600), host.create(timeout=3600)
        ends.set_timeout(2)
        set_by.write_text("-1e6")
        eventually(lambda: not ends.is_running(), 10)
        stays.set_timeout(1800)
        set_by.write_text("1e6")
        host.restart(kill=True)
        assert stays.commands.run("echo alive").stdout == "alive\n"
        late = host.create(timeout=60)
        set_by.write_text("0")
        host.restart()
        assert stays.is_running()
        late.set_timeout(1)
        eventually(lambda: not late.is_running(), 10)
    finally:
        host.close()


def test_after_a_reboot_the_wall_clock_is_gone_by() -> None:
    moment = Moment.after(60)
    assert 59 < Moment(moment.wall, 0.0, "another boot").left_s <= 60


def test_a_log_stays_small_and_keeps_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_FILE_BYTES", 2000)
    log = Journal(tmp_path)
    for number in range(100):
        log.write("happened", number=number, text="x" * 10_000 if number == 99 else "")
    lines = log.read()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2 * 2000 + 4096
    assert [line["number"] for line in lines] == list(range(lines[0]["number"], 100))
    assert len(lines[-1]["text"]) == 2048


def test_a_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    log = Journal(tmp_path)
    log.write("whole", level="warning")
    with (tmp_path / journal.FILE_NAME).open("a") as file:
        file.write(json.dumps({"event": "cut"})[:-3])
    assert [(line["event"], line["level"]) for line in log.read()] == [("whole", "warning")]


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    Journal(tmp_path / "nothere").write("happened")
