"""Several nodes on one PostgreSQL and one NATS: growing text, missed notices, decisions on what another node did."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ship.bus.nats import NatsBus
from ship.errors import NotFound
from ship.events import Cursor, facts
from ship.events.frames import Delta
from ship.model import AGENT, SYSTEM, Actor, ActorKind, Repository
from ship.ports.bus import HEAD, Notice
from ship.sessions import commands, worker
from ship.sessions.effects import Effects, RunnerSettings
from ship.sessions.heads import SUMMARIES
from ship.sessions.service import Sessions
from ship.sessions.worker import Worker
from ship.store.postgres import PostgresStore
from ship.testing.nats_server import NatsServer
from ship.testing.sandbox_hosts import PretendSandboxHost

ME = Actor(kind=ActorKind.USER, name="me")
WAIT_S = 15.0


class Node(NamedTuple):
    """What one process of the control plane has of its own."""

    sessions: Sessions
    bus: NatsBus
    store: PostgresStore


@asynccontextmanager
async def cluster(database: str, broker: str, count: int = 2) -> AsyncIterator[list[Node]]:
    secret = secrets.token_bytes(32)
    async with AsyncExitStack() as stack:
        nodes = []
        for _ in range(count):
            store = PostgresStore(database)
            await store.open()
            stack.push_async_callback(store.close)
            bus = NatsBus(broker, secret)
            await bus.open()
            stack.push_async_callback(bus.close)
            sessions = Sessions(store, bus, lambda: time.time_ns() // 1_000_000)
            reconciling = asyncio.create_task(sessions.reconcile())
            stack.callback(reconciling.cancel)
            nodes.append(Node(sessions, bus, store))
        yield nodes


@pytest.fixture
async def nodes(postgres_url: str, nats_url: str) -> AsyncIterator[list[Node]]:
    async with cluster(postgres_url, nats_url) as made:
        yield made


async def running(sessions: Sessions) -> tuple[str, str]:
    """A session whose first task runs; (session id, task id)."""
    create = commands.CreateSession(title="t", repository=Repository(source="/r"), model="p/m")
    session_id = (await sessions.create(create, ME)).session_id
    queued = await sessions.execute(session_id, commands.QueueTask(task_id="tsk_1", prompt="do"), ME)
    generation = queued.state.sandbox.generation
    made = facts.SandboxCreated(generation=generation, sandbox_id="sbx")
    await sessions.execute(session_id, commands.ReportProgress(generation=generation, fact=made), SYSTEM)
    ready = facts.SandboxReady(generation=generation, base_commit="c", work_branch="b")
    await reported(sessions, session_id, 1, ready)
    return session_id, "tsk_1"


async def reported(sessions: Sessions, session_id: str, n: int, fact: facts.Fact) -> None:
    await sessions.execute(session_id, commands.ReportFrame(at=Cursor(generation=1, n=n), fact=fact), AGENT)


def delta(offset: int, text: str) -> Delta:
    return Delta(task_id="tsk_1", message_id="m", part_id="p", kind="text", offset=offset, text=text)


class Follower:
    """Collects what one stream brings, as a browser does."""

    def __init__(self, sessions: Sessions, session_id: str, after: int = 0) -> None:
        self.seqs: list[int] = []
        self.types: list[str] = []
        self.text = ""
        self.live = False
        self._stream = sessions.follow(session_id, after)
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async for seq, kind, body in self._stream:
            heard: dict[str, Any] = json.loads(body)
            if seq:
                self.seqs.append(seq)
                self.types.append(heard["type"])
            elif kind == "delta" and heard["offset"] <= len(self.text):
                self.text = self.text[: heard["offset"]] + heard["text"]
            self.live |= kind == "live"

    async def until(self, true: Callable[["Follower"], object]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not true(self):
                if self._task.done():
                    self._task.result()
                    assert true(self), "the stream has ended"
                await asyncio.sleep(0.01)

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._stream.aclose()


async def test_who_joins_on_another_node_in_mid_stream_sees_the_text_so_far(nodes: list[Node]) -> None:
    here, there = (node.sessions for node in nodes)
    session_id, _ = await running(here)
    async with here.listen(session_id):  # as the runner's link does
        await here.grow(session_id, delta(0, "It was "))
        await here.grow(session_id, delta(7, "a dark "))
        first = Follower(there, session_id)
        await first.until(lambda f: f.text == "It was a dark ")
        await here.grow(session_id, delta(14, "and "))
        second = Follower(there, session_id)
        for follower in (first, second):
            await follower.until(lambda f: f.text == "It was a dark and ")
        await here.grow(session_id, delta(18, "stormy night."))
        for follower in (first, second):
            await follower.until(lambda f: f.text == "It was a dark and stormy night.")
        await first.end()
        await second.end()
        await here.grow(session_id, delta(31, " Then"))
        # Nobody listens there any more: what is known there is old, and must not come back.
        third = Follower(there, session_id)
        await third.until(lambda f: f.text == "It was a dark and stormy night. Then")
        whole = facts.TextFinished(task_id="tsk_1", message_id="m", part_id="p", text="all of it")
        await reported(here, session_id, 2, whole)
        await third.until(lambda f: f.types[-1:] == ["text.finished"])
        fourth = Follower(there, session_id)
        await fourth.until(lambda f: f.live)
        assert fourth.text == ""
        for follower in (third, fourth):
            assert follower.seqs == list(range(1, len(follower.seqs) + 1))
            await follower.end()


async def test_a_node_that_missed_notices_is_told_within_a_second(nodes: list[Node]) -> None:
    here, there = nodes
    session_id, _ = await running(here.sessions)
    follower = Follower(there.sessions, session_id)
    await follower.until(lambda f: f.live)
    deaf = there.bus._subscriptions[there.bus._by_topic[session_id]]
    there.bus._hear = lambda topic, notices: None
    deaf.topic = "nobody"
    await here.sessions.execute(session_id, commands.PostMessage(message_id="m1", text="lost"), ME)
    head = await here.sessions.head(session_id)
    began = time.monotonic()
    await follower.until(lambda f: f.seqs[-1] == head)
    assert time.monotonic() - began < 5
    assert follower.seqs == list(range(1, head + 1))
    await follower.end()


async def test_a_node_decides_on_what_another_node_did(nodes: list[Node]) -> None:
    here, there = (node.sessions for node in nodes)
    session_id, task_id = await running(here)
    assert (await there.state(session_id)).running
    await reported(here, session_id, 2, facts.TaskCompleted(task_id=task_id))
    assert (await there.state(session_id)).running is None, "a read sees what is on disk"
    await here.execute(session_id, commands.QueueTask(task_id="tsk_2", prompt="more"), ME)
    # There the first task was the last that was decided on: a refusal must not come from an old state.
    cancelled = await there.execute(session_id, commands.CancelTask(task_id="tsk_2"), ME)
    assert cancelled.state.running and cancelled.state.running.cancel_requested
    with pytest.raises(NotFound):
        await there.execute(session_id, commands.CancelTask(task_id="tsk_3"), ME)


async def test_nodes_that_append_to_one_session_at_once_leave_no_gap(nodes: list[Node]) -> None:
    session_id, _ = await running(nodes[0].sessions)
    followers = [Follower(node.sessions, session_id) for node in nodes]
    await asyncio.gather(
        *(
            node.sessions.execute(session_id, commands.PostMessage(message_id=f"{n}", text="x"), ME)
            for n in range(50)
            for node in nodes
        )
    )
    head = await nodes[0].sessions.head(session_id)
    for follower in followers:
        await follower.until(lambda f: f.seqs[-1:] == [head])
        assert follower.seqs == list(range(1, head + 1))
        await follower.end()


@pytest.mark.parametrize("fault", ["killed", "halted"])
async def test_a_broker_that_is_gone_delays_other_nodes_and_loses_nothing(
    fault: str, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ship.bus.nats.PONG_WITHIN_S", 1.0)
    broker = NatsServer(tmp_path)
    broker.start()
    async with cluster(postgres_url, broker.url) as (here, there):
        session_id, _ = await running(here.sessions)
        near, far = Follower(here.sessions, session_id), Follower(there.sessions, session_id)
        await near.until(lambda f: f.live)
        await far.until(lambda f: f.live)
        async with there.bus.listen(SUMMARIES) as lines:
            (broker.kill if fault == "killed" else broker.halt)()
            for n in range(20):
                await here.sessions.execute(
                    session_id, commands.PostMessage(message_id=f"m{n}", text="x"), ME
                )
            head = await here.sessions.head(session_id)
            await near.until(lambda f: f.seqs[-1] == head)
            await far.until(lambda f: f.seqs[-1] == head)
            async with asyncio.timeout(WAIT_S):
                while Notice(0, HEAD, b"") not in await lines.take(1):
                    pass
        (broker.start if fault == "killed" else broker.go_on)()
        async with asyncio.timeout(WAIT_S):
            while not (here.bus._connection and there.bus._connection):
                await asyncio.sleep(0.01)
        await there.sessions.execute(session_id, commands.PostMessage(message_id="back", text="x"), ME)
        for follower in (near, far):
            await follower.until(lambda f: f.seqs[-1] == head + 1)
            assert follower.seqs == list(range(1, head + 2))
            await follower.end()
    broker.kill()


async def test_a_stream_on_another_node_ends_with_its_session(nodes: list[Node]) -> None:
    here, there = (node.sessions for node in nodes)
    session_id, _ = await running(here)
    follower = Follower(there, session_id)
    await follower.until(lambda f: f.live)
    await here.execute(session_id, commands.ArchiveSession(), ME)
    async with asyncio.timeout(WAIT_S):
        await follower._task
    assert follower.types[-1] == "session.archived"


class WaitingSandboxHost(PretendSandboxHost):
    """Makes no sandbox before it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.go_on = asyncio.Event()

    async def create(self, template: str, metadata: Mapping[str, str], timeout_s: int) -> str:
        self.asked += 1
        await self.go_on.wait()
        return await super().create(template, metadata, timeout_s)


def working(node: Node, host: PretendSandboxHost) -> "asyncio.Task[None]":
    runner = RunnerSettings("ship", "http://ship.internal", lambda session_id, generation: "token")
    return asyncio.create_task(Worker(node.store, node.sessions, Effects(node.sessions, host, runner)).run())


async def test_an_effect_stays_with_the_node_that_lives_and_is_taken_from_one_that_died(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "LEASE_MS", 1_000)
    monkeypatch.setattr(worker, "RENEW_S", 0.2)
    monkeypatch.setattr(worker, "SHARED_IDLE_S", 0.1)
    here, there = nodes
    slow, ready = WaitingSandboxHost(), WaitingSandboxHost()
    ready.go_on.set()
    create = commands.CreateSession(title="t", repository=Repository(source="/r"), model="p/m")
    session_id = (await here.sessions.create(create, ME)).session_id
    first = working(here, slow)
    async with asyncio.timeout(WAIT_S):
        while not slow.asked:
            await asyncio.sleep(0.01)
    second = working(there, ready)
    await asyncio.sleep(1.5)
    assert (slow.asked, ready.asked) == (1, 0), "it lasts longer than a lease, and its node lives"
    first.cancel()
    async with asyncio.timeout(WAIT_S):
        while not (await there.sessions.state(session_id)).sandbox.sandbox_id:
            await asyncio.sleep(0.05)
    assert (slow.asked, ready.asked) == (1, 1)
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
