"""Texts by their words, on an open connection: FTS5 over words that we have made ourselves."""

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from ship.ports.store import Append, Found, Search
from ship.store.sqlite.rows import write_rows
from ship.words import Term, storable, words


class Text(NamedTuple):
    """A text by its place in the queue, and its words parted by spaces."""

    id: int
    session_id: str
    seq: int
    text: str
    words: str


def queue(connection: sqlite3.Connection, appends: Sequence[Append]) -> None:
    """Let the indexer see to what was said; a title is at seq 0."""
    titles = [
        (append.session_id, 0, storable(append.summary.title))
        for append in appends
        if append.summary and append.expected_head == 0
    ]
    said = [(append.session_id, said.seq, storable(said.text)) for append in appends for said in append.said]
    write_rows(connection, "INSERT INTO unindexed (session_id, seq, text) VALUES (?, ?, ?)", [*titles, *said])


def waiting(connection: sqlite3.Connection, limit: int) -> list[Text]:
    """Some of the texts that are to be indexed, cut into words."""
    rows = connection.execute(
        "SELECT id, session_id, seq, text FROM unindexed ORDER BY id LIMIT ?", (limit,)
    ).fetchall()
    return [Text(row[0], row[1], row[2], row[3], " ".join(words(row[3]))) for row in rows]


def index(connection: sqlite3.Connection, texts: Sequence[Text]) -> int:
    """Index these, each once; returns how many still waited."""
    count = 0
    for text in texts:
        # A place that has become free may be another text's by now.
        left = connection.execute(
            "DELETE FROM unindexed WHERE id = ? AND session_id = ? AND seq = ? AND text = ?", text[:4]
        )
        count += left.rowcount
        if left.rowcount:
            _forget(connection, text)
            added = connection.execute(
                "INSERT INTO texts (session_id, seq, text) VALUES (?, ?, ?)", text[1:4]
            )
            connection.execute(
                "INSERT INTO text_words (rowid, words) VALUES (?, ?)", (added.lastrowid, text.words)
            )
            connection.execute("INSERT INTO meanings (id) VALUES (?)", (added.lastrowid,))
    return count


def _forget(connection: sqlite3.Connection, text: Text) -> None:
    """What stood in this place before. The index knows no texts: it is told the words that go."""
    old = connection.execute(
        "SELECT id, text FROM texts WHERE session_id = ? AND seq = ?", text[1:3]
    ).fetchone()
    if old:
        gone = ("delete", old["id"], " ".join(words(old["text"])))
        connection.execute("INSERT INTO text_words (text_words, rowid, words) VALUES (?, ?, ?)", gone)
        connection.execute("DELETE FROM texts WHERE id = ?", (old["id"],))
        connection.execute("DELETE FROM meanings WHERE id = ?", (old["id"],))


def search(connection: sqlite3.Connection, wanted: Search, offset: int, limit: int) -> list[Found]:
    """The sessions that have such a text, the best first."""
    rows = connection.execute(
        "WITH hits AS MATERIALIZED (SELECT rowid AS id, bm25(text_words) AS score FROM text_words WHERE text_words MATCH ?), "
        "ranked AS (SELECT session_id, seq, text, score * (CASE seq WHEN 0 THEN 2 ELSE 1 END) AS score "
        "FROM hits JOIN texts USING (id)), "
        "best AS (SELECT *, row_number() OVER (PARTITION BY session_id ORDER BY score, seq) AS place, "
        "count(*) OVER (PARTITION BY session_id) AS matches FROM ranked) "
        "SELECT session_id, seq, text, matches, body FROM best JOIN sessions ON sessions.id = session_id "
        "WHERE place = 1 AND (? IS NULL OR status = ?) AND (? IS NULL OR repository = ?) "
        "ORDER BY score, session_id DESC LIMIT ? OFFSET ?",
        (
            _match(wanted.terms),
            *(wanted.status, wanted.status, wanted.repository, wanted.repository),
            *(limit, offset),
        ),
    )
    return [Found(*row) for row in rows]


def _match(terms: Sequence[Term]) -> str:
    there = " AND ".join(_phrase(term) for term in terms if not term.excluded)
    absent = " OR ".join(_phrase(term) for term in terms if term.excluded)
    return f"({there}) NOT ({absent})" if absent else there


def _phrase(term: Term) -> str:
    """Words hold letters and digits only: there is nothing to escape."""
    return f'"{" ".join(term.words)}"' + (" *" if term.prefix else "")
