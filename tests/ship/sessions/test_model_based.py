"""Random lives of sessions on a real store, through several nodes at once, against the pure machine as the oracle.

Whatever is asked, in whatever order and by whichever node, the log holds what the machine decides: no more, no less.
"""

import asyncio
import itertools
import random
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from ship.blobs.folder import FolderBlobs
from ship.bus import LocalBus
from ship.errors import ShipError
from ship.events import Cursor, Record, encode, facts
from ship.model import (
    SYSTEM,
    Actor,
    ActorKind,
    Answer,
    CheckpointReason,
    Failure,
    LimitsPatch,
    Origin,
    Parent,
    PermissionReply,
    Question,
    Repository,
    RequestKind,
    SessionStatus,
    TaskStatus,
    Usage,
)
from ship.ports.blobs import BlobStore
from ship.ports.store import Store
from ship.sessions import commands, packing, service
from ship.sessions.fold import fold
from ship.sessions.machine import Decision, decide
from ship.sessions.service import IdempotencyKey, Sessions
from ship.sessions.state import SessionState
from ship.store.postgres import PostgresStore
from ship.store.sqlite import SqliteStore
from ship.store.tables import TABLES
from ship.testing.postgres_server import fresh_database

NODES = 3
SESSIONS = 3
STEPS = 50
PAGE = 7
SEED = st.integers(0, 2**32 - 1)
SNAPSHOT_EVERY, FRAME = 6, 5
"""Small, so that short lives have snapshots, and packed logs more than one frame."""
PERSON = Actor(kind=ActorKind.USER, name="me")
BAD = Failure(code="bad", reason="it went wrong")
INHERITED = facts.CheckpointCreated(
    checkpoint_id="ckp_inherited",
    task_id="",
    commit="c",
    base_commit="b",
    files=(),
    diff_artifact="",
    bundle_artifact="bundle",
    reason=CheckpointReason.FORK,
)
BEGINNINGS: tuple[dict[str, Any], ...] = (
    {},
    {
        "origin": Origin(session_id="ses_0", checkpoint_id="ckp_0", seq=9),
        "inherited": (
            facts.ArtifactStored(name="bundle", sha256="0" * 64, size_bytes=1, media_type="text/plain"),
            INHERITED,
        ),
    },
    {"parent": Parent(session_id="ses_0", task_id="tsk_0", depth=1)},
)
"""How a session comes to be: by itself, as a fork, as a child."""

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


def runner_facts(state: SessionState, task_id: str) -> list[facts.Fact]:
    """All that a runner may say, in its place or out of it; the first is that it is ready."""
    generation, known = state.sandbox.generation, state.checkpoints
    wanted = state.wanted_checkpoint
    checkpoint_id = wanted.id if wanted else f"ckp_{state.head_seq}"
    reason = wanted.reason if wanted else CheckpointReason.TASK
    made = facts.CheckpointCreated(
        checkpoint_id=checkpoint_id,
        task_id=state.running.id if state.running else "",
        commit="c",
        base_commit="b",
        files=(),
        diff_artifact="",
        bundle_artifact="bundle",
        reason=reason,
    )
    return [
        facts.SandboxReady(generation=generation, base_commit="c", work_branch="b"),
        facts.TextFinished(task_id=task_id, message_id="m", part_id="p", text="words"),
        facts.RequestAsked(task_id=task_id, request_id="req_1", kind=RequestKind.PERMISSION, title="run it"),
        facts.TaskCompleted(task_id=task_id),
        facts.TaskFailed(task_id=task_id, failure=BAD),
        facts.TaskCancelled(task_id=task_id),
        facts.SandboxStepStarted(generation=generation, step="clone"),
        facts.SandboxStepFinished(generation=generation, step="clone", took_ms=1),
        facts.SandboxFailed(generation=generation, failure=BAD),
        facts.SandboxRestored(
            generation=generation, checkpoint_id=known[-1].id if known else "ckp_0", conversation=True
        ),
        made,
        msgspec.structs.replace(made, parent_id=known[-1].id if known else "ckp_unknown"),
        facts.CheckpointFailed(checkpoint_id=checkpoint_id, task_id=made.task_id, reason=reason, failure=BAD),
        facts.RequestAsked(
            task_id=task_id,
            request_id="req_1",
            kind=RequestKind.QUESTION,
            title="which",
            questions=(Question(question="Which?"),),
        ),
    ]


def offered(number: int, ahead: int, state: SessionState) -> list[commands.Command]:
    """All that can be asked, or reported."""
    task_id = state.running.id if state.running and ahead == 1 else f"tsk_{number}"
    waiting = [task.id for task in state.queue] or [task_id]
    generation, fresh = state.sandbox.generation, f"ckp_{state.head_seq}"
    effect = ("provision_sandbox", "pause_sandbox", "begin_child")[number % 3]
    failed = facts.EffectFailed(effect_id=f"e{state.head_seq}", kind=effect, attempts=5, failure=BAD)
    begun = [child.id for child in state.children if effect == "begin_child"]
    called = facts.ModelCalled(
        task_id=task_id,
        provider="p",
        model="m",
        status=200,
        took_ms=1,
        usage=Usage(model_calls=1, input_tokens=5),
    )
    child = facts.ChildFinished(
        child_id=f"ses_{state.head_seq - 1}", status=TaskStatus.COMPLETED, summary="done"
    )
    return [
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
        commands.ReportProgress(
            generation=generation, fact=facts.SandboxCreated(generation=generation, sandbox_id="sbx")
        ),
        commands.ReportProgress(
            generation=generation, fact=facts.SandboxStepStarted(generation=generation, step="create")
        ),
        commands.RecordModelCall(generation=generation, fact=called),
        commands.RecordEffectFailure(
            fact=failed, generation=generation, failure=BAD, child_id=begun[-1] if begun else ""
        ),
        *(reported(fact, state, ahead) for fact in runner_facts(state, task_id)),
    ]


class Lives(RuleBasedStateMachine):
    """A few sessions, driven by chance through nodes that share a store and nothing else.

    There is one rule, and each of its seeds is one move: Hypothesis leaves some rules out of each life, and without the right ones
    a life leads nowhere.
    """

    open_stores: OpenStores
    blobs: BlobStore
    seen: set[str]
    """The tables that had rows, and the types of events that there were."""

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._opened = AsyncExitStack()
        self._now_ms = 1_000
        self._known = {f"ses_{number}": Known(None, ()) for number in range(SESSIONS)}
        self._keys: dict[IdempotencyKey, tuple[str, commands.Command, Any]] = {}
        self._moves = {
            self.ask: 10,
            self.ask_at_once: 3,
            self.become_ready: 3,
            self.wait: 2,
            self.create: 1,
            self.repeat: 1,
            self.restart: 1,
            self.archive: 0.5,
            self.pack: 0.5,
        }

    @initialize(seed=SEED)
    def begin(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._stores = self._runner.run(self._opened.enter_async_context(type(self).open_stores()))
        self._nodes = [self._node(number) for number in range(NODES)]
        for session_id in self._known:
            self.create(session_id)

    @rule(seed=SEED)
    def live(self, seed: int) -> None:
        """One of the moves, with one of the sessions."""
        self._chance = random.Random(seed)
        (move,) = self._chance.choices(list(self._moves), list(self._moves.values()))
        move(self._chance.choice(list(self._known)))

    def teardown(self) -> None:
        """Each life ends with its logs packed."""
        try:
            for session_id in self._known:
                self.pack(session_id)
            self.all_is_as_decided()
        finally:
            self._runner.run(self._opened.aclose())
            self._runner.close()

    def create(self, session_id: str) -> None:
        asked = commands.CreateSession(
            title="t",
            repository=Repository(source="/r"),
            model="p/m",
            prompt="go" * self._chance.randrange(2),
            task_id="tsk_1",
            **self._chance.choice(BEGINNINGS),
        )
        self._ask(session_id, asked)

    def ask(self, session_id: str) -> None:
        self._ask(session_id, self._anything(session_id, self._chance.choice([1, 1, 1, 1, 0, 2])))

    def become_ready(self, session_id: str) -> None:
        """The present runner reports that it is ready: at the right time, mostly."""
        if (state := self._state(session_id)).sandbox.status == "creating" or not self._chance.randrange(9):
            self._ask(session_id, reported(runner_facts(state, "")[0], state, 1))

    def archive(self, session_id: str) -> None:
        self._ask(session_id, commands.ArchiveSession())

    def pack(self, session_id: str) -> None:
        """The log of a session that is over goes into a blob, and reads as before."""
        self.archive(session_id)
        self._runner.run(self._any_node().pack(session_id))

    def ask_at_once(self, session_id: str) -> None:
        """Several nodes at once: what comes of it is what the machine says for one of the orders."""
        known = self._known[session_id]
        self._now_ms += 1
        asked = [self._anything(session_id, 1) for _ in range(self._chance.randint(2, 4))]
        answers = self._runner.run(self._gathered(session_id, asked))
        found = self._log(session_id)
        for order in itertools.permutations(range(len(asked))):
            told: list[Any] = [None] * len(asked)
            outcome = known
            for position in order:
                told[position], outcome = self._decided(outcome, asked[position])
            is_whole = [encode(record) for record in outcome.records] == found and told == answers
            if is_whole and self._due()[session_id] == (outcome.effects, outcome.alarms):
                self._known[session_id] = outcome
                return
        raise AssertionError(f"no order of {asked} explains {answers}")

    def repeat(self, session_id: str) -> None:
        """A key that comes again gets the first answer, from any node, and changes nothing."""
        key = IdempotencyKey("me", f"{session_id} {len(self._keys) % 3}", "print")
        first = self._keys.get(key)
        asked = first[1] if first else commands.PostMessage(message_id="msg_key", text="once")
        told = self._runner.run(self._outcome(session_id, asked, key))
        again = self._runner.run(self._outcome(session_id, asked, key))
        if first:
            assert told == again == first[2]
            return
        expected, self._known[session_id] = self._decided(self._known[session_id], asked)
        assert told == expected
        if isinstance(told, dict):
            assert again == told
            self._keys[key] = (session_id, asked, told)

    def restart(self, _: str) -> None:
        """A node that dies takes nothing with it but its memory."""
        number = self._chance.randrange(NODES)
        self._nodes[number] = self._node(number)

    def wait(self, _: str) -> None:
        """Clocks go on, and now and then back."""
        self._now_ms = max(1, self._now_ms + self._chance.randint(-5_000, 400_000))

    @invariant()
    def all_is_as_decided(self) -> None:
        """Each log is what was decided, and every node knows it."""
        due = self._due()
        for session_id, known in self._known.items():
            assert self._log(session_id) == [encode(record) for record in known.records]
            assert fold(known.records) == known.state
            assert due[session_id] == (known.effects, known.alarms)
            for node in self._nodes:
                assert self._runner.run(self._caught_up(node, session_id)) == known.state

    async def _caught_up(self, node: Sessions, session_id: str) -> SessionState:
        """What a node believes, after it has had to look: its cache may be behind until it decides on something."""
        node._states.forget(session_id)
        return await node.state(session_id)

    def _node(self, number: int) -> Sessions:
        return Sessions(self._stores[number], LocalBus(), lambda: self._now_ms, blobs=self.blobs)

    def _any_node(self) -> Sessions:
        return self._chance.choice(self._nodes)

    def _state(self, session_id: str) -> SessionState:
        state = self._known[session_id].state
        assert state
        return state

    def _anything(self, session_id: str, ahead: int) -> commands.Command:
        asked = offered(self._chance.randrange(5), ahead, self._state(session_id))
        self._chance.shuffle(asked)
        if self._chance.randrange(2):
            return asked[0]
        # Most of it is refused or costs the sandbox, whatever the state, and such lives lead nowhere.
        return next((one for one in asked if self._leads_on(session_id, one)), asked[0])

    def _leads_on(self, session_id: str, asked: commands.Command) -> bool:
        known = self._known[session_id]
        _, outcome = self._decided(known, asked)
        assert known.state
        assert outcome.state
        same_sandbox = outcome.state.sandbox.generation == known.state.sandbox.generation
        return outcome != known and same_sandbox and outcome.state.status is not SessionStatus.FAILED

    def _ask(self, session_id: str, asked: commands.Command) -> None:
        self._now_ms += 1
        told = self._runner.run(self._outcome(session_id, asked, None))
        expected, self._known[session_id] = self._decided(self._known[session_id], asked)
        assert told == expected, asked

    def _decided(self, known: Known, asked: commands.Command) -> tuple[Any, Known]:
        try:
            decision = decide(known.state, asked, _actor(asked), self._now_ms)
        except ShipError as error:
            return error.code, known
        return decision.answer, known.after(decision, self._now_ms)

    async def _outcome(self, session_id: str, asked: commands.Command, key: IdempotencyKey | None) -> Any:
        try:
            outcome = await self._any_node().execute(session_id, asked, _actor(asked), key)
        except ShipError as error:
            return error.code
        return outcome.answer

    async def _gathered(self, session_id: str, asked: list[commands.Command]) -> list[Any]:
        return await asyncio.gather(*(self._outcome(session_id, each, None) for each in asked))

    def _due(self) -> dict[str, tuple[set[bytes], set[tuple[str, int]]]]:
        """The effects and alarms that the store holds of each session."""
        due: dict[str, tuple[set[bytes], set[tuple[str, int]]]] = defaultdict(lambda: (set(), set()))
        for table, row in self._runner.run(self._dumped()):
            self.seen.add(row["type"] if table == "events" else table)
            effects, alarms = due[row.get("session_id", "")]
            if table == "outbox":
                effects.add(row["body"])
            if table == "alarms":
                alarms.add((row["name"], row["due_at_ms"]))
        return due

    async def _dumped(self) -> list[tuple[str, dict[str, Any]]]:
        return [
            (table, dict(zip(TABLES[table], values, strict=True)))
            async for table, rows in self._stores[0].dump()
            for values in rows
        ]

    def _log(self, session_id: str) -> list[bytes]:
        """The whole log, page by page."""
        found: list[bytes] = []
        while rows := self._runner.run(self._nodes[0].events(session_id, len(found), PAGE)):
            assert [seq for seq, _ in rows] == list(range(len(found) + 1, len(found) + len(rows) + 1))
            found += [body for _, body in rows]
        return found


def _actor(asked: commands.Command) -> Actor:
    internal = (
        *(commands.ReportFrame, commands.ReportProgress, commands.ReportMissing, commands.FireAlarm),
        *(commands.RecordModelCall, commands.RecordEffectFailure),
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


@pytest.mark.parametrize(("body", "lives"), [("sqlite", 12), ("postgres", 6)])
def test_any_life_through_any_nodes_is_what_the_machine_decides(
    body: str, lives: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(service, "SNAPSHOT_EVERY", SNAPSHOT_EVERY)
    monkeypatch.setattr(packing, "FRAME", FRAME)
    opened = one_file if body == "sqlite" else one_database(request.getfixturevalue("postgres_address"))
    seen: set[str] = set()
    of_a_store = {"open_stores": staticmethod(opened), "blobs": FolderBlobs(tmp_path / "blobs"), "seen": seen}
    run_state_machine_as_test(  # type: ignore[no-untyped-call] # hypothesis leaves it untyped
        type("LivesOnAStore", (Lives,), of_a_store),
        settings=settings(
            max_examples=lives,
            phases=[Phase.reuse, Phase.generate],  # making a failing life shorter takes minutes
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
    assert seen >= {"snapshots", "packed"}
