"""The real agent, started before there is a runner."""

import asyncio
import os
import signal
import time

import pytest
from tests.ship_runner.control_plane import TOKEN, FakeControlPlane
from tests.ship_runner.runner import Runner
from tests.ship_runner.scripted import Turn, turns

pytestmark = pytest.mark.system


async def test_a_runner_takes_an_agent_on_that_waits_and_a_killed_one_is_not_waited_for(
    plane: FakeControlPlane, runner: Runner
) -> None:
    await runner.stand_by()
    waiting, folder = runner.agent(), runner.terms()
    assert sorted(path.name for path in folder.iterdir() if path.name in {"token", "opencode.json"}) == []
    await runner.stand_by()
    assert runner.agent() == waiting
    os.kill(waiting, signal.SIGKILL)
    await runner.stand_by()
    assert runner.agent() != waiting
    assert not folder.exists()
    waiting, folder = runner.agent(), runner.terms()

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
    starting, waiting = await half_started(runner)
    await runner.ready()
    await starting
    assert (runner.agent(), runner.agents()) == (waiting, [waiting])


async def test_an_agent_that_was_left_half_started_is_not_taken_on(
    plane: FakeControlPlane, runner: Runner
) -> None:
    """Whoever started it has died, and it does not answer: neither now nor when it is asked again."""
    starting, left = await half_started(runner)
    os.kill(left, signal.SIGSTOP)
    runner.kill_what_stands_by()
    await asyncio.gather(starting, return_exceptions=True)
    await runner.ready()
    assert runner.agents() == [runner.agent()]
    assert runner.agent() != left


async def test_a_memory_that_comes_back_does_not_wait_for_an_agent_that_stands_by(
    plane: FakeControlPlane, runner: Runner
) -> None:
    plane.model.scenarios["work"] = turns(Turn(text="The word is mango."))
    await runner.ready()
    await plane.prompt("tsk_1", "work please")
    assert (await plane.end_of("tsk_1")).TYPE == "task.completed"
    await runner.lose()
    plane.replace_sandbox()
    starting, waiting = await half_started(runner)
    await runner.ready()
    await asyncio.gather(starting, return_exceptions=True)
    assert plane.of("sandbox.restored")[0].conversation is True
    assert runner.agents() == [runner.agent()]
    assert runner.agent() != waiting


async def half_started(runner: Runner) -> tuple[asyncio.Task[None], int]:
    """What starts an agent that nobody could talk to yet, and the agent's pid."""
    starting = asyncio.create_task(runner.stand_by())
    deadline = time.monotonic() + 20
    while not (runner.state / "agent.json").exists():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    return starting, runner.agent()


async def test_an_agent_with_another_environment_is_not_taken_on(
    plane: FakeControlPlane, runner: Runner
) -> None:
    await runner.stand_by()
    waiting = runner.agent()
    runner.environment["COLOUR"] = "blue"
    await runner.ready()
    assert runner.agent() != waiting
    assert len(runner.agents()) == 1
