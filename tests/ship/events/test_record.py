"""Records keep their shape: round trips, golden files, refusals."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from ship.errors import InvalidInput, ShipError
from ship.events import FACTS, Cursor, Fact, Record, decode, decode_fact, encode
from ship.events.record import UPCASTERS
from ship.model import AGENT, SYSTEM

GOLDEN = Path(__file__).parents[2] / "golden" / "events"


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.TYPE)
def test_every_version_of_every_type_is_read_from_its_golden_file(fact: type[Fact]) -> None:
    for version in range(1, fact.VERSION + 1):
        line = (GOLDEN / f"{fact.TYPE}.v{version}.json").read_bytes().strip()
        record = decode(line)
        assert type(record.fact) is fact
        if version == fact.VERSION:
            assert encode(record) == line


def test_every_golden_file_belongs_to_a_type() -> None:
    known = {f"{fact.TYPE}.v{version}.json" for fact in FACTS for version in range(1, fact.VERSION + 1)}
    assert {path.name for path in GOLDEN.iterdir()} == known


def test_every_old_version_has_an_upcaster() -> None:
    assert set(UPCASTERS) == {(fact.TYPE, version) for fact in FACTS for version in range(1, fact.VERSION)}


def test_type_names_are_unique_and_in_the_past_tense() -> None:
    names = [fact.TYPE for fact in FACTS]
    assert len(set(names)) == len(names)
    assert all(name.count(".") == 1 and name.islower() for name in names)


def test_a_frame_survives_the_round_trip() -> None:
    fact = decode_fact("task.started", 1, b'{"task_id": "tsk_1"}')
    record = Record(seq=3, at_ms=4, actor=AGENT, fact=fact, frame=Cursor(generation=2, n=9))
    assert decode(encode(record)) == record


def _line(**changes: Any) -> bytes:
    record = Record(
        seq=1, at_ms=1, actor=SYSTEM, fact=decode_fact("task.started", 1, b'{"task_id": "tsk_1"}')
    )
    return msgspec.json.encode({**msgspec.json.decode(encode(record)), **changes})


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"not json", "event_malformed"),
        (b"[]", "event_malformed"),
        (_line(extra=1), "event_malformed"),
        (_line(data={"task_id": "tsk_1", "extra": 1}), "event_malformed"),
        (_line(data={"task_id": 5}), "event_malformed"),
        (_line(data={}), "event_malformed"),
        (_line(type="task.vanished"), "event_unknown"),
        (_line(v=2), "event_unknown"),
        (_line(v=0), "event_unknown"),
    ],
)
def test_what_is_not_a_record_is_refused_with_its_reason(line: bytes, code: str) -> None:
    with pytest.raises(ShipError) as refused:
        decode(line)
    assert (refused.value.code, refused.value.status) == (code, 500), "no fault of who asked for it"


def test_a_fact_that_nobody_knows_is_the_fault_of_who_sent_it() -> None:
    for name, version, code in (
        ("task.vanished", 1, "event_unknown"),
        ("task.started", 1, "event_malformed"),
    ):
        with pytest.raises(InvalidInput) as refused:
            decode_fact(name, version, b"{}")
        assert refused.value.code == code
