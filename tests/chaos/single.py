"""One node on SQLite."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

from tests.chaos.nodes import Node
from tests.chaos.sandboxes import FolderSandboxHost
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
    sandboxes = folder / "sandboxes"
    sandboxes.mkdir()
    node = Node(folder / "node", sandboxes, environment)
    scene = Scene([node], FolderSandboxHost(sandboxes), SqliteView(node.data / "ship.db"))
    try:
        await scene.start()
        yield scene
    finally:
        await scene.end()
