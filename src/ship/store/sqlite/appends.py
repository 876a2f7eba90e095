"""Appends of one transaction, all together: a statement for each table, not for each append.

An append is refused before anything of it is written, so that none has to be undone.
"""

import sqlite3
from collections.abc import Sequence

from ship.ports.store import Append, HeadMoved, KeyTaken
from ship.store.sqlite import answers, log, outbox, search

Outcome = HeadMoved | KeyTaken | None


def append_all(connection: sqlite3.Connection, appends: Sequence[Append]) -> list[Outcome]:
    """Append each after the ones before; what is refused leaves the others alone."""
    heads: dict[str, int] = {}
    outcomes: list[Outcome] = []
    for append in appends:
        outcomes.append(_admit(connection, append, heads))
        if outcomes[-1] is not None:
            append.break_chain()
    kept = [append for append, outcome in zip(appends, outcomes, strict=True) if outcome is None]
    log.append(connection, kept)
    log.add_messages(connection, kept)
    search.queue(connection, kept)
    # Of several lines and states of one session only the last would be left.
    log.save_summaries(connection, {a.session_id: a.summary for a in kept if a.summary})
    log.save_snapshots(connection, {a.session_id: a.snapshot for a in kept if a.snapshot})
    outbox.add(connection, kept)
    outbox.set_alarms(connection, {(a.session_id, m.name): m.due_at_ms for a in kept for m in a.alarms})
    return outcomes


def _admit(connection: sqlite3.Connection, append: Append, heads: dict[str, int]) -> Outcome:
    """Why it is refused, if it is; its key is taken otherwise. ``heads`` are those after the appends before."""
    session_id = append.session_id
    if append.chain and append.chain.broken:
        return HeadMoved(f"what this append to {session_id} was decided on was not kept")
    head = heads.get(session_id)
    if head is None:
        head = log.head(connection, session_id)
    heads[session_id] = head
    if head != append.expected_head:
        return HeadMoved(f"the log of {session_id} ends at {head}, not at {append.expected_head}")
    if append.first_answer and not answers.keep(connection, append.first_answer, append.at_ms):
        return KeyTaken(f"the key {append.first_answer.key!r} has an answer")
    heads[session_id] += len(append.events)
    return None
