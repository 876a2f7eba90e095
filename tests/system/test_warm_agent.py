"""An agent that has started before anybody asked for it."""

import asyncio
from collections.abc import Iterator

import pytest
from tests.system.conftest import Ship, check_whole, ended, running_ship, types

from ship.testing.sandbox_processes import processes_in

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def ship(tmp_path_factory: pytest.TempPathFactory, model_url: str) -> Iterator[Ship]:
    with running_ship(tmp_path_factory, model_url, SHIP_SANDBOX_WARM="1") as running:
        yield running


async def test_a_session_takes_on_an_agent_that_waits_and_the_next_one_may_not_find_any(ship: Ship) -> None:
    waiting = await waiting_agent(ship)
    sessions = [await ship.begin("demo") for _ in range(2)]
    for session_id in sessions:
        items = await ship.until(session_id, ended)
        check_whole(items)
        assert types(items)[-1] == "task.completed"
        assert "agent.restarted" not in types(items)
    agents = [(await ship.processes(session_id))["agent"] for session_id in sessions]
    assert agents[0] == waiting
    assert agents[1] != waiting
    for session_id in sessions:
        async with ship.client() as client:
            await client.post(f"/api/v1/sessions/{session_id}/archive")


async def waiting_agent(ship: Ship) -> int:
    """The pid of the agent in the one sandbox that there is."""
    async with asyncio.timeout(60):
        while True:
            for sandbox in (ship.data / "sandboxes" / "sandboxes").iterdir():
                if agent := processes_in(sandbox.name).get("agent"):
                    return agent
            await asyncio.sleep(0.1)
