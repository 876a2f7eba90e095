"""The life of sessions on a whole Ship: paused and resumed, forked, limited, with a child."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2b import Sandbox
from tests.system.conftest import Ship, check_whole, ended, running_ship, types

from ship.app.sandbox_host import running_host
from ship.client import Client
from ship.model import Answer, LimitsPatch
from ship.testing import sample_repository

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def ship(tmp_path_factory: pytest.TempPathFactory, model_url: str) -> Iterator[Ship]:
    """As everywhere, with a second provider whose models have prices."""
    with running_ship(tmp_path_factory, model_url, SHIP_SCRIPTED_MODEL="1") as running:
        yield running


@pytest.fixture
async def api(ship: Ship) -> Any:
    async with Client(ship.url, ship.token) as connected:
        yield connected


def cpu_ticks(pid: int) -> int:
    """What a process has used of the processor."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


async def test_a_task_is_paused_and_goes_on_where_it_was(ship: Ship, api: Client) -> None:
    session_id = await ship.begin("long", "talk for 8 seconds")
    await ship.until(
        session_id, lambda log: "reasoning.finished" in types(log) or "task.started" in types(log)
    )
    before = await ship.processes(session_id)
    assert (await asyncio.to_thread(ship.command, "pause", session_id)).returncode == 0
    await ship.until(session_id, lambda log: "sandbox.paused" in types(log))
    ticks = [cpu_ticks(pid) for pid in before.values()]
    assert (await api.session(session_id)).tasks[0].status == "running"
    # Neither a restart of the server nor its checks wake what is paused.
    ship.kill()
    await asyncio.to_thread(ship.start)
    assert (await ship.session(session_id))["status"] == "paused"
    assert [cpu_ticks(pid) for pid in before.values()] == ticks
    async with Client(ship.url, ship.token) as again:
        await again.resume(session_id)
    items = await ship.until(session_id, ended)
    check_whole(items)
    assert types(items)[-1] == "task.completed", items[-1]
    (resumed,) = [item for item in items if item["type"] == "sandbox.resumed"]
    assert resumed["data"]["memory"] is True
    assert await ship.processes(session_id) == before


async def test_an_answer_reaches_an_agent_whose_memory_was_given_up_meanwhile(
    ship: Ship, api: Client
) -> None:
    session_id = await ship.begin("question")
    await ship.until(session_id, lambda log: "request.asked" in types(log))
    first = await api.session(session_id)
    await api.pause(session_id)
    await ship.until(session_id, lambda log: "sandbox.paused" in types(log))
    await asyncio.to_thread(park, ship, first.sandbox.sandbox_id)
    await api.answer(session_id, first.requests[0].id, Answer(answers=(("Good day",),)))
    # The scripted agent asks again whatever it is told, and then for leave to write.
    items = await ship.until(session_id, lambda log: types(log).count("request.asked") == 2)
    (asked,) = (await api.session(session_id)).requests
    assert asked.id != first.requests[0].id
    await api.answer(session_id, asked.id, Answer(answers=(("Good day",),)))
    items = await ship.until(session_id, ended)
    check_whole(items)
    assert types(items)[-1] == "task.completed", items[-1]
    assert [item["data"]["memory"] for item in items if item["type"] == "sandbox.resumed"] == [False]
    (steered,) = [item["data"]["text"] for item in items if item["type"] == "task.steered"]
    assert steered.endswith("- Which greeting shall I write? The answer: Good day")


def park(ship: Ship, sandbox_id: str) -> None:
    """What the sandbox host does of itself with what is paused for long."""
    found = running_host(ship.data)
    assert found is not None
    url, api_key = found
    sandbox = Sandbox.connect(sandbox_id, api_key=api_key, api_url=url, sandbox_url=url)
    sandbox.pause(keep_memory=False)


async def test_a_fork_with_another_model_sees_the_files(ship: Ship, api: Client) -> None:
    session_id = await ship.begin("demo")
    await ship.until(session_id, ended)
    (point,) = await api.checkpoints(session_id)
    forked = await asyncio.to_thread(
        ship.command, "fork", session_id, "and now?", "--checkpoint", point.id, "--model", "scripted/demo"
    )
    assert forked.returncode == 0, forked.stderr
    fork_id = forked.stdout.strip()
    items = await ship.until(fork_id, ended)
    assert types(items)[-1] == "task.completed", items[-1]
    content = await api.file_content(fork_id, "timesheet/durations.py")
    assert b"float(amount)" in content
    assert {call["data"]["provider"] for call in items if call["type"] == "model.called"} == {"scripted"}
    assert [item["data"]["conversation"] for item in items if item["type"] == "sandbox.restored"] == [True]
    said = [item["data"]["text"] for item in items if item["type"] == "text.finished"]
    assert "You said: “and now?" in said[-1]
    assert "was lost" not in said[-1]
    fork = await api.session(fork_id)
    assert fork.origin and fork.origin.session_id == session_id


async def test_a_cost_limit_stops_a_task_before_its_next_call(ship: Ship, api: Client) -> None:
    session = await api.create_session(
        str(ship.repository),
        prompt="thirty, please",
        model="scripted/thirty_tools",
        limits=LimitsPatch(cost_usd=0.003),
    )
    items = await ship.until(session.id, ended)
    check_whole(items)
    assert items[-1]["data"]["failure"]["code"] == "limit_reached", items[-1]
    (reached,) = [item for item in items if item["type"] == "task.limit_reached"]
    costs = [item["data"]["usage"]["cost_usd"] for item in items if item["type"] == "model.called"]
    assert sum(costs[:-1]) < 0.003 <= sum(costs)
    assert reached["data"]["value"] == pytest.approx(sum(costs))
    assert not [item for item in items if item["type"] == "model.called" and item["seq"] > reached["seq"]]
    # What it did is kept, and more money lets it go on.
    assert (await api.session(session.id)).checkpoint
    await api.add_task(session.id, "go on", model="scripted/echo", limits=LimitsPatch(cost_usd=1))
    items = await ship.until(session.id, lambda log: "task.completed" in types(log))


async def test_a_child_works_on_the_same_repository_and_its_result_comes_back(
    ship: Ship, api: Client
) -> None:
    parent_id = await ship.begin("echo", "hello")
    await ship.until(parent_id, ended)
    child = await api.start_child(parent_id, sample_repository.PROMPT, model="openai/demo")
    items = await ship.until(parent_id, lambda log: "child.finished" in types(log))
    result = items[-1]["data"]
    assert (result["child_id"], result["status"]) == (child.child_id, "completed")
    assert "All tests pass now." in result["summary"]
    assert result["files_changed"] == 1
    shown = await asyncio.to_thread(ship.command, "children", parent_id)
    assert re.search(rf"{child.child_id} +completed", shown.stdout)


async def test_a_log_can_be_played_again_to_any_event(ship: Ship, api: Client) -> None:
    session_id = await ship.begin("demo")
    items = await ship.until(session_id, ended)
    started = next(item["seq"] for item in items if item["type"] == "task.started")
    shown = await asyncio.to_thread(ship.command, "replay", session_id, "--to", str(started))
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"^status +running", shown.stdout, re.MULTILINE)
    there = await api.session(session_id, at=started)
    assert (there.head_seq, there.status) == (started, "running")
