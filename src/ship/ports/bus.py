"""The bus: what was committed, and what is not logged, to everyone who listens, on every node.

Nothing is kept and anything may be lost on the way: the log is the truth, and who sees a gap reads it.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol


class Notice(NamedTuple):
    """One thing published on a topic. ``seq`` is 0 for what is not in the log; ``kind`` is an event type or ``summary``, or one of
    the words below. A ``head`` notice carries no event: it says that the log has grown to ``seq``; it stands in for what was
    too large for the way, or could not be sent."""

    seq: int
    kind: str
    body: bytes


DELTA = "delta"
HEAD = "head"


class Listener(Protocol):
    """What one listener has not taken yet, bounded. ``lagged`` is True when something was dropped: whoever reads it clears it
    and reads the log."""

    lagged: bool

    async def take(self, timeout_s: float) -> list[Notice]:
        """All that has come, waiting up to ``timeout_s`` for the first; empty when nothing came."""
        ...

    def drain(self) -> list[Notice]:
        """All that has come, without waiting."""
        ...

    def on_arrival(self, wake: Callable[[], None]) -> None:
        """Call this whenever something comes and nothing has waited to be taken: for who listens without a task of its own."""
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

    def publish_here(self, topic: str, notices: list[Notice]) -> None:
        """Hand the notices to the listeners of this node alone."""
        ...

    def overhear(self, hear: Callable[[str, list[Notice]], None]) -> None:
        """Call this with all that other nodes publish on topics that are listened to here, before the listeners get it."""
        ...

    def missed(self) -> bool:
        """Whether anything of other nodes may have been missed since the last call; True as long as the way to them is cut."""
        ...
