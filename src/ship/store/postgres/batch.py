"""One batch of appends on an open transaction: who fits is found out by looking, then all of it is written by one statement."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from ship.ports.store import Append, HeadMoved, KeyTaken
from ship.store.postgres.pool import Connection
from ship.words import storable

Key = tuple[str, str]
Refusal = HeadMoved | KeyTaken


class Number(NamedTuple):
    """By what a batch is found again: its writer and the writer's own count."""

    writer: str
    batch: int
    at_ms: int


async def write(connection: Connection, number: Number, appends: Sequence[Append]) -> list[Refusal | None]:
    """Write those that fit; the answer has each one's refusal, or None.

    The heads of all these sessions stay locked until the transaction's end.

    Raises:
        asyncpg.IntegrityConstraintViolationError: another node wrote in between what could not be locked: a session that is new, a key.
    """
    refusals = judge(appends, await _lock_heads(connection, appends), await _taken_keys(connection, appends))
    fitting = [append for append, refusal in zip(appends, refusals, strict=True) if refusal is None]
    if fitting:
        await connection.execute(_WRITE, *number, *_columns(fitting))
    return refusals


def judge(
    appends: Sequence[Append], heads: Mapping[str, int], taken: AbstractSet[Key]
) -> list[Refusal | None]:
    """What is wrong with each, if these are taken one after the other. What was built on a refused one is refused as well."""
    heads, taken = dict(heads), set(taken)
    return [_judge(append, heads, taken) for append in appends]


def _judge(append: Append, heads: dict[str, int], taken: set[Key]) -> Refusal | None:
    refusal = _refusal(append, heads, taken)
    if refusal:
        append.break_chain()
    return refusal


def _refusal(append: Append, heads: dict[str, int], taken: set[Key]) -> Refusal | None:
    if append.chain and append.chain.broken:
        return HeadMoved(f"what this append to {append.session_id} was decided on was not kept")
    head = heads.get(append.session_id, 0)
    if head != append.expected_head:
        return HeadMoved(f"the log of {append.session_id} ends at {head}, not at {append.expected_head}")
    if first := append.first_answer:
        if (first.scope, first.key) in taken:
            return KeyTaken(f"the key {first.key!r} has an answer")
        taken.add((first.scope, first.key))
    heads[append.session_id] = head + len(append.events)
    return None


async def _lock_heads(connection: Connection, appends: Sequence[Append]) -> dict[str, int]:
    """In the order of the ids, so that two nodes never wait for each other."""
    rows = await connection.fetch(
        "SELECT session_id, seq FROM heads WHERE session_id = ANY($1) ORDER BY session_id FOR UPDATE",
        list({append.session_id for append in appends}),
    )
    return {row[0]: row[1] for row in rows}


async def _taken_keys(connection: Connection, appends: Sequence[Append]) -> set[Key]:
    firsts = [append.first_answer for append in appends if append.first_answer]
    if not firsts:
        return set()
    rows = await connection.fetch(
        "SELECT scope, key FROM idempotency WHERE (scope, key) IN (SELECT * FROM unnest($1::text[], $2::text[]))",
        [first.scope for first in firsts],
        [first.key for first in firsts],
    )
    return {(scope, key) for scope, key in rows}


_WRITE = """
WITH numbered AS (
    INSERT INTO writers (id, batch, at_ms) VALUES ($1, $2, $3)
    ON CONFLICT (id) DO UPDATE SET batch = excluded.batch, at_ms = excluded.at_ms
), moved AS (
    INSERT INTO heads (session_id, seq) SELECT * FROM unnest($4::text[], $5::bigint[])
    ON CONFLICT (session_id) DO UPDATE SET seq = excluded.seq
), logged AS (
    INSERT INTO events (session_id, seq, type, body)
    SELECT * FROM unnest($6::text[], $7::bigint[], $8::text[], $9::bytea[])
), answered AS (
    INSERT INTO idempotency (scope, key, fingerprint, answer, at_ms)
    SELECT * FROM unnest($10::text[], $11::text[], $12::text[], $13::bytea[], $14::bigint[])
), said AS (
    INSERT INTO messages (session_id, seq, body)
    SELECT * FROM unnest($15::text[], $16::bigint[], $17::bytea[])
), listed AS (
    INSERT INTO sessions (id, status, created_at_ms, body, repository)
    SELECT * FROM unnest($18::text[], $19::text[], $20::bigint[], $21::bytea[], $35::text[])
    ON CONFLICT (id) DO UPDATE SET status = excluded.status, body = excluded.body
), folded AS (
    INSERT INTO snapshots (session_id, seq, shape, body)
    SELECT * FROM unnest($22::text[], $23::bigint[], $24::int[], $25::bytea[])
    ON CONFLICT (session_id) DO UPDATE SET seq = excluded.seq, shape = excluded.shape, body = excluded.body
), due AS (
    INSERT INTO outbox (effect_id, session_id, body, due_at_ms)
    SELECT * FROM unnest($26::text[], $27::text[], $28::bytea[], $29::bigint[])
    ON CONFLICT (effect_id) DO NOTHING
), cleared AS (
    DELETE FROM alarms USING unnest($30::text[], $31::text[]) AS gone (session_id, name)
    WHERE alarms.session_id = gone.session_id AND alarms.name = gone.name
), queued AS (
    INSERT INTO unindexed (session_id, seq, text)
    SELECT * FROM unnest($36::text[], $37::bigint[], $38::text[])
    ON CONFLICT (session_id, seq) DO UPDATE SET text = excluded.text
)
INSERT INTO alarms (session_id, name, due_at_ms)
SELECT * FROM unnest($32::text[], $33::text[], $34::bigint[])
ON CONFLICT (session_id, name) DO UPDATE SET due_at_ms = excluded.due_at_ms
"""


def _columns(appends: Sequence[Append]) -> list[object]:
    """The values of ``_WRITE`` after the batch's number. Of a row that several would write, the last one's."""
    heads = {append.session_id: append.expected_head + len(append.events) for append in appends}
    moved = {append.session_id for append in appends if append.events}
    summaries = {append.session_id: append.summary for append in appends if append.summary}
    snapshots = {append.session_id: append.snapshot for append in appends if append.snapshot}
    alarms = {
        (append.session_id, alarm.name): alarm.due_at_ms for append in appends for alarm in append.alarms
    }
    return [
        *_turned(2, ((session_id, heads[session_id]) for session_id in sorted(moved))),
        *_turned(
            4,
            (
                (append.session_id, seq, event.type, event.body)
                for append in appends
                for seq, event in enumerate(append.events, start=append.expected_head + 1)
            ),
        ),
        *_turned(
            5,
            sorted((*append.first_answer, append.at_ms) for append in appends if append.first_answer),
        ),
        *_turned(3, ((append.session_id, said.seq, said.body) for append in appends for said in append.said)),
        *_turned(4, ((session_id, *summary[:3]) for session_id, summary in sorted(summaries.items()))),
        *_turned(4, ((session_id, *snapshot) for session_id, snapshot in sorted(snapshots.items()))),
        *_turned(
            4,
            (
                (effect_id, append.session_id, body, append.at_ms)
                for append in appends
                for effect_id, body in append.effects
            ),
        ),
        *_turned(2, (alarm for alarm, due_at_ms in sorted(alarms.items(), key=_name) if due_at_ms is None)),
        *_turned(
            3,
            (
                (*alarm, due_at_ms)
                for alarm, due_at_ms in sorted(alarms.items(), key=_name)
                if due_at_ms is not None
            ),
        ),
        [summary.repository for _, summary in sorted(summaries.items())],
        *_turned(3, _texts(appends)),
    ]


def _texts(appends: Sequence[Append]) -> Iterator[tuple[str, int, str]]:
    """What search is to find; a title is at seq 0."""
    for append in appends:
        if append.summary and append.expected_head == 0:
            yield append.session_id, 0, storable(append.summary.title)
        for said in append.said:
            yield append.session_id, said.seq, storable(said.text)


def _name(alarm: tuple[Key, int | None]) -> Key:
    return alarm[0]


def _turned(width: int, rows: Iterable[Sequence[object]]) -> list[list[object]]:
    """Rows as columns."""
    columns: list[list[object]] = [[] for _ in range(width)]
    for row in rows:
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    return columns
