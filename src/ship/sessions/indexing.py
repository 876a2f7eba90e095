"""Lets search find what was said: works off, behind everybody's back, what the appends have left for it."""

import asyncio
import logging
from typing import Protocol

from ship.errors import ShipError

BATCH = 32
PAUSE_S = 1.0

_log = logging.getLogger("ship.search")


class Index(Protocol):
    """What the indexer needs of a store."""

    async def index(self, limit: int) -> int:
        """As ``Searchable`` says."""
        ...


async def keep_indexed(index: Index) -> None:
    """Work until cancelled. Whoever dies meanwhile leaves the rest to the next: a text is indexed and done in one transaction."""
    while True:
        try:
            if await index.index(BATCH) == BATCH:
                continue
        except ShipError as error:
            _log.warning("texts are indexed later: %s", error)
        await asyncio.sleep(PAUSE_S)
