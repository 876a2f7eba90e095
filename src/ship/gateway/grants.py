"""What a sandbox's session token allows."""

from dataclasses import dataclass
from typing import Protocol

from ship.events.facts import ModelCalled
from ship.model import LimitKind, Repository


@dataclass(frozen=True)
class Grant:
    """Whom a token speaks for. ``task_id`` is the task that runs, or did a moment ago, else empty; ``at_work`` says that there is one which nobody
    is ending. ``limit`` is the limit that it or the task that it works for has reached, ``cost_limited`` says that somebody asked for one of its cost."""

    session_id: str
    generation: int
    task_id: str
    repository: Repository
    limit: LimitKind | None = None
    at_work: bool = True
    cost_limited: bool = False


class Grants(Protocol):
    """Knows every session token and keeps what its bearers used."""

    async def authorize(self, token: str) -> Grant:
        """The grant of a token, which may be empty.

        Raises ``Unauthenticated`` for an unknown token and ``StaleGeneration`` for one of a sandbox that was replaced.
        """
        ...

    async def model_called(self, grant: Grant, call: ModelCalled, call_id: str) -> None:
        """Keeps the account of one model call, once for each id. Raises ``ShipError`` when the session does not take it, or not now."""
        ...
