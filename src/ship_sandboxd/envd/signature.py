"""Signed URLs of files: `v1_` and the unpadded base64 of sha256("path:operation:user:token[:expiry]")."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping

OPERATIONS = {"GET": "read", "HEAD": "read", "POST": "write"}


def is_signed(query: Mapping[str, str], method: str, token: str) -> bool:
    """Whether a URL's query carries the signature of a sandbox's token. Its expiry is not looked at."""
    import hashlib  # it takes milliseconds to load, and most sandboxes never see a signed URL
    from hmac import compare_digest

    expiry = query.get("signature_expiration", "")
    parts = [query.get("path", ""), OPERATIONS.get(method, ""), query.get("username", ""), token]
    text = ":".join(parts + ([expiry] if expiry else []))
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
    return compare_digest(query.get("signature", "").encode(), b"v1_" + digest)


def is_valid(query: Mapping[str, str], method: str, token: str) -> bool:
    """Whether a URL's query is signed, and not too late."""
    return is_signed(query, method, token) and not has_expired(query)


def has_expired(query: Mapping[str, str]) -> bool:
    expiry = query.get("signature_expiration", "")
    return bool(expiry) and not (expiry.isascii() and expiry.isdigit() and int(expiry) >= time.time())
