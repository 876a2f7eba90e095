"""A file of settings that is read again when it changes. One that breaks leaves what was read before in force, and is logged."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

Value = TypeVar("Value")
_log = logging.getLogger("ship_sandboxd.watched_file")


class WatchedFile(Generic[Value]):
    """`read` makes the value of the file, and raises OSError or ValueError of one that is of no use; so does this at
    first. `name` is what the log calls it."""

    def __init__(self, path: Path, name: str, read: Callable[[Path], Value]) -> None:
        self._path = path
        self._name = name
        self._read = read
        self._seen: tuple[int, int, int] | None = _state(path)
        self._value = read(path)

    @property
    def value(self) -> Value:
        """What the file says now."""
        try:
            state = _state(self._path)
        except OSError:
            state = None
        if state != self._seen:
            self._seen = state
            self.reload()
        return self._value

    def reload(self) -> None:
        """Read it again, changed or not."""
        try:
            self._seen = _state(self._path)
            self._value = self._read(self._path)
        except (OSError, ValueError) as error:
            reason = {"path": str(self._path), "reason": str(error)}
            _log.error("the file of %s cannot be used: what it said before stays", self._name, extra=reason)
        else:
            _log.info("%s read", self._name)


def _state(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_ino, status.st_size
