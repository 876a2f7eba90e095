"""A runner that waits, with all that it needs loaded, and works for the one that is started."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from tests.ship_runner.control_plane import FakeControlPlane
from tests.ship_runner.runner import Runner
from tests.ship_runner.scripted import Turn, turns

from ship_runner import waiting

pytestmark = pytest.mark.system


async def test_a_runner_that_waits_works_for_the_one_that_is_started_and_ends_with_it(
    plane: FakeControlPlane, runner: Runner
) -> None:
    plane.model.scenarios["work"] = turns(Turn(text="Done."))
    waiting = await runner.wait()
    await runner.ready()
    assert runner.child() == waiting.pid
    assert waiting.pid not in runner.processes()
    await plane.prompt("tsk_1", "work please")
    assert (await plane.end_of("tsk_1")).TYPE == "task.completed"
    late = await runner.wait()
    assert late.returncode == 0

    os.kill(waiting.pid, signal.SIGKILL)
    assert await waiting.wait() == -signal.SIGKILL
    await plane.prompt("tsk_2", "work please")
    assert (await plane.end_of("tsk_2")).TYPE == "task.completed"
    assert "the runner ended with status 1; starting it again" in runner.log.read_text()
    assert runner.child() in runner.processes()

    await runner.stop()
    waiting = await runner.wait()
    await runner.start()
    async with asyncio.timeout(20):
        while runner.listens():
            await asyncio.sleep(0.01)
    runner.kill_the_keeper()
    async with asyncio.timeout(20):
        assert await waiting.wait() == 1


async def test_one_runner_waits(runner: Runner) -> None:
    first = await runner.wait()
    second = await runner.wait()
    assert await second.wait() == 0
    assert first.returncode is None
    assert runner.listens()
    first.kill()
    await first.wait()


SILENT = """
import socket, sys, time
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("listens", flush=True)
time.sleep(60)
"""


async def test_one_that_does_not_take_its_work_on_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "TAKEN_ON_S", 0.2)
    silent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SILENT, str(tmp_path / "waiting.sock")), stdout=asyncio.subprocess.PIPE
    )
    assert silent.stdout is not None
    await silent.stdout.readline()
    link = waiting.find(tmp_path)
    assert link is not None
    assert await asyncio.to_thread(waiting.hand_over, link) is None
    assert await asyncio.wait_for(silent.wait(), 20) == -signal.SIGKILL
    assert waiting.find(tmp_path) is None


async def test_a_runner_that_waits_is_not_held_up_by_one_that_says_nothing(runner: Runner) -> None:
    waiting = await runner.wait()
    _, writer = await asyncio.open_unix_connection(runner.state / "waiting.sock")
    writer.close()
    async with asyncio.timeout(20):
        assert await waiting.wait() == 1
