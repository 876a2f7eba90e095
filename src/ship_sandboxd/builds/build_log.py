"""What a build says: entries with a time and a level, in one file each, kept while the template is."""

import contextlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

LEVELS = ("debug", "info", "warn", "error")
MAX_ENTRIES = 20_000
MAX_LINE = 4096


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

    @classmethod
    def read(cls, path: Path) -> Self:
        """The log of a build that has ended, or of one that an earlier process was at."""
        entries = []
        if path.is_file():
            for line in path.read_text(errors="replace").splitlines():
                try:
                    entries.append(LogEntry(**json.loads(line)))
                except (ValueError, TypeError):
                    continue  # a line that a crash or a full disk cut short
        return cls(path, entries)

    def add(self, level: str, message: str, step: str = "") -> None:
        """Say something; past the bound it is left out, but for errors. A disk that is full does not stop a build from
        saying how it ends."""
        if len(self.entries) > MAX_ENTRIES and level != "error":
            return
        if len(self.entries) == MAX_ENTRIES:
            message = "the log is too long: what follows is left out"
        entry = LogEntry(time.time(), level, message[:MAX_LINE], step)
        self.entries.append(entry)
        with contextlib.suppress(OSError), self._path.open("a") as file:
            file.write(json.dumps(asdict(entry)) + "\n")


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
