"""Effects and alarms, carried out by a real worker against hosts that work and hosts that do not."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ship.bus import LocalBus
from ship.errors import Conflict, Unavailable
from ship.events import Cursor, decode, facts
from ship.events.frames import Delta
from ship.model import (
    AGENT,
    SYSTEM,
    Actor,
    ActorKind,
    CheckpointReason,
    Parent,
    Repository,
    SessionStatus,
    TaskStatus,
)
from ship.ports.store import Append, NewAlarm, NewEvent
from ship.sessions import commands, worker
from ship.sessions.effects import Effects, RunnerSettings
from ship.sessions.service import Outcome, Sessions
from ship.sessions.state import SessionState
from ship.sessions.worker import Worker
from ship.store.sqlite import SqliteStore
from ship.testing.sandbox_hosts import (
    AmnesicSandboxHost,
    AwaySandboxHost,
    ForgetfulSandboxHost,
    FullSandboxHost,
    PretendSandboxHost,
)

ME = Actor(kind=ActorKind.USER, name="me")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "ship.db")
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def sessions(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> Sessions:
    monkeypatch.setattr(worker, "BACKOFF_MS", (1, 1, 1))
    return Sessions(store, LocalBus(), lambda: time.time_ns() // 1_000_000)


class Working:
    """A worker that runs for as long as the block does."""

    def __init__(self, store: SqliteStore, sessions: Sessions, host: PretendSandboxHost) -> None:
        settings = RunnerSettings("base", "http://ship.internal", lambda session, n: f"{session}.{n}")
        self._worker = Worker(store, sessions, Effects(sessions, host, settings))

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._worker.run())

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def begun(sessions: Sessions) -> str:
    command = commands.CreateSession(
        title="t", repository=Repository(source="/r"), model="p/m", prompt="do", task_id="tsk_1"
    )
    return (await sessions.create(command, ME)).session_id


READY = facts.SandboxReady(generation=1, base_commit="c", work_branch="b")
CHECKPOINT = facts.CheckpointCreated(
    checkpoint_id="ckp",
    task_id="tsk_1",
    commit="c1",
    base_commit="c",
    files=(),
    diff_artifact="d",
    reason=CheckpointReason.PAUSE,
)


async def reported(sessions: Sessions, session_id: str, fact: facts.Fact) -> None:
    at = (await sessions.state(session_id)).cursor
    frame = commands.ReportFrame(at=Cursor(generation=at.generation, n=at.n + 1), fact=fact)
    await sessions.execute(session_id, frame, SYSTEM)


async def readied(store: SqliteStore, sessions: Sessions) -> str:
    """A session whose sandbox is ready and whose task runs."""
    session_id = await begun(sessions)
    await settled(store)
    await reported(sessions, session_id, READY)
    return session_id


async def rested(store: SqliteStore, sessions: Sessions) -> str:
    """A session whose sandbox is ready and that has nothing to do."""
    session_id = await readied(store, sessions)
    await sessions.execute(session_id, commands.CancelTask(task_id="tsk_1"), ME)
    await reported(sessions, session_id, facts.TaskCancelled(task_id="tsk_1"))
    return session_id


async def until(sessions: Sessions, session_id: str, true: Callable[[SessionState], object]) -> SessionState:
    async with asyncio.timeout(10):
        async for _ in sessions.follow(session_id, 0):
            state = await sessions.state(session_id)
            if true(state):
                return state
    raise AssertionError("the stream ended")


async def pause(sessions: Sessions, session_id: str) -> None:
    """Pause a session that is at rest, until its sandbox is frozen."""
    await sessions.execute(session_id, commands.PauseSession(checkpoint_id="ckp"), ME)
    await until(sessions, session_id, lambda s: s.sandbox.status == "paused")


async def settled(store: SqliteStore) -> None:
    async with asyncio.timeout(10):
        while await store._db.read(lambda c: c.execute("SELECT count(*) FROM outbox").fetchone()[0]):
            await asyncio.sleep(0.01)


async def alarmed(store: SqliteStore) -> set[str]:
    """Which sessions have an alarm."""
    rows = await store._db.read(lambda c: c.execute("SELECT session_id FROM alarms").fetchall())
    return {row["session_id"] for row in rows}


async def test_a_session_gets_a_sandbox_with_a_runner_that_knows_its_token(
    store: SqliteStore, sessions: Sessions
) -> None:
    host = PretendSandboxHost()
    async with Working(store, sessions, host):
        session_id = await begun(sessions)
        await settled(store)
    state = await sessions.state(session_id)
    sandbox = host.sandboxes[state.sandbox.sandbox_id]
    assert sandbox.metadata == {"ship.session": session_id, "ship.generation": "1"}
    assert sandbox.started == [
        ("exec ship-runner", {"SHIP_URL": "http://ship.internal", "SHIP_TOKEN": f"{session_id}.1"})
    ]
    assert [(step.step, step.status) for step in state.sandbox.steps] == [
        ("create", "done"),
        ("runner", "running"),
    ]


async def test_a_host_without_room_fails_the_session_in_its_own_words_and_a_retry_works(
    store: SqliteStore, sessions: Sessions
) -> None:
    async with Working(store, sessions, FullSandboxHost()):
        session_id = await begun(sessions)
        state = await until(sessions, session_id, lambda s: s.status is SessionStatus.FAILED)
    assert state.failure and (state.failure.code, state.failure.hint) == ("sandbox_host_full", "End some.")
    host = PretendSandboxHost()
    async with Working(store, sessions, host):
        await sessions.execute(session_id, commands.RetrySession(), ME)
        await settled(store)
    assert (await sessions.state(session_id)).sandbox.generation == 2
    assert len(host.sandboxes) == 1


async def test_a_sandbox_of_a_session_that_is_over_is_ended_however_long_its_host_is_away(
    store: SqliteStore, sessions: Sessions
) -> None:
    host = AwaySandboxHost()
    async with Working(store, sessions, host):
        session_id = await readied(store, sessions)
        host.away = 3 * worker.ATTEMPTS
        await sessions.execute(session_id, commands.ArchiveSession(), ME)
        await settled(store)
    assert host.sandboxes == {}


async def test_a_lost_answer_does_not_make_two_sandboxes(store: SqliteStore, sessions: Sessions) -> None:
    host = ForgetfulSandboxHost()
    async with Working(store, sessions, host):
        session_id = await begun(sessions)
        await until(sessions, session_id, lambda s: s.sandbox.sandbox_id)
        await settled(store)
    assert len(host.sandboxes) == 1


async def test_what_a_dead_worker_had_claimed_is_done_by_the_next(
    store: SqliteStore, sessions: Sessions
) -> None:
    await begun(sessions)
    claimed = await store.claim_effects(sessions.now_ms(), worker.LEASE_MS, 10)
    assert len(claimed) == 1
    host = PretendSandboxHost()
    async with Working(store, sessions, host):
        await settled(store)
    assert len(host.sandboxes) == 1


async def test_a_sandbox_that_vanished_is_noticed(store: SqliteStore, sessions: Sessions) -> None:
    host = PretendSandboxHost()
    async with Working(store, sessions, host):
        session_id = await readied(store, sessions)
        host.sandboxes.clear()
        await sessions.check_soon(session_id, 0)
        state = await until(sessions, session_id, lambda s: s.sandbox.generation == 2)
        await settled(store)
    assert state.running and state.running.recovered
    assert [sandbox.metadata["ship.generation"] for sandbox in host.sandboxes.values()] == ["2"]


async def test_an_alarm_that_fails_comes_again_and_holds_no_other_session_up(
    store: SqliteStore, sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    await store.append(Append("ses_newer", 0, 1, [NewEvent("of.tomorrow", b'{"v":99}')]))
    for due_at_ms, session_id in enumerate(("ses_newer", "ses_missing")):
        await store.set_alarm(session_id, NewAlarm("sandbox_check", due_at_ms))
    async with Working(store, sessions, PretendSandboxHost()), asyncio.timeout(10):
        while await alarms_of(store, "ses_missing"):
            await asyncio.sleep(0.01)
        await readied(store, sessions)
    assert "sandbox_check of ses_newer failed" in caplog.text
    assert await alarms_of(store, "ses_newer") == ["sandbox_check"]


async def alarms_of(store: SqliteStore, session_id: str) -> list[str]:
    rows = await store._db.read(
        lambda c: c.execute("SELECT name FROM alarms WHERE session_id = ?", (session_id,)).fetchall()
    )
    return [name for (name,) in rows]


@pytest.mark.parametrize("host", [PretendSandboxHost(), AmnesicSandboxHost()])
async def test_a_paused_session_is_frozen_left_alone_and_thawed(
    store: SqliteStore, sessions: Sessions, host: PretendSandboxHost
) -> None:
    async with Working(store, sessions, host):
        session_id = await rested(store, sessions)
        (sandbox,) = host.sandboxes.values()
        await pause(sessions, session_id)
        assert sandbox.is_paused
        await sessions.check_soon(session_id, 0)
        await settled(store)
        assert sandbox.is_paused
        await sessions.execute(session_id, commands.QueueTask(task_id="tsk_2", prompt="go"), ME)
        await until(sessions, session_id, lambda s: s.sandbox.status == "ready")
        assert not sandbox.is_paused
        assert [command for command, _ in sandbox.started] == ["exec ship-runner"]
    log = [decode(body).fact for _, body in await sessions.events(session_id, 0, 100)]
    (resumed,) = [fact for fact in log if isinstance(fact, facts.SandboxResumed)]
    assert resumed.memory == (not isinstance(host, AmnesicSandboxHost))


class WakingSandboxHost(AmnesicSandboxHost):
    """Wakes a paused sandbox that it is to extend or to start a second command in, and takes its time for that; ``begun`` and
    ``go_on`` as before."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on, self.is_away = asyncio.Event(), asyncio.Event(), False
        self.starts = 0

    async def start(self, sandbox_id: str, command: str, env: Mapping[str, str]) -> None:
        self.starts += 1
        if self.starts > 1:
            await self.extend(sandbox_id, 0)
        await super().start(sandbox_id, command, env)

    async def extend(self, sandbox_id: str, timeout_s: int) -> None:
        self.begun.set()
        await self.go_on.wait()
        self._sandbox(sandbox_id).is_paused = False
        if self.is_away:
            raise Unavailable("the answer was lost", code="sandbox_host_unreachable")


@pytest.mark.parametrize("is_away", [False, True])
async def test_a_sandbox_that_was_frozen_while_it_was_looked_after_is_frozen_again(
    store: SqliteStore, sessions: Sessions, is_away: bool
) -> None:
    host = WakingSandboxHost()
    host.is_away = is_away
    async with Working(store, sessions, host):
        session_id = await rested(store, sessions)
        await sessions.check_soon(session_id, 0)
        await host.begun.wait()
        await pause(sessions, session_id)
        host.go_on.set()
        await settled(store)
    (sandbox,) = host.sandboxes.values()
    assert sandbox.is_paused


async def test_a_sandbox_that_is_paused_while_its_runner_is_started_anew_is_frozen_again(
    store: SqliteStore, sessions: Sessions
) -> None:
    host = WakingSandboxHost()
    async with Working(store, sessions, host):
        session_id = await rested(store, sessions)
        await pause(sessions, session_id)
        await sessions.execute(session_id, commands.ResumeSession(), ME)
        await host.begun.wait()
        await pause(sessions, session_id)
        host.go_on.set()
        await settled(store)
    (sandbox,) = host.sandboxes.values()
    assert sandbox.is_paused


async def test_a_pause_that_waits_for_its_checkpoint_is_not_frozen_by_a_look_at_its_sandbox(
    store: SqliteStore, sessions: Sessions
) -> None:
    host = WakingSandboxHost()
    async with Working(store, sessions, host):
        session_id = await readied(store, sessions)
        await sessions.check_soon(session_id, 0)
        await host.begun.wait()
        await sessions.execute(session_id, commands.PauseSession(checkpoint_id="ckp"), ME)
        host.go_on.set()
        await settled(store)
    (sandbox,) = host.sandboxes.values()
    assert not sandbox.is_paused


async def test_a_paused_sandbox_that_is_gone_is_replaced(store: SqliteStore, sessions: Sessions) -> None:
    host = PretendSandboxHost()
    async with Working(store, sessions, host):
        session_id = await readied(store, sessions)
        await sessions.execute(session_id, commands.PauseSession(checkpoint_id="ckp"), ME)
        await reported(sessions, session_id, CHECKPOINT)
        await until(sessions, session_id, lambda s: s.sandbox.status == "paused")
        host.sandboxes.clear()
        await sessions.execute(session_id, commands.ResumeSession(), ME)
        state = await until(sessions, session_id, lambda s: s.sandbox.generation == 2)
        assert state.running and state.running.recovered


async def test_a_child_works_and_its_result_comes_to_its_parent(
    store: SqliteStore, sessions: Sessions
) -> None:
    async with Working(store, sessions, PretendSandboxHost()):
        parent_id = await readied(store, sessions)
        start = commands.StartChild(child_id="ses_child", title="c", prompt="port it", model="p/other")
        await sessions.execute(parent_id, start, AGENT)
        await settled(store)
        child = await sessions.state("ses_child")
        assert child.parent == Parent(session_id=parent_id, task_id="tsk_1", depth=1)
        assert (child.model, child.tasks[0].prompt) == ("p/other", "port it")
        await reported(sessions, "ses_child", READY)
        task_id = child.tasks[0].id
        said = facts.TextFinished(task_id=task_id, message_id="m", part_id="p", text="Ported.")
        await reported(sessions, "ses_child", said)
        await reported(sessions, "ses_child", facts.TaskCompleted(task_id=task_id))
        state = await until(sessions, parent_id, lambda s: s.children[0].status is TaskStatus.COMPLETED)
    assert state.children[0].summary == "Ported."


async def test_what_a_child_came_to_is_told_again_to_a_parent_that_was_too_busy(
    store: SqliteStore, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = [True, True]
    execute = sessions.execute

    async def often_busy(session_id: str, command: commands.Command, *rest: Any) -> Outcome:
        if isinstance(command, commands.FinishChild) and busy:
            busy.pop()
            raise Conflict("this session is too busy", code="session_busy")
        return await execute(session_id, command, *rest)

    monkeypatch.setattr(sessions, "execute", often_busy)
    async with Working(store, sessions, PretendSandboxHost()):
        parent_id = await readied(store, sessions)
        start = commands.StartChild(child_id="ses_child", title="c", prompt="port it")
        await sessions.execute(parent_id, start, AGENT)
        await settled(store)
        await sessions.execute("ses_child", commands.ArchiveSession(), ME)
        await settled(store)
    assert not busy
    assert (await sessions.state(parent_id)).children[0].status is TaskStatus.CANCELLED


@pytest.mark.parametrize("begun_first", [True, False])
async def test_a_child_ends_with_the_task_that_started_it(
    store: SqliteStore, sessions: Sessions, begun_first: bool
) -> None:
    async with Working(store, sessions, PretendSandboxHost()):
        parent_id = await readied(store, sessions)
    start = commands.StartChild(child_id="ses_child", title="c", prompt="port it")
    await sessions.execute(parent_id, start, AGENT)
    if begun_first:
        async with Working(store, sessions, PretendSandboxHost()):
            await settled(store)
    await sessions.execute(parent_id, commands.CancelTask(task_id="tsk_1"), ME)
    await reported(sessions, parent_id, facts.TaskCancelled(task_id="tsk_1"))
    async with Working(store, sessions, PretendSandboxHost()):
        state = await until(sessions, parent_id, lambda s: s.children[0].status is TaskStatus.CANCELLED)
        await settled(store)
    assert state.children[0].summary == ""
    assert (await sessions.state("ses_child")).status is SessionStatus.ARCHIVED


async def test_a_runner_that_vanished_is_started_again(store: SqliteStore, sessions: Sessions) -> None:
    host = PretendSandboxHost()
    async with Working(store, sessions, host):
        session_id = await begun(sessions)
        await settled(store)
        (sandbox,) = host.sandboxes.values()
        sandbox.started.clear()
        await sessions.check_soon(session_id, 0)
        async with asyncio.timeout(10):
            while not sandbox.started:
                await asyncio.sleep(0.01)
    assert (await sessions.state(session_id)).status is SessionStatus.PROVISIONING


async def test_an_archived_session_has_no_sandbox(store: SqliteStore, sessions: Sessions) -> None:
    host = PretendSandboxHost()
    async with Working(store, sessions, host):
        session_id = await begun(sessions)
        await settled(store)
        await sessions.execute(session_id, commands.ArchiveSession(), ME)
        await settled(store)
    assert not host.sandboxes


class SlowSandboxHost(PretendSandboxHost):
    """Takes its time to make a sandbox; ``begun`` says that it is at it, ``go_on`` lets it finish."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

    async def create(self, template: str, metadata: Mapping[str, str], timeout_s: int) -> str:
        self.begun.set()
        await self.go_on.wait()
        return await super().create(template, metadata, timeout_s)


async def test_a_session_archived_while_its_sandbox_is_made_leaves_none(
    store: SqliteStore, sessions: Sessions
) -> None:
    host = SlowSandboxHost()
    async with Working(store, sessions, host), asyncio.timeout(10):
        session_id = await begun(sessions)
        await host.begun.wait()
        await sessions.execute(session_id, commands.ArchiveSession(), ME)
        host.go_on.set()
        await settled(store)
    assert not host.sandboxes


class CountingSandboxHost(SlowSandboxHost):
    """``begun`` says that two at once are making a sandbox."""

    def __init__(self) -> None:
        super().__init__()
        self._making = 0

    async def create(self, template: str, metadata: Mapping[str, str], timeout_s: int) -> str:
        self._making += 1
        if self._making == 2:
            self.go_on.set()
        return await super().create(template, metadata, timeout_s)


async def test_two_nodes_that_do_one_effect_end_with_one_sandbox_and_say_so_once(
    store: SqliteStore, sessions: Sessions
) -> None:
    host = CountingSandboxHost()
    session_id = await begun(sessions)
    other = Sessions(store, LocalBus(), sessions.now_ms)  # it knows only what is in the store
    settings = RunnerSettings("base", "http://ship.internal", lambda session, n: f"{session}.{n}")
    effect = commands.ProvisionSandbox(generation=1)
    async with asyncio.timeout(10):
        await asyncio.gather(
            *(Effects(node, host, settings).perform(session_id, effect) for node in (sessions, other))
        )
        await Effects(other, host, settings).perform(session_id, effect)
    ((sandbox_id, sandbox),) = host.sandboxes.items()
    assert len(sandbox.started) == 1
    log = [decode(body).fact for _, body in await store.events(session_id, 0, 100)]
    (created,) = [fact for fact in log if isinstance(fact, facts.SandboxCreated)]
    assert created.sandbox_id == sandbox_id
    steps = [(fact.TYPE, fact.step) for fact in log if hasattr(fact, "step")]
    assert len(steps) == len(set(steps)), steps


async def test_the_lease_of_an_effect_lasts_as_long_as_it_is_worked_on(
    store: SqliteStore, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "RENEW_S", 0.01)
    monkeypatch.setattr(worker, "LEASE_MS", 300)
    host = SlowSandboxHost()
    async with Working(store, sessions, host), asyncio.timeout(10):
        await begun(sessions)
        await host.begun.wait()
        first = sessions.now_ms()
        while sessions.now_ms() < first + 600:
            assert not await store.claim_effects(sessions.now_ms(), 1, 10)
            await asyncio.sleep(0.02)
        host.go_on.set()
        await settled(store)
    assert len(host.sandboxes) == 1


async def test_a_store_that_fails_for_a_while_does_not_end_the_worker(
    store: SqliteStore, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "STORE_RETRY_S", 0.01)
    failures = iter([Unavailable("full", code="disk_full")] * 3)
    claim = store.claim_effects

    async def failing(*arguments: int) -> Any:
        if error := next(failures, None):
            raise error
        return await claim(*arguments)

    host = PretendSandboxHost()
    async with Working(store, sessions, host):
        await settled(store)
        monkeypatch.setattr(store, "claim_effects", failing)
        sessions._on_work()
        async with asyncio.timeout(10):
            while next(failures, None):
                await asyncio.sleep(0.01)
        await begun(sessions)
        await settled(store)
    assert len(host.sandboxes) == 1


async def test_deadlines_wait_for_those_who_come_back_after_a_restart(
    store: SqliteStore, sessions: Sessions
) -> None:
    session_id = await begun(sessions)
    await store.set_alarm(session_id, NewAlarm("provision_deadline", 1))
    async with Working(store, sessions, PretendSandboxHost()):
        await settled(store)
    assert (await sessions.state(session_id)).status is SessionStatus.PROVISIONING


async def test_deadlines_wait_when_the_clock_has_jumped(store: SqliteStore) -> None:
    ahead_ms = 0
    sessions = Sessions(store, LocalBus(), lambda: time.time_ns() // 1_000_000 + ahead_ms)
    async with Working(store, sessions, PretendSandboxHost()):
        session_id = await begun(sessions)
        await settled(store)
        ahead_ms = 3_600_000
        await sessions.check_soon(session_id, 0)  # wakes the worker
        async with asyncio.timeout(10):
            while (due_ms := await store.next_due_ms()) and due_ms <= sessions.now_ms() + 30_000:
                await asyncio.sleep(0.01)
        due = [alarm.name for alarm in await store.claim_alarms(sessions.now_ms() + 30_000, 1, 10)]
    assert "provision_deadline" not in due
    assert (await sessions.state(session_id)).status is SessionStatus.PROVISIONING


async def test_a_clock_that_is_set_back_holds_up_neither_second_tries_nor_alarms(store: SqliteStore) -> None:
    back_ms = 0
    sessions = Sessions(store, LocalBus(), lambda: time.time_ns() // 1_000_000 - back_ms)
    host = AwaySandboxHost()
    host.away = 1
    async with Working(store, sessions, host):
        session_id = await begun(sessions)
        async with asyncio.timeout(10):
            while host.away:
                await asyncio.sleep(0.01)
        back_ms = 3_600_000
        await sessions.check_soon("another", 0)  # wakes the worker
        await settled(store)
    assert host.sandboxes
    due = await store.claim_alarms(sessions.now_ms() + 300_000, 1, 10)
    assert {"provision_deadline", "sandbox_check"} <= {
        alarm.name for alarm in due if alarm.session_id == session_id
    }


async def test_what_is_being_done_is_not_begun_again_when_the_clock_is_set_back(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "RENEW_S", 0.01)
    back_ms = 0
    sessions = Sessions(store, LocalBus(), lambda: time.time_ns() // 1_000_000 - back_ms)
    begins: list[str] = []
    may_end = asyncio.Event()

    class Slow(PretendSandboxHost):
        async def create(self, template: str, metadata: Mapping[str, str], timeout_s: int) -> str:
            begins.append(template)
            await may_end.wait()
            return await super().create(template, metadata, timeout_s)

    host = Slow()
    async with Working(store, sessions, host):
        await begun(sessions)
        async with asyncio.timeout(10):
            while not begins:
                await asyncio.sleep(0.01)
            back_ms = 3_600_000
            # Until its lease is renewed by the new clock.
            while (await store.next_due_ms() or 0) > sessions.now_ms() + worker.LEASE_MS:
                await asyncio.sleep(0.01)
        for _ in range(2):
            # Wakes the worker, which lets the alarm go when it has looked at the effects.
            await sessions.check_soon("another", 0)
            async with asyncio.timeout(10):
                while "another" in await alarmed(store):
                    await asyncio.sleep(0.01)
        may_end.set()
        await settled(store)
    assert len(begins) == 1


async def test_growing_text_keeps_a_task_from_being_taken_for_stuck(
    store: SqliteStore, sessions: Sessions
) -> None:
    async with Working(store, sessions, PretendSandboxHost()):
        session_id = await readied(store, sessions)
    await store.set_alarm(session_id, NewAlarm("stuck", 1))
    delta = Delta(task_id="tsk_1", message_id="m", part_id="p", kind="tool", offset=0, text="compiling")
    await sessions.grow(session_id, delta)
    due = await store.claim_alarms(sessions.now_ms() + 600_000, 1, 10)
    assert "stuck" not in [alarm.name for alarm in due]
