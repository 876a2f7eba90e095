"""What a person reads of one sandbox: the host's log of it and that of its daemon, in one order of time."""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..isolation import daemon_log

LEVELS = ("debug", "info", "warn", "error")
_LEVEL_NAMES = {"warning": "warn", "critical": "error"}
_HOST_FILES = ("log.1.jsonl", "log.jsonl", "egress.1.jsonl", "egress.jsonl")
_DAEMON_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) ([A-Z]+) (\S+) (.*)")
_MAX_FILE_BYTES = 1024 * 1024
_MAX_LINES = 50_000
_MAX_LINE = 4096


@dataclass(frozen=True)
class Entry:
    """`time_ms` since 1970; `level` is one of LEVELS; `logger` says who tells it, `host` or `envd`."""

    time_ms: int
    level: str
    logger: str
    message: str
    fields: dict[str, str]


def read(folder: Path, started_at: float) -> list[Entry]:
    """Every line that is kept in a sandbox's folder, oldest first. `started_at` is when the sandbox started, in seconds
    since 1970: the time of what the daemon said before it told any."""
    found = [entry for name in _HOST_FILES for entry in _host_entries(folder / name)]
    found += _daemon_entries(folder / daemon_log.FILE_NAME, int(started_at * 1000))
    return sorted(found, key=lambda entry: entry.time_ms)


def _host_entries(path: Path) -> Iterator[Entry]:
    for line in _tail(path):
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            values = json.loads(line)
            values.pop("sandbox", None)
            yield Entry(
                _milliseconds(values.pop("time")),
                _level(str(values.pop("level", "warning"))),
                "host",
                str(values.pop("event", "egress refused")),
                {
                    key: value if isinstance(value, str) else json.dumps(value)
                    for key, value in values.items()
                },
            )


def _daemon_entries(path: Path, time_ms: int) -> Iterator[Entry]:
    for line in _tail(path):
        match = _DAEMON_LINE.fullmatch(line)
        if match is None:
            yield Entry(time_ms, "info", "envd", line, {})
            continue
        day, milliseconds, level, logger, message = match.groups()
        with contextlib.suppress(ValueError):  # digits, and no time all the same
            time_ms = _milliseconds(f"{day}.{milliseconds}+00:00")
        yield Entry(time_ms, _level(level), "envd", message, {"logger": logger})


def _tail(path: Path) -> list[str]:
    """The last lines of a file that may grow while it is read; none of one that is not there."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _MAX_FILE_BYTES))
            data = file.read(_MAX_FILE_BYTES)
    except FileNotFoundError:
        return []
    lines = data.decode(errors="replace").splitlines()
    whole = lines[1:] if size > _MAX_FILE_BYTES else lines
    return [line[:_MAX_LINE] for line in whole[-_MAX_LINES:] if line]


def _milliseconds(moment: Any) -> int:
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment).astimezone(UTC).timestamp()
    return int(moment * 1000)


def _level(name: str) -> str:
    name = name.lower()
    name = _LEVEL_NAMES.get(name, name)
    return name if name in LEVELS else "info"
