"""Texts by their meaning, on an open connection: vectors, in the order in which their texts were indexed."""

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from ship.ports.store import Found, Meanings


class Waiting(NamedTuple):
    """A text that has no vectors yet."""

    id: int
    text: str


def waiting(connection: sqlite3.Connection, limit: int) -> list[Waiting]:
    """Some of the texts that have no vectors yet."""
    rows = connection.execute(
        "SELECT id, text FROM meanings JOIN texts USING (id) WHERE model = '' LIMIT ?", (limit,)
    )
    return [Waiting(*row) for row in rows]


def keep(
    connection: sqlite3.Connection, model: str, texts: Sequence[Waiting], vectors: Sequence[bytes]
) -> int:
    """Keep the vectors of these texts; returns how many."""
    rows = [(model, made, text.id) for text, made in zip(texts, vectors, strict=True)]
    connection.executemany("UPDATE meanings SET model = ?, vectors = ? WHERE id = ?", rows)
    return len(rows)


def page(
    connection: sqlite3.Connection,
    model: str,
    status: str | None,
    repository: str | None,
    after: int,
    limit: int,
) -> tuple[Meanings, int]:
    """The vectors past the text ``after``, and of which text the last ones are; 0 when there are no more."""
    cursor = connection.cursor()
    cursor.row_factory = None  # plain tuples: rows with names take twice the time
    rows = cursor.execute(
        "SELECT meanings.id, session_id, seq, vectors FROM meanings JOIN texts USING (id) "
        "WHERE meanings.id > ?4 AND model = ?1 AND (?2 IS NULL AND ?3 IS NULL OR EXISTS (SELECT 1 FROM sessions "
        "WHERE sessions.id = session_id AND (?2 IS NULL OR status = ?2) AND (?3 IS NULL OR repository = ?3))) "
        "ORDER BY meanings.id LIMIT ?5",
        (model, status, repository, after, limit),
    ).fetchall()
    places = [(session_id, seq) for _, session_id, seq, _ in rows]
    return Meanings(places, [row[3] for row in rows]), rows[-1][0] if rows else 0


def found(connection: sqlite3.Connection, places: Sequence[tuple[str, int]]) -> list[Found]:
    """The texts at these places."""
    query = (
        "SELECT session_id, seq, text, 1, body FROM texts JOIN sessions ON sessions.id = session_id "
        "WHERE session_id = ? AND seq = ?"
    )
    rows = (connection.execute(query, place).fetchone() for place in places)
    return [Found(*row) for row in rows if row]
