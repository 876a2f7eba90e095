"""What a build says: entries with a time and a level, in one file each, kept while the template is."""

import contextlib
import json
import time
from dataclasses import asdict, dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Self

LEVELS = ("debug", "info", "warn", "error")
MAX_ENTRIES = 20_000
MAX_BYTES = 4_000_000
"""Of the file. It is passed only by the line that says so, and by that of the error that ends the build."""
MAX_LINE = 4096
_MARGIN_BYTES = 64 * 1024


@dataclass(frozen=True)
class LogEntry:
    """`time` is in seconds since 1970; `step` is `base`, a step's number from 1, or `finalize`."""

    time: float
    level: str
    message: str
    step: str = ""


class BuildLog:
    """The entries of one build, oldest first."""

    def __init__(self, path: Path, entries: list[LogEntry] | None = None) -> None:
        self._path = path
        self.entries = entries or []
        self._file: FileIO | None = None
        self._bytes = 0
        self._full = False

    @classmethod
    def read(cls, path: Path) -> Self:
        """The log of a build that has ended, or of one that an earlier process was at."""
        entries = []
        for line in _lines(path):
            try:
                entries.append(LogEntry(**json.loads(line)))
            except (ValueError, TypeError):
                continue  # a line that a crash or a full disk cut short
        return cls(path, entries)

    def add(self, level: str, message: str, step: str = "") -> None:
        """Say something; past the bounds it is left out, but for errors. A disk that is full does not stop a build from
        saying how it ends."""
        if self._full and level != "error":
            return
        entry = LogEntry(time.time(), level, message[:MAX_LINE], step)
        line = _encoded(entry)
        if not self._full and (len(self.entries) >= MAX_ENTRIES or self._bytes + len(line) > MAX_BYTES):
            self._full = True
            self._keep(replace(entry, level="warn", message="the log is too long: what follows is left out"))
            if level != "error":
                return
        self._keep(entry)

    def close(self) -> None:
        """No more is said."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _keep(self, entry: LogEntry) -> None:
        line = _encoded(entry)
        self.entries.append(entry)
        self._bytes += len(line)
        with contextlib.suppress(OSError):
            if self._file is None:
                self._file = FileIO(self._path, "a")
            self._file.write(line)


def _encoded(entry: LogEntry) -> bytes:
    """One line. Half a surrogate pair, which UTF-8 does not know, is written as JSON's escape of it."""
    return json.dumps(asdict(entry), ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def _lines(path: Path) -> list[bytes]:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + _MARGIN_BYTES).split(b"\n")
    except FileNotFoundError:
        return []


class Lines:
    """The output of a command, cut into the lines of a log."""

    def __init__(self, log: BuildLog, prefix: str, step: str) -> None:
        self._log = log
        self._prefix = prefix
        self._step = step
        self._rest = {"stdout": b"", "stderr": b""}

    def heard(self, kind: str, data: bytes) -> None:
        *lines, rest = (self._rest[kind] + data).replace(b"\r\n", b"\n").split(b"\n")
        for line in lines:
            self._say(kind, line)
        # A progress bar, say, never ends its line.
        while len(rest) > MAX_LINE:
            self._say(kind, rest[:MAX_LINE])
            rest = rest[MAX_LINE:]
        self._rest[kind] = rest

    def end(self) -> None:
        for kind, rest in self._rest.items():
            if rest:
                self._say(kind, rest)
        self._rest = dict.fromkeys(self._rest, b"")

    def _say(self, kind: str, line: bytes) -> None:
        level = "info" if kind == "stdout" else "warn"
        text = line.rpartition(b"\r")[2].decode(errors="replace")
        self._log.add(level, f"{self._prefix} [{kind}]: {text}", self._step)
