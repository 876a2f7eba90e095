"""Credentials on an open connection, by the digest of their secret."""

from ship.ports.store import StoredToken
from ship.store.postgres.pool import Connection


async def add(connection: Connection, token: StoredToken) -> None:
    """Keep it, and drop those whose time is over."""
    await connection.execute(
        "WITH over AS (DELETE FROM tokens WHERE expires_at_ms <= $4 AND digest <> $1) "
        "INSERT INTO tokens (digest, kind, name, created_at_ms, expires_at_ms) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
        *token,
    )


async def find(connection: Connection, digest: str, now_ms: int) -> StoredToken | None:
    """The credential of that digest, unless its time is over."""
    row = await connection.fetchrow(
        "SELECT digest, kind, name, created_at_ms, expires_at_ms FROM tokens WHERE digest = $1 AND (expires_at_ms IS NULL OR expires_at_ms > $2)",
        digest,
        now_ms,
    )
    return StoredToken(*row) if row else None


async def remove(connection: Connection, digest: str) -> bool:
    """Revoke it; False when there was none."""
    row = await connection.fetchrow("DELETE FROM tokens WHERE digest = $1 RETURNING digest", digest)
    return row is not None


async def remove_named(connection: Connection, name: str) -> int:
    """Revoke all of that name; returns how many."""
    return len(await connection.fetch("DELETE FROM tokens WHERE name = $1 RETURNING digest", name))


async def of_kind(connection: Connection, kind: str) -> list[StoredToken]:
    """All of that kind, oldest first."""
    rows = await connection.fetch(
        "SELECT digest, kind, name, created_at_ms, expires_at_ms FROM tokens WHERE kind = $1 ORDER BY created_at_ms, digest",
        kind,
    )
    return [StoredToken(*row) for row in rows]


async def secret(connection: Connection, name: str, fresh: str) -> str:
    """The secret of that name that was kept first."""
    await connection.execute("INSERT INTO secrets VALUES ($1, $2) ON CONFLICT DO NOTHING", name, fresh)
    return str(await connection.fetchval("SELECT value FROM secrets WHERE name = $1", name))
