"""Many rows by one statement."""

import sqlite3
from collections.abc import Sequence


def write_rows(connection: sqlite3.Connection, statement: str, rows: Sequence[Sequence[object]]) -> None:
    """Run the statement for each row. For none it is not even looked up: of an append's tables, most get nothing."""
    if rows:
        connection.executemany(statement, rows)
