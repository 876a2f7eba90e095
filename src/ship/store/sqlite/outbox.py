"""Effects and alarms on an open connection: rows that are due at a time.

A claim pushes the due time out by a lease; who finishes deletes the row, who dies lets the lease run out.
"""

import sqlite3
from collections.abc import Mapping, Sequence

from ship.ports.store import Append, DueAlarm, DueEffect, NewAlarm
from ship.store.sqlite.rows import write_rows


def add(connection: sqlite3.Connection, appends: Sequence[Append]) -> None:
    """Put the effects of each in, due at once; one that is there stays as it is."""
    write_rows(
        connection,
        "INSERT OR IGNORE INTO outbox (effect_id, session_id, body, due_at_ms) VALUES (?, ?, ?, ?)",
        [
            (effect_id, append.session_id, body, append.at_ms)
            for append in appends
            for effect_id, body in append.effects
        ],
    )


def claim(connection: sqlite3.Connection, now_ms: int, lease_ms: int, limit: int) -> list[DueEffect]:
    """Take up to ``limit`` due effects for ``lease_ms``."""
    rows = connection.execute(
        "UPDATE outbox SET attempts = attempts + 1, due_at_ms = ? WHERE effect_id IN "
        "(SELECT effect_id FROM outbox WHERE due_at_ms <= ? ORDER BY due_at_ms LIMIT ?) "
        "RETURNING effect_id, session_id, body, attempts",
        (now_ms + lease_ms, now_ms, limit),
    ).fetchall()
    return [DueEffect(row["effect_id"], row["session_id"], row["body"], row["attempts"]) for row in rows]


def postpone(connection: sqlite3.Connection, effect_id: str, due_at_ms: int) -> None:
    """Make it due at another time: a longer lease, or a later try."""
    connection.execute("UPDATE outbox SET due_at_ms = ? WHERE effect_id = ?", (due_at_ms, effect_id))


def finish(connection: sqlite3.Connection, effect_id: str) -> None:
    """It is done, or given up."""
    connection.execute("DELETE FROM outbox WHERE effect_id = ?", (effect_id,))


def release_all(connection: sqlite3.Connection, now_ms: int) -> None:
    """Make every effect due now. Only for a process that has the store for itself and has just started."""
    connection.execute("UPDATE outbox SET due_at_ms = ? WHERE due_at_ms > ?", (now_ms, now_ms))


def postpone_alarms(connection: sqlite3.Connection, names: Sequence[str], due_at_ms: int) -> None:
    """Let no alarm of these names fire before that time."""
    write_rows(
        connection,
        "UPDATE alarms SET due_at_ms = ? WHERE due_at_ms < ? AND name = ?",
        [(due_at_ms, due_at_ms, name) for name in names],
    )


def move_due(connection: sqlite3.Connection, by_ms: int) -> None:
    """Make all effects and alarms due by so much later."""
    connection.execute("UPDATE outbox SET due_at_ms = due_at_ms + ?", (by_ms,))
    connection.execute("UPDATE alarms SET due_at_ms = due_at_ms + ?", (by_ms,))


def next_due_ms(connection: sqlite3.Connection) -> int | None:
    """When the next effect or alarm is due."""
    due: int | None
    (due,) = connection.execute(
        "SELECT min(due) FROM (SELECT min(due_at_ms) AS due FROM outbox UNION ALL SELECT min(due_at_ms) FROM alarms)"
    ).fetchone()
    return due


def set_alarm(connection: sqlite3.Connection, session_id: str, alarm: NewAlarm) -> None:
    """Set, move or clear one alarm."""
    set_alarms(connection, {(session_id, alarm.name): alarm.due_at_ms})


def set_alarms(connection: sqlite3.Connection, alarms: Mapping[tuple[str, str], int | None]) -> None:
    """Set, move or (None) clear alarms, by session and name."""
    write_rows(
        connection,
        "INSERT OR REPLACE INTO alarms (session_id, name, due_at_ms) VALUES (?, ?, ?)",
        [(*key, due_at_ms) for key, due_at_ms in alarms.items() if due_at_ms is not None],
    )
    write_rows(
        connection,
        "DELETE FROM alarms WHERE session_id = ? AND name = ?",
        [key for key, due_at_ms in alarms.items() if due_at_ms is None],
    )


def claim_alarms(connection: sqlite3.Connection, now_ms: int, lease_ms: int, limit: int) -> list[DueAlarm]:
    """Take due alarms for ``lease_ms``. Each comes back with its leased due time, by which it is cleared."""
    rows = connection.execute(
        "UPDATE alarms SET due_at_ms = ? WHERE (session_id, name) IN "
        "(SELECT session_id, name FROM alarms WHERE due_at_ms <= ? ORDER BY due_at_ms LIMIT ?) "
        "RETURNING session_id, name, due_at_ms",
        (now_ms + lease_ms, now_ms, limit),
    ).fetchall()
    return [DueAlarm(row["session_id"], row["name"], row["due_at_ms"]) for row in rows]


def finish_alarm(connection: sqlite3.Connection, alarm: DueAlarm) -> None:
    """It has fired, unless it was set anew in the meantime."""
    connection.execute(
        "DELETE FROM alarms WHERE session_id = ? AND name = ? AND due_at_ms = ?",
        (alarm.session_id, alarm.name, alarm.due_at_ms),
    )
