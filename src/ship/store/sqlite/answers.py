"""First answers by key, on an open connection."""

import sqlite3

from ship.ports.store import FirstAnswer

FAR_AHEAD_MS = 30 * 86_400_000
"""An answer that is so much younger than what is forgotten was written while the clock was wrong."""


def find(connection: sqlite3.Connection, scope: str, key: str) -> FirstAnswer | None:
    """The first answer to this key in this scope, if there was one."""
    row = connection.execute(
        "SELECT scope, key, fingerprint, answer FROM idempotency WHERE scope = ? AND key = ?", (scope, key)
    ).fetchone()
    return FirstAnswer(*row) if row else None


def keep(connection: sqlite3.Connection, first: FirstAnswer, at_ms: int) -> bool:
    """Keep the answer; False when the key has one."""
    added = connection.execute(
        "INSERT OR IGNORE INTO idempotency (scope, key, fingerprint, answer, at_ms) VALUES (?, ?, ?, ?, ?)",
        (*first, at_ms),
    )
    return added.rowcount > 0


def forget_before(connection: sqlite3.Connection, at_ms: int) -> None:
    """Drop what is older: from the first, which came first, up to one that is not. One of a clock that was far ahead does not count."""
    connection.execute(
        "DELETE FROM idempotency WHERE id < coalesce("
        "(SELECT id FROM idempotency WHERE at_ms BETWEEN ? AND ? ORDER BY id LIMIT 1), (SELECT max(id) + 1 FROM idempotency))",
        (at_ms, at_ms + FAR_AHEAD_MS),
    )
