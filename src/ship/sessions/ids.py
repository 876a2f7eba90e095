"""Ids that sort by time: a prefix that names the kind, then 48 bits of milliseconds and 80 random bits in base 32."""

import os
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]


def new_id(prefix: str) -> str:
    """A fresh id like ``ses_01k0…``; 26 characters follow the prefix."""
    number = int(time.time() * 1000) << 80 | int.from_bytes(os.urandom(10))
    return f"{prefix}_" + "".join([_PAIRS[number >> shift & 1023] for shift in range(120, -1, -10)])
