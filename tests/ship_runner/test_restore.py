"""A sandbox that is lost and replaced, with the real agent: files, git state and the agent's own memory come back."""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.ship_runner.conftest import git
from tests.ship_runner.control_plane import FakeControlPlane
from tests.ship_runner.runner import Runner
from tests.ship_runner.scripted import Turn, turns
from tests.ship_runner.test_gitstate import described
from tests.ship_runner.test_runner_life import bash, each_part_once

pytestmark = [pytest.mark.system, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(loop_scope="module")
async def plane(repositories: Path) -> AsyncIterator[FakeControlPlane]:
    plane = FakeControlPlane(repositories)
    await plane.start()
    yield plane
    await plane.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def runner(plane: FakeControlPlane, tmp_path: Path, tree: Path) -> AsyncIterator[Runner]:
    runner = Runner(plane, tmp_path, tree)
    yield runner
    await runner.stop()


def sent(plane: FakeControlPlane) -> str:
    """All that the model was sent with the last request, as one text."""
    return "\n".join(
        f"{message['role']}: {message.get('content')}" for message in plane.model.requests[-1]["messages"]
    )


async def test_the_agent_remembers_in_the_next_sandbox(plane: FakeControlPlane, runner: Runner) -> None:
    plane.model.scenarios["first"] = turns(
        Turn(
            text="I keep the word pineapple in mind.",
            calls=bash(
                "echo c > c.txt; git add c.txt; git commit -qm mine; git branch side; echo s > staged.txt; "
                "git add staged.txt; echo loose > loose.txt; rm old.txt; echo x >> README.md; echo l > b.log"
            ),
        ),
        Turn(text="First is done."),
    )
    plane.model.scenarios["second"] = turns(Turn(text="Second is done."))
    await runner.ready()
    await plane.prompt("tsk_1", "first work")
    await plane.end_of("tsk_1")
    await plane.prompt("tsk_2", "second work")
    await plane.end_of("tsk_2")
    before, difference = described(runner.workspace), await runner.diff()
    first, second = plane.of("checkpoint.created")
    assert second.parent_id == first.checkpoint_id
    conversation = plane.model.requests[-1]["messages"]

    await runner.lose()
    plane.replace_sandbox()
    await runner.ready()
    restored = plane.of("sandbox.restored")[0]
    assert restored.conversation
    assert restored.checkpoint_id == second.checkpoint_id
    assert restored.lost == (
        *("running processes", "what came after the checkpoint"),
        "files that git ignores (b.log)",
    )
    (runner.workspace / "b.log").write_text("l\n")
    assert described(runner.workspace) == before
    assert await runner.diff() == difference
    assert plane.of("sandbox.ready")[0].base_commit == second.base_commit

    await plane.prompt("tsk_3", "second time")
    assert (await plane.end_of("tsk_3")).TYPE == "task.completed"
    now = plane.model.requests[-1]["messages"]
    said = [message for message in now if message["role"] != "system"]
    assert said[: len(conversation) - 1] == [
        message for message in conversation if message["role"] != "system"
    ]
    assert "I keep the word pineapple in mind." in sent(plane)
    assert "second time" in sent(plane) and "b.log" in sent(plane)
    assert [fact.text for fact in plane.of("text.finished")] == ["Second is done."]
    assert plane.of("checkpoint.created")[0].parent_id == ""
    each_part_once(plane)


async def test_a_task_goes_on_after_its_sandbox_died(plane: FakeControlPlane, runner: Runner) -> None:
    plane.model.scenarios["long"] = turns(
        Turn(text="I begin with mangoes.", calls=bash("echo half > half.txt")),
        Turn(text="Now the long part.", calls=bash("sleep 60; echo never > never.txt")),
    )
    plane.model.scenarios["Your"] = turns(
        Turn(text="I go on.", calls=bash("cat half.txt; echo whole > whole.txt")), Turn(text="All is done.")
    )
    await runner.ready()
    await plane.prompt("tsk_1", "long work")
    await plane.until(lambda: len(plane.of("tool.started")) == 2)
    await plane.send(t="checkpoint", checkpoint_id="ckp_asked", reason="asked")
    asked = (await plane.until(lambda: plane.of("checkpoint.created")))[0]
    assert (asked.checkpoint_id, asked.task_id, asked.reason) == ("ckp_asked", "tsk_1", "asked")
    assert not plane.of("tool.finished")[1:]

    await runner.lose()
    plane.replace_sandbox(lost_task=True)
    await runner.ready()
    await plane.prompt("tsk_1", "long work", recovered=True)
    assert (await plane.end_of("tsk_1")).TYPE == "task.completed"
    assert "I begin with mangoes." in sent(plane)
    assert "interrupted" in sent(plane)
    assert sent(plane).count("replaced by a new one") == 1
    assert [fact.text for fact in plane.of("text.finished")] == ["I go on.", "All is done."]
    assert plane.of("tool.finished")[0].output == "half\n"
    assert git(runner.workspace, "status", "--porcelain").splitlines() == ["?? half.txt", "?? whole.txt"]
    each_part_once(plane)


async def test_a_sandbox_that_was_lost_before_its_first_checkpoint_says_so(
    plane: FakeControlPlane, runner: Runner
) -> None:
    await runner.ready()
    assert not plane.of("sandbox.restored"), "nothing came before"
    (runner.workspace / "a.txt").write_text("a\n")
    await runner.lose()
    plane.replace_sandbox()
    await runner.ready()
    (restored,) = plane.of("sandbox.restored")
    assert (restored.checkpoint_id, restored.conversation) == ("", False)
    assert "all changes: there was no checkpoint" in restored.lost
    assert not (runner.workspace / "a.txt").exists()


@pytest.mark.parametrize("damage", ["missing", "garbage", "torn"])
async def test_a_memory_that_is_lost_costs_the_conversation_only(
    plane: FakeControlPlane, runner: Runner, damage: str
) -> None:
    plane.model.scenarios["first"] = turns(Turn(calls=bash("echo a > a.txt")), Turn(text="Papaya."))
    plane.model.scenarios["second"] = turns(Turn(text="I know the summary."))
    await runner.ready()
    await plane.prompt("tsk_1", "first work")
    await plane.end_of("tsk_1")
    name = plane.of("checkpoint.created")[0].agent_artifact
    content = plane.artifacts.pop(name)
    if damage != "missing":
        plane.artifacts[name] = b"nonsense" if damage == "garbage" else content[: len(content) // 2]
    await runner.lose()
    plane.replace_sandbox()
    await runner.ready()
    restored = plane.of("sandbox.restored")[0]
    assert not restored.conversation
    assert "the agent's memory of the conversation" in restored.lost
    assert (runner.workspace / "a.txt").read_text() == "a\n"
    await plane.prompt("tsk_2", "second work")
    assert (await plane.end_of("tsk_2")).TYPE == "task.completed"
    assert "Papaya." not in sent(plane)
    assert "Earlier they spoke of mangoes." in sent(plane)


async def test_a_sandbox_that_was_frozen_in_mid_task_goes_on(plane: FakeControlPlane, runner: Runner) -> None:
    """As a paused sandbox: nothing in it runs for a while, and its connections end meanwhile."""
    plane.model.scenarios["long"] = turns(
        Turn(text="word " * 60 + "end.", pause_s=0.05, calls=bash("echo one")), Turn(text="The end.")
    )
    await runner.ready()
    await plane.prompt("tsk_1", "long work")
    await plane.until(lambda: plane.deltas)
    frozen = runner.processes()
    for process in frozen:
        os.kill(process, signal.SIGSTOP)
    hellos = len(plane.hellos)
    await plane.stop()
    await plane.start()
    for process in frozen:
        os.kill(process, signal.SIGCONT)
    await plane.until(lambda: len(plane.hellos) > hellos, 5)
    assert (await plane.end_of("tsk_1")).TYPE == "task.completed"
    texts: list[Any] = [fact.text for fact in plane.of("text.finished", "tsk_1")]
    assert texts == ["word " * 60 + "end.", "The end."]
    assert [fact.output for fact in plane.of("tool.finished", "tsk_1")] == ["one\n"]
    assert plane.of("agent.restarted") == []
    each_part_once(plane)
