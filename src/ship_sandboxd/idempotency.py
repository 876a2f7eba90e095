"""One answer for one Idempotency-Key, however often a client asks."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from .errors import Conflict

_KEPT = 10_000
Value = TypeVar("Value")


class Idempotency(Generic[Value]):
    """Remembers the last 10,000 keys. A request that failed may be tried again under its key."""

    def __init__(self) -> None:
        self._answers: OrderedDict[str, tuple[str, asyncio.Future[Value]]] = OrderedDict()

    def remember(self, key: str, digest: str, value: Value) -> None:
        answer: asyncio.Future[Value] = asyncio.get_running_loop().create_future()
        answer.set_result(value)
        self._answers[key] = (digest, answer)

    async def once(self, key: str, digest: str, make: Callable[[], Awaitable[Value]]) -> Value:
        """Make the value, or give the one that was made. Raises Conflict when the key stands for another request."""
        known = self._answers.get(key)
        if known is not None:
            if known[0] != digest:
                raise Conflict("this Idempotency-Key was used for another request")
            return await asyncio.shield(known[1])
        task = asyncio.ensure_future(make())
        self._answers[key] = (digest, task)
        while len(self._answers) > _KEPT:
            self._answers.popitem(last=False)
        try:
            return await asyncio.shield(task)
        finally:
            if task.done() and (task.cancelled() or task.exception() is not None):
                self._answers.pop(key, None)
