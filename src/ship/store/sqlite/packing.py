"""Logs that have left for a blob, on an open connection."""

import sqlite3

from ship.ports.store import HeadMoved, Packed, Snapshot
from ship.store.sqlite import log


def pack(connection: sqlite3.Connection, session_id: str, packed: Packed, snapshot: Snapshot) -> None:
    """Put the blob in the place of the rows; nothing happens when that was done before.

    Raises:
        HeadMoved: the log does not end where the blob does.
    """
    if find(connection, session_id) is not None:
        return
    head = log.head(connection, session_id)
    if head != packed.head:
        raise HeadMoved(f"the log of {session_id} ends at {head}, not at {packed.head}")
    connection.execute(
        "INSERT INTO packed (session_id, head, sha256, pages) VALUES (?, ?, ?, ?)", (session_id, *packed)
    )
    log.save_snapshots(connection, {session_id: snapshot})
    connection.execute("DELETE FROM events WHERE session_id = ?", (session_id,))
    connection.execute("DELETE FROM messages WHERE session_id = ?", (session_id,))


def find(connection: sqlite3.Connection, session_id: str) -> Packed | None:
    """Where the session's log is, when it has left."""
    row = connection.execute(
        "SELECT head, sha256, pages FROM packed WHERE session_id = ?", (session_id,)
    ).fetchone()
    return Packed(*row) if row else None
