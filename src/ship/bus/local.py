"""The bus in one process: publish after commit, listen with a bounded buffer."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from ship.ports.bus import Notice

BUFFER = 2_000
BUFFER_BYTES = 4 * 1024**2


class BoundedListener:
    """A ``Listener`` whose buffer is dropped when it is too slow."""

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
        """As the port says."""
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
    """A ``Bus`` within one process."""

    def __init__(self) -> None:
        self._topics: dict[str, set[BoundedListener]] = {}

    def publish(self, topic: str, notices: list[Notice]) -> None:
        """As the port says."""
        self.publish_here(topic, notices)

    def publish_here(self, topic: str, notices: list[Notice]) -> None:
        """As the port says."""
        for listener in self._topics.get(topic, ()):
            for notice in notices:
                listener.put(notice)

    @asynccontextmanager
    async def listen(self, topic: str) -> AsyncIterator[BoundedListener]:
        """As the port says."""
        listener = BoundedListener()
        self._topics.setdefault(topic, set()).add(listener)
        try:
            yield listener
        finally:
            listeners = self._topics[topic]
            listeners.discard(listener)
            if not listeners:
                del self._topics[topic]

    def topics(self) -> list[str]:
        """As the port says."""
        return list(self._topics)

    def overhear(self, hear: Callable[[str, list[Notice]], None]) -> None:
        """As the port says: there is no other node."""

    def missed(self) -> bool:
        """As the port says: there is no other node."""
        return False
