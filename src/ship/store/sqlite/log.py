"""The log on an open connection: append, pages, messages, snapshots, the list of sessions."""

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence

from ship.ports.store import PAGE_BYTES, Append, Snapshot, Summary
from ship.store.sqlite.rows import write_rows

_HEAD = "SELECT coalesce((SELECT max(seq) FROM events WHERE session_id = ?), (SELECT head FROM packed WHERE session_id = ?))"


def head(connection: sqlite3.Connection, session_id: str) -> int:
    """The last seq, 0 when there is no such session."""
    (seq,) = connection.execute(_HEAD, (session_id, session_id)).fetchone()
    return seq or 0


def heads(connection: sqlite3.Connection, session_ids: Sequence[str]) -> dict[str, int]:
    """The last seq of each of these that exists."""
    rows = connection.execute(
        "SELECT value, coalesce((SELECT max(seq) FROM events WHERE session_id = value), "
        "(SELECT head FROM packed WHERE session_id = value)) FROM json_each(?)",
        (json.dumps(list(session_ids)),),
    )
    return {session_id: seq for session_id, seq in rows if seq}


def append(connection: sqlite3.Connection, appends: Sequence[Append]) -> None:
    """Append the events of each after its ``expected_head``."""
    write_rows(
        connection,
        "INSERT INTO events (session_id, seq, type, body) VALUES (?, ?, ?, ?)",
        [
            (append.session_id, seq, event.type, event.body)
            for append in appends
            for seq, event in enumerate(append.events, start=append.expected_head + 1)
        ],
    )


def page(
    connection: sqlite3.Connection,
    session_id: str,
    after: int,
    limit: int,
    types: Sequence[str] = (),
    up_to: int | None = None,
) -> list[tuple[int, bytes]]:
    """A page of the log, see ``LogStore.events``."""
    query = "SELECT seq, body FROM events WHERE session_id = ? AND seq > ?"
    values: list[object] = [session_id, after]
    if up_to is not None:
        query += " AND seq <= ?"
        values.append(up_to)
    if types:
        query += f" AND type IN ({', '.join('?' * len(types))})"
        values += types
    return _bounded(connection.execute(f"{query} ORDER BY seq LIMIT ?", (*values, limit)))


def add_messages(connection: sqlite3.Connection, appends: Sequence[Append]) -> None:
    """Index what was said, by the seq of its event."""
    write_rows(
        connection,
        "INSERT INTO messages (session_id, seq, body) VALUES (?, ?, ?)",
        [(append.session_id, said.seq, said.body) for append in appends for said in append.said],
    )


def messages(
    connection: sqlite3.Connection, session_id: str, before: int | None, limit: int
) -> list[tuple[int, bytes]]:
    """The last messages before that seq, newest last, see ``LogStore.messages``."""
    rows = connection.execute(
        "SELECT seq, body FROM messages WHERE session_id = ? AND seq < ? ORDER BY seq DESC LIMIT ?",
        (session_id, before if before is not None else 1 << 62, limit),
    )
    return _bounded(rows)[::-1]


def _bounded(rows: Iterable[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """The first of them, until they have a page's bytes; no more than these are read."""
    page: list[tuple[int, bytes]] = []
    room = PAGE_BYTES
    for seq, body in rows:
        page.append((seq, body))
        room -= len(body)
        if room <= 0:
            break
    return page


def save_snapshots(connection: sqlite3.Connection, snapshots: Mapping[str, Snapshot]) -> None:
    """Keep a folded state of each of these sessions."""
    write_rows(
        connection,
        "INSERT OR REPLACE INTO snapshots (session_id, seq, shape, body) VALUES (?, ?, ?, ?)",
        [(session_id, *snapshot) for session_id, snapshot in snapshots.items()],
    )


def snapshot(connection: sqlite3.Connection, session_id: str, shape: int) -> Snapshot | None:
    """The kept state, unless it has another form."""
    row = connection.execute(
        "SELECT seq, shape, body FROM snapshots WHERE session_id = ? AND shape = ?", (session_id, shape)
    ).fetchone()
    return Snapshot(*row) if row else None


def save_summaries(connection: sqlite3.Connection, summaries: Mapping[str, Summary]) -> None:
    """Write the lines of these sessions in the list."""
    write_rows(
        connection,
        "INSERT INTO sessions (id, status, created_at_ms, body, repository) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (id) DO UPDATE SET status = excluded.status, body = excluded.body",
        [
            (session_id, summary.status, summary.created_at_ms, summary.body, summary.repository)
            for session_id, summary in summaries.items()
        ],
    )


def summaries(
    connection: sqlite3.Connection, status: str | None, before: tuple[int, str] | None, limit: int
) -> list[tuple[int, str, bytes]]:
    """(created_at_ms, id, body), newest first, past the pair ``before`` of a former page."""
    created_at_ms, session_id = before or (1 << 62, "")
    rows = connection.execute(
        "SELECT created_at_ms, id, body FROM sessions "
        "WHERE (created_at_ms, id) < (?, ?) AND (? IS NULL OR status = ?) "
        "ORDER BY created_at_ms DESC, id DESC LIMIT ?",
        (created_at_ms, session_id, status, status, limit),
    )
    return [(row["created_at_ms"], row["id"], row["body"]) for row in rows]
