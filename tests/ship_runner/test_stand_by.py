"""The real agent, started before there is a runner."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.ship_runner.control_plane import TOKEN, FakeControlPlane
from tests.ship_runner.runner import Runner
from tests.ship_runner.scripted import Turn, turns

pytestmark = pytest.mark.system


@pytest_asyncio.fixture
async def plane(repositories: Path) -> AsyncIterator[FakeControlPlane]:
    plane = FakeControlPlane(repositories)
    await plane.start()
    yield plane
    await plane.stop()


@pytest_asyncio.fixture
async def runner(plane: FakeControlPlane, tmp_path: Path, tree: Path) -> AsyncIterator[Runner]:
    runner = Runner(plane, tmp_path, tree)
    yield runner
    await runner.stop()


async def test_a_runner_takes_an_agent_on_that_waits_and_a_killed_one_is_not_waited_for(
    plane: FakeControlPlane, runner: Runner
) -> None:
    await runner.stand_by()
    waiting, folder = runner.agent(), runner.terms()
    assert sorted(path.name for path in folder.iterdir() if path.name in {"token", "opencode.json"}) == []
    await runner.stand_by()
    assert runner.agent() == waiting

    command = "git config --get-all http.$SHIP_TEST_URL/.extraHeader; env"
    plane.model.scenarios["work"] = turns(
        Turn(
            calls=(("bash", {"command": command.replace("$SHIP_TEST_URL", plane.url), "description": "x"}),)
        ),
        Turn(text="Done."),
    )
    await runner.ready()
    assert runner.agent() == waiting
    await plane.prompt("tsk_1", "work please")
    assert (await plane.end_of("tsk_1")).TYPE == "task.completed"
    header, _, variables = plane.of("tool.finished", "tsk_1")[0].output.partition("\n")
    assert header == f"Authorization: Bearer {TOKEN}"
    assert TOKEN not in variables
    assert plane.of("agent.restarted") == []
    assert folder.stat().st_mode & 0o077 == 0

    os.kill(waiting, signal.SIGKILL)
    await plane.prompt("tsk_2", "work please")
    assert (await plane.end_of("tsk_2")).TYPE == "task.completed"
    assert runner.agent() != waiting
    assert not folder.exists()


async def test_an_agent_that_is_just_being_started_is_waited_for(
    plane: FakeControlPlane, runner: Runner
) -> None:
    starting = asyncio.create_task(runner.stand_by())
    async with asyncio.timeout(20):
        while not (runner.state / "agent.json").exists():
            await asyncio.sleep(0.02)
    await runner.ready()
    await starting
    assert len(runner.agents()) == 1


async def test_an_agent_with_another_environment_is_not_taken_on(
    plane: FakeControlPlane, runner: Runner
) -> None:
    await runner.stand_by()
    waiting = runner.agent()
    runner.environment["COLOUR"] = "blue"
    await runner.ready()
    assert runner.agent() != waiting
    assert len(runner.agents()) == 1
