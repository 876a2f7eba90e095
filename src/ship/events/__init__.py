"""Typed, versioned facts, their codec, and the frames that the runner and the control plane exchange."""

from ship.events.facts import FACTS, Fact
from ship.events.record import Cursor, Record, decode, decode_fact, encode

__all__ = ["FACTS", "Cursor", "Fact", "Record", "decode", "decode_fact", "encode"]
