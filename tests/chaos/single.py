"""One node on SQLite."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

from tests.chaos.scene import Scene


class SqliteView:
    """A ``StoreView`` of a SQLite file that others have open."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def count(self, table: str) -> int:
        """As the protocol says."""
        return await asyncio.to_thread(self._count, table)

    def _count(self, table: str) -> int:
        with contextlib.closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as connection:
            (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        return int(count)


@contextlib.asynccontextmanager
async def single_node(folder: Path, **environment: str) -> AsyncIterator[Scene]:
    """A running node with nobody there yet."""
    scene = Scene(folder, 1, environment, SqliteView(folder / "node0" / "data" / "ship.db"))
    try:
        await scene.start()
        yield scene
    finally:
        await scene.end()
