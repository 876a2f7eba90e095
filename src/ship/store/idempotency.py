"""First answers by key, on an open connection."""

import sqlite3

from ship.errors import Conflict


def find(connection: sqlite3.Connection, scope: str, key: str, fingerprint: str) -> bytes | None:
    """The first answer to this key in this scope, if there was one.

    Raises:
        Conflict: ``idempotency_key_reused`` when the key came with another request.
    """
    row = connection.execute(
        "SELECT fingerprint, answer FROM idempotency WHERE scope = ? AND key = ?", (scope, key)
    ).fetchone()
    if row is None:
        return None
    if row["fingerprint"] != fingerprint:
        raise Conflict(
            "this Idempotency-Key came with another request before",
            code="idempotency_key_reused",
            hint="Use a new key for a new request.",
        )
    answer: bytes = row["answer"]
    return answer


def keep(
    connection: sqlite3.Connection, scope: str, key: str, fingerprint: str, answer: bytes, now_ms: int
) -> None:
    """Keep the answer."""
    connection.execute(
        "INSERT INTO idempotency (scope, key, fingerprint, answer, at_ms) VALUES (?, ?, ?, ?, ?)",
        (scope, key, fingerprint, answer, now_ms),
    )


def forget_before(connection: sqlite3.Connection, at_ms: int) -> None:
    """Drop what is older."""
    connection.execute("DELETE FROM idempotency WHERE at_ms < ?", (at_ms,))
