"""Three equal nodes on one PostgreSQL, NATS, bucket and sandbox host: any serves any session, and any part may die.

The broker and the database are started by the main thread: they end with the thread that started them.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import httpx
import pytest
from tests.chaos.cluster import PostgresView
from tests.chaos.load import Ledger, Watcher, Writer
from tests.system.cluster import Cluster, cluster
from tests.system.conftest import Ship, check_whole, ended, halted, types

from ship.cli.checkout import Checkout
from ship.client import Client
from ship.events import Record

pytestmark = pytest.mark.system

LONG = "talk for 8 seconds"
HALT_S = 2.0


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, model_url: str) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster"), model_url) as running:
        yield running


async def watch(node: Ship, session_id: str) -> list[int]:
    """What a client of that node sees until the task ends."""
    seen: list[int] = []
    async with Client(node.url, node.token) as client:
        async for item in client.events(session_id):
            if isinstance(item, Record):
                seen.append(item.seq)
                if item.fact.TYPE in ("task.completed", "task.failed"):
                    break
    return seen


@contextlib.asynccontextmanager
async def watched(node: Ship, session_id: str) -> AsyncIterator[None]:
    """Follow on that node meanwhile; in the end every event was seen, once and in order."""
    watching = asyncio.create_task(watch(node, session_id))
    yield
    async with asyncio.timeout(60):
        seen = await watching
    assert seen == list(range(1, seen[-1] + 1))


@contextlib.asynccontextmanager
async def loaded(nodes: list[Ship], sessions: list[str]) -> AsyncIterator[tuple[Ledger, list[Watcher]]]:
    """Writers leave notes in these sessions through all nodes meanwhile, and two watchers follow each of them."""
    ledger, stopped = Ledger(), asyncio.Event()
    watchers = [
        Watcher(nodes, number, session_id, server_sent=number % 2 == 1)
        for session_id in sessions
        for number in range(2)
    ]
    following = [asyncio.create_task(watcher.run()) for watcher in watchers]
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(3):
                writer = Writer(f"writer {number}", nodes, number, ledger)
                group.create_task(writer.run(sessions, stopped, tasks_every=0))
            yield ledger, watchers
            stopped.set()
    finally:
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)


async def check_acknowledged(
    nodes: list[Ship], sessions: list[str], ledger: Ledger, watchers: list[Watcher]
) -> None:
    """Every node tells the same logs, without a gap, with each acknowledged note once where it was said to be; and whoever watched
    was told each event once, in order."""
    for session_id in sessions:
        log, *others = [await node.events(session_id) for node in nodes]
        assert others == [log] * len(others)
        check_whole(log)
        found = [(item["data"]["text"], item["seq"]) for item in log if item["type"] == "message.posted"]
        wanted = [(text, seq) for text, (where, seq) in ledger.notes.items() if where == session_id]
        assert len(wanted) > 100
        assert found == sorted(wanted, key=lambda note: note[1])
        for watcher in watchers:
            if watcher.session_id == session_id:
                assert (watcher.wrong, watcher.records) == ([], log)


async def until_it_talks(node: Ship, session_id: str) -> None:
    """Until growing text is seen on that node."""
    async with (
        node.client() as client,
        client.stream("GET", f"/api/v1/sessions/{session_id}/events/stream", timeout=90) as stream,
    ):
        async for line in stream.aiter_lines():
            if line == "event: delta":
                return
    raise AssertionError("the stream ended")


async def seen_while_halted(node: Ship, *, asked: Ship, watched: Ship) -> tuple[str, list[dict[str, object]]]:
    """A session that was begun at ``asked``, and its log at the task's end as ``watched`` tells it while ``node`` stands still."""
    session_id = await asked.begin("long", "talk for 4 seconds")
    await until_it_talks(asked, session_id)
    with halted(node.pid):
        items = await watched.until(session_id, ended)
    check_whole(items)
    assert types(items)[-1] == "task.completed", items[-1]
    return session_id, items


async def test_a_task_survives_the_node_that_its_runner_talks_to(three: Cluster) -> None:
    first, second, third = three.nodes
    session_id = await first.begin("long", LONG)
    async with watched(second, session_id):
        await until_it_talks(third, session_id)
        before = await second.processes(session_id)
        first.kill()
        try:
            async with third.client() as client:
                steer = {"prompt": "and be brief", "mode": "steer"}
                said = await client.post(f"/api/v1/sessions/{session_id}/tasks", json=steer)
                assert said.status_code == 202, said.text
            items = await third.until(session_id, ended)
        finally:
            await asyncio.to_thread(first.start)
    check_whole(items)
    assert types(items)[-1] == "task.completed", items[-1]
    assert "task.steered" in types(items)
    assert await second.processes(session_id) == before
    assert await first.events(session_id) == await second.events(session_id)


async def test_the_change_made_through_one_node_is_brought_home_from_another(three: Cluster) -> None:
    first, second, third = three.nodes
    session_id = await second.begin("demo")
    async with watched(third, session_id):
        items = await first.until(session_id, ended)
    check_whole(items)
    assert types(items)[-1] == "task.completed", items[-1]
    path = f"/api/v1/sessions/{session_id}/diff"
    for node in three.nodes:
        async with node.client() as client:
            diff = (await client.get(path)).text
            assert "float(amount)" in diff
            assert (await client.get(path, params={"live": "true"})).text == diff


async def test_a_broker_that_dies_delays_and_loses_nothing(three: Cluster) -> None:
    first, second, _ = three.nodes
    session_id = await first.begin("long", LONG)
    async with watched(second, session_id):
        await until_it_talks(second, session_id)
        three.nats.kill()
        await asyncio.sleep(2)  # the length of the outage
        three.nats.start()
        items = await second.until(session_id, ended)
    check_whole(items)
    assert types(items)[-1] == "task.completed", items[-1]


async def test_a_database_that_dies_at_once_and_comes_back_has_everything(three: Cluster) -> None:
    first, second, _ = three.nodes
    session_id = await first.begin("long", LONG)
    async with watched(second, session_id):
        await until_it_talks(second, session_id)
        three.postgres.stop(immediately=True)
        three.postgres.start()
        items = await _answered(second, session_id)
    check_whole(items)
    assert types(items)[-1] == "task.completed", items[-1]


async def test_a_node_that_stands_still_delays_nobody_else(three: Cluster) -> None:
    _, second, third = three.nodes
    session_id, items = await seen_while_halted(third, asked=third, watched=second)
    assert await third.until(session_id, ended) == items


async def test_a_node_that_stands_still_with_the_runners_link_is_left(three: Cluster) -> None:
    first, second, _ = three.nodes
    session_id, items = await seen_while_halted(first, asked=second, watched=second)
    # Awake again, it has it all; the end of the model's answer that it was passing on may come on top.
    assert (await first.until(session_id, ended))[: len(items)] == items


async def test_under_load_no_end_of_an_agents_parts_loses_or_repeats_anything(three: Cluster) -> None:
    first, second, third = three.nodes
    working = await first.begin("long", "talk for 15 seconds")
    sessions = [working, *[await node.begin("echo", "hello") for node in (second, third)]]
    async with loaded(three.nodes, sessions) as (ledger, watchers):
        await until_it_talks(second, working)
        before = await third.processes(working)
        os.kill(before["agent"], signal.SIGKILL)
        await third.until(working, lambda log: "agent.restarted" in types(log))
        await until_it_talks(second, working)
        os.kill(before["runner"], signal.SIGKILL)
        async with asyncio.timeout(20):
            while (await third.processes(working)).get("runner", before["runner"]) == before["runner"]:
                await asyncio.sleep(0.1)
        await asyncio.to_thread(three.host.kill)
        await asyncio.to_thread(three.host.start)
        at_work = await third.processes(working)
        for pid in (at_work["runner"], at_work["agent"], three.host.pid):
            with halted(pid):
                await asyncio.sleep(HALT_S)
        assert not ended(await first.events(working)), "the task ended too soon to be disturbed"
        items = await first.until(working, ended)
        for session_id in sessions[1:]:
            await first.until(session_id, ended)
    ends = [item["type"] for item in items if item["type"].startswith("task.")]
    assert ends == ["task.queued", "task.started", "task.completed"]
    await until_done(three)
    await check_acknowledged(three.nodes, sessions, ledger, watchers)


async def test_a_sandbox_host_that_no_node_reaches_delays_and_loses_nothing(three: Cluster) -> None:
    first, second, third = three.nodes
    working = await first.begin("long", LONG)
    await until_it_talks(second, working)
    three.line.stall(b"POST /v2/sandboxes")
    waiting = await second.begin("echo", "hello")
    async with watched(third, waiting):
        await until_made(three, waiting)  # which no node hears of
        three.line.cut()
        await until_tried(three, waiting, 2)
        assert "sandbox.created" not in types(await third.events(waiting))
        three.line.mend()
        logs = [await third.until(session_id, ended) for session_id in (working, waiting)]
    for log in logs:
        check_whole(log)
        assert types(log)[-1] == "task.completed", log[-1]
        assert not {"effect.failed", "sandbox.failed", "sandbox.lost", "agent.restarted"} & {*types(log)}
    await until_done(three)
    assert len(three.host.sandboxes(waiting)) == 1


async def test_tokens_and_uploads_are_the_clusters_and_no_secret_is_in_a_log(
    three: Cluster, tmp_path: Path
) -> None:
    first, second, third = three.nodes
    made = first.command("token", "create", "--name", "robot")
    assert made.returncode == 0, made.stderr
    headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
    async with httpx.AsyncClient(base_url=second.url, headers=headers) as client:
        assert (await client.get("/api/v1/me")).json() == {"name": "robot", "search_modes": ["words"]}
    bundle = tmp_path / "bundle"
    Checkout.at(second.repository).bundle(bundle)
    async with second.client() as client:
        source = (await client.put("/api/v1/uploads", content=bundle.read_bytes())).json()["source"]
    # The sandbox clones from the first node, which has seen nothing of the upload.
    session_id = await third.begin("echo", "hello", repository={"source": source})
    items = await third.until(session_id, ended)
    assert types(items)[-1] == "task.completed", items[-1]
    for node in three.nodes:
        assert three.bucket.secret not in (node.data.parent / "ship.log").read_text()


async def until_tried(three: Cluster, session_id: str, attempts: int) -> None:
    """Until an effect of the session was tried so often."""
    connection = await asyncpg.connect(three.postgres.url("postgres"))
    tried = "SELECT max(attempts) FROM outbox WHERE session_id = $1"
    try:
        async with asyncio.timeout(60):
            while (await connection.fetchval(tried, session_id) or 0) < attempts:
                await asyncio.sleep(0.05)
    finally:
        await connection.close()


async def until_made(three: Cluster, session_id: str) -> None:
    """Until the session has a sandbox."""
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(three.host.sandboxes, session_id):
            await asyncio.sleep(0.05)


async def until_done(three: Cluster) -> None:
    """Until no effect is left over."""
    outbox = PostgresView(three.postgres.url("postgres"))
    async with asyncio.timeout(30):
        while await outbox.count("outbox"):
            await asyncio.sleep(0.1)


async def _answered(node: Ship, session_id: str) -> list[dict[str, object]]:
    """The log at the task's end. While the database is away, questions are answered 503: asked again."""
    async with asyncio.timeout(90):
        while True:
            with contextlib.suppress(KeyError):
                if ended(items := await node.events(session_id)):
                    return items
            await asyncio.sleep(0.2)
