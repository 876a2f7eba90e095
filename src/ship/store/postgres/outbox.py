"""Effects and alarms on an open connection. Rows that another node is about to claim are passed over."""

from collections.abc import Sequence

from ship.ports.store import DueAlarm, DueEffect, NewAlarm
from ship.store.postgres.pool import Connection


async def claim_effects(connection: Connection, now_ms: int, lease_ms: int, limit: int) -> list[DueEffect]:
    """Take up to ``limit`` due effects, the longest due first."""
    rows = await connection.fetch(
        "WITH due AS MATERIALIZED (SELECT effect_id, due_at_ms FROM outbox WHERE due_at_ms <= $1 "
        "ORDER BY due_at_ms LIMIT $3 FOR UPDATE SKIP LOCKED) "
        "UPDATE outbox SET attempts = attempts + 1, due_at_ms = $2 FROM due WHERE outbox.effect_id = due.effect_id "
        "RETURNING outbox.effect_id, session_id, body, attempts, due.due_at_ms AS was_due_ms",
        now_ms,
        now_ms + lease_ms,
        limit,
    )
    rows.sort(key=lambda row: row["was_due_ms"])
    return [DueEffect(*tuple(row)[:4]) for row in rows]


async def postpone_effect(connection: Connection, effect_id: str, due_at_ms: int) -> None:
    """Make it due at another time."""
    await connection.execute("UPDATE outbox SET due_at_ms = $2 WHERE effect_id = $1", effect_id, due_at_ms)


async def finish_effect(connection: Connection, effect_id: str) -> None:
    """It is done, or given up."""
    await connection.execute("DELETE FROM outbox WHERE effect_id = $1", effect_id)


async def release_effects(connection: Connection, now_ms: int) -> None:
    """Make every effect due now."""
    await connection.execute("UPDATE outbox SET due_at_ms = $1 WHERE due_at_ms > $1", now_ms)


async def claim_alarms(connection: Connection, now_ms: int, lease_ms: int, limit: int) -> list[DueAlarm]:
    """Take up to ``limit`` due alarms, the longest due first."""
    rows = await connection.fetch(
        "WITH due AS MATERIALIZED (SELECT session_id, name, due_at_ms FROM alarms WHERE due_at_ms <= $1 "
        "ORDER BY due_at_ms LIMIT $3 FOR UPDATE SKIP LOCKED) "
        "UPDATE alarms SET due_at_ms = $2 FROM due "
        "WHERE alarms.session_id = due.session_id AND alarms.name = due.name "
        "RETURNING alarms.session_id, alarms.name, alarms.due_at_ms, due.due_at_ms AS was_due_ms",
        now_ms,
        now_ms + lease_ms,
        limit,
    )
    rows.sort(key=lambda row: row["was_due_ms"])
    return [DueAlarm(*tuple(row)[:3]) for row in rows]


async def finish_alarm(connection: Connection, alarm: DueAlarm) -> None:
    """It has fired, unless it was set anew in the meantime."""
    await connection.execute(
        "DELETE FROM alarms WHERE session_id = $1 AND name = $2 AND due_at_ms = $3", *alarm
    )


async def set_alarm(connection: Connection, session_id: str, alarm: NewAlarm) -> None:
    """Set, move or clear one alarm."""
    if alarm.due_at_ms is None:
        await connection.execute(
            "DELETE FROM alarms WHERE session_id = $1 AND name = $2", session_id, alarm.name
        )
    else:
        await connection.execute(
            "INSERT INTO alarms (session_id, name, due_at_ms) VALUES ($1, $2, $3) "
            "ON CONFLICT (session_id, name) DO UPDATE SET due_at_ms = excluded.due_at_ms",
            session_id,
            alarm.name,
            alarm.due_at_ms,
        )


async def postpone_alarms(connection: Connection, names: Sequence[str], due_at_ms: int) -> None:
    """Let no alarm of these names fire before that time."""
    await connection.execute(
        "UPDATE alarms SET due_at_ms = $2 WHERE due_at_ms < $2 AND name = ANY($1)", list(names), due_at_ms
    )


async def move_due(connection: Connection, by_ms: int) -> None:
    """Make all effects and alarms due by so much later."""
    await connection.execute(
        "WITH effects AS (UPDATE outbox SET due_at_ms = due_at_ms + $1) UPDATE alarms SET due_at_ms = due_at_ms + $1",
        by_ms,
    )


async def next_due_ms(connection: Connection) -> int | None:
    """When the next effect or alarm is due."""
    due: int | None = await connection.fetchval(
        "SELECT least((SELECT min(due_at_ms) FROM outbox), (SELECT min(due_at_ms) FROM alarms))"
    )
    return due
