"""What a sandbox's session token allows."""

from dataclasses import dataclass
from typing import Protocol

from ship.events.facts import ModelCalled
from ship.model import LimitKind, Repository


@dataclass(frozen=True)
class Grant:
    """Whom a token speaks for. ``task_id`` is the running task, empty when none runs; ``at_work`` says that one does, or did a moment ago.
    ``limit`` is the limit that it has reached, ``cost_limited`` says that its cost has one."""

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

    async def model_called(self, grant: Grant, call: ModelCalled) -> None:
        """Keeps the account of one model call. Raises ``ShipError`` when the session does not take it any more."""
        ...
