"""Records: facts as they stand in the log and travel to clients."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ship.errors import InvalidInput, ShipError
from ship.events.facts import FACTS, Fact
from ship.model import Actor, Value

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
"""Turns the data of one version of a type into the data of the next version."""

UPCASTERS: Mapping[tuple[str, int], Upcaster] = {
    ("session.created", 1): lambda data: {**data, "limits": {}, "origin": None, "parent": None},
    ("task.queued", 1): lambda data: {**data, "limits": {}},
    ("child.finished", 1): lambda data: {**data, "usage": {}},
    ("checkpoint.created", 1): lambda data: {**data, "reason": "task", "agent_artifact": "", "parent_id": ""},
}
"""Keyed by (type, version that it reads)."""

_TYPES: Mapping[str, type[Fact]] = {fact.TYPE: fact for fact in FACTS}


class Cursor(Value, frozen=True):
    """Which runner frame an event came in: the sandbox's generation and the frame's number in it."""

    generation: int
    n: int


class Record(Value, frozen=True):
    """One event of one session's log.

    ``seq`` counts from 1 without a gap, ``at_ms`` is when it was appended, ``frame`` is set when it came from the runner.
    """

    seq: int
    at_ms: int
    actor: Actor
    fact: Fact
    frame: Cursor | None = None


class _Wire(Value, frozen=True):
    seq: int
    at_ms: int
    type: str
    v: int
    actor: Actor
    data: msgspec.Raw
    frame: Cursor | None = None


_encoder = msgspec.json.Encoder()
_wire_decoder = msgspec.json.Decoder(_Wire)
_fact_decoders = {name: msgspec.json.Decoder(kind) for name, kind in _TYPES.items()}


def encode(record: Record) -> bytes:
    """The record as one line of JSON: ``{"seq", "at_ms", "type", "v", "actor", "data", "frame"}``.

    The same bytes are stored, answered and published.
    """
    fact = record.fact
    return _encoder.encode(
        _Wire(
            seq=record.seq,
            at_ms=record.at_ms,
            type=fact.TYPE,
            v=fact.VERSION,
            actor=record.actor,
            data=msgspec.Raw(_encoder.encode(fact)),
            frame=record.frame,
        )
    )


def decode(line: bytes | str) -> Record:
    """The record that ``encode`` wrote, by this version of Ship or an older one. Whoever asked for it has done nothing wrong where it
    cannot be read.

    Raises:
        ShipError: ``event_malformed`` when it is not a record, ``event_unknown`` for a type or version that we do not know.
    """
    try:
        wire = _wire_decoder.decode(line)
        fact = decode_fact(wire.type, wire.v, bytes(wire.data))
    except msgspec.DecodeError as error:
        raise ShipError(f"not an event record: {error}", code="event_malformed") from error
    except InvalidInput as error:
        raise ShipError(error.message, code=error.code, hint=error.hint) from error
    return Record(seq=wire.seq, at_ms=wire.at_ms, actor=wire.actor, fact=fact, frame=wire.frame)


def decode_fact(type_name: str, version: int, data: bytes) -> Fact:
    """One fact that somebody sent, from its type, version and JSON data; old versions pass through their upcasters.

    Raises:
        InvalidInput: ``event_malformed``, ``event_unknown``.
    """
    kind = _TYPES.get(type_name)
    if kind is None or version > kind.VERSION or version < 1:
        raise InvalidInput(
            f"unknown event {type_name} version {version}",
            code="event_unknown",
            hint="A newer Ship wrote it: upgrade the one that reads it.",
        )
    try:
        if version == kind.VERSION:
            return _fact_decoders[type_name].decode(data)
        fields = msgspec.json.decode(data, type=dict[str, Any])
        for step in range(version, kind.VERSION):
            fields = UPCASTERS[type_name, step](fields)
        return msgspec.convert(fields, kind)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"malformed {type_name}: {error}", code="event_malformed") from error
