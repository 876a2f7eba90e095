"""How much of the host a tenant may have, and how much of its disk stays free.

Quotas come from a file of the form `{"red": {"sandboxes": 20}, "*": {"sandboxes": 5, "disk_mb": 100000}}`, where `*` is every
tenant that has no entry of its own. What is not named is not limited.
"""

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .errors import DiskFull, QuotaExceeded, SetupError
from .watched_file import WatchedFile

MIN_FREE_MB = 1024
_EVERYONE = "*"
_MB = 1024 * 1024


@dataclass(frozen=True)
class Quota:
    """What one tenant may have at the same time; None is no limit. `sandboxes`, `memory_mb` and `disk_mb` count all of its
    sandboxes, running or paused; `templates` those that it has built; `upload_mb` its archives of COPY steps."""

    sandboxes: int | None = None
    memory_mb: int | None = None
    disk_mb: int | None = None
    snapshots: int | None = None
    templates: int | None = None
    upload_mb: int | None = None

    def check(self, what: str, used: int, more: int = 1) -> None:
        """Whether `more` may be added to `used`. Raises QuotaExceeded."""
        limit: int | None = getattr(self, what)
        if limit is not None and used + more > limit:
            raise QuotaExceeded(
                f"this tenant has {used} of {limit} {_WORDS[what]}, and asks for {more} more: "
                "delete some, or ask the operator for more"
            )


KEYS = tuple(field.name for field in fields(Quota))
_WORDS = {
    "sandboxes": "sandboxes",
    "memory_mb": "MB of memory for its sandboxes",
    "disk_mb": "MB of disk for its sandboxes",
    "snapshots": "snapshots",
    "templates": "templates",
    "upload_mb": "MB of uploaded files",
}


class Quotas:
    """`path` is the file, None where nobody is limited. `min_free_mb` of the disk of `data` are for nobody. Raises SetupError
    `quotas_invalid` when the file is of no use."""

    def __init__(self, data: Path, path: Path | None = None, min_free_mb: int = 0) -> None:
        self._data = data
        self._min_free_mb = min_free_mb
        self._file = None
        if path is not None:
            try:
                self._file = WatchedFile(path, "quotas", _read)
            except (OSError, ValueError) as error:
                raise SetupError(f"--quotas {path}: {error}", "quotas_invalid", 2) from error

    def of(self, tenant: str) -> Quota:
        """A tenant's, as the file says now. What the host does by itself, under a name that no tenant can have, is not
        limited."""
        if tenant.startswith(" "):
            return Quota()
        known = {} if self._file is None else self._file.value
        return known.get(tenant) or known.get(_EVERYONE) or Quota()

    def check_room(self, more_mb: int = 0) -> None:
        """Whether the disk has room for anything new, of `more_mb` where its size is known. Raises DiskFull `disk_low`."""
        status = os.statvfs(self._data)
        free_mb = status.f_bavail * status.f_frsize // _MB
        if free_mb - more_mb < self._min_free_mb:
            needed = f" and {more_mb} MB are needed" if more_mb else ""
            raise DiskFull(
                f"the sandbox host's disk has {free_mb} MB left, {self._min_free_mb} MB stay free{needed}: make room on it",
                "disk_low",
            )

    def reload(self) -> None:
        """Read the file again."""
        if self._file is not None:
            self._file.reload()


def _read(path: Path) -> dict[str, Quota]:
    """The quotas of a file. A ValueError says what is wrong with it."""
    try:
        values: Any = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError("it is not JSON") from error
    if not isinstance(values, dict):
        raise ValueError('it must be an object of quotas, {"tenant": {"sandboxes": 20}}')
    return {tenant: _quota(tenant, quota) for tenant, quota in values.items()}


def _quota(tenant: str, values: Any) -> Quota:
    if not isinstance(values, dict) or not set(values) <= set(KEYS):
        raise ValueError(f"the quota of {tenant} must be an object with some of {', '.join(KEYS)}")
    for key, limit in values.items():
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
            raise ValueError(f"{key} of {tenant} must be a whole number from 0 on")
    return Quota(**values)
