"""Logs that have left for a blob, on an open connection."""

from ship.ports.store import HeadMoved, Packed, Snapshot
from ship.store.postgres.pool import Connection


async def pack(connection: Connection, session_id: str, packed: Packed, snapshot: Snapshot) -> None:
    """Put the blob in the place of the rows; nothing happens when that was done before.

    Raises:
        HeadMoved: the log does not end where the blob does.
    """
    async with connection.transaction():
        head = await connection.fetchval("SELECT seq FROM heads WHERE session_id = $1 FOR UPDATE", session_id)
        if await find(connection, session_id) is not None:
            return
        if head != packed.head:
            raise HeadMoved(f"the log of {session_id} ends at {head or 0}, not at {packed.head}")
        await connection.execute(
            "INSERT INTO packed (session_id, head, sha256, pages) VALUES ($1, $2, $3, $4)",
            session_id,
            *packed,
        )
        await connection.execute(
            "INSERT INTO snapshots (session_id, seq, shape, body) VALUES ($1, $2, $3, $4) "
            "ON CONFLICT (session_id) DO UPDATE SET seq = excluded.seq, shape = excluded.shape, body = excluded.body",
            session_id,
            *snapshot,
        )
        await connection.execute("DELETE FROM events WHERE session_id = $1", session_id)
        await connection.execute("DELETE FROM messages WHERE session_id = $1", session_id)


async def find(connection: Connection, session_id: str) -> Packed | None:
    """Where the session's log is, when it has left."""
    row = await connection.fetchrow(
        "SELECT head, sha256, pages FROM packed WHERE session_id = $1", session_id
    )
    return Packed(*row) if row else None
