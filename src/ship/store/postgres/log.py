"""Reading the log on an open connection: pages, messages, snapshots, the list of sessions, first answers."""

from collections.abc import Sequence

from ship.ports.store import PAGE_BYTES, FirstAnswer, Snapshot
from ship.store.postgres.pool import Connection

_LAST = (1 << 62, "")


async def heads(connection: Connection, session_ids: Sequence[str]) -> dict[str, int]:
    """The last seq of each of these that exists."""
    rows = await connection.fetch(
        "SELECT session_id, seq FROM heads WHERE session_id = ANY($1)", list(session_ids)
    )
    return {row[0]: row[1] for row in rows}


async def events(
    connection: Connection,
    session_id: str,
    after: int,
    limit: int,
    types: Sequence[str] = (),
    up_to: int | None = None,
) -> list[tuple[int, bytes]]:
    """A page of the log, see ``LogStore.events``."""
    rows = await connection.fetch(
        """
        SELECT seq, body FROM (
            SELECT seq, body, sum(octet_length(body)) OVER (ORDER BY seq) - octet_length(body) AS bytes_before FROM (
                SELECT seq, body FROM events WHERE session_id = $1 AND seq > $2 AND seq <= $4
                AND ($5::text[] IS NULL OR type = ANY($5)) ORDER BY seq LIMIT $3
            ) AS page
        ) AS measured WHERE bytes_before < $6 ORDER BY seq
        """,
        session_id,
        after,
        limit,
        _LAST[0] if up_to is None else up_to,
        list(types) or None,
        PAGE_BYTES,
    )
    return [(seq, body) for seq, body in rows]


async def messages(
    connection: Connection, session_id: str, before: int | None, limit: int
) -> list[tuple[int, bytes]]:
    """The last messages before that seq, newest last, see ``LogStore.messages``."""
    rows = await connection.fetch(
        """
        SELECT seq, body FROM (
            SELECT seq, body, sum(octet_length(body)) OVER (ORDER BY seq DESC) - octet_length(body) AS bytes_after FROM (
                SELECT seq, body FROM messages WHERE session_id = $1 AND seq < $2 ORDER BY seq DESC LIMIT $3
            ) AS page
        ) AS measured WHERE bytes_after < $4 ORDER BY seq
        """,
        session_id,
        _LAST[0] if before is None else before,
        limit,
        PAGE_BYTES,
    )
    return [(seq, body) for seq, body in rows]


async def snapshot(connection: Connection, session_id: str, shape: int) -> Snapshot | None:
    """The kept state, unless it has another form."""
    row = await connection.fetchrow(
        "SELECT seq, shape, body FROM snapshots WHERE session_id = $1 AND shape = $2", session_id, shape
    )
    return Snapshot(*row) if row else None


async def summaries(
    connection: Connection, status: str | None, before: tuple[int, str] | None, limit: int
) -> list[tuple[int, str, bytes]]:
    """(created_at_ms, id, body), newest first, past the pair ``before`` of a former page."""
    rows = await connection.fetch(
        "SELECT created_at_ms, id, body FROM sessions "
        "WHERE (created_at_ms, id) < ($1, $2) AND ($3::text IS NULL OR status = $3) "
        "ORDER BY created_at_ms DESC, id DESC LIMIT $4",
        *(before or _LAST),
        status,
        limit,
    )
    return [(created_at_ms, session_id, body) for created_at_ms, session_id, body in rows]


async def first_answer(connection: Connection, scope: str, key: str) -> FirstAnswer | None:
    """What this key was answered first."""
    row = await connection.fetchrow(
        "SELECT scope, key, fingerprint, answer FROM idempotency WHERE scope = $1 AND key = $2", scope, key
    )
    return FirstAnswer(*row) if row else None


async def forget_answers(connection: Connection, before_ms: int) -> None:
    """Drop the answers that are older."""
    await connection.execute("DELETE FROM idempotency WHERE at_ms < $1", before_ms)
