"""The bus in one process: publish after commit, listen with a bounded buffer."""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

BUFFER = 2_000
BUFFER_BYTES = 4 * 1024**2


class Notice(NamedTuple):
    """One thing published on a topic. ``seq`` is 0 for what is not in the log; ``kind`` is an event type or ``delta``."""

    seq: int
    kind: str
    body: bytes


class Listener:
    """What one listener has not taken yet. When it is too slow its buffer is dropped and ``lagged`` says so: the log has it all."""

    def __init__(self) -> None:
        self._notices: deque[Notice] = deque()
        self._size_bytes = 0
        self._wake = asyncio.Event()
        self.lagged = False

    def put(self, notice: Notice) -> None:
        """Give it a notice; never waits."""
        if len(self._notices) >= BUFFER or self._size_bytes > BUFFER_BYTES:
            self._empty()
            self.lagged = True
        self._notices.append(notice)
        self._size_bytes += len(notice.body)
        self._wake.set()

    async def take(self, timeout_s: float) -> list[Notice]:
        """All that has come, waiting up to ``timeout_s`` for the first; empty when nothing came."""
        if not self._notices:
            self._wake.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
            except TimeoutError:
                return []
        taken = list(self._notices)
        self._empty()
        return taken

    def _empty(self) -> None:
        self._notices.clear()
        self._size_bytes = 0


class LocalBus:
    """Topics with listeners. Nothing is kept: a listener that comes late or lags reads the log."""

    def __init__(self) -> None:
        self._topics: dict[str, set[Listener]] = {}

    def publish(self, topic: str, notices: list[Notice]) -> None:
        """Hand the notices to everyone who listens now."""
        for listener in self._topics.get(topic, ()):
            for notice in notices:
                listener.put(notice)

    @contextmanager
    def listen(self, topic: str) -> Iterator[Listener]:
        """A listener of that topic for as long as the block runs."""
        listener = Listener()
        self._topics.setdefault(topic, set()).add(listener)
        try:
            yield listener
        finally:
            listeners = self._topics[topic]
            listeners.discard(listener)
            if not listeners:
                del self._topics[topic]
