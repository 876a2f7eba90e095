"""Two nodes' stores on one database, and what the checks do with them."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ship.errors import ShipError
from ship.ports.store import Append, NewEvent, Store

LATER_MS = 10**12


@dataclass(frozen=True)
class Stores:
    """Two nodes' stores on one database."""

    one: Store
    other: Store


Check = Callable[[Stores], Awaitable[None]]


def append(session_id: str, expected_head: int, *types: str) -> Append:
    """Events whose bodies are their types."""
    return Append(session_id, expected_head, 1, [NewEvent(name, name.encode()) for name in types])


async def kept_seqs(store: Store, session_id: str) -> list[int]:
    return [seq for seq, _ in await store.events(session_id, 0, 9_999)]


async def refusal(call: Awaitable[None]) -> type[ShipError] | None:
    try:
        await call
    except ShipError as error:
        return type(error)
    return None


async def together(*calls: Awaitable[None]) -> list[type[ShipError] | None]:
    return await asyncio.gather(*map(refusal, calls))


async def clear(stores: Stores) -> None:
    """Leave no effect and no alarm to the next check."""
    for effect in await stores.one.claim_effects(10 * LATER_MS, 1, 9_999):
        await stores.one.finish_effect(effect.effect_id)
    for alarm in await stores.one.claim_alarms(10 * LATER_MS, 1, 9_999):
        await stores.one.finish_alarm(alarm)
