"""First answers by key, on an open connection."""

import sqlite3

from ship.ports.store import FirstAnswer, KeyTaken


def find(connection: sqlite3.Connection, scope: str, key: str) -> FirstAnswer | None:
    """The first answer to this key in this scope, if there was one."""
    row = connection.execute(
        "SELECT scope, key, fingerprint, answer FROM idempotency WHERE scope = ? AND key = ?", (scope, key)
    ).fetchone()
    return FirstAnswer(*row) if row else None


def keep(connection: sqlite3.Connection, first: FirstAnswer, at_ms: int) -> None:
    """Keep the answer.

    Raises:
        KeyTaken: the key has one.
    """
    try:
        connection.execute(
            "INSERT INTO idempotency (scope, key, fingerprint, answer, at_ms) VALUES (?, ?, ?, ?, ?)",
            (*first, at_ms),
        )
    except sqlite3.IntegrityError as error:
        raise KeyTaken(f"the key {first.key!r} has an answer") from error


def forget_before(connection: sqlite3.Connection, at_ms: int) -> None:
    """Drop what is older."""
    connection.execute("DELETE FROM idempotency WHERE at_ms < ?", (at_ms,))
