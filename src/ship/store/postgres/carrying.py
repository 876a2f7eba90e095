"""Everything out of a database, or into an empty one, by a connection of its own."""

from collections.abc import AsyncGenerator, AsyncIterable

from ship.errors import Conflict
from ship.ports.store import Page
from ship.store.postgres.pool import Connection
from ship.store.tables import PAGE, QUEUES, TABLES

_HEADS = (
    "INSERT INTO heads (session_id, seq) SELECT session_id, max(seq) FROM events GROUP BY session_id "
    "UNION ALL SELECT session_id, head FROM packed"
)


async def dump(connection: Connection) -> AsyncGenerator[Page, None]:
    """All rows as of now, page by page."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        await _take_time(connection)
        for table, columns in TABLES.items():
            query = f"SELECT {', '.join(columns)} FROM {table}"  # noqa: S608 - names from TABLES
            cursor = await connection.cursor(query)
            while rows := await cursor.fetch(PAGE):
                yield Page(table, [tuple(row) for row in rows])


async def fill(connection: Connection, pages: AsyncIterable[Page]) -> None:
    """All of these rows in one transaction; other nodes wait until it is over."""
    async with connection.transaction():
        await _take_time(connection)
        await connection.execute(
            f"LOCK TABLE {', '.join([*TABLES.keys() - QUEUES.keys(), *QUEUES.values(), 'heads'])} IN EXCLUSIVE MODE"
        )
        for table in TABLES:
            if await connection.fetchrow(f"SELECT 1 FROM {table} LIMIT 1"):  # noqa: S608 - names from TABLES
                raise Conflict("the store is not empty", code="store_not_empty", hint="Name an empty one.")
        async for table, rows in pages:
            await connection.copy_records_to_table(
                QUEUES.get(table, table), records=rows, columns=TABLES[table]
            )
        await connection.execute(_HEADS)


async def _take_time(connection: Connection) -> None:
    """Whoever reads or writes the other end sets the pace."""
    await connection.execute("SET LOCAL statement_timeout = 0")
    await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
