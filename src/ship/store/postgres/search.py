"""Texts by their words, on an open connection: a GIN index over words that we have made ourselves."""

from collections.abc import Sequence

from ship.ports.store import Found, Search
from ship.store.postgres.pool import Connection
from ship.words import Term, words


async def index(connection: Connection, limit: int) -> int:
    """Index some of the texts that wait, past those that another node is at; returns how many."""
    async with connection.transaction():
        rows = await connection.fetch(
            "WITH taken AS MATERIALIZED (SELECT session_id, seq FROM unindexed LIMIT $1 FOR UPDATE SKIP LOCKED) "
            "DELETE FROM unindexed USING taken "
            "WHERE unindexed.session_id = taken.session_id AND unindexed.seq = taken.seq "
            "RETURNING unindexed.session_id, unindexed.seq, unindexed.text",
            limit,
        )
        rows.sort(key=lambda row: (row["session_id"], row["seq"]))
        await connection.execute(
            "WITH indexed AS (INSERT INTO texts (session_id, seq, text, words) "
            "SELECT session_id, seq, text, words::tsvector "
            "FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[]) AS new (session_id, seq, text, words) "
            "ON CONFLICT (session_id, seq) DO UPDATE SET text = excluded.text, words = excluded.words) "
            "INSERT INTO meanings (session_id, seq) SELECT * FROM unnest($1::text[], $2::bigint[]) "
            "ON CONFLICT (session_id, seq) DO UPDATE SET model = '', vectors = ''",
            [row["session_id"] for row in rows],
            [row["seq"] for row in rows],
            [row["text"] for row in rows],
            [_vector(row["text"]) for row in rows],
        )
    return len(rows)


async def search(connection: Connection, wanted: Search, offset: int, limit: int) -> list[Found]:
    """The sessions that have such a text, the best first."""
    rows = await connection.fetch(
        "WITH ranked AS (SELECT session_id, seq, text, "
        "ts_rank(words, $1::tsquery, 1) * (CASE seq WHEN 0 THEN 2 ELSE 1 END) AS score "
        "FROM texts WHERE words @@ $1::tsquery), "
        "best AS (SELECT *, row_number() OVER (PARTITION BY session_id ORDER BY score DESC, seq) AS place, "
        "count(*) OVER (PARTITION BY session_id) AS matches FROM ranked) "
        "SELECT session_id, seq, text, matches, body FROM best JOIN sessions ON sessions.id = session_id "
        "WHERE place = 1 AND ($2::text IS NULL OR status = $2) AND ($3::text IS NULL OR repository = $3) "
        "ORDER BY score DESC, session_id DESC LIMIT $4 OFFSET $5",
        _query(wanted.terms),
        wanted.status,
        wanted.repository,
        limit,
        offset,
    )
    return [Found(*row) for row in rows]


def _vector(text: str) -> str:
    """Words hold letters and digits only: there is nothing to escape."""
    places: dict[str, list[str]] = {}
    for place, word in enumerate(words(text), start=1):
        places.setdefault(word, []).append(str(place))
    return " ".join(f"'{word}':{','.join(found)}" for word, found in places.items())


def _query(terms: Sequence[Term]) -> str:
    return " & ".join(f"{'!' if term.excluded else ''}({_phrase(term)})" for term in terms)


def _phrase(term: Term) -> str:
    *before, last = (f"'{word}'" for word in term.words)
    return " <-> ".join([*before, f"{last}:*" if term.prefix else last])
