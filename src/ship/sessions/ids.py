"""Ids that sort by time: a prefix that names the kind, then 48 bits of milliseconds and 80 random bits in base 32."""

import os
import time

_ALPHABET = b"0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [chr(first) + chr(second) for first in _ALPHABET for second in _ALPHABET]
_LETTERS = _ALPHABET * 8
"""A letter for each byte, as many bytes for each letter."""


def new_id(prefix: str) -> str:
    """A fresh id like ``ses_01k0…``; 26 characters follow the prefix."""
    now_ms = int(time.time() * 1000)
    moment = "".join([_PAIRS[now_ms >> shift & 1023] for shift in (40, 30, 20, 10, 0)])
    return f"{prefix}_{moment}{os.urandom(16).translate(_LETTERS).decode()}"
