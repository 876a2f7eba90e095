"""One batch of appends. One statement writes all of it, where each session's log ends as expected, or nothing.

By itself that statement is a whole transaction; ``write_fitting`` finds out first who fits, in a transaction that the caller has begun.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from ship.ports.store import Append, HeadMoved, KeyTaken
from ship.store.postgres.pool import Connection
from ship.words import storable

Key = tuple[str, str]
Refusal = HeadMoved | KeyTaken


_GONE = 2**63 - 1
"""The number of a writer who writes no more."""


class WriterUnknown(Exception):
    """It has no row yet, it was forgotten as one that writes no more, or its last batch was taken back."""


class Number(NamedTuple):
    """By what a batch is found again: its writer and the writer's own count."""

    writer: str
    batch: int
    at_ms: int


async def write_all(connection: Connection, number: Number, appends: Sequence[Append]) -> bool:
    """Write all of them; False, and nothing is written, where a log does not end as expected.

    Raises:
        WriterUnknown: nothing is written before ``write_fitting`` was.
        asyncpg.IntegrityConstraintViolationError: a key has an answer, or another node wrote in between what could not be locked.
    """
    row = await connection.fetchrow(_WRITE, *number, *_columns(appends))
    assert row is not None
    if not row["known"]:
        raise WriterUnknown
    return bool(row["fit"])


async def write_fitting(
    connection: Connection, number: Number, appends: Sequence[Append]
) -> list[Refusal | None]:
    """Write those that fit; the answer has each one's refusal, or None.

    The heads of all these sessions stay locked until the transaction's end.

    Raises:
        asyncpg.IntegrityConstraintViolationError: another node wrote in between what could not be locked: a session that is new, a key.
    """
    # Until no other node begins one of these sessions in between: before there is nothing of it to lock.
    while True:
        refusals = judge(appends, *await _lock_heads(connection, number, appends))
        fitting = [append for append, refusal in zip(appends, refusals, strict=True) if refusal is None]
        if not fitting or await write_all(connection, number, fitting):
            return refusals


async def take_back(connection: Connection, number: Number) -> bool:
    """Whether the batch was kept. If not, it never will be: a transaction that is still under way is waited for, and a
    statement that comes later finds its writer gone. No other batch of this writer is to be written then."""
    last = await connection.fetchval(
        "INSERT INTO writers AS known (id, batch, at_ms) VALUES ($1, $4, $3) ON CONFLICT (id) DO UPDATE "
        "SET batch = CASE WHEN known.batch = $2 THEN $2 ELSE $4 END RETURNING batch",
        *number,
        _GONE,
    )
    return bool(last == number.batch)


def fit_together(appends: Sequence[Append]) -> bool:
    """Whether nothing stands in the way of these among themselves."""
    heads, taken = _first_heads(appends), set[Key]()
    return all(_refusal(append, heads, taken) is None for append in appends)


def _first_heads(appends: Sequence[Append]) -> dict[str, int]:
    """Where each session's log has to end before the first of them."""
    heads: dict[str, int] = {}
    for append in appends:
        heads.setdefault(append.session_id, append.expected_head)
    return heads


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


async def _lock_heads(
    connection: Connection, number: Number, appends: Sequence[Append]
) -> tuple[dict[str, int], set[Key]]:
    """The heads, locked in the order of their ids, so that two nodes never wait for each other, and the keys that have an
    answer. Makes the writer known."""
    firsts = [append.first_answer for append in appends if append.first_answer]
    rows = await connection.fetch(
        _LOCK,
        *number,
        list({append.session_id for append in appends}),
        [first.scope for first in firsts],
        [first.key for first in firsts],
    )
    heads = {name: seq for name, seq, _ in rows if seq is not None}
    return heads, {(name, key) for name, seq, key in rows if seq is None}


_LOCK = """
WITH known AS (
    INSERT INTO writers (id, batch, at_ms) VALUES ($1, $2::bigint - 1, $3) ON CONFLICT (id) DO NOTHING
), locked AS MATERIALIZED (
    SELECT session_id, seq FROM heads WHERE session_id = ANY($4) ORDER BY session_id FOR UPDATE
)
SELECT session_id AS name, seq, NULL AS key FROM locked
UNION ALL
SELECT scope, NULL, key FROM idempotency WHERE (scope, key) IN (SELECT * FROM unnest($5::text[], $6::text[]))
"""
# The writer's row is locked first: who asks for the batch's end waits for it. What is not to be written any more is held up there,
# and what does not fit is held up by the heads, which are locked in the order of their ids.
_WRITE = """
WITH mine AS MATERIALIZED (
    SELECT FROM writers WHERE id = $1 AND batch <= $2 FOR UPDATE
), locked AS MATERIALIZED (
    SELECT session_id, seq FROM heads WHERE EXISTS (SELECT FROM mine) AND session_id = ANY($39)
    ORDER BY session_id FOR UPDATE
), fit AS MATERIALIZED (
    SELECT WHERE EXISTS (SELECT FROM mine) AND NOT EXISTS (
        SELECT FROM unnest($39::text[], $40::bigint[]) AS expected (session_id, seq)
        LEFT JOIN locked ON locked.session_id = expected.session_id
        WHERE coalesce(locked.seq, 0) <> expected.seq
    )
), numbered AS (
    UPDATE writers SET batch = $2, at_ms = $3 FROM fit WHERE id = $1
), moved AS (
    INSERT INTO heads (session_id, seq) SELECT * FROM unnest($4::text[], $5::bigint[]), fit
    ON CONFLICT (session_id) DO UPDATE SET seq = excluded.seq
), logged AS (
    INSERT INTO events (session_id, seq, type, body)
    SELECT * FROM unnest($6::text[], $7::bigint[], $8::text[], $9::bytea[]), fit
), answered AS (
    INSERT INTO idempotency (scope, key, fingerprint, answer, at_ms)
    SELECT * FROM unnest($10::text[], $11::text[], $12::text[], $13::bytea[], $14::bigint[]), fit
), said AS (
    INSERT INTO messages (session_id, seq, body)
    SELECT * FROM unnest($15::text[], $16::bigint[], $17::bytea[]), fit
), listed AS (
    INSERT INTO sessions (id, status, created_at_ms, body, repository)
    SELECT * FROM unnest($18::text[], $19::text[], $20::bigint[], $21::bytea[], $35::text[]), fit
    ON CONFLICT (id) DO UPDATE SET status = excluded.status, body = excluded.body
), folded AS (
    INSERT INTO snapshots (session_id, seq, shape, body)
    SELECT * FROM unnest($22::text[], $23::bigint[], $24::int[], $25::bytea[]), fit
    ON CONFLICT (session_id) DO UPDATE SET seq = excluded.seq, shape = excluded.shape, body = excluded.body
), due AS (
    INSERT INTO outbox (effect_id, session_id, body, due_at_ms)
    SELECT * FROM unnest($26::text[], $27::text[], $28::bytea[], $29::bigint[]), fit
    ON CONFLICT (effect_id) DO NOTHING
), cleared AS (
    DELETE FROM alarms USING unnest($30::text[], $31::text[]) AS gone (session_id, name), fit
    WHERE alarms.session_id = gone.session_id AND alarms.name = gone.name
), queued AS (
    INSERT INTO unindexed (session_id, seq, text)
    SELECT * FROM unnest($36::text[], $37::bigint[], $38::text[]), fit
    ON CONFLICT (session_id, seq) DO UPDATE SET text = excluded.text
), alarmed AS (
    INSERT INTO alarms (session_id, name, due_at_ms)
    SELECT * FROM unnest($32::text[], $33::text[], $34::bigint[]), fit
    ON CONFLICT (session_id, name) DO UPDATE SET due_at_ms = excluded.due_at_ms
)
SELECT EXISTS (SELECT FROM mine) AS known, EXISTS (SELECT FROM fit) AS fit
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
        *_turned(2, _first_heads(appends).items()),
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
