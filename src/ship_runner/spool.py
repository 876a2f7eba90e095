"""The runner's memory on disk: what it has reported and not yet seen acknowledged, and what it must not do twice.

One append-only file. A line is one change, written whole or not at all, so a fact and the note that it was reported can
never come apart:

    <CRC-32 in 8 hex digits> <JSON> LF        {"frame": …?, "key": …?, "notes": …?, "acked": …?, "forget": …?}

A line that does not check out is a torn tail: it and what follows are cut off. The file is rewritten when it has grown.
"""

import asyncio
import errno
import json
import logging
import os
import time
import zlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ship_runner.bounds import bounded
from ship_runner.facts import Fact, wire

log = logging.getLogger(__name__)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True)
class Frame:
    """A numbered fact as it goes over the link."""

    n: int
    text: str


class Spool:
    """Numbered frames until they are acknowledged, keys of what was reported, and notes.

    ``notes`` is a small durable mapping of names to JSON values. Keys make a report idempotent: the second report
    under one key is nothing. ``changed`` is set whenever there are new frames. While the disk is full, ``full`` is
    true and lines are held in memory; they are written as soon as there is room.
    """

    def __init__(self, path: Path, *, compact_bytes: int = 4 << 20, room_bytes: int = 32 << 20) -> None:
        self.path = path
        self.notes: dict[str, Any] = {}
        self.last = 0
        self.acked = 0
        self.full = False
        self.changed = asyncio.Event()
        self._keys: set[str] = set()
        self._frames: deque[Frame] = deque()
        self._bytes = 0
        self._unwritten: deque[bytes] = deque()
        self._compact_bytes = compact_bytes
        self._room_bytes = room_bytes
        self._freed = asyncio.Event()
        self._file = self._open()

    def report(self, fact: Fact, *, key: str = "", notes: Mapping[str, Any] | None = None) -> bool:
        """Keep a fact, cut to its bounds, on disk, before it may be sent. False when ``key`` was reported before."""
        if key and key in self._keys:
            return False
        fact = bounded(fact)
        n = self.last + 1
        at_ms = time.time_ns() // 1_000_000
        frame = {
            "t": "event",
            "n": n,
            "at_ms": at_ms,
            "type": fact.type,
            "v": fact.version,
            "data": fact.data,
        }
        self._write({"frame": frame, "key": key, "notes": dict(notes or {})})
        self.changed.set()
        return True

    def reported(self, key: str) -> bool:
        return key in self._keys

    def note(self, **changes: Any) -> None:
        """Change notes; a value of ``None`` removes one."""
        self._write({"notes": changes})

    def forget_keys(self) -> None:
        """Forget all keys: the work that they belong to has ended."""
        if self._keys:
            self._write({"forget": True})

    def acknowledge(self, n: int) -> None:
        """Everything up to ``n`` is in the log."""
        if n > self.acked:
            self._write({"acked": n})
            self._freed.set()
            if not self._unwritten and self._file.tell() > self._compact_bytes:
                self._compact()

    def pending(self, after: int) -> list[Frame]:
        """The frames with a higher number than ``after``, in order."""
        return [frame for frame in self._frames if frame.n > after]

    @property
    def has_room(self) -> bool:
        """Whether more may be reported without growing beyond bounds while nobody acknowledges."""
        return self._bytes < self._room_bytes

    async def room(self) -> None:
        """Wait until there is room."""
        while not self.has_room:
            self._freed.clear()
            await self._freed.wait()

    def close(self) -> None:
        self._file.close()

    def _write(self, change: dict[str, Any]) -> None:
        self._apply(change)
        body = json.dumps(change, separators=(",", ":"), ensure_ascii=True).encode()
        self._unwritten.append(b"%08x %s\n" % (zlib.crc32(body), body))
        self._flush()

    def _flush(self) -> None:
        """Write what is held, in order; a disk that is full leaves the rest in memory."""
        while self._unwritten:
            start = self._file.tell()
            try:
                if self._file.write(self._unwritten[0]) < len(self._unwritten[0]):
                    raise OSError(errno.ENOSPC, "only a part of the line could be written")
                os.fdatasync(self._file.fileno())
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self._file.seek(start)
                os.ftruncate(self._file.fileno(), start)
                if not self.full:
                    log.error("the disk is full; reports are kept in memory until there is room")
                self.full = True
                return
            self._unwritten.popleft()
        self.full = False

    def _apply(self, change: Mapping[str, Any]) -> None:
        if frame := change.get("frame"):
            self.last = frame["n"]
            text = wire(frame)
            self._frames.append(Frame(frame["n"], text))
            self._bytes += len(text)
        if key := change.get("key"):
            self._keys.add(key)
        if change.get("forget"):
            self._keys.clear()
        self._keys.update(change.get("keys", ()))
        for name, value in change.get("notes", {}).items():
            if value is None:
                self.notes.pop(name, None)
            else:
                self.notes[name] = value
        if acked := change.get("acked"):
            self.acked = max(self.acked, acked)
            self.last = max(self.last, acked)
            while self._frames and self._frames[0].n <= self.acked:
                self._bytes -= len(self._frames.popleft().text)

    def _open(self) -> Any:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        file = os.fdopen(descriptor, "r+b", buffering=0)
        good = 0
        for line in file.read().splitlines(keepends=True):
            change = _checked(line)
            if change is None:
                log.warning("cut a torn tail off the spool at byte %d", good)
                break
            self._apply(change)
            good += len(line)
        os.ftruncate(file.fileno(), good)
        file.seek(good)
        return file

    def _compact(self) -> None:
        """Rewrite the file with only what still matters."""
        changes: list[dict[str, Any]] = [
            {"acked": self.acked, "notes": self.notes, "keys": sorted(self._keys)}
        ]
        changes += [{"frame": json.loads(frame.text)} for frame in self._frames]
        partial = self.path.with_name(f"{self.path.name}.new")
        try:
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                for change in changes:
                    body = json.dumps(change, separators=(",", ":")).encode()
                    file.write(b"%08x %s\n" % (zlib.crc32(body), body))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
        except OSError as error:
            log.warning("could not shorten the spool: %s", error)
            partial.unlink(missing_ok=True)
            return
        folder = os.open(self.path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        self._file.close()
        self._file = self.path.open("r+b", buffering=0)
        self._file.seek(0, os.SEEK_END)


def _checked(line: bytes) -> dict[str, Any] | None:
    """The change in a line, or None when the line is torn."""
    if not line.endswith(b"\n") or line[8:9] != b" ":
        return None
    body = line[9:-1]
    if line[:8] != b"%08x" % zlib.crc32(body):
        return None
    change: dict[str, Any] = json.loads(body)
    return change
