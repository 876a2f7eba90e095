"""Every part is killed in the middle of a task: nothing is lost, nothing comes twice, the task goes on."""

import asyncio
import contextlib
import os
import signal
import time

import pytest
from tests.system.conftest import Ship, check_whole, ended, halted, types

from ship.client import Client
from ship.events import Record

pytestmark = pytest.mark.system

LONG = "talk for 8 seconds"
HALT_S, AGENT_HALT_S = 2.0, 3.0


async def talking(ship: Ship) -> str:
    """A session whose agent is in the middle of saying something."""
    session_id = await ship.begin("long", LONG)
    await ship.until(session_id, lambda log: "task.started" in types(log))
    async with (
        ship.client() as client,
        client.stream("GET", f"/api/v1/sessions/{session_id}/events/stream", timeout=60) as stream,
    ):
        async for line in stream.aiter_lines():
            if line == "event: delta":
                return session_id
    raise AssertionError("the stream ended")


async def watch(ship: Ship, session_id: str) -> list[int]:
    """What a client sees that follows until the task ends, whatever happens to the server meanwhile."""
    seen: list[int] = []
    async with Client(ship.url, ship.token) as client:
        async for item in client.events(session_id):
            if isinstance(item, Record):
                seen.append(item.seq)
                if item.fact.TYPE in ("task.completed", "task.failed"):
                    return seen
    return seen


async def test_kill_9_of_the_server_disturbs_nobody(ship: Ship) -> None:
    session_id = await talking(ship)
    before = await ship.processes(session_id)
    watching = asyncio.create_task(watch(ship, session_id))
    async with asyncio.timeout(10):
        while not (await ship.events(session_id))[-1]["seq"] >= 10:
            await asyncio.sleep(0.05)
    ship.kill()
    began = time.monotonic()
    await asyncio.to_thread(ship.start)
    recovery_s = time.monotonic() - began
    items = await ship.until(session_id, ended)
    check_whole(items)
    assert types(items)[-1] == "task.completed", items[-1]
    assert "agent.restarted" not in types(items)
    assert await ship.processes(session_id) == before
    async with asyncio.timeout(30):
        seen = await watching
    assert seen == list(range(1, seen[-1] + 1))
    assert recovery_s < 30


async def test_kill_9_of_the_runner_leaves_the_agent_at_work(ship: Ship) -> None:
    session_id = await talking(ship)
    before = await ship.processes(session_id)
    os.kill(before["runner"], signal.SIGKILL)
    items = await ship.until(session_id, ended)
    check_whole(items)
    assert types(items)[-1] == "task.completed", items[-1]
    after = await ship.processes(session_id)
    assert after["agent"] == before["agent"]
    assert after["runner"] != before["runner"]


async def test_kill_9_of_runner_and_keeper_is_mended_from_outside(ship: Ship) -> None:
    session_id = await talking(ship)
    before = await ship.processes(session_id)
    for name in ("keeper", "runner"):
        # The sandbox may have ended the runner with its keeper before we come to it.
        with contextlib.suppress(ProcessLookupError):
            os.kill(before[name], signal.SIGKILL)
    items = await ship.until(session_id, ended)
    check_whole(items)
    assert types(items)[-1] == "task.completed", items[-1]
    assert (await ship.processes(session_id))["agent"] == before["agent"]


async def test_kill_9_of_the_agent_continues_its_task(ship: Ship) -> None:
    session_id = await talking(ship)
    before = await ship.processes(session_id)
    os.kill(before["agent"], signal.SIGKILL)
    items = await ship.until(session_id, ended)
    check_whole(items)
    assert types(items)[-1] == "task.completed", items[-1]
    (restarted,) = [item for item in items if item["type"] == "agent.restarted"]
    assert restarted["data"]["code"] == "crashed"
    assert (await ship.processes(session_id))["agent"] != before["agent"]


async def test_kill_9_of_the_sandbox_host_leaves_its_sandboxes_at_work(ship: Ship) -> None:
    session_id = await talking(ship)
    before = await ship.processes(session_id)
    host = ship.sandboxd_pid()
    os.kill(host, signal.SIGKILL)
    items = await ship.until(session_id, ended)
    check_whole(items)
    assert types(items)[-1] == "task.completed", items[-1]
    assert await ship.processes(session_id) == before
    assert ship.sandboxd_pid() != host
    async with ship.client() as client:
        listed = await client.get(f"/api/v1/sessions/{session_id}/files")
        assert listed.status_code == 200, listed.text


async def test_an_agent_its_runner_and_its_sandbox_host_that_stand_still_for_a_while_disturb_nobody(
    ship: Ship,
) -> None:
    session_id = await talking(ship)
    before = await ship.processes(session_id)
    host = ship.sandboxd_pid()
    with halted(before["runner"], host):
        await asyncio.sleep(HALT_S)
    # An agent that stands still for good is `hung`: see the runner's own tests.
    with halted(before["agent"]):
        await asyncio.sleep(AGENT_HALT_S)
    items = await ship.until(session_id, ended)
    check_whole(items)
    assert types(items)[-1] == "task.completed", items[-1]
    assert "agent.restarted" not in types(items)
    assert await ship.processes(session_id) == before
    assert ship.sandboxd_pid() == host


async def test_server_and_sandbox_host_die_together(ship: Ship) -> None:
    session_id = await talking(ship)
    before = await ship.processes(session_id)
    os.kill(ship.sandboxd_pid(), signal.SIGKILL)
    ship.kill()
    await asyncio.to_thread(ship.start)
    items = await ship.until(session_id, ended)
    check_whole(items)
    assert types(items)[-1] == "task.completed", items[-1]
    assert await ship.processes(session_id) == before


async def kill_the_sandbox(ship: Ship, session_id: str) -> None:
    """Its first process dies, and all others with it."""
    os.kill((await ship.processes(session_id))["sandbox"], signal.SIGKILL)


async def test_an_idle_session_whose_sandbox_is_lost_is_given_a_new_one_with_its_files(ship: Ship) -> None:
    session_id = await ship.begin("demo")
    await ship.until(session_id, ended)
    await kill_the_sandbox(ship, session_id)
    await ship.until(session_id, lambda log: types(log).count("sandbox.ready") == 2)
    async with ship.client() as client:
        path = {"path": "timesheet/durations.py"}
        content = await client.get(f"/api/v1/sessions/{session_id}/files/content", params=path)
        assert "float(amount)" in content.text
        await client.post(
            f"/api/v1/sessions/{session_id}/tasks", json={"prompt": "and?", "model": "openai/echo"}
        )
        check_whole(await ship.until(session_id, lambda log: types(log).count("task.completed") == 2))
        await client.post(f"/api/v1/sessions/{session_id}/archive")


async def test_a_task_whose_sandbox_is_killed_goes_on_by_itself_in_the_next_one(ship: Ship) -> None:
    session_id = await talking(ship)
    began = time.monotonic()
    await kill_the_sandbox(ship, session_id)
    items = await ship.until(session_id, lambda log: "task.interrupted" in types(log))
    assert time.monotonic() - began < 5
    items = await ship.until(session_id, ended)
    check_whole(items)
    assert types(items)[-1] == "task.completed", items[-1]
    assert types(items).count("task.queued") == 1
    assert (await ship.session(session_id))["sandbox"]["generation"] == 2
