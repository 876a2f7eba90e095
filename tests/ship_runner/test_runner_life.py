"""The real runner with the real agent, a scripted model and a control plane of the test's."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.ship_runner.control_plane import FakeControlPlane
from tests.ship_runner.runner import Runner
from tests.ship_runner.scripted import Turn, turns

pytestmark = pytest.mark.system


@pytest.fixture
async def runner(plane: FakeControlPlane, tmp_path: Path, tree: Path) -> AsyncIterator[Runner]:
    runner = Runner(plane, tmp_path, tree)
    yield runner
    await runner.stop()


async def test_a_task_runs_from_prompt_to_checkpoint(plane: FakeControlPlane, runner: Runner) -> None:
    plane.model.scenarios["work"] = turns(
        Turn(
            reasoning="Let me think.",
            text="I run it now.",
            calls=(
                (
                    "bash",
                    {
                        "command": "for i in 1 2 3; do echo line $i; sleep 0.3; done; echo hi > new.txt",
                        "description": "count",
                    },
                ),
            ),
            pause_s=0.02,
        ),
        Turn(
            calls=(("todowrite", {"todos": [{"content": "a", "status": "completed", "priority": "high"}]}),)
        ),
        Turn(text="All is done."),
    )
    await runner.ready()
    await plane.prompt("tsk_1", "work please")
    end = await plane.end_of("tsk_1")
    assert end.TYPE == "task.completed"
