"""Whether a killed command was killed for want of memory. Only the host can know; here we know when to wait for its word."""

from __future__ import annotations

import asyncio

WORD_TIMEOUT_S = 0.5
_FRESH_S = 2.0


class Memory:
    """The kernel counts its kills of the whole machine where everyone may read. While the count stands still, no kill
    was one of them; when it has moved, the host says whether it was in this sandbox."""

    def __init__(self) -> None:
        self._kills = _kills_of_machine()
        self._told_at = float("-inf")
        self._told = asyncio.Event()

    def tell(self) -> None:
        """The host's word: the kernel has killed something in this sandbox."""
        self._told_at = asyncio.get_running_loop().time()
        self._told.set()

    def is_suspect(self) -> bool:
        """Whether the kernel may have killed something since the last time that this was asked, or just now."""
        before, self._kills = self._kills, _kills_of_machine()
        return self._kills != before or self._is_fresh()

    async def was_short(self) -> bool:
        """Whether the host has said so just now, or says so in a moment."""
        if not self._is_fresh():
            self._told.clear()
            try:
                await asyncio.wait_for(self._told.wait(), WORD_TIMEOUT_S)
            except asyncio.TimeoutError:
                return False
        return True

    def _is_fresh(self) -> bool:
        return asyncio.get_running_loop().time() - self._told_at < _FRESH_S


def _kills_of_machine() -> bytes:
    """The kernel's count of processes killed for want of memory; empty where it tells none."""
    try:
        with open("/proc/vmstat", "rb") as file:
            return file.read().partition(b"\noom_kill ")[2].partition(b"\n")[0]
    except OSError:
        return b""
