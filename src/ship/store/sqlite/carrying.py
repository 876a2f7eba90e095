"""Everything out of a SQLite file, or into an empty one, by a connection of its own."""

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from pathlib import Path

from ship.errors import Conflict
from ship.ports.store import Page
from ship.store.sqlite.database import unavailable
from ship.store.tables import PAGE, QUEUES, TABLES


async def dump(path: Path) -> AsyncGenerator[Page, None]:
    """All rows as of now, page by page."""
    connection = _connect(path)
    try:
        await asyncio.to_thread(_execute, connection, "BEGIN")
        for table, columns in TABLES.items():
            query = f"SELECT {', '.join(columns)} FROM {table}"  # noqa: S608 - names from TABLES
            cursor = await asyncio.to_thread(connection.execute, query)
            while rows := await asyncio.to_thread(cursor.fetchmany, PAGE):
                yield Page(table, rows)
    finally:
        connection.close()


async def fill(path: Path, pages: AsyncIterable[Page]) -> None:
    """All of these rows in one transaction."""
    connection = _connect(path)
    try:
        await asyncio.to_thread(_execute, connection, "BEGIN IMMEDIATE")
        for table in TABLES:
            if connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone():  # noqa: S608 - names from TABLES
                raise Conflict("the store is not empty", code="store_not_empty", hint="Name an empty one.")
        async for table, rows in pages:
            columns = TABLES[table]
            insert = f"INSERT INTO {QUEUES.get(table, table)} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608 - names from TABLES
            await asyncio.to_thread(_insert, connection, insert, rows)
        await asyncio.to_thread(_execute, connection, "COMMIT")
    except sqlite3.Error as error:
        raise unavailable(error) from error
    finally:
        connection.close()


def _execute(connection: sqlite3.Connection, statement: str) -> None:
    """Keeps the cursor to its thread: one that is dropped late, elsewhere, resets the statement under its next user."""
    connection.execute(statement)


def _insert(connection: sqlite3.Connection, statement: str, rows: Sequence[Sequence[object]]) -> None:
    """As ``_execute``."""
    connection.executemany(statement, rows)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=10, check_same_thread=False)
    connection.execute("PRAGMA synchronous = FULL")
    return connection
