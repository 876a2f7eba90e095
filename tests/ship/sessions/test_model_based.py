"""Random lives of sessions on a real store, through several nodes at once, against the pure machine as the oracle.

Whatever is asked, in whatever order and by whichever node, the log holds what the machine decides: no more, no less.
"""

import asyncio
import itertools
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from ship.bus import LocalBus
from ship.errors import ShipError
from ship.events import Cursor, Record, encode, facts
from ship.model import (
    SYSTEM,
    Actor,
    ActorKind,
    Answer,
    LimitsPatch,
    PermissionReply,
    Question,
    Repository,
    RequestKind,
    TaskStatus,
)
from ship.ports.store import Page, Store
from ship.sessions import commands
from ship.sessions.fold import fold
from ship.sessions.machine import Decision, decide
from ship.sessions.service import IdempotencyKey, Sessions
from ship.sessions.state import SessionState
from ship.store.postgres import PostgresStore
from ship.store.sqlite import SqliteStore
from ship.store.tables import TABLES
from ship.testing.postgres_server import fresh_database

NODES = 3
KINDS = 80
"""More than there are of commands and reports, so that each is asked for about as often."""
PERSON = Actor(kind=ActorKind.USER, name="me")
SMALL = st.integers(1, 4)

OpenStores = Callable[[], AbstractAsyncContextManager[list[Store]]]
"""Makes an empty database, and a store on it for each node."""


class Known(NamedTuple):
    """What the oracle knows of one session. Nobody carries its effects out, or fires its alarms."""

    state: SessionState | None
    records: tuple[Record, ...]
    effects: frozenset[bytes] = frozenset()
    alarms: frozenset[tuple[str, int]] = frozenset()

    def after(self, decision: Decision, now_ms: int) -> "Known":
        """What is known once this is decided."""
        alarms = dict(self.alarms)
        for alarm in decision.alarms:
            alarms.pop(alarm.name, None)
            if alarm.after_ms is not None:
                alarms[alarm.name] = now_ms + alarm.after_ms
        return Known(
            decision.state,
            (*self.records, *decision.records),
            self.effects | {msgspec.json.encode(effect) for effect in decision.effects},
            frozenset(alarms.items()),
        )


def reported(fact: facts.Fact, state: SessionState, ahead: int) -> commands.ReportFrame:
    """A frame of the present runner; ``ahead`` 1 is the next one, others are late, early or repeated."""
    at = Cursor(generation=state.sandbox.generation, n=state.cursor.n + ahead)
    return commands.ReportFrame(at=at, fact=fact)


def runner_fact(kind: int, state: SessionState, task_id: str) -> facts.Fact:
    """Something that a runner says: in its place or out of it."""
    said = [
        facts.SandboxReady(generation=state.sandbox.generation, base_commit="c", work_branch="b"),
        facts.TextFinished(task_id=task_id, message_id="m", part_id="p", text="words"),
        facts.RequestAsked(task_id=task_id, request_id="req_1", kind=RequestKind.PERMISSION, title="run it"),
        facts.TaskCompleted(task_id=task_id),
        facts.TaskCancelled(task_id=task_id),
        facts.SandboxStepStarted(generation=state.sandbox.generation, step="clone"),
        facts.RequestAsked(
            task_id=task_id,
            request_id="req_1",
            kind=RequestKind.QUESTION,
            title="which",
            questions=(Question(question="Which?"),),
        ),
    ]
    return said[kind % len(said)]


def command(kind: int, number: int, ahead: int, state: SessionState) -> commands.Command:
    """One of everything that can be asked."""
    task_id = state.running.id if state.running and ahead == 1 else f"tsk_{number}"
    waiting = [task.id for task in state.queue] or [task_id]
    generation, fresh = state.sandbox.generation, f"ckp_{state.head_seq}"
    child = facts.ChildFinished(
        child_id=f"ses_{state.head_seq - 1}", status=TaskStatus.COMPLETED, summary="done"
    )
    offered: list[commands.Command] = [
        commands.QueueTask(task_id=f"tsk_{state.head_seq}", prompt="do"),
        commands.SteerTask(task_id=f"tsk_{state.head_seq}", steer_id=f"str_{state.head_seq}", text="also"),
        commands.CancelTask(task_id=task_id),
        commands.PostMessage(message_id=f"msg_{number}", text="a note"),
        commands.AnswerRequest(request_id="req_1", answer=Answer(reply=PermissionReply.ONCE)),
        commands.AnswerRequest(request_id="req_1", answer=Answer(answers=(("this",),))),
        commands.EditTask(task_id=waiting[0], prompt="do else", limits=LimitsPatch(tokens=number)),
        commands.MoveTask(task_id=waiting[-1], before=waiting[0]),
        commands.PauseSession(checkpoint_id=fresh),
        commands.ResumeSession(),
        commands.RequestCheckpoint(checkpoint_id=fresh),
        commands.StartChild(child_id=f"ses_{state.head_seq}", title="t", prompt="part of it"),
        commands.FinishChild(fact=child),
        commands.ReportFrozen(generation=generation),
        commands.ReportThawed(generation=generation, memory=number % 2 == 0),
        commands.ReportEnding(generation=generation),
        commands.RetrySession(),
        commands.ReportMissing(generation=generation, reason="gone"),
        commands.FireAlarm(name="pause_deadline"),
        commands.FireAlarm(name="idle_pause", checkpoint_id=fresh),
        commands.FireAlarm(name="time_limit"),
        commands.FireAlarm(name="stuck"),
        commands.FireAlarm(name="provision_deadline"),
        commands.FireAlarm(name="cancel_deadline"),
        commands.FireAlarm(name="sandbox_check"),
        commands.StoreArtifact(name=f"a{number}", sha256="0" * 64, size_bytes=1, media_type="text/plain"),
    ]
    chosen = kind % (len(offered) + 10)
    if chosen < len(offered):
        return offered[chosen]
    return reported(runner_fact(kind, state, task_id), state, ahead)


class Lives(RuleBasedStateMachine):
    """A few sessions, driven through nodes that share a store and nothing else."""

    open_stores: OpenStores

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._opened = AsyncExitStack()
        self._now_ms = 1_000
        self._known: dict[str, Known] = {}
        self._keys: dict[IdempotencyKey, tuple[str, commands.Command, Any]] = {}

    @initialize()
    def open(self) -> None:
        self._stores = self._runner.run(self._opened.enter_async_context(type(self).open_stores()))
        self._nodes = [self._node(number) for number in range(NODES)]

    def teardown(self) -> None:
        self._runner.run(self._opened.aclose())
        self._runner.close()

    @rule(number=SMALL, node=SMALL, prompt=st.booleans())
    def create(self, number: int, node: int, prompt: bool) -> None:
        asked = commands.CreateSession(
            title="t", repository=Repository(source="/r"), model="p/m", prompt="go" * prompt, task_id="tsk_1"
        )
        self._ask(f"ses_{number}", asked, node)

    @rule(number=SMALL, node=SMALL, kind=st.integers(0, KINDS), ahead=st.sampled_from([1, 1, 1, 1, 0, 2]))
    def ask(self, number: int, node: int, kind: int, ahead: int) -> None:
        if state := self._state(number):
            self._ask(f"ses_{number}", command(kind, kind % 5, ahead, state), node)

    @rule(number=SMALL, node=SMALL)
    def become_ready(self, number: int, node: int) -> None:
        """The present runner reports that it is ready: at the right time, mostly."""
        if state := self._state(number):
            self._ask(f"ses_{number}", reported(runner_fact(0, state, ""), state, 1), node)

    @rule(number=SMALL, node=SMALL)
    def archive(self, number: int, node: int) -> None:
        if self._state(number):
            self._ask(f"ses_{number}", commands.ArchiveSession(), node)

    @rule(number=SMALL, kinds=st.lists(st.tuples(st.integers(0, KINDS), SMALL), min_size=2, max_size=4))
    def ask_at_once(self, number: int, kinds: list[tuple[int, int]]) -> None:
        """Several nodes at once: what comes of it is what the machine says for one of the orders."""
        session_id, known = f"ses_{number}", self._known.get(f"ses_{number}")
        if known is None or known.state is None:
            return
        self._now_ms += 1
        asked = [command(kind, position, 1, known.state) for position, (kind, _) in enumerate(kinds)]
        answers = self._runner.run(self._gathered(session_id, asked, [node for _, node in kinds]))
        found = self._log(session_id)
        for order in itertools.permutations(range(len(asked))):
            told: list[Any] = [None] * len(asked)
            outcome = known
            for position in order:
                told[position], outcome = self._decided(outcome, asked[position])
            is_whole = [encode(record) for record in outcome.records] == found and told == answers
            if is_whole and self._due(session_id) == (outcome.effects, outcome.alarms):
                self._known[session_id] = outcome
                return
        raise AssertionError(f"no order of {asked} explains {answers}")

    @rule(number=SMALL, node=SMALL, other=SMALL)
    def repeat(self, number: int, node: int, other: int) -> None:
        """A key that comes again gets the first answer, from any node, and changes nothing."""
        session_id = f"ses_{number}"
        if not self._state(number):
            return
        key = IdempotencyKey("me", f"key_{number}_{len(self._keys) % 3}", "print")
        first = self._keys.get(key)
        asked = first[1] if first else commands.PostMessage(message_id="msg_key", text="once")
        told = self._runner.run(self._outcome(session_id, asked, node, key))
        again = self._runner.run(self._outcome(session_id, asked, other, key))
        if first:
            assert told == again == first[2]
            return
        expected, self._known[session_id] = self._decided(self._known[session_id], asked)
        assert told == expected
        if isinstance(told, dict):
            assert again == told
            self._keys[key] = (session_id, asked, told)

    @rule(node=SMALL)
    def restart(self, node: int) -> None:
        """A node that dies takes nothing with it but its memory."""
        self._nodes[node % NODES] = self._node(node % NODES)

    @rule(passed_ms=st.integers(-5_000, 400_000))
    def wait(self, passed_ms: int) -> None:
        """Clocks go on, and now and then back."""
        self._now_ms = max(1, self._now_ms + passed_ms)

    @invariant()
    def log_is_what_was_decided(self) -> None:
        for session_id, known in self._known.items():
            assert self._log(session_id) == [encode(record) for record in known.records]
            assert fold(known.records) == known.state
            assert self._due(session_id) == (known.effects, known.alarms)
            for node in self._nodes:
                assert self._runner.run(self._caught_up(node, session_id)) == known.state

    async def _caught_up(self, node: Sessions, session_id: str) -> SessionState:
        """What a node believes, after it has had to look: its cache may be behind until it decides on something."""
        node._states.forget(session_id)
        return await node.state(session_id)

    def _node(self, number: int) -> Sessions:
        return Sessions(self._stores[number], LocalBus(), lambda: self._now_ms)

    def _state(self, number: int) -> SessionState | None:
        known = self._known.get(f"ses_{number}")
        return known.state if known else None

    def _ask(self, session_id: str, asked: commands.Command, node: int) -> None:
        self._now_ms += 1
        told = self._runner.run(self._outcome(session_id, asked, node, None))
        expected, outcome = self._decided(self._known.get(session_id, Known(None, ())), asked)
        assert told == expected, asked
        if outcome.state is not None:
            self._known[session_id] = outcome

    def _decided(self, known: Known, asked: commands.Command) -> tuple[Any, Known]:
        try:
            decision = decide(known.state, asked, _actor(asked), self._now_ms)
        except ShipError as error:
            return error.code, known
        return decision.answer, known.after(decision, self._now_ms)

    async def _outcome(
        self, session_id: str, asked: commands.Command, node: int, key: IdempotencyKey | None
    ) -> Any:
        try:
            outcome = await self._nodes[node % NODES].execute(session_id, asked, _actor(asked), key)
        except ShipError as error:
            return error.code
        return outcome.answer

    async def _gathered(self, session_id: str, asked: list[commands.Command], nodes: list[int]) -> list[Any]:
        return await asyncio.gather(
            *(self._outcome(session_id, each, node, None) for each, node in zip(asked, nodes, strict=True))
        )

    def _due(self, session_id: str) -> tuple[frozenset[bytes], frozenset[tuple[str, int]]]:
        """The effects and alarms that the store holds of a session."""
        effects, alarms = set(), set()
        for table, rows in self._runner.run(self._dumped()):
            columns = TABLES[table]
            for row in (dict(zip(columns, values, strict=True)) for values in rows):
                if table == "outbox" and row["session_id"] == session_id:
                    effects.add(row["body"])
                if table == "alarms" and row["session_id"] == session_id:
                    alarms.add((row["name"], row["due_at_ms"]))
        return frozenset(effects), frozenset(alarms)

    async def _dumped(self) -> list[Page]:
        return [page async for page in self._stores[0].dump()]

    def _log(self, session_id: str) -> list[bytes]:
        rows = self._runner.run(self._stores[0].events(session_id, 0, 10_000))
        assert [seq for seq, _ in rows] == list(range(1, len(rows) + 1))
        return [body for _, body in rows]


def _actor(asked: commands.Command) -> Actor:
    internal = (
        *(commands.ReportFrame, commands.ReportMissing, commands.FireAlarm),
        *(commands.ReportFrozen, commands.ReportThawed, commands.ReportEnding, commands.FinishChild),
    )
    return SYSTEM if isinstance(asked, internal) else PERSON


@asynccontextmanager
async def one_file() -> AsyncIterator[list[Store]]:
    """A SQLite file, whose one store all nodes share: it stands for a node's restarts."""
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "ship.db")
        await store.open()
        yield [store] * NODES
        await store.close()


def one_database(address: str) -> OpenStores:
    """An empty place in PostgreSQL, with a store of its own for each node."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[list[Store]]:
        async with fresh_database(address) as url:
            stores: list[Store] = [PostgresStore(url) for _ in range(NODES)]
            await asyncio.gather(*(store.open() for store in stores))
            yield stores
            await asyncio.gather(*(store.close() for store in stores))

    return opened


@pytest.mark.parametrize(("body", "lives"), [("sqlite", 20), ("postgres", 8)])
def test_any_life_through_any_nodes_is_what_the_machine_decides(
    body: str, lives: int, request: pytest.FixtureRequest
) -> None:
    opened = one_file if body == "sqlite" else one_database(request.getfixturevalue("postgres_address"))
    run_state_machine_as_test(  # type: ignore[no-untyped-call] # hypothesis leaves it untyped
        type("LivesOnAStore", (Lives,), {"open_stores": staticmethod(opened)}),
        settings=settings(
            max_examples=lives,
            phases=[Phase.reuse, Phase.generate],  # making a failing life shorter takes minutes
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
