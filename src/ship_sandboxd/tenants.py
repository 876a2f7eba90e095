"""Whose API key is whose: tenants share the host and see nothing of each other.

Keys come from the option `--api-key` (they are those of the tenant `default`) and from a file of the form
`{"tenant": ["sha256:…", "a key in the clear"]}`. Only digests are kept in memory.
"""

import hashlib
import json
import logging
import re
from dataclasses import dataclass
from hmac import compare_digest
from pathlib import Path
from typing import Any

from .errors import SetupError
from .lifecycle.records import DEFAULT_TENANT
from .watched_file import WatchedFile

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_MIN_KEY_LENGTH = 16
_OTHERS_MAY_READ = 0o077
_log = logging.getLogger("ship_sandboxd.tenants")


@dataclass(frozen=True)
class _Key:
    digest: bytes
    tenant: str


class Tenants:
    """`api_key` may be empty when there is a `path`. Raises SetupError `keys_invalid` when the file is of no use."""

    def __init__(self, api_key: str, path: Path | None = None) -> None:
        self._own = [_Key(_digest(api_key), DEFAULT_TENANT)] if api_key else []
        self._file = None
        if path is not None:
            try:
                self._file = WatchedFile(path, "keys", _read)
            except (OSError, ValueError) as error:
                raise SetupError(f"--keys {path}: {error}", "keys_invalid", 2) from error

    def owner(self, key: str) -> str | None:
        """The tenant whose key this is. Takes as long for every key, right or wrong."""
        given, found = _digest(key), None
        for known in [*self._own, *([] if self._file is None else self._file.value)]:
            if compare_digest(given, known.digest):
                found = known.tenant
        return found

    def reload(self) -> None:
        """Read the file again; one that is broken leaves the keys as they were, and is logged."""
        if self._file is not None:
            self._file.reload()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _read(path: Path) -> list[_Key]:
    """The keys of a file. A ValueError says what is wrong with it, and never a key."""
    text = path.read_text()
    try:
        values: Any = json.loads(text)
    except ValueError as error:
        raise ValueError("it is not JSON") from error
    if not isinstance(values, dict):
        raise ValueError('it must be an object of lists, {"tenant": ["sha256:…"]}')
    found: dict[bytes, str] = {}
    for tenant, keys in values.items():
        if not _NAME.fullmatch(tenant):
            raise ValueError(f"{tenant!r} is no name for a tenant: use a-z, 0-9, '_', '.' and '-'")
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise ValueError(f"the keys of {tenant} must be a list of strings")
        for number, key in enumerate(keys, 1):
            digest = _parse_key(key)
            if digest is None:
                raise ValueError(
                    f"key {number} of {tenant} is neither sha256: with 64 hexadecimal digits"
                    f" nor a key of {_MIN_KEY_LENGTH} or more ASCII characters"
                )
            if found.setdefault(digest, tenant) != tenant:
                raise ValueError(f"key {number} of {tenant} is also a key of {found[digest]}")
    in_the_clear = any(not key.startswith("sha256:") for keys in values.values() for key in keys)
    if in_the_clear and path.stat().st_mode & _OTHERS_MAY_READ:
        _log.warning("other users may read the file of keys: make its mode 0600", extra={"path": str(path)})
    return [_Key(digest, tenant) for digest, tenant in found.items()]


def _parse_key(key: str) -> bytes | None:
    match = _DIGEST.fullmatch(key)
    if match is not None:
        return bytes.fromhex(match[1])
    if key.startswith("sha256:") or len(key) < _MIN_KEY_LENGTH or not (key.isascii() and key.isprintable()):
        return None
    return _digest(key)
