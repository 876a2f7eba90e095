"""Effects and alarms, carried out by a real worker against hosts that work and hosts that do not."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ship.bus import LocalBus
from ship.errors import Unavailable
from ship.events import Cursor, facts
from ship.model import SYSTEM, Actor, ActorKind, Repository, SessionStatus
from ship.ports.store import NewAlarm
from ship.sessions import commands, worker
from ship.sessions.effects import Effects, RunnerSettings
from ship.sessions.service import Sessions
from ship.sessions.state import SessionState
from ship.sessions.worker import Worker
from ship.store.sqlite import SqliteStore
from ship.testing.sandbox_hosts import ForgetfulSandboxHost, FullSandboxHost, PretendSandboxHost

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


async def until(sessions: Sessions, session_id: str, true: Callable[[SessionState], object]) -> SessionState:
    async with asyncio.timeout(10):
        async for _ in sessions.follow(session_id, 0):
            state = await sessions.state(session_id)
            if true(state):
                return state
    raise AssertionError("the stream ended")


async def settled(store: SqliteStore) -> None:
    async with asyncio.timeout(10):
        while await store._db.read(lambda c: c.execute("SELECT count(*) FROM outbox").fetchone()[0]):
            await asyncio.sleep(0.01)


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
        session_id = await begun(sessions)
        await settled(store)
        ready = facts.SandboxReady(generation=1, base_commit="c", work_branch="b")
        frame = commands.ReportFrame(at=Cursor(generation=1, n=1), fact=ready)
        await sessions.execute(session_id, frame, SYSTEM)
        host.sandboxes.clear()
        await sessions.check_soon(session_id, 0)
        state = await until(sessions, session_id, lambda s: s.status is SessionStatus.FAILED)
    assert state.failure and state.failure.code == "sandbox_lost"


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
