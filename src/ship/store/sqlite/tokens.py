"""Credentials on an open connection, by the digest of their secret."""

import sqlite3

from ship.ports.store import StoredToken


def add(connection: sqlite3.Connection, token: StoredToken) -> None:
    """Keep it, and drop those whose time is over."""
    connection.execute("DELETE FROM tokens WHERE expires_at_ms <= ?", (token.created_at_ms,))
    connection.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?)", token)


def find(connection: sqlite3.Connection, digest: str, now_ms: int) -> StoredToken | None:
    """The credential of that digest, unless its time is over."""
    row = connection.execute(
        "SELECT * FROM tokens WHERE digest = ? AND (expires_at_ms IS NULL OR expires_at_ms > ?)",
        (digest, now_ms),
    ).fetchone()
    return StoredToken(*row) if row else None


def remove(connection: sqlite3.Connection, digest: str) -> bool:
    """Revoke it; False when there was none."""
    return connection.execute("DELETE FROM tokens WHERE digest = ?", (digest,)).rowcount > 0


def remove_named(connection: sqlite3.Connection, name: str) -> int:
    """Revoke all of that name; returns how many."""
    return connection.execute("DELETE FROM tokens WHERE name = ?", (name,)).rowcount


def listed(connection: sqlite3.Connection, kind: str) -> list[StoredToken]:
    """All of that kind, oldest first."""
    rows = connection.execute("SELECT * FROM tokens WHERE kind = ? ORDER BY created_at_ms, digest", (kind,))
    return [StoredToken(*row) for row in rows]


def secret(connection: sqlite3.Connection, name: str, fresh: str) -> str:
    """The secret of that name that was kept first."""
    connection.execute("INSERT INTO secrets VALUES (?, ?) ON CONFLICT DO NOTHING", (name, fresh))
    (kept,) = connection.execute("SELECT value FROM secrets WHERE name = ?", (name,)).fetchone()
    return str(kept)
