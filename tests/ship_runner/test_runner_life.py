"""The real runner with the real agent, a scripted model and a control plane of the test's."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.ship_runner.conftest import git
from tests.ship_runner.control_plane import FakeControlPlane
from tests.ship_runner.runner import Runner
from tests.ship_runner.scripted import Turn, turns

from ship_runner.opencode.turn import GAP

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def standing(
    repositories: Path, tmp_path_factory: pytest.TempPathFactory, tree: Path
) -> AsyncIterator[Runner]:
    """A runner that stands ready, for tests that leave it so: an agent takes seconds to start."""
    plane = FakeControlPlane(repositories)
    await plane.start()
    runner = Runner(plane, tmp_path_factory.mktemp("standing"), tree)
    await runner.ready()
    yield runner
    await runner.stop()
    await plane.stop()


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


def bash(command: str) -> tuple[tuple[str, dict[str, Any]], ...]:
    return (("bash", {"command": command, "description": "run it"}),)


def each_part_once(plane: FakeControlPlane) -> None:
    seen = Counter((fact.TYPE, fact.part_id) for fact in plane.facts if hasattr(fact, "part_id"))
    assert [key for key, count in seen.items() if count > 1] == []
    started = {fact.part_id for fact in plane.of("tool.started")}
    assert started == {fact.part_id for fact in plane.of("tool.finished")}


async def test_a_task_runs_from_prompt_to_checkpoint(standing: Runner) -> None:
    plane, runner = standing.plane, standing
    plane.model.scenarios["work"] = turns(
        Turn(
            reasoning="Let me think.",
            text="I run it now.",
            calls=bash(
                "for i in 1 2 3; do echo line $i; sleep 0.3; done; echo hi > new.txt; git mv old.txt moved.txt; echo x > a.log"
            ),
            pause_s=0.02,
        ),
        Turn(
            calls=(("todowrite", {"todos": [{"content": "a", "status": "completed", "priority": "high"}]}),)
        ),
        Turn(text="All is done."),
    )
    steps = [(fact.TYPE, fact.step) for fact in plane.facts[:4]]
    assert sorted(steps) == sorted(
        (f"sandbox.step_{end}", step) for end in ("started", "finished") for step in ("clone", "agent")
    )
    await plane.prompt("tsk_whole", "work please")
    await plane.end_of("tsk_whole")

    assert [fact.TYPE for fact in plane.facts[-2:]] == ["checkpoint.created", "task.completed"]
    assert [fact.text for fact in plane.of("text.finished", "tsk_whole")] == ["I run it now.", "All is done."]
    assert [fact.text for fact in plane.of("reasoning.finished", "tsk_whole")] == ["Let me think."]
    assert plane.of("tool.finished", "tsk_whole")[0].output == "line 1\nline 2\nline 3\n"
    assert plane.of("todos.updated", "tsk_whole")[0].todos[0].content == "a"
    each_part_once(plane)

    kinds = {delta.kind for delta in plane.deltas if delta.task_id == "tsk_whole"}
    assert kinds == {"text", "reasoning", "tool"}
    for fact in plane.of("text.finished", "tsk_whole"):
        grown = "".join(delta.text for delta in plane.deltas if delta.part_id == fact.part_id)
        assert grown == fact.text

    checkpoint = plane.of("checkpoint.created", "tsk_whole")[0]
    files = {file.path: (file.status, file.additions, file.deletions) for file in checkpoint.files}
    assert files == {"new.txt": ("A", 1, 0), "moved.txt": ("R", 0, 0)}
    diff = plane.artifacts[checkpoint.diff_artifact].decode()
    assert "+hi" in diff
    assert await runner.diff() == diff
    assert git(runner.workspace, "rev-parse", "--abbrev-ref", "HEAD").strip() == "ship/test"
    assert git(runner.workspace, "log", "--format=%s") == "Start\n"
    assert checkpoint.bundle_artifact in plane.artifacts

    config = (runner.workspace / ".git" / "config").read_text()
    assert "session-token" not in config
    spool = runner.state / "spool-1"
    assert spool.stat().st_mode & 0o077 == 0


async def test_a_person_is_asked_before_commands_and_edits(plane: FakeControlPlane, runner: Runner) -> None:
    plane.approval = "ask"
    plane.model.scenarios["ask"] = turns(
        Turn(calls=bash("echo allowed > a.txt")),
        Turn(calls=bash("echo refused > b.txt")),
        Turn(calls=(("question", {"questions": [{"question": "Which?", "header": "H", "options": [
            {"label": "Red", "description": "r"}, {"label": "Blue", "description": "b"}]}]}),)),
        Turn(text="Thanks."),
    )  # fmt: skip
    await runner.ready()
    await plane.prompt("tsk_1", "ask me")
    first = (await plane.until(lambda: plane.of("request.asked")))[0]
    assert first.kind == "permission"
    assert "echo allowed" in first.title
    answer = {"reply": "once", "answers": [], "message": ""}
    await plane.send(t="answer", request_id=first.request_id, answer=answer)
    await plane.send(t="answer", request_id=first.request_id, answer=answer)

    second = (await plane.until(lambda: plane.of("request.asked")[1:]))[0]
    await plane.send(
        t="answer",
        request_id=second.request_id,
        answer={"reply": "reject", "answers": [], "message": "not that"},
    )
    third = (await plane.until(lambda: plane.of("request.asked")[2:]))[0]
    assert third.kind == "question"
    assert [option.label for option in third.questions[0].options] == ["Red", "Blue"]
    await plane.send(
        t="answer", request_id=third.request_id, answer={"reply": None, "answers": [["Blue"]], "message": ""}
    )

    assert (await plane.end_of("tsk_1")).TYPE == "task.completed"
    assert (runner.workspace / "a.txt").read_text() == "allowed\n"
    assert not (runner.workspace / "b.txt").exists()
    finished = plane.of("tool.finished")
    assert "not that" in finished[1].error
    assert "Blue" in finished[2].output
    assert plane.of("request.withdrawn") == []


async def test_the_plan_agent_does_not_edit(standing: Runner) -> None:
    plane, runner = standing.plane, standing
    path = str(runner.workspace / "planned.txt")
    plane.model.scenarios["plan"] = turns(
        Turn(calls=(("write", {"filePath": path, "content": "x"}),)), Turn(text="I only plan.")
    )
    await plane.prompt("tsk_plan", "plan it", agent="plan")
    assert (await plane.end_of("tsk_plan")).TYPE == "task.completed"
    assert not Path(path).exists()
    assert plane.of("tool.finished", "tsk_plan")[0].error


async def test_cancel_and_steer(plane: FakeControlPlane, runner: Runner) -> None:
    plane.approval = "ask"
    plane.model.scenarios["slow"] = turns(Turn(text="word " * 400, pause_s=0.05))
    plane.model.scenarios["wait"] = turns(Turn(calls=bash("echo never")))
    plane.model.scenarios["steered"] = turns(
        Turn(text="x " * 40, pause_s=0.05, calls=(("glob", {"pattern": "*"}),)), Turn(text="First.")
    )
    plane.model.scenarios["also"] = turns(Turn(text="Also this."))
    await runner.ready()

    await plane.send(t="cancel", task_id="tsk_never")
    assert (await plane.end_of("tsk_never")).TYPE == "task.cancelled"

    await plane.prompt("tsk_1", "slow please")
    await plane.until(lambda: plane.deltas)
    await plane.send(t="cancel", task_id="tsk_1")
    assert (await plane.end_of("tsk_1", 15)).TYPE == "task.cancelled"
    assert plane.of("checkpoint.created", "tsk_1")

    await plane.prompt("tsk_2", "wait please")
    asked = (await plane.until(lambda: plane.of("request.asked")))[0]
    await plane.send(t="cancel", task_id="tsk_2")
    assert (await plane.end_of("tsk_2", 15)).TYPE == "task.cancelled"
    assert [fact.request_id for fact in plane.of("request.withdrawn")] == [asked.request_id]

    await plane.prompt("tsk_3", "steered run")
    await plane.until(lambda: [delta for delta in plane.deltas if delta.task_id == "tsk_3"])
    for _ in range(2):
        await plane.send(t="steer", task_id="tsk_3", steer_id="str_1", text="also do this")
    assert (await plane.end_of("tsk_3")).TYPE == "task.completed"
    assert [fact.text for fact in plane.of("text.finished", "tsk_3")][-1] == "Also this."
    said = [
        m
        for m in plane.model.requests[-1]["messages"]
        if m["role"] == "user" and "also do this" in str(m["content"])
    ]
    assert len(said) == 1
    each_part_once(plane)


async def test_a_task_that_is_stopped_as_it_begins_leaves_the_next_one_well(
    plane: FakeControlPlane, runner: Runner
) -> None:
    """At moments when the agent is loading its tools, has not taken up the work, or has just begun it."""
    plane.model.scenarios["slow"] = turns(Turn(text="word " * 400, pause_s=0.05))
    plane.model.scenarios["next"] = turns(Turn(text="Done."))
    await runner.ready()
    for number, moment_s in enumerate((0.15, 0, 0.05)):
        await plane.prompt(f"tsk_stopped_{number}", "slow please")
        await asyncio.sleep(moment_s)
        await plane.send(t="cancel", task_id=f"tsk_stopped_{number}")
        await plane.prompt(f"tsk_next_{number}", "next please")
        assert (await plane.end_of(f"tsk_stopped_{number}", 20)).TYPE == "task.cancelled"
        assert (await plane.end_of(f"tsk_next_{number}")).TYPE == "task.completed"
    assert plane.of("agent.restarted") == []


async def test_a_word_that_comes_with_the_cancel_does_not_keep_the_agent_at_work(standing: Runner) -> None:
    plane, runner = standing.plane, standing
    plane.model.scenarios["steered_off"] = turns(Turn(text="word " * 400, pause_s=0.05))
    agent = runner.agent()
    for number in range(4):
        task_id = f"tsk_off_{number}"
        await plane.prompt(task_id, "steered_off work")
        await plane.until(lambda task_id=task_id: [d for d in plane.deltas if d.task_id == task_id])
        await plane.send(t="steer", task_id=task_id, steer_id=f"str_off_{number}", text="be brief")
        await asyncio.sleep(number * 0.01)
        await plane.send(t="cancel", task_id=task_id)
        assert (await plane.end_of(task_id, 8)).TYPE == "task.cancelled"
    assert runner.agent() == agent


async def test_a_runner_that_dies_while_it_cancels_does_not_go_on_afterwards(standing: Runner) -> None:
    """The agent does not answer just then; the next runner hears of the cancel from nobody but the one before."""
    plane, runner = standing.plane, standing
    plane.model.scenarios["dropped"] = turns(Turn(text="word " * 400, pause_s=0.05), Turn(text="I went on."))
    await plane.prompt("tsk_died", "dropped work")
    await plane.until(lambda: [delta for delta in plane.deltas if delta.task_id == "tsk_died"])
    os.kill(runner.agent(), signal.SIGSTOP)
    await plane.send(t="cancel", task_id="tsk_died")
    deadline = time.monotonic() + 20
    while not any(
        b'"tsk_died"' in line and b'"cancelled"' in line
        for line in (runner.state / "spool-1").read_bytes().splitlines()
    ):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    os.kill(runner.child(), signal.SIGKILL)
    os.kill(runner.agent(), signal.SIGCONT)
    assert (await plane.end_of("tsk_died")).TYPE == "task.cancelled"
    assert "I went on." not in [fact.text for fact in plane.of("text.finished", "tsk_died")]
    await plane.prompt("tsk_after_death", "brief work")
    assert (await plane.end_of("tsk_after_death")).TYPE == "task.completed"
    each_part_once(plane)


async def test_an_agent_that_stops_unasked_is_started_anew_and_continues(standing: Runner) -> None:
    plane, runner = standing.plane, standing
    plane.model.scenarios["unasked"] = turns(Turn(text="word " * 400, pause_s=0.05), Turn(text="The end."))
    before = len(plane.of("agent.restarted"))
    await plane.prompt("tsk_unasked", "unasked")
    await plane.until(lambda: [delta for delta in plane.deltas if delta.task_id == "tsk_unasked"])
    await runner.stop_the_agents_work()
    assert (await plane.end_of("tsk_unasked")).TYPE == "task.completed"
    assert [fact.code for fact in plane.of("agent.restarted")[before:]] == ["crashed"]
    assert plane.of("text.finished", "tsk_unasked")[-1].text == "The end."
    each_part_once(plane)


async def test_a_steer_at_the_very_end_is_followed(standing: Runner) -> None:
    """It comes when the last answer is complete: while the agent becomes idle, or while the checkpoint is made."""
    plane = standing.plane
    plane.model.scenarios["brief"] = turns(Turn(text="Brief answer."))
    plane.model.scenarios["extra"] = turns(Turn(text="Extra answer."))
    for number in range(3):
        task_id = f"tsk_late_{number}"
        await plane.prompt(task_id, "brief work")
        await plane.until(lambda task_id=task_id: plane.of("text.finished", task_id))
        for _ in range(2):
            await plane.send(t="steer", task_id=task_id, steer_id=f"str_{number}", text="extra work")
        assert (await plane.end_of(task_id)).TYPE == "task.completed"
        texts = [fact.text for fact in plane.of("text.finished", task_id)]
        assert texts == ["Brief answer.", "Extra answer."]
        assert len(plane.of("checkpoint.created", task_id)) == 1
    each_part_once(plane)


async def test_a_killed_runner_goes_on_and_the_agent_does_not_notice(standing: Runner) -> None:
    plane, runner = standing.plane, standing
    plane.model.scenarios["long"] = turns(
        Turn(text="First step.", calls=bash("sleep 1; echo one")),
        Turn(text="Second step.", calls=bash("sleep 2; echo two")),
        Turn(text="Third step.", calls=bash("sleep 1; echo three")),
        Turn(text="The end."),
    )
    agent, restarts = runner.agent(), len(plane.of("agent.restarted"))
    await plane.prompt("tsk_runner_killed", "long work")
    for count in (1, 2, 3):
        await plane.until(lambda count=count: len(plane.of("tool.started", "tsk_runner_killed")) >= count)
        os.kill(runner.child(), signal.SIGKILL)
        hellos = len(plane.hellos)
        await plane.until(lambda hellos=hellos: len(plane.hellos) > hellos)
    assert (await plane.end_of("tsk_runner_killed")).TYPE == "task.completed"
    assert runner.agent() == agent
    assert len(plane.of("agent.restarted")) == restarts
    assert [fact.text for fact in plane.of("text.finished", "tsk_runner_killed")] == [
        "First step.",
        "Second step.",
        "Third step.",
        "The end.",
    ]
    assert [fact.output for fact in plane.of("tool.finished", "tsk_runner_killed")] == [
        "one\n",
        "two\n",
        "three\n",
    ]
    each_part_once(plane)
    assert len(plane.of("sandbox.ready")) == 1


async def test_a_text_that_grows_goes_on_after_a_gap_when_the_runner_is_killed(standing: Runner) -> None:
    plane, runner = standing.plane, standing
    words = "one two three four five six seven eight nine ten"
    plane.model.scenarios["slow"] = turns(Turn(text=words, pause_s=0.4))
    await plane.prompt("tsk_growing", "slow work")
    await plane.until(lambda: any(delta.task_id == "tsk_growing" for delta in plane.deltas))
    os.kill(runner.child(), signal.SIGKILL)
    known = len(plane.deltas)
    await plane.until(lambda: any(delta.text.startswith(GAP) for delta in plane.deltas[known:]))
    assert (await plane.end_of("tsk_growing")).TYPE == "task.completed"
    begun, *more = plane.deltas[known:]
    assert begun.offset == 0
    assert words.endswith("".join(delta.text for delta in [begun, *more]).removeprefix(GAP).strip())
    assert more
    assert [fact.text for fact in plane.of("text.finished", "tsk_growing")] == [words]


async def test_a_killed_agent_is_started_anew_and_continues(standing: Runner) -> None:
    plane, runner = standing.plane, standing
    plane.model.scenarios["long"] = turns(
        Turn(text="First step.", calls=bash("sleep 60; echo one")), Turn(text="The end.")
    )
    before = len(plane.of("agent.restarted"))
    await plane.prompt("tsk_agent_killed", "long work")
    await plane.until(lambda: plane.of("tool.started", "tsk_agent_killed"))
    os.kill(runner.agent(), signal.SIGKILL)
    assert (await plane.end_of("tsk_agent_killed")).TYPE == "task.completed"
    assert [fact.code for fact in plane.of("agent.restarted")[before:]] == ["crashed"]
    assert "interrupted" in plane.of("tool.finished", "tsk_agent_killed")[0].error
    assert plane.of("text.finished", "tsk_agent_killed")[-1].text == "The end."
    each_part_once(plane)


async def test_nothing_is_lost_while_the_control_plane_is_away(standing: Runner) -> None:
    plane = standing.plane
    plane.model.scenarios["long"] = turns(
        Turn(text="First step.", calls=bash("sleep 1; echo one")),
        Turn(text="word " * 20 + "end.", pause_s=0.05, calls=bash("echo two")),
        Turn(text="The end."),
    )
    await plane.prompt("tsk_away", "long work")
    await plane.until(lambda: plane.of("tool.started", "tsk_away"))
    hellos = len(plane.hellos)
    await plane.cut()
    await plane.until(lambda: len(plane.hellos) > hellos)
    await plane.until(lambda: any("word" in delta.text for delta in plane.deltas))
    await plane.stop()
    await asyncio.sleep(1.5)
    await plane.start()
    assert (await plane.end_of("tsk_away")).TYPE == "task.completed"
    assert [fact.output for fact in plane.of("tool.finished", "tsk_away")][:2] == ["one\n", "two\n"]
    assert plane.of("text.finished", "tsk_away")[-1].text == "The end."
    assert plane.acked == len(plane.facts)
    each_part_once(plane)


async def test_a_refused_key_fails_the_task_with_the_gateways_words(standing: Runner) -> None:
    plane = standing.plane
    plane.model.scenarios["bad"] = turns(
        Turn(
            status=401,
            error={"code": "model_key_refused", "message": "The key was refused.", "hint": "Set it."},
        )
    )
    plane.model.scenarios["good"] = turns(Turn(text="Works."))
    await plane.prompt("tsk_key", "bad key")
    end: Any = await plane.end_of("tsk_key")
    assert end.TYPE == "task.failed"
    assert (end.failure.code, end.failure.reason, end.failure.hint) == (
        "model_key_refused",
        "The key was refused.",
        "Set it.",
    )
    await plane.prompt("tsk_key_2", "good now")
    assert (await plane.end_of("tsk_key_2")).TYPE == "task.completed"


async def test_a_model_that_never_says_why_it_stops_is_a_loop(standing: Runner) -> None:
    plane = standing.plane
    plane.model.scenarios["loop"] = turns(Turn(text="again", finish=None))
    await plane.prompt("tsk_loop", "loop please")
    end: Any = await plane.end_of("tsk_loop")
    assert (end.TYPE, end.failure.code) == ("task.failed", "agent_looping")


@pytest.mark.parametrize(
    ("repository", "branch", "code"),
    [("nothing.git", "", "clone_failed"), ("sample.git", "no-such", "branch_missing")],
)
async def test_a_repository_that_cannot_be_cloned_says_why(
    plane: FakeControlPlane, runner: Runner, repository: str, branch: str, code: str
) -> None:
    plane.repository, plane.branch = repository, branch
    await runner.start()
    failed: Any = (await plane.until(lambda: plane.of("sandbox.failed")))[0]
    assert failed.failure.code == code
    assert failed.failure.reason
    assert failed.failure.hint
    assert "session-token" not in failed.failure.reason


async def test_a_refused_runner_stops_its_agent_and_ends(plane: FakeControlPlane, runner: Runner) -> None:
    await runner.ready()
    agent = runner.agent()
    plane.refusal = {"code": "stale_generation", "reason": "replaced"}
    await plane.cut()
    assert await runner.ended() == 0
    assert not Path(f"/proc/{agent}").exists()


async def test_a_model_stream_that_breaks_is_tried_again(standing: Runner) -> None:
    plane = standing.plane
    attempts: list[int] = []

    def once_cut(step: int) -> Turn:
        attempts.append(step)
        if len(attempts) == 1:
            return Turn(text="Half a sentence", cut=True)
        return Turn(text="The whole sentence.")

    plane.model.scenarios["break"] = once_cut
    await plane.prompt("tsk_break", "break once")
    assert (await plane.end_of("tsk_break")).TYPE == "task.completed"
    assert len(plane.of("agent.retried", "tsk_break")) >= 1
    assert [fact.text for fact in plane.of("text.finished", "tsk_break")] == ["The whole sentence."]


async def test_an_agent_that_hangs_is_started_anew(
    plane: FakeControlPlane, tmp_path: Path, tree: Path
) -> None:
    # Long enough for a busy machine: an agent that is only slow must not count as hung.
    runner = Runner(plane, tmp_path, tree, SHIP_AGENT_HUNG_AFTER_S="8")
    answers: list[int] = []

    def slow_once(step: int) -> Turn:
        answers.append(step)
        return Turn(text="word " * 400, pause_s=0.05) if len(answers) == 1 else Turn(text="The end.")

    plane.model.scenarios["hang"] = slow_once
    try:
        await runner.ready()
        await plane.prompt("tsk_1", "hang now")
        await plane.until(lambda: plane.deltas)
        os.kill(runner.agent(), signal.SIGSTOP)
        assert (await plane.end_of("tsk_1", 90)).TYPE == "task.completed"
        assert [fact.code for fact in plane.of("agent.restarted")] == ["hung"]
    finally:
        await runner.stop()


async def test_an_agent_that_hangs_does_not_hold_up_a_cancel(plane: FakeControlPlane, runner: Runner) -> None:
    plane.model.scenarios["stuck"] = turns(Turn(text="word " * 400, pause_s=0.05))
    await runner.ready()
    await plane.prompt("tsk_1", "stuck now")
    await plane.until(lambda: plane.deltas)
    stopped = runner.agent()
    os.kill(stopped, signal.SIGSTOP)
    await plane.send(t="cancel", task_id="tsk_1")
    assert (await plane.end_of("tsk_1", 90)).TYPE == "task.cancelled"
    assert not Path(f"/proc/{stopped}").exists()
