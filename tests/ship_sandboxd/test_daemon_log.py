"""What a daemon says is kept, but never more than a little of it: whoever owns the daemon's program may say a lot."""

import os
import tracemalloc
from pathlib import Path

import pytest
from conftest import Host, eventually

from ship_sandboxd.isolation import daemon_log


def test_the_end_of_a_huge_log_is_read_without_the_rest(tmp_path: Path) -> None:
    with (tmp_path / "envd.log").open("wb") as file:
        file.truncate(300 * 1024 * 1024)
        file.seek(0, 2)
        file.write(b"\n" + b"x" * 1990 + b" at last\n")
    tracemalloc.start()
    try:
        assert daemon_log.last_words(tmp_path).endswith("x at last")
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_of_a_log_that_is_not_there_or_empty_that_is_said(tmp_path: Path) -> None:
    assert daemon_log.last_words(tmp_path) == "nothing was logged"
    (tmp_path / "envd.log").touch()
    assert daemon_log.last_words(tmp_path) == "nothing was logged"


def test_a_log_is_cut_at_a_launch_and_its_end_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "envd.log"
    log.write_bytes(b"line\n" * 1_000_000 + b"the last of before\n")
    with daemon_log.opened(tmp_path) as fd:
        os.write(fd, b"the first of now\n")
    assert log.stat().st_size < daemon_log.MAX_BYTES
    assert log.read_bytes().startswith(b"line\n")
    assert log.read_bytes().endswith(b"line\nthe last of before\nthe first of now\n")


def test_a_short_log_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "envd.log").write_bytes(b"short\n")
    with daemon_log.opened(tmp_path):
        pass
    assert (tmp_path / "envd.log").read_bytes() == b"short\n"


@pytest.mark.system
def test_a_daemon_that_says_a_lot_does_not_fill_the_hosts_disk(host: Host) -> None:
    sandbox = host.create()
    log = host.data / "sandboxes" / sandbox.sandbox_id / "envd.log"
    with log.open("ab") as file:
        for _ in range(20):
            file.write(b"noise\n" * 1_000_000)
    # The end that is kept is written back piece by piece.
    eventually(lambda: log.stat().st_size <= daemon_log.MAX_BYTES and log.read_bytes().endswith(b"noise\n"))
    assert sandbox.commands.run("echo alive").stdout == "alive\n"
