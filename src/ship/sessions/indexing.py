"""Lets search find what was said: works off, behind everybody's back, what the appends have left for it."""

import asyncio
import logging

from ship.errors import ShipError
from ship.ports.embeddings import EmbeddingModel
from ship.ports.store import Searchable

BATCH = 32
EMBEDDED = 16
"""A smaller batch, as it is computed while a transaction waits."""
PAUSE_S = 1.0

_log = logging.getLogger("ship.search")


async def keep_indexed(store: Searchable, model: EmbeddingModel | None) -> None:
    """Work until cancelled. Whoever dies meanwhile leaves the rest to the next: a text is indexed and done in one transaction.
    Without a model texts are found by their words alone."""
    while True:
        try:
            more = await store.index(BATCH) == BATCH
            if model:
                more |= await store.embed(model, EMBEDDED) == EMBEDDED
            if more:
                continue
        except ShipError as error:
            _log.warning("texts are indexed later: %s", error)
        await asyncio.sleep(PAUSE_S)
