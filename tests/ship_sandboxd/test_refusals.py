"""What is kept of what was not let out of a sandbox."""

import asyncio
import json
import logging
from collections import Counter
from pathlib import Path

import pytest

from ship_sandboxd.network import refusals
from ship_sandboxd.network.egress import Egress
from ship_sandboxd.network.gateway import Gateway
from ship_sandboxd.network.nameserver import MAX_PENDING, Datagrams, NameServer
from ship_sandboxd.network.refusals import Refusals
from ship_sandboxd.network.rules import Refused, Rules


async def test_a_flood_of_refusals_is_counted_and_kept_within_bounds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counts: Counter[str] = Counter()
    kept = Refusals("s1", tmp_path, counts)
    with caplog.at_level(logging.WARNING):
        for number in range(5000):
            kept.record("TCP", f"1.2.3.4:{number} " + "x" * 5000, Refused("no", kind="address"))
    assert counts == {"address": 5000}
    assert len(caplog.records) == 120
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["egress.1.jsonl", "egress.jsonl"]
    for name in files:
        assert (tmp_path / name).stat().st_size <= refusals.MAX_FILE_BYTES + 1024
    last = json.loads((tmp_path / "egress.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["sandbox"], last["reason"]) == ("egress refused", "s1", "no")
    kept.sum_up()
    kept.sum_up()
    lines = [json.loads(line) for line in (tmp_path / "egress.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines[-2:]] == ["no", "and 3800 more"]
    assert [record.__dict__["reason"] for record in caplog.records[-2:]] == ["no", "and 4880 more"]


async def test_a_flood_that_is_over_is_summed_up_at_the_end_of_its_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "_MINUTE_S", 0.2)
    monkeypatch.setattr(refusals, "_KEPT_A_MINUTE", 130)
    kept = Refusals("s1", tmp_path, Counter())
    for _ in range(150):
        kept.record("TCP", "1.2.3.4:5", Refused("no"))
    async with asyncio.timeout(10):
        while "more" not in (tmp_path / "egress.jsonl").read_text():
            await asyncio.sleep(0.01)
    lines = [json.loads(line) for line in (tmp_path / "egress.jsonl").read_text().splitlines()]
    assert lines[-1]["reason"] == "and 20 more"


async def test_questions_that_are_dropped_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    egress = Egress("s1", Gateway(), Rules(), tmp_path)

    async def never(data: bytes) -> bytes:
        return await asyncio.get_running_loop().create_future()

    server = NameServer(egress)
    monkeypatch.setattr(server, "answer", never)
    datagrams = Datagrams(server)
    for _ in range(MAX_PENDING + 3):
        datagrams.datagram_received(b"a question", ("127.0.0.1", 53))
    lines = [json.loads(line) for line in (tmp_path / "egress.jsonl").read_text().splitlines()]
    assert [(line["method"], line["reason"]) for line in lines] == [
        ("DNS", f"this sandbox has {MAX_PENDING} questions under way already")
    ] * 3
    datagrams.connection_lost(None)


def test_a_disk_that_is_full_does_not_stop_it(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    Refusals("s1", tmp_path / "gone", counts).record("DNS", "a.example", Refused("no"))
    assert counts == {"rule": 1}
