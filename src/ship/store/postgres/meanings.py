"""Texts by their meaning, on an open connection: vectors beside the texts."""

import asyncio
from collections.abc import Sequence

from ship.ports.embeddings import EmbeddingModel
from ship.ports.store import Found, Meanings
from ship.store.postgres.pool import Connection

Place = tuple[str, int]


async def embed(connection: Connection, model: EmbeddingModel, limit: int) -> int:
    """Make the vectors of some texts that have none, past those that another node is at; returns how many."""
    async with connection.transaction():
        rows = await connection.fetch(
            # In the order of the index of those that wait, so that nothing else is read whatever the planner believes.
            "WITH taken AS MATERIALIZED (SELECT session_id, seq FROM meanings WHERE model = '' "
            "ORDER BY session_id, seq LIMIT $1 FOR UPDATE SKIP LOCKED) "
            "SELECT session_id, seq, text FROM taken JOIN texts USING (session_id, seq)",
            limit,
        )
        if rows:
            vectors = await asyncio.to_thread(model.embed, [row["text"] for row in rows])
            await connection.execute(
                "UPDATE meanings SET model = $1, vectors = new.vectors "
                "FROM unnest($2::text[], $3::bigint[], $4::bytea[]) AS new (session_id, seq, vectors) "
                "WHERE meanings.session_id = new.session_id AND meanings.seq = new.seq",
                model.name,
                [row["session_id"] for row in rows],
                [row["seq"] for row in rows],
                vectors,
            )
    return len(rows)


async def page(
    connection: Connection, model: str, status: str | None, repository: str | None, after: Place, limit: int
) -> Meanings:
    """The vectors past the text at ``after``."""
    rows = await connection.fetch(
        "SELECT session_id, seq, vectors FROM meanings WHERE (session_id, seq) > ($4, $5) AND model = $1 "
        "AND ($2::text IS NULL AND $3::text IS NULL OR EXISTS (SELECT 1 FROM sessions "
        "WHERE id = session_id AND ($2::text IS NULL OR status = $2) AND ($3::text IS NULL OR repository = $3))) "
        "ORDER BY session_id, seq LIMIT $6",
        *(model, status, repository, *after, limit),
    )
    return Meanings([(row[0], row[1]) for row in rows], [row[2] for row in rows])


async def found(connection: Connection, places: Sequence[Place]) -> list[Found]:
    """The texts at these places."""
    rows = await connection.fetch(
        "SELECT session_id, seq, text, 1, body "
        "FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS wanted (session_id, seq, place) "
        "JOIN texts USING (session_id, seq) JOIN sessions ON sessions.id = session_id ORDER BY place",
        [session_id for session_id, _ in places],
        [seq for _, seq in places],
    )
    return [Found(*row) for row in rows]
