"""What is kept of what was not let out of a sandbox."""

import json
import logging
from collections import Counter
from pathlib import Path

import pytest

from ship_sandboxd.network import refusals
from ship_sandboxd.network.refusals import Refusals
from ship_sandboxd.network.rules import Refused


def test_a_flood_of_refusals_is_counted_and_kept_within_bounds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counts: Counter[str] = Counter()
    kept = Refusals("s1", tmp_path, counts)
    with caplog.at_level(logging.WARNING):
        for number in range(5000):
            kept.record("TCP", f"1.2.3.4:{number} " + "x" * 5000, Refused("no", kind="address"))
    assert counts == {"address": 5000}
    assert 100 <= len(caplog.records) <= 200
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["egress.1.jsonl", "egress.jsonl"]
    for name in files:
        assert (tmp_path / name).stat().st_size <= refusals.MAX_FILE_BYTES + 1024
    last = json.loads((tmp_path / "egress.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["sandbox"], last["reason"]) == ("egress refused", "s1", "no")


def test_a_disk_that_is_full_does_not_stop_it(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    Refusals("s1", tmp_path / "gone", counts).record("DNS", "a.example", Refused("no"))
    assert counts == {"rule": 1}
