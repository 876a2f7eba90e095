"""Brings the tables of a SQLite file up to date: numbered SQL files, each applied once, in order, in one transaction."""

import re
import sqlite3
from importlib import resources

from ship.errors import ConfigurationError


def migrate(connection: sqlite3.Connection) -> None:
    """Apply what is missing; ``PRAGMA user_version`` says what was applied.

    Raises:
        ConfigurationError: ``data_newer`` when the file was written by a newer Ship.
    """
    steps = _steps()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(steps):
        raise ConfigurationError(
            f"the data folder is at version {version}, this Ship knows up to {len(steps)}",
            code="data_newer",
            hint="Start the newer Ship that wrote it.",
        )
    for number, script in enumerate(steps[version:], start=version + 1):
        connection.executescript(f"BEGIN; {script}; PRAGMA user_version = {number}; COMMIT;")


def _steps() -> list[str]:
    files = [
        item
        for item in resources.files("ship.store.sqlite").joinpath("sql").iterdir()
        if item.name.endswith(".sql")
    ]
    files.sort(key=lambda item: item.name)
    for position, item in enumerate(files, start=1):
        assert re.match(rf"{position:04d}_", item.name), f"{item.name} is out of order"
    return [item.read_text() for item in files]
