"""The session service: load, decide, commit, publish. Any node may serve any session."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol

import msgspec

from ship import words
from ship.errors import Conflict, InvalidInput, NotFound, ShipError
from ship.events import decode, encode, facts
from ship.events.frames import Delta
from ship.model import Actor, SearchMode, SessionStatus
from ship.ports.blobs import BlobStore
from ship.ports.bus import Bus, Listener, Notice
from ship.ports.embeddings import EmbeddingModel
from ship.ports.store import (
    Append,
    Chain,
    FirstAnswer,
    HeadMoved,
    KeyTaken,
    LogStore,
    NewAlarm,
    NewEvent,
    Outbox,
    Said,
    Search,
    Searchable,
    Snapshot,
    Summary,
)
from ship.sessions import commands, metrics, packing, searching, views
from ship.sessions.cache import STATE_SHAPE, StateCache
from ship.sessions.feeds import Feeds, check_after
from ship.sessions.fold import fold
from ship.sessions.growth import END_OF_GROWTH, Growth
from ship.sessions.heads import SUMMARIES, Heads
from ship.sessions.ids import new_id
from ship.sessions.logs import Logs
from ship.sessions.machine import PACK_LOG, Decision, decide
from ship.sessions.policy import ORDINARY, Policy
from ship.sessions.said import LastSaid
from ship.sessions.state import SessionState

SNAPSHOT_EVERY = 200
ATTEMPTS = 20
PAGE = 500
PACK_AGAIN_MS = 3_600_000
HEARD_EVERY_MS = 60_000
"""How often growing text moves the alarm of a silent task."""

_log = logging.getLogger("ship.sessions")


class IdempotencyKey(NamedTuple):
    """A caller's key. ``fingerprint`` is a digest of the request, so that a key cannot stand for two."""

    scope: str
    key: str
    fingerprint: str


class Outcome(NamedTuple):
    """What a command came to. ``repeated`` says that this is the first answer to the same key."""

    session_id: str
    answer: dict[str, Any]
    state: SessionState
    repeated: bool = False


class SessionStore(LogStore, Outbox, Searchable, Protocol):
    """What the service needs of a store."""

    shared: bool


class _Chain(Chain):
    """The commands of one session that are on their way to the disk, each decided on the one before; ``state`` is after the last, and
    ``landing`` is done when that one is kept or not."""

    def __init__(self) -> None:
        self.state: SessionState | None = None
        self.landing: asyncio.Future[None] | None = None


class Sessions:
    """All sessions of this store."""

    def __init__(
        self,
        store: SessionStore,
        bus: Bus,
        now_ms: Callable[[], int],
        policy: Policy = ORDINARY,
        blobs: BlobStore | None = None,
        embeddings: EmbeddingModel | None = None,
    ) -> None:
        """Without ``blobs`` no log is packed, without ``embeddings`` nothing is found by its meaning."""
        self._store = store
        self._blobs = blobs
        self.by_meaning = searching.ByMeaning(store, embeddings) if embeddings else None
        self._logs = Logs(store, blobs)
        self.bus = bus
        self.now_ms = now_ms
        self._states = StateCache(store, self._logs)
        self._heads = Heads(store, bus, self._states.heard)
        self._growth = Growth(bus, shared=store.shared)
        self._said = LastSaid()
        self.feeds = Feeds(store, self._logs, self._growth, self.head)
        bus.overhear(self._overhear)
        self.policy = policy
        self._chains: dict[str, _Chain] = {}
        self._heard: dict[str, int] = {}
        self._on_work: Callable[[], None] = lambda: None

    def on_work(self, wake: Callable[[], None]) -> None:
        """Call this whenever an effect or alarm was written."""
        self._on_work = wake

    async def reconcile(self) -> None:
        """Make good, until cancelled, what the bus loses. For a store that other nodes share."""
        await self._heads.run()

    async def create(
        self, command: commands.CreateSession, actor: Actor, key: IdempotencyKey | None = None
    ) -> Outcome:
        """Begin a session; the answer is its view. Raises as ``execute``."""
        session_id = new_id("ses")
        return await self.execute(
            session_id, command, actor, key, lambda decision: views.session(session_id, decision.state)
        )

    async def post(
        self, session_id: str, command: commands.PostMessage, actor: Actor, key: IdempotencyKey | None = None
    ) -> Outcome:
        """Leave a note; the answer is its view. Raises as ``execute``."""
        return await self.execute(
            session_id, command, actor, key, lambda decision: views.message(decision.records[-1]) or {}
        )

    async def execute(
        self,
        session_id: str,
        command: commands.Command,
        actor: Actor,
        key: IdempotencyKey | None = None,
        answer: Callable[[Decision], dict[str, Any]] = lambda decision: decision.answer,
    ) -> Outcome:
        """Decide on the command and commit what follows. Returns when it is on disk; a repeated key gets the first ``answer``.

        Raises:
            ShipError: the command was refused or could not be committed; nothing of it is kept.
        """
        for attempt in range(ATTEMPTS):
            begins = isinstance(command, commands.CreateSession) and attempt == 0
            state = None if begins else await self._newest(session_id)
            try:
                decision = decide(state, command, actor, self.now_ms(), self.policy)
            except ShipError:
                if not await self._holds(session_id, state):
                    continue
                if key and (first := await self._first_answer(key)):
                    return first
                raise
            if not (decision.records or decision.effects or decision.alarms or key):
                if not await self._holds(session_id, state):
                    continue
                return Outcome(session_id, answer(decision), decision.state)
            told = answer(decision)
            try:
                await self._land(session_id, state, decision, key, told)
                return Outcome(session_id, told, decision.state)
            except HeadMoved:
                # A batch that was tried again says this of a new session whose key is taken.
                if begins and key and (first := await self._first_answer(key)):
                    return first
            except KeyTaken:  # the store says so: a first answer is not looked for before
                if key and (first := await self._first_answer(key)):
                    return first
        raise Conflict("this session is too busy", code="session_busy", hint="Try again.")

    def _land(
        self,
        session_id: str,
        before: SessionState | None,
        decision: Decision,
        key: IdempotencyKey | None,
        answer: dict[str, Any],
    ) -> "asyncio.Future[None]":
        """Commit, then publish; the future is done after both. Who waits for it may leave: what is on its way to the disk is still
        published when it is there."""
        chain = self._chains.setdefault(session_id, _Chain())
        chain.state = decision.state
        append = self._append(session_id, before, decision, key, answer, chain)
        landed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        began = time.perf_counter()

        def settle(done: "asyncio.Future[None]") -> None:
            error = asyncio.CancelledError() if done.cancelled() else done.exception()
            if not landed.done():  # it wakes who waits after this turn
                landed.set_exception(error) if error else landed.set_result(None)
            if error is None:
                metrics.COMMIT_SECONDS.observe(time.perf_counter() - began)
                self._settle(session_id, chain, decision.state, append)
                self._said.appended(append)
                self._publish(session_id, decision, append)
                return
            self._break(session_id, chain)
            if isinstance(error, HeadMoved | KeyTaken):
                self._states.heard(session_id, append.expected_head + 1)
            else:
                self._states.forget(session_id)

        chain.landing = self._store.append(append)
        chain.landing.add_done_callback(settle)
        return landed

    async def state(self, session_id: str) -> SessionState:
        """The folded state of what is on disk.

        Raises:
            NotFound: ``session_not_found``.
        """
        return await self._states.newest(session_id)

    async def state_at(self, session_id: str, seq: int) -> SessionState:
        """The state as it was after that event.

        Raises:
            NotFound: ``session_not_found``.
            InvalidInput: ``after_past_head``: a seq that this log does not have yet; or one below 1.
        """
        if seq < 1:
            raise InvalidInput(f"a log begins with event 1, after {seq}")
        head = await self.head(session_id)
        check_after(seq, head)
        state: SessionState | None = None
        while state is None or state.head_seq < seq:
            rows = await self.events(session_id, state.head_seq if state else 0, PAGE, up_to=seq)
            state = fold((decode(body) for _, body in rows), state)
        return state

    async def head(self, session_id: str) -> int:
        """The last seq that is on disk.

        Raises:
            NotFound: ``session_not_found``.
        """
        known = None if self._store.shared else self._states.peek(session_id)
        found = known.head_seq if known else await self._store.head(session_id)
        if not found:
            raise NotFound("no such session", code="session_not_found")
        return found

    async def events(
        self, session_id: str, after: int, limit: int, types: Sequence[str] = (), up_to: int | None = None
    ) -> list[tuple[int, bytes]]:
        """(seq, encoded record) past ``after``, oldest first; also of a session whose log was packed."""
        return await self._logs.events(session_id, after, limit, types, up_to)

    async def messages(self, session_id: str, before: int | None, limit: int) -> list[bytes]:
        """A page of the last encoded messages before that seq, newest last, as ``LogStore.messages`` bounds it."""
        head = await self.head(session_id)
        if before is not None and before <= head:
            return [body for _, body in await self._logs.messages(session_id, before, limit)]
        if (known := self._said.page(session_id, head, limit)) is not None:
            return known
        rows = await self._logs.messages(session_id, None, limit)
        # What is on disk may be ahead of what this node has been told of its own appends.
        if await self.head(session_id) == head and (not rows or rows[-1][0] <= head):
            self._said.learn(session_id, head, rows, limit)
        return [body for _, body in rows]

    async def last_said(self, session_id: str, before: int | None, count: int) -> list[bytes]:
        """The last ``count`` encoded messages before that seq, newest last, over as many pages as they have."""
        rows: list[tuple[int, bytes]] = []
        while page := await self._logs.messages(session_id, before, count - len(rows)):
            before, rows = page[0][0], page + rows
        return [body for _, body in rows]

    async def summaries(
        self, status: str | None, before: tuple[int, str] | None, limit: int
    ) -> list[tuple[int, str, bytes]]:
        """(created_at_ms, id, encoded summary), newest first."""
        return await self._store.summaries(status, before, limit)

    async def search(
        self, query: str, status: str | None, repository: str | None, offset: int, limit: int
    ) -> list[dict[str, Any]]:
        """The sessions where something like the query was said, the best first: views. Also of those that are over.

        Raises:
            InvalidInput: as ``words.parse``.
        """
        terms = words.parse(query)
        found = await self._store.search(Search(terms, status, repository), offset, limit)
        # A text may have a megabyte: the event loop is not for looking through that.
        return await asyncio.to_thread(lambda: [searching.view(one, terms) for one in found])

    @property
    def search_modes(self) -> tuple[SearchMode, ...]:
        """What a search can go by here."""
        return tuple(SearchMode) if self.by_meaning else (SearchMode.WORDS,)

    async def search_by_meaning(
        self, query: str, status: str | None, repository: str | None, offset: int, limit: int
    ) -> list[dict[str, Any]]:
        """As ``search``, for what means something like the query in whatever words.

        Raises:
            Conflict: ``semantic_search_off``.
            InvalidInput: ``search_empty``.
        """
        if self.by_meaning is None:
            raise Conflict(
                "this server does not search by meaning",
                code="semantic_search_off",
                hint="Search by words, or have it started with `ship up --semantic-search`.",
            )
        return await self.by_meaning.search(query, status, repository, offset, limit)

    async def grow(self, session_id: str, delta: Delta) -> None:
        """Fan out text of the running task that is still growing; what does not fit is dropped."""
        running = (await self._states.known(session_id)).running
        if running and running.id == delta.task_id:
            self._growth.grow(session_id, delta)
            await self._hear(session_id)

    def listen(self, session_id: str) -> AbstractAsyncContextManager[Listener]:
        """What is said of the session from now on, lossy: ``follow`` makes it whole."""
        return self._growth.listen(session_id)

    async def _hear(self, session_id: str) -> None:
        """A task whose text grows is not silent. That is not in the log, so the alarm itself is moved, now and then."""
        now_ms, stuck_ms = self.now_ms(), self.policy.stuck_s * 1000
        if stuck_ms and abs(now_ms - self._heard.get(session_id, 0)) > min(HEARD_EVERY_MS, stuck_ms // 4):
            self._heard[session_id] = now_ms
            await self._store.set_alarm(session_id, NewAlarm("stuck", now_ms + stuck_ms))

    async def check_soon(self, session_id: str, after_ms: int) -> None:
        """See after the session's sandbox before its next turn: its runner fell silent."""
        await self._store.set_alarm(session_id, NewAlarm("sandbox_check", self.now_ms() + after_ms))
        self._on_work()

    async def pack(self, session_id: str) -> None:
        """Pack the log of a session that is over into a blob, now or, when that does not work, later."""
        state = await self.state(session_id)
        if self._blobs is None or state.status is not SessionStatus.ARCHIVED:
            return
        try:
            await packing.pack(self._store, self._blobs, session_id, _snapshot(state))
        except ShipError as error:
            _log.warning("the log of %s is packed later: %s", session_id, error)
            await self._store.set_alarm(session_id, NewAlarm(PACK_LOG, self.now_ms() + PACK_AGAIN_MS))

    def follow(self, session_id: str, after: int, types: Sequence[str] = ()) -> AsyncGenerator[Notice, None]:
        """The session's stream past ``after``: (seq, kind, JSON). First the log, then live, without a gap or a duplicate.

        Kinds are event types, or ``event`` for what is replayed, and with seq 0 ``delta``, ``live`` and ``head``. Ends when the session
        is archived. Raises as ``Feeds.join``.
        """
        return self.feeds.follow(session_id, after, types)

    async def _first_answer(self, key: IdempotencyKey) -> Outcome | None:
        stored = await self._store.first_answer(key.scope, key.key)
        if stored is None:
            return None
        if stored.fingerprint != key.fingerprint:
            raise Conflict(
                "this Idempotency-Key came with another request before",
                code="idempotency_key_reused",
                hint="Use a new key for a new request.",
            )
        session_id, answer = msgspec.json.decode(stored.answer, type=tuple[str, dict[str, Any]])
        return Outcome(session_id, answer, await self.state(session_id), repeated=True)

    async def _newest(self, session_id: str) -> SessionState:
        """The state to decide on: with what is on its way to the disk."""
        state = await self._states.known(session_id)
        chain = self._chains.get(session_id)
        return chain.state if chain and chain.state else state

    async def _holds(self, session_id: str, state: SessionState | None) -> bool:
        """Whether a decision that appends nothing, and so is checked by no store, may be told: what it was made on has come to the disk,
        and no other node has appended what it does not know of."""
        chain = self._chains.get(session_id)
        if state and chain and chain.state is state and (landing := chain.landing):
            await asyncio.wait([landing])
            if landing.cancelled() or landing.exception():
                return False
        if state is None or not self._store.shared:
            return True
        return (await self._states.newest(session_id)).head_seq <= state.head_seq

    def _settle(self, session_id: str, chain: _Chain, state: SessionState, append: Append) -> None:
        """This state is on disk."""
        if chain.state is state and self._chains.get(session_id) is chain:
            del self._chains[session_id]
        self._states.keep(session_id, state, sum(len(event.body) for event in append.events))

    def _break(self, session_id: str, chain: _Chain) -> None:
        """This chain failed. A newer one is left alone."""
        if self._chains.get(session_id) is chain:
            del self._chains[session_id]

    def _append(
        self,
        session_id: str,
        before: SessionState | None,
        decision: Decision,
        key: IdempotencyKey | None,
        answer: dict[str, Any],
        chain: _Chain,
    ) -> Append:
        """All that is kept of a decision."""
        records, state = decision.records, decision.state
        now_ms = state.updated_at_ms if records else self.now_ms()
        head = before.head_seq if before else 0
        summary = Summary(
            state.status,
            state.created_at_ms,
            msgspec.json.encode(views.summary(session_id, state)),
            state.title,
            state.repository.source,
        )
        crossed = head // SNAPSHOT_EVERY != state.head_seq // SNAPSHOT_EVERY
        return Append(
            session_id=session_id,
            expected_head=head,
            at_ms=now_ms,
            events=[NewEvent(record.fact.TYPE, encode(record)) for record in records],
            said=[
                Said(record.seq, msgspec.json.encode(view), view["text"])
                for record in records
                if (view := views.message(record))
            ],
            summary=summary if records else None,
            snapshot=_snapshot(state) if crossed else None,
            effects=[
                (_effect_id(session_id, state.head_seq, effect), msgspec.json.encode(effect))
                for effect in decision.effects
            ],
            alarms=[
                NewAlarm(alarm.name, None if alarm.after_ms is None else now_ms + alarm.after_ms)
                for alarm in decision.alarms
            ],
            first_answer=FirstAnswer(*key, msgspec.json.encode((session_id, answer))) if key else None,
            chain=chain,
        )

    def _publish(self, session_id: str, decision: Decision, append: Append) -> None:
        for record in decision.records:
            metrics.events(record.fact.TYPE).inc()
            if isinstance(record.fact, facts.ModelCalled):
                _count(record.fact)
            self._growth.committed(session_id, record.fact)
            if record.fact.TYPE in END_OF_GROWTH:
                self._heard.pop(session_id, None)
        notices = [
            Notice(seq, event.type, event.body)
            for seq, event in enumerate(append.events, start=append.expected_head + 1)
        ]
        if append.summary:
            if self._store.shared:  # elsewhere nobody compares, and nothing would forget it
                self._heads.told(session_id, decision.state.head_seq)
            self.bus.publish(session_id, notices)
            self.bus.publish(SUMMARIES, [Notice(decision.state.head_seq, "summary", append.summary.body)])
        if decision.effects or decision.alarms:
            self._on_work()

    def _overhear(self, topic: str, notices: list[Notice]) -> None:
        """Another node published this."""
        if topic == SUMMARIES:
            return
        for notice in notices:
            try:
                self._growth.hear(topic, notice)
            except msgspec.DecodeError as error:
                _log.warning("a %s of another node cannot be read: %s", notice.kind, error)
            if notice.seq:
                self._states.heard(topic, notice.seq)
                self._heads.told(topic, notice.seq)


def _snapshot(state: SessionState) -> Snapshot:
    return Snapshot(state.head_seq, STATE_SHAPE, msgspec.json.encode(state))


def _effect_id(session_id: str, head_seq: int, effect: commands.AnyEffect) -> str:
    return f"{session_id}:{head_seq}:{effect.__struct_config__.tag}:{effect.generation}"


def _count(call: facts.ModelCalled) -> None:
    usage = call.usage
    metrics.TOKENS.labels(call.provider, call.model, "in").inc(usage.input_tokens)
    metrics.TOKENS.labels(call.provider, call.model, "out").inc(usage.output_tokens)
    metrics.COST_DOLLARS.labels(call.provider, call.model).inc(usage.cost_usd)
