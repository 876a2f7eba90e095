"""Who works on a database: one node that has it for itself, or any number that share everything else, too.

Each holds an advisory lock on a connection of its own, which a node that dies lets go of by itself.
"""

import asyncio
import logging

from ship.errors import ConfigurationError
from ship.store.postgres.pool import ERRORS, Connection, connect

PLACE = 0x5368_6970
"""The first half of the lock's name; the other is that of the schema."""
WAIT_S = 5.0
"""How long a place that is taken is waited for: its holder may just have died."""
EVERY_S = 1.0

_log = logging.getLogger("ship.store")


class Membership:
    """The place of this node, kept until ``close``."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._call = ""
        self._connection: Connection | None = None
        self._keeping: asyncio.Task[None] | None = None

    async def take(self, *, alone: bool) -> None:
        """Raises ConfigurationError (``data_in_use``)."""
        self._call = "pg_try_advisory_lock" if alone else "pg_try_advisory_lock_shared"
        deadline_s = asyncio.get_running_loop().time() + WAIT_S
        while not await self._try():
            if asyncio.get_running_loop().time() > deadline_s:
                raise ConfigurationError(
                    "another node works on this database, and one of the two does not share everything",
                    code="data_in_use",
                    hint="Nodes that share a database need `bus`, `blobs` and `sandboxes.api_url`, each of them; "
                    'docs/operations.md, "More than one node".',
                )
            await asyncio.sleep(0.1)
        self._keeping = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Give it up."""
        if self._keeping:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if self._connection:
            self._connection.terminate()

    async def _try(self) -> bool:
        connection = await connect(self._url)
        query = f"SELECT {self._call}($1, hashtext(current_schema()))"
        if not await connection.fetchval(query, PLACE):
            await connection.close()
            return False
        self._connection = connection
        return True

    async def _keep(self) -> None:
        """Take it again whenever the connection has broken."""
        while True:
            await asyncio.sleep(EVERY_S)
            if self._connection and not self._connection.is_closed():
                continue
            try:
                if not await self._try():
                    _log.error("another node has taken this database while it was away from us")
            except (*ERRORS, ConfigurationError) as error:
                _log.warning("the node's place on the database is not back yet: %s", error)
