"""The bus: what was committed, and what is not logged, to everyone who listens, on every node.

Nothing is kept and anything may be lost on the way: the log is the truth, and who sees a gap reads it.
"""

from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol


class Notice(NamedTuple):
    """One thing published on a topic. ``seq`` is 0 for what is not in the log; ``kind`` is an event type, ``delta``, ``summary`` or
    ``head``. A ``head`` notice carries no event: it says that the log has grown to ``seq``."""

    seq: int
    kind: str
    body: bytes


class Listener(Protocol):
    """What one listener has not taken yet, bounded. ``lagged`` is True when something was dropped: whoever reads it clears it
    and reads the log."""

    lagged: bool

    async def take(self, timeout_s: float) -> list[Notice]:
        """All that has come, waiting up to ``timeout_s`` for the first; empty when nothing came."""
        ...


class Bus(Protocol):
    """Topics with listeners. A node has at most one subscription to a topic, shared by all who listen on it there."""

    def publish(self, topic: str, notices: list[Notice]) -> None:
        """Hand the notices to everyone who listens now; never waits, never raises. Listeners of this node get them even when the
        way to other nodes is cut."""
        ...

    def listen(self, topic: str) -> AbstractAsyncContextManager[Listener]:
        """A listener of that topic for as long as the block runs. What this node publishes after the block was entered reaches
        it; what other nodes publish does so as soon as the subscription stands, which is waited for up to a second."""
        ...

    def topics(self) -> list[str]:
        """What is listened to on this node now."""
        ...
