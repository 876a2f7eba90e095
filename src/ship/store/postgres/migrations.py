"""Brings the tables of a database up to date: numbered SQL files, each applied once, in order, by whichever node comes first."""

import re
from importlib import resources

from ship.errors import ConfigurationError
from ship.store.postgres.pool import Connection

LOCK = 0x53686970
"""The advisory lock that nodes take in turns while they look after the tables: "Ship"."""


async def migrate(connection: Connection) -> None:
    """Apply what is missing, all or nothing; other nodes wait meanwhile. The table ``schema_version`` says what was applied.

    Raises:
        ConfigurationError: ``data_newer`` when a newer Ship has been at work here.
    """
    steps = _steps()
    async with connection.transaction():
        await connection.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
        await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
        await connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
        version = await connection.fetchval("SELECT max(version) FROM schema_version") or 0
        if version > len(steps):
            raise ConfigurationError(
                f"the database is at version {version}, this Ship knows up to {len(steps)}",
                code="data_newer",
                hint="Start the newer Ship that wrote it.",
            )
        for number, script in enumerate(steps[version:], start=version + 1):
            await connection.execute(script)
            await connection.execute("INSERT INTO schema_version VALUES ($1)", number)


def _steps() -> list[str]:
    folder = resources.files("ship.store.postgres").joinpath("sql")
    files = sorted(
        (item for item in folder.iterdir() if item.name.endswith(".sql")), key=lambda item: item.name
    )
    for position, item in enumerate(files, start=1):
        assert re.match(rf"{position:04d}_", item.name), f"{item.name} is out of order"
    return [item.read_text() for item in files]
