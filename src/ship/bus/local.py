"""The bus in one process: publish after commit, listen with a bounded buffer."""

import asyncio
import contextlib
from collections.abc import Callable

from ship.ports.bus import Notice

BUFFER = 2_000
BUFFER_BYTES = 4 * 1024**2


class BoundedListener:
    """A ``Listener`` whose buffer is dropped when it is too slow."""

    __slots__ = ("_notices", "_size_bytes", "_wake", "lagged")

    def __init__(self) -> None:
        self._notices: list[Notice] = []
        self._size_bytes = 0
        self._wake: Callable[[], None] | None = None
        self.lagged = False

    def put(self, notices: list[Notice]) -> None:
        """Give it notices; never waits."""
        empty = not self._notices
        for notice in notices:
            if len(self._notices) >= BUFFER or self._size_bytes > BUFFER_BYTES:
                self.drain()
                self.lagged = True
            self._notices.append(notice)
            self._size_bytes += len(notice.body)
        if empty and self._notices and self._wake is not None:
            self._wake()

    async def take(self, timeout_s: float) -> list[Notice]:
        """As the port says."""
        if not self._notices:
            arrived = asyncio.Event()
            self._wake = arrived.set
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await arrived.wait()
        return self.drain()

    def drain(self) -> list[Notice]:
        """As the port says."""
        taken, self._notices = self._notices, []
        self._size_bytes = 0
        return taken

    def on_arrival(self, wake: Callable[[], None]) -> None:
        """As the port says."""
        self._wake = wake


class _Listening:
    """A listener among those of its topic. A generator would do, but thousands of them stay open."""

    __slots__ = ("_listener", "_topic", "_topics")

    def __init__(self, topics: dict[str, set[BoundedListener]], topic: str) -> None:
        self._topics = topics
        self._topic = topic
        self._listener = BoundedListener()

    async def __aenter__(self) -> BoundedListener:
        self._topics.setdefault(self._topic, set()).add(self._listener)
        return self._listener

    async def __aexit__(self, *exception: object) -> None:
        listeners = self._topics[self._topic]
        listeners.discard(self._listener)
        if not listeners:
            del self._topics[self._topic]


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
            listener.put(notices)

    def listen(self, topic: str) -> "_Listening":
        """As the port says."""
        return _Listening(self._topics, topic)

    def topics(self) -> list[str]:
        """As the port says."""
        return list(self._topics)

    def overhear(self, hear: Callable[[str, list[Notice]], None]) -> None:
        """As the port says: there is no other node."""

    def missed(self) -> bool:
        """As the port says: there is no other node."""
        return False
