"""`/metrics`: what the processes of the sandbox use, as its own /proc tells."""

from __future__ import annotations

import os
import shutil
import time

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_MIB = 1024 * 1024
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Usage:
    """Memory now, and processor time since the last call."""

    def __init__(self, cpu_count: int, memory_mb: int, folder: str) -> None:
        self._cpu_count = cpu_count
        self._memory_bytes = memory_mb * _MIB
        self._folder = folder
        self._last = (time.monotonic(), _cpu_ticks_and_memory()[0])

    def read(self) -> dict[str, int | float]:
        now, (ticks, memory) = time.monotonic(), _cpu_ticks_and_memory()
        elapsed, spent = now - self._last[0], (ticks - self._last[1]) / _TICKS_PER_S
        self._last = (now, ticks)
        disk = shutil.disk_usage(self._folder)
        return {
            "ts": int(time.time()),
            "cpu_count": self._cpu_count,
            "cpu_used_pct": round(max(0.0, 100 * spent / max(elapsed, 0.001)), 2),
            "mem_total": self._memory_bytes,
            "mem_used": memory,
            "mem_total_mib": self._memory_bytes // _MIB,
            "mem_used_mib": memory // _MIB,
            "disk_total": disk.total,
            "disk_used": disk.used,
        }


def _cpu_ticks_and_memory() -> tuple[int, int]:
    ticks = memory = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue  # it ended while we were looking
            ticks += int(fields[11]) + int(fields[12])
            memory += int(fields[21]) * _PAGE_BYTES
    return ticks, memory
