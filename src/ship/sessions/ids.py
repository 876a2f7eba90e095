"""Ids that sort by time: a prefix that names the kind, then 48 bits of milliseconds and 80 random bits in base 32."""

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str) -> str:
    """A fresh id like ``ses_01k0…``; 26 characters follow the prefix."""
    number = int(time.time() * 1000) << 80 | secrets.randbits(80)
    return f"{prefix}_" + "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
