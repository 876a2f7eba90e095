"""The store: the sessions' logs and everything that is kept with them. One contract, on SQLite and on PostgreSQL.

Sessions, effects, alarms and answers travel as bytes and plain values: the store knows nothing of what they mean.
Times are milliseconds since the Unix epoch.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from typing import NamedTuple, Protocol

from ship.errors import Conflict
from ship.ports.embeddings import EmbeddingModel
from ship.words import Term


class HeadMoved(Conflict):
    """Somebody else appended first: fold the tail, decide again."""

    code = "head_moved"


class KeyTaken(Conflict):
    """Somebody else's append with the same idempotency key came first: read its answer."""

    code = "key_taken"


PAGE_BYTES = 1024**2
"""What a page of events or messages holds at most, but for its last one: each may have a mebibyte of its own."""


class NewEvent(NamedTuple):
    """One event to append; ``body`` is the record as it travels to clients."""

    type: str
    body: bytes


class Said(NamedTuple):
    """A message, by the seq of its event. ``body`` is its view, ``text`` what it is found by."""

    seq: int
    body: bytes
    text: str


class Summary(NamedTuple):
    """A session's line in the list, and what it is found by: its ``title`` as it began, its ``repository``."""

    status: str
    created_at_ms: int
    body: bytes
    title: str = ""
    repository: str = ""


class Snapshot(NamedTuple):
    """A folded state: a shortcut, never the truth. ``shape`` is the version of its form."""

    seq: int
    shape: int
    body: bytes


class FirstAnswer(NamedTuple):
    """What a repeated request gets. ``fingerprint`` is a digest of the request, so that a key cannot stand for two."""

    scope: str
    key: str
    fingerprint: str
    answer: bytes


class NewAlarm(NamedTuple):
    """Set, move or (``due_at_ms`` None) clear the session's alarm of that name."""

    name: str
    due_at_ms: int | None


class Chain:
    """Appends of one session that were decided one on the other before any of them was kept.

    ``expected_head`` alone does not say on what a later one was decided: another node may have appended as many events as a
    refused one would have. So a store that refuses or fails one breaks its chain, and refuses all that come later in it.
    """

    broken = False


class Append(NamedTuple):
    """Everything that one command changes; kept whole or not at all.

    ``events`` get the seqs after ``expected_head``. ``effects`` are (effect_id, body) pairs, due at once; one that is there
    stays as it is. ``chain`` is shared with those that this one was decided on, if it was not decided on what is kept.
    """

    session_id: str
    expected_head: int
    at_ms: int
    events: Sequence[NewEvent] = ()
    said: Sequence[Said] = ()
    summary: Summary | None = None
    snapshot: Snapshot | None = None
    effects: Sequence[tuple[str, bytes]] = ()
    alarms: Sequence[NewAlarm] = ()
    first_answer: FirstAnswer | None = None
    chain: Chain | None = None

    def break_chain(self) -> None:
        """This one is not kept: let nothing be kept that was decided on it."""
        if self.chain:
            self.chain.broken = True


class DueEffect(NamedTuple):
    """A claimed effect; ``attempts`` counts this one."""

    effect_id: str
    session_id: str
    body: bytes
    attempts: int


class DueAlarm(NamedTuple):
    """A claimed alarm; ``due_at_ms`` is when its lease runs out, by which it is known when it is finished."""

    session_id: str
    name: str
    due_at_ms: int


class StoredToken(NamedTuple):
    """A credential without its secret. ``kind`` is ``api``, ``browser`` or ``login``."""

    digest: str
    kind: str
    name: str
    created_at_ms: int
    expires_at_ms: int | None


class Packed(NamedTuple):
    """Where a log is that has left for a blob. ``pages`` says where in it each page lies; the store does not look into it."""

    head: int
    sha256: str
    pages: bytes


class Search(NamedTuple):
    """What is looked for: one text with all these terms, in a session of that status and repository where they are given."""

    terms: Sequence[Term]
    status: str | None = None
    repository: str | None = None


class Found(NamedTuple):
    """A session, and the best of its ``matches`` texts: the message at ``seq``, or its title at 0. ``body`` is its line in the list."""

    session_id: str
    seq: int
    text: str
    matches: int
    body: bytes


class Meanings(NamedTuple):
    """The vectors of some texts, and in the same order where each stands: (session id, seq)."""

    places: Sequence[tuple[str, int]]
    vectors: Sequence[bytes]


class Page(NamedTuple):
    """Some rows of one table, as ``ship.store.tables`` names their columns."""

    table: str
    rows: Sequence[tuple[str | int | bytes | None, ...]]


class LogStore(Protocol):
    """The logs of all sessions, and what is projected from them."""

    def append(self, append: Append) -> "asyncio.Future[None]":
        """Done when it is durable: an acknowledged append survives kill -9 and a power cut.

        Appends that arrive together share a transaction; one that is refused leaves its neighbours alone. Appends of one session
        are taken in the order of the calls. When the end of a transaction is not known (the connection broke), the
        store reads back whether it was kept.

        Raises:
            HeadMoved: the log does not end at ``expected_head``, or the chain is broken.
            KeyTaken: ``first_answer`` has a scope and key that are taken.
            Unavailable: ``store_unavailable``, ``store_read_only`` or ``disk_full``: nothing of it is kept. ``outcome_unknown``: it
                could not be read back for too long; the same ``first_answer`` finds out.
        """
        ...

    async def head(self, session_id: str) -> int:
        """The last seq, 0 when there is no such session."""
        ...

    async def heads(self, session_ids: Sequence[str]) -> dict[str, int]:
        """The last seq of each of these sessions that exists, in one query."""
        ...

    async def events(
        self, session_id: str, after: int, limit: int, types: Sequence[str] = (), up_to: int | None = None
    ) -> list[tuple[int, bytes]]:
        """(seq, body) of at most ``limit`` events past ``after``, oldest first; only of these types when any are given. No more follow
        where a page has ``PAGE_BYTES``: only an empty one is the end."""
        ...

    async def messages(self, session_id: str, before: int | None, limit: int) -> list[tuple[int, bytes]]:
        """(seq, body) of the last ``limit`` messages before that seq, newest last, or fewer, as ``events``: no more come before where
        they have ``PAGE_BYTES``, and only an empty page is the end."""
        ...

    async def snapshot(self, session_id: str, shape: int) -> Snapshot | None:
        """The kept state, unless it has another form."""
        ...

    async def pack(self, session_id: str, packed: Packed, snapshot: Snapshot) -> None:
        """Put the blob in the place of the session's events and messages, at once; done before, nothing happens. ``head`` and
        ``heads`` go on counting it. Only for a session that gets no more events.

        Raises:
            HeadMoved: the log does not end where the blob does.
        """
        ...

    async def packed(self, session_id: str) -> Packed | None:
        """Where the session's log is, when it has left: ``events`` and ``messages`` have none of it then."""
        ...

    async def summaries(
        self, status: str | None, before: tuple[int, str] | None, limit: int
    ) -> list[tuple[int, str, bytes]]:
        """(created_at_ms, id, body), newest first, past the pair ``before`` of a former page."""
        ...

    async def first_answer(self, scope: str, key: str) -> FirstAnswer | None:
        """What this key was answered first."""
        ...

    async def forget_answers(self, before_ms: int) -> None:
        """Drop the answers that are older."""
        ...


class Outbox(Protocol):
    """Effects and alarms: rows that are due at a time.

    A claim pushes the due time out by a lease; who finishes deletes the row, who dies lets the lease run out. No two claims
    get the same row while its lease lasts, on whatever node.
    """

    async def claim_effects(self, now_ms: int, lease_ms: int, limit: int) -> list[DueEffect]:
        """Take up to ``limit`` due effects, the longest due first."""
        ...

    async def postpone_effect(self, effect_id: str, due_at_ms: int) -> None:
        """Make it due at another time: a longer lease, or a later try."""
        ...

    async def finish_effect(self, effect_id: str) -> None:
        """It is done, or given up."""
        ...

    async def release_effects(self, now_ms: int) -> None:
        """Make every effect due now. Only for a process that has the store for itself and has just started."""
        ...

    async def claim_alarms(self, now_ms: int, lease_ms: int, limit: int) -> list[DueAlarm]:
        """Take up to ``limit`` due alarms, the longest due first."""
        ...

    async def finish_alarm(self, alarm: DueAlarm) -> None:
        """It has fired; nothing happens when it was set anew in the meantime."""
        ...

    async def set_alarm(self, session_id: str, alarm: NewAlarm) -> None:
        """Set, move or clear one alarm outside of an append."""
        ...

    async def postpone_alarms(self, names: Sequence[str], due_at_ms: int) -> None:
        """Let no alarm of these names fire before that time."""
        ...

    async def move_due(self, by_ms: int) -> None:
        """Make all effects and alarms, claimed ones too, due by so much later, or earlier. Only for a process that has the store for
        itself, when its clock was set."""
        ...

    async def next_due_ms(self) -> int | None:
        """When the next effect or alarm is due."""
        ...


class TokenStore(Protocol):
    """Credentials, by the digest of their secret."""

    async def add_token(self, token: StoredToken) -> None:
        """Keep it, and drop those whose time is over at its ``created_at_ms``."""
        ...

    async def find_token(self, digest: str, now_ms: int) -> StoredToken | None:
        """The credential of that digest, unless its time is over."""
        ...

    async def remove_token(self, digest: str) -> bool:
        """Revoke it; False when there was none (another caller may have been first)."""
        ...

    async def remove_tokens_named(self, name: str) -> int:
        """Revoke all of that name; returns how many."""
        ...

    async def secret(self, name: str, fresh: str) -> str:
        """The secret of that name that was kept first, by whatever node: ``fresh`` if there was none."""
        ...

    async def tokens(self, kind: str) -> list[StoredToken]:
        """All of that kind, oldest first."""
        ...


class Searchable(Protocol):
    """Titles and what was said, by their words and by their meaning. Also of sessions whose logs were packed."""

    async def index(self, limit: int) -> int:
        """Let up to ``limit`` texts be found that were appended since; returns how many. Nodes may do so at the same time, and
        a text is done once, whoever dies."""
        ...

    async def search(self, wanted: Search, offset: int, limit: int) -> list[Found]:
        """The sessions that have a text like that, the best first, past ``offset`` of them; a title counts double."""
        ...

    async def embed(self, model: EmbeddingModel, limit: int) -> int:
        """Give up to ``limit`` of the indexed texts that have none yet their vectors; returns how many. As ``index``: by any number
        of nodes, once for each text."""
        ...

    def meanings(
        self, model: str, status: str | None = None, repository: str | None = None
    ) -> AsyncGenerator[Meanings, None]:
        """The vectors that the model of that name has made, in pages, of the sessions of that status and repository where they are given."""
        ...

    async def found(self, places: Sequence[tuple[str, int]]) -> list[Found]:
        """The texts at these (session id, seq), in that order; ``matches`` is 1. What is not there is left out."""
        ...


class Portable(Protocol):
    """All that is in it, to be carried to another store of whatever kind."""

    def dump(self) -> AsyncGenerator[Page, None]:
        """Every row, as of one moment, in pages that fit in memory."""
        ...

    async def fill(self, pages: AsyncIterable[Page]) -> None:
        """Take all of these rows, or none when reading them raises.

        Raises:
            Conflict: ``store_not_empty``.
        """
        ...


class Store(LogStore, Outbox, TokenStore, Searchable, Portable, Protocol):
    """All of it, in one place. Every method raises ``Unavailable`` (``store_unavailable``) when the store does not answer, and
    those that write ``store_read_only`` or ``disk_full`` when it takes no writes. ``store_damaged`` says that its file cannot be read."""

    shared: bool
    """Whether other nodes may work on it at the same time."""

    async def open(self) -> None:
        """Connect and bring the tables up to date.

        Raises:
            ConfigurationError: ``data_in_use`` when another process has it for itself, ``data_newer`` when a newer Ship wrote it.
            Unavailable: ``store_unavailable``.
        """
        ...

    async def join(self, *, alone: bool) -> None:
        """Take a node's place on it, until ``close``: ``alone``, or beside others that are not alone.

        Raises:
            ConfigurationError: ``data_in_use``.
        """
        ...

    async def close(self) -> None:
        """Finish what is under way and let go."""
        ...

    async def probe(self) -> None:
        """Write something, as proof that it can be done; raises ``Unavailable`` when it cannot."""
        ...
