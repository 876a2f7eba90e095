"""What sandboxes use of the machine: sampled every 5 seconds for all of them, and kept for an hour.

Memory and processor time are those of the sandbox's cgroup, or of its processes where there is no cgroup; the disk is
that which its root lies on.
"""

import asyncio
import contextlib
import logging
import os
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..lifecycle.records import SandboxRecord

INTERVAL_S = 5.0
DISK_IMAGE = "disk.img"
_KEPT = 720
_PACKED = struct.Struct("<dfQQQQ")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_log = logging.getLogger("ship_sandboxd.telemetry.usage")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Sample:
    """`time` in seconds since 1970; `cpu_pct` of all the processors that the sandbox may use, 0 to 100; sizes in bytes,
    `memory_used` without `memory_cache`."""

    time: float
    cpu_pct: float
    memory_used: int
    memory_cache: int
    disk_used: int
    disk_total: int


class Usage:
    """`current` gives the sandboxes that there are: their records and folders."""

    def __init__(self, current: Callable[[], Iterable[tuple[SandboxRecord, Path]]]) -> None:
        self._current = current
        self._rings: dict[str, _Ring] = {}

    async def run(self) -> None:
        """Sample for ever."""
        while True:
            found = list(self._current())
            self._rings = {record.id: self._ring(record) for record, _ in found}
            try:
                await asyncio.to_thread(self._sample, found)
            except (OSError, ValueError):
                _log.exception("the use of sandboxes cannot be read")
            await asyncio.sleep(INTERVAL_S)

    async def samples(self, record: SandboxRecord, folder: Path) -> list[Sample]:
        """Those of a sandbox, oldest first; the first one is taken now, if there is none yet."""
        ring = self._ring(record)
        if not ring.packed:
            await asyncio.to_thread(ring.add, record, folder)
        return [Sample(*_PACKED.unpack(packed)) for packed in ring.packed]

    def _ring(self, record: SandboxRecord) -> "_Ring":
        return self._rings.setdefault(record.id, _Ring())

    def _sample(self, found: list[tuple[SandboxRecord, Path]]) -> None:
        for record, folder in found:
            self._ring(record).add(record, folder)


class _Ring:
    def __init__(self) -> None:
        self.packed: deque[bytes] = deque(maxlen=_KEPT)
        self._last: tuple[float, float] | None = None

    def add(self, record: SandboxRecord, folder: Path) -> None:
        """Take a sample; none of a sandbox that has no processes at the moment."""
        if record.init is None or not record.init.alive:
            return
        with contextlib.suppress(OSError):  # it ended while we were looking
            now = time.monotonic()
            seconds, used, cache = _of_cgroups(record.cgroups) or _of_processes(record.init.pid)
            since, before = self._last or (now - max(0.001, time.time() - record.started_at), 0.0)
            share = max(0.0, seconds - before) / max(now - since, 0.001) / record.cpu_count
            self._last = (now, seconds)
            disk = _disk(record.init.pid, folder)
            self.packed.append(
                _PACKED.pack(time.time(), min(100.0, 100.0 * share), used, cache, disk[0], disk[1])
            )


def _of_cgroups(folders: list[str]) -> tuple[float, int, int] | None:
    """(processor seconds, bytes in use without the cache, bytes of cache); None where no cgroup tells both."""
    seconds = memory = None
    for folder in map(Path, folders):
        if seconds is None:
            seconds = _processor_seconds(folder)
        if memory is None:
            memory = _memory(folder)
    return None if seconds is None or memory is None else (seconds, *memory)


def _processor_seconds(folder: Path) -> float | None:
    with contextlib.suppress(FileNotFoundError):
        return int((folder / "cpuacct.usage").read_text()) / 1e9
    with contextlib.suppress(FileNotFoundError):
        # Version 1 has a file of this name as well, which says nothing of this.
        spent_us = _fields(folder / "cpu.stat").get("usage_usec")
        return None if spent_us is None else spent_us / 1e6
    return None


def _memory(folder: Path) -> tuple[int, int] | None:
    for current, cache_field in (("memory.usage_in_bytes", "total_cache"), ("memory.current", "file")):
        with contextlib.suppress(FileNotFoundError):
            total = int((folder / current).read_text())
            cache = min(total, _fields(folder / "memory.stat").get(cache_field, 0))
            return total - cache, cache
    return None


def _fields(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value in (line.split() for line in path.read_text().splitlines())}


def _of_processes(init: int) -> tuple[float, int, int]:
    """The same of process 1 of the sandbox and all its descendants; what has ended is counted with who waited for it."""
    ticks = pages = 0
    for pid in _tree(init):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(field) for field in fields[11:15])
            pages += int(fields[21])
    return ticks / _TICKS_PER_S, pages * _PAGE_BYTES, 0


def _tree(pid: int) -> Iterator[int]:
    waiting = [pid]
    while waiting:
        yield (pid := waiting.pop())
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())


def _disk(init: int, folder: Path) -> tuple[int, int]:
    """(used, total) of the disk that its root lies on; of the host's, where sandboxes have none of their own."""
    image = folder / DISK_IMAGE
    try:
        size = image.stat()
    except FileNotFoundError:
        return _filled(folder)
    with contextlib.suppress(OSError):
        used, total = _filled(Path(f"/proc/{init}/root"))
        if 0 < total <= size.st_size:
            return used, total
    # Behind a kernel of its own the root is not to be seen from here: what the image takes up is.
    return size.st_blocks * 512, size.st_size


def _filled(place: Path) -> tuple[int, int]:
    status = os.statvfs(place)
    return (status.f_blocks - status.f_bfree) * status.f_frsize, status.f_blocks * status.f_frsize
