"""How many calls one session may have under way: a sandbox is not trusted to be modest."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from ship.errors import ShipError


class TooManyCalls(ShipError):
    """The session has as many calls under way as it may."""

    status = 429
    code = "too_many_calls"


class Slots:
    """Counts what is under way by session; nothing waits."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: Counter[str] = Counter()

    @contextmanager
    def taken(self, session_id: str) -> Iterator[None]:
        """Holds one slot. Raises ``TooManyCalls`` when there is none."""
        if self._taken[session_id] >= self._limit:
            raise TooManyCalls(
                f"this session has {self._limit} calls under way already", hint="Wait for one of them to end."
            )
        self._taken[session_id] += 1
        try:
            yield
        finally:
            self._taken[session_id] -= 1
            if not self._taken[session_id]:
                del self._taken[session_id]
