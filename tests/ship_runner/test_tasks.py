"""One task after the other, with an agent that follows a script."""

import asyncio
import json
import resource
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.ship_runner.test_workspace import bootstrap

from ship.events.record import decode_fact
from ship_runner import briefing, facts
from ship_runner.agent import Agent, Outcome, Restart, Run, Sink
from ship_runner.briefing import CONTINUE
from ship_runner.checkpoints import Checkpoints
from ship_runner.control import ControlPlane
from ship_runner.facts import Delta
from ship_runner.failures import RunnerFailure
from ship_runner.instructions import Cancel, Instruction, Prompt, Reply, Steer, TakeCheckpoint
from ship_runner.opencode.mapping import new_message_id
from ship_runner.spool import Spool
from ship_runner.tasks import Tasks
from ship_runner.workspace import Workspace

COMPLETED = Outcome("completed")
BROKEN = Outcome("interrupted", "connection", "The connection was reset.")
CRASHED = Outcome("interrupted", "crashed", "It died.")


class ScriptedAgent:
    """Ends its runs as ``outcomes`` say, in order; ``None`` runs until it is aborted."""

    def __init__(self, *outcomes: Outcome | None) -> None:
        self.outcomes = list(outcomes)
        self.runs: list[Run] = []
        self.steers: list[tuple[str, str]] = []
        self.started = asyncio.Event()
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.listens = True
        self.working = False
        self.answers: list[tuple[str, Mapping[str, Any]]] = []
        self.running = asyncio.Event()
        self.during: Callable[[Run, Sink], None] = lambda run, sink: None
        self.restart: Restart | None = None
        self.memory: bytes | None = b"what the agent remembers"
        self.broken: RunnerFailure | None = None
        self._aborted = asyncio.Event()

    async def start(self) -> Restart | None:
        if self.broken:
            raise self.broken
        self.started.set()
        await self.may_start.wait()
        restart, self.restart = self.restart, None
        return restart

    async def begin(self, title: str) -> str:
        return "ses_1"

    async def resume(self, conversation: str) -> bool:
        return True

    async def save_memory(self, conversation: str, path: Path) -> None:
        if self.memory is None:
            raise RunnerFailure("memory_not_kept", "It cannot be read.")
        path.write_bytes(self.memory)

    async def restore_memory(self, path: Path) -> str:
        self.memory = path.read_bytes()
        return "ses_1"

    async def forget(self) -> None:
        self.memory = b""

    def new_message(self) -> str:
        return new_message_id()

    async def run(self, run: Run, sink: Sink) -> Outcome:
        self._aborted.clear()
        self.runs.append(run)
        self.during(run, sink)
        self.running.set()
        outcome = self.outcomes.pop(0)
        if outcome is not None:
            return outcome
        self.working = True
        await self._aborted.wait()
        self.working = False
        return Outcome("aborted")

    def growing(self) -> list[Delta]:
        return []

    async def steer(self, text: str, earlier: str, note: Callable[[str], None]) -> bool:
        if not self.working or not self.listens:
            return False
        if earlier not in [message for message, _ in self.steers]:
            self.steers.append((self.new_message(), text))
            note(self.steers[-1][0])
        return True

    async def abort(self) -> None:
        self._aborted.set()

    async def answer(self, request_id: str, answer: Mapping[str, Any]) -> None:
        self.answers.append((request_id, answer))

    async def stop(self) -> None:
        await self.abort()


class Bench:
    """Tasks over a real spool and a real repository; ``stored`` is what reached the control plane."""

    def __init__(self, folder: Path, workspace: Workspace) -> None:
        self.folder = folder
        self.workspace = workspace
        self.stored: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.refusals = 0
        self.while_storing: list[Instruction] = []
        self.checkpoint_every_s = 300.0
        self.control = ControlPlane("http://control", "token")
        self.control._http = httpx.AsyncClient(
            transport=httpx.MockTransport(self._store), base_url="http://control/runner/v1/"
        )
        self.open([])

    def open(self, outcomes: list[Outcome | None]) -> None:
        """A runner that starts now, on what an earlier one left."""
        self.agent = ScriptedAgent(*outcomes)
        agent: Agent = self.agent
        self.spool = Spool(self.folder / "spool")
        self.tasks = Tasks(
            agent,
            self.spool,
            Checkpoints(agent, self.spool, self.workspace, self.control, diff_bytes=1 << 20),
            grow=lambda delta: None,
            title="t",
            default_model=lambda: "default/m",
            checkpoint_every_s=self.checkpoint_every_s,
        )
        self._work = asyncio.create_task(self.tasks.run())

    async def close(self) -> None:
        self._work.cancel()
        await asyncio.gather(self._work, return_exceptions=True)
        self.spool.close()

    async def instruct(self, *instructions: Instruction) -> None:
        for instruction in instructions:
            await self.tasks.instruct(instruction)

    def reported(self) -> list[Any]:
        documents = [json.loads(frame.text) for frame in self.spool.pending(0)]
        return [decode_fact(d["type"], d["v"], json.dumps(d["data"]).encode()) for d in documents]

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.005)

    async def end(self, task_id: str) -> Any:
        """The fact that ends a task."""
        async with asyncio.timeout(20):
            while True:
                self.spool.changed.clear()
                for fact in self.reported():
                    if (
                        fact.TYPE in {"task.completed", "task.failed", "task.cancelled"}
                        and fact.task_id == task_id
                    ):
                        return fact
                await self.spool.changed.wait()

    def types(self) -> list[str]:
        return [fact.TYPE for fact in self.reported()]

    async def _store(self, request: httpx.Request) -> httpx.Response:
        came, self.while_storing = self.while_storing, []
        await self.instruct(*came)
        if self.refusals:
            self.refusals -= 1
            return httpx.Response(503)
        name = request.url.path.rpartition("/")[2]
        self.puts.append(name)
        self.stored[name] = request.read()
        return httpx.Response(201)


@pytest.fixture
async def bench(repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr("ship_runner.tasks._BACKOFF_S", (0.01, 0.01, 0.01))
    workspace = Workspace(tmp_path / "repo", tmp_path)
    await workspace.prepare(bootstrap(repositories / "sample.git"), "token")
    bench = Bench(tmp_path, workspace)
    yield bench
    await bench.close()
    await bench.control.close()


def prompt(task_id: str, text: str = "work") -> Prompt:
    return Prompt(task_id, text, "", "build")


async def test_a_task_ends_with_its_checkpoint_first(bench: Bench) -> None:
    bench.agent.outcomes = [COMPLETED]
    await bench.instruct(prompt("tsk_1"))
    await bench.end("tsk_1")
    assert bench.types() == ["checkpoint.created", "task.completed"]
    checkpoint = bench.reported()[0]
    assert set(bench.stored) == {
        checkpoint.diff_artifact,
        checkpoint.bundle_artifact,
        checkpoint.agent_artifact,
    }
    assert bench.stored[checkpoint.agent_artifact] == b"what the agent remembers"
    assert bench.agent.runs[0].model == "default/m"
    assert [path.name for path in bench.folder.glob("*ckp_*")] == []


async def test_a_prompt_that_is_repeated_runs_once(bench: Bench) -> None:
    bench.agent.outcomes = [COMPLETED, COMPLETED]
    await bench.instruct(prompt("tsk_1"), prompt("tsk_1"), prompt("tsk_2"))
    await bench.end("tsk_2")
    await bench.instruct(prompt("tsk_1"), Cancel("tsk_1"))
    assert [run.task_id for run in bench.agent.runs] == ["tsk_1", "tsk_2"]
    assert bench.types().count("task.completed") == 2


async def test_a_lost_connection_is_continued(bench: Bench) -> None:
    bench.agent.outcomes = [BROKEN, BROKEN, COMPLETED]
    await bench.instruct(prompt("tsk_1"))
    assert (await bench.end("tsk_1")).TYPE == "task.completed"
    assert [run.text for run in bench.agent.runs] == ["work", CONTINUE, CONTINUE]
    assert len({run.message for run in bench.agent.runs}) == 3
    assert len({run.first_message for run in bench.agent.runs}) == 1
    assert [fact.attempt for fact in bench.reported() if fact.TYPE == "agent.retried"] == [1, 2]


@pytest.mark.parametrize(("outcome", "code"), [(BROKEN, "model_unreachable"), (CRASHED, "agent_crashed")])
async def test_continuations_come_to_an_end(bench: Bench, outcome: Outcome, code: str) -> None:
    bench.agent.outcomes = [outcome] * 4
    await bench.instruct(prompt("tsk_1"))
    end = await bench.end("tsk_1")
    assert (end.TYPE, end.failure.code) == ("task.failed", code)
    assert bench.types().count("agent.restarted") == (3 if outcome is CRASHED else 0)


async def test_a_crash_between_tasks_is_told(bench: Bench) -> None:
    bench.agent.outcomes = [COMPLETED]
    bench.agent.restart = Restart("crashed", "It died.")
    await bench.instruct(prompt("tsk_1"))
    await bench.end("tsk_1")
    assert bench.types()[0] == "agent.restarted"


async def test_an_agent_that_does_not_start_fails_the_task(bench: Bench) -> None:
    bench.agent.broken = RunnerFailure("agent_start_failed", "why", "what to do")
    await bench.instruct(prompt("tsk_1"))
    end = await bench.end("tsk_1")
    assert (end.failure.code, end.failure.hint) == ("agent_start_failed", "what to do")


async def test_cancel_ends_a_running_a_queued_and_an_unknown_task(bench: Bench) -> None:
    bench.agent.outcomes = [None, COMPLETED]
    await bench.instruct(prompt("tsk_1"), prompt("tsk_2"), prompt("tsk_3"))
    await bench.agent.running.wait()
    await bench.instruct(Cancel("tsk_2"), Cancel("tsk_9"), Cancel("tsk_2"))
    assert bench.types() == ["task.cancelled", "task.cancelled"]
    await bench.instruct(Cancel("tsk_1"), Cancel("tsk_1"))
    assert (await bench.end("tsk_1")).TYPE == "task.cancelled"
    assert (await bench.end("tsk_3")).TYPE == "task.completed"
    assert [run.task_id for run in bench.agent.runs] == ["tsk_1", "tsk_3"]


async def test_cancel_during_the_pause_before_a_continuation(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ship_runner.tasks._BACKOFF_S", (60.0,))
    bench.agent.outcomes = [BROKEN]
    await bench.instruct(prompt("tsk_1"))
    await bench.agent.running.wait()
    await bench.instruct(Cancel("tsk_1"))
    assert (await bench.end("tsk_1")).TYPE == "task.cancelled"
    assert len(bench.agent.runs) == 1


async def test_a_task_goes_on_in_the_next_runner(bench: Bench) -> None:
    bench.agent.outcomes = [BROKEN, None]
    await bench.instruct(prompt("tsk_1", "the prompt"))
    async with asyncio.timeout(10):
        while len(bench.agent.runs) < 2:
            await asyncio.sleep(0.01)
    second = bench.agent.runs[1]
    await bench.close()
    bench.open([COMPLETED])
    assert (await bench.end("tsk_1")).TYPE == "task.completed"
    assert bench.agent.runs == [second]


async def test_what_the_agent_asks_is_withdrawn_when_it_waits_no_more(bench: Bench) -> None:
    def ask(run: Run, sink: Sink) -> None:
        for request in ("per_1", "per_2"):
            fact = facts.request_asked(run.task_id, request, "permission", "may I")
            sink.report(fact, key=f"asked:{request}")
            sink.report(fact, key=f"asked:{request}")

    bench.agent.during = ask
    bench.agent.outcomes = [None]
    await bench.instruct(prompt("tsk_1"))
    await bench.agent.running.wait()
    answer = {"reply": "once", "answers": [], "message": ""}
    await bench.instruct(Reply("per_1", answer), Reply("per_9", answer))
    async with asyncio.timeout(10):
        while bench.spool.notes.get("open") != ["per_2"]:
            await asyncio.sleep(0.01)
    await bench.instruct(Reply("per_1", answer), Cancel("tsk_1"))
    await bench.end("tsk_1")
    assert bench.agent.answers == [("per_1", answer)]
    assert [fact.request_id for fact in bench.reported() if fact.TYPE == "request.withdrawn"] == ["per_2"]
    assert bench.types().count("request.asked") == 2


async def test_a_steer_is_known_by_its_id(bench: Bench) -> None:
    bench.agent.outcomes = [None]
    await bench.instruct(prompt("tsk_1"))
    await bench.agent.running.wait()
    await bench.instruct(
        Steer("tsk_1", "str_1", "more"), Steer("tsk_1", "str_1", "more"), Steer("tsk_0", "str_2", "late")
    )
    await bench.until(lambda: bench.agent.steers)
    await bench.instruct(Steer("tsk_1", "str_1", "more"), Cancel("tsk_1"))
    await bench.end("tsk_1")
    assert [text for _, text in bench.agent.steers] == ["more"]
    assert len(bench.agent.runs) == 1


async def test_a_steer_that_comes_after_the_last_answer_is_followed_before_the_task_ends(
    bench: Bench,
) -> None:
    bench.agent.outcomes = [COMPLETED, COMPLETED]
    bench.while_storing = [Steer("tsk_1", "str_1", "more"), Steer("tsk_1", "str_1", "more")]
    await bench.instruct(prompt("tsk_1"))
    await bench.end("tsk_1")
    assert [run.text for run in bench.agent.runs] == ["work", "more"]
    assert len({run.conversation for run in bench.agent.runs}) == 1
    assert len({run.first_message for run in bench.agent.runs}) == 1
    assert bench.types() == ["checkpoint.created", "task.completed"]
    assert bench.reported()[0].bundle_artifact in bench.stored


async def test_a_steer_is_kept_while_the_agent_starts(bench: Bench) -> None:
    bench.agent.outcomes = [None]
    bench.agent.may_start.clear()
    await bench.instruct(prompt("tsk_1"), Steer("tsk_1", "str_1", "first"))
    await bench.agent.started.wait()
    await bench.instruct(Steer("tsk_1", "str_2", "second"))
    bench.agent.may_start.set()
    await bench.until(lambda: len(bench.agent.steers) == 2)
    assert [text for _, text in bench.agent.steers] == ["first", "second"]


async def test_a_steer_is_kept_during_the_pause_before_a_continuation(bench: Bench) -> None:
    bench.agent.outcomes = [BROKEN, None]
    bench.agent.during = lambda run, sink: bench.agent.running.clear()
    await bench.instruct(prompt("tsk_1"))
    await bench.until(lambda: "agent.retried" in bench.types())
    await bench.instruct(Steer("tsk_1", "str_1", "more"))
    await bench.until(lambda: bench.agent.steers)
    assert [run.text for run in bench.agent.runs] == ["work", CONTINUE]


async def test_a_steer_that_the_agent_did_not_hear_becomes_a_run_in_the_next_runner(bench: Bench) -> None:
    bench.agent.outcomes = [None]
    bench.agent.listens = False
    await bench.instruct(prompt("tsk_1"))
    await bench.agent.running.wait()
    await bench.instruct(Steer("tsk_1", "str_1", "more"))
    await bench.close()
    bench.open([COMPLETED, COMPLETED])
    await bench.instruct(prompt("tsk_1"), Steer("tsk_1", "str_1", "more"))
    await bench.end("tsk_1")
    assert [run.text for run in bench.agent.runs] == ["work", "more"]
    await bench.instruct(Steer("tsk_1", "str_2", "late"))
    assert "steers" not in bench.spool.notes
    assert bench.types() == ["checkpoint.created", "task.completed"]


async def test_a_steer_that_was_heard_is_not_said_again_by_the_next_runner(bench: Bench) -> None:
    bench.agent.outcomes = [None]
    await bench.instruct(prompt("tsk_1"), Steer("tsk_1", "str_1", "more"))
    await bench.until(lambda: any(steer["said"] for steer in bench.spool.notes.get("steers", {}).values()))
    await bench.close()
    bench.open([COMPLETED])
    await bench.instruct(Steer("tsk_1", "str_1", "more"))
    await bench.end("tsk_1")
    assert [run.text for run in bench.agent.runs] == ["work"]
    assert bench.agent.steers == []


async def test_a_cancelled_task_does_not_go_on_with_a_steer(bench: Bench) -> None:
    bench.agent.outcomes = [COMPLETED]
    bench.while_storing = [Steer("tsk_1", "str_1", "more"), Cancel("tsk_1")]
    await bench.instruct(prompt("tsk_1"))
    assert (await bench.end("tsk_1")).TYPE == "task.completed"
    assert [run.text for run in bench.agent.runs] == ["work"]
    assert bench.types() == ["checkpoint.created", "task.completed"]


async def test_the_plan_is_told_when_it_changes(bench: Bench) -> None:
    def plan(run: Run, sink: Sink) -> None:
        first, second = ([{"content": name, "status": "pending", "priority": ""}] for name in "ab")
        for todos in ([], first, first, second, first):
            sink.plan(todos)

    bench.agent.during = plan
    bench.agent.outcomes = [COMPLETED]
    await bench.instruct(prompt("tsk_1"))
    await bench.end("tsk_1")
    told = [fact.todos[0].content for fact in bench.reported() if fact.TYPE == "todos.updated"]
    assert told == ["a", "b", "a"]


async def test_the_diff_is_stored_before_the_end_however_long_it_takes(bench: Bench) -> None:
    bench.refusals = 3
    bench.agent.outcomes = [COMPLETED]
    await bench.instruct(prompt("tsk_1"))
    assert (await bench.end("tsk_1")).TYPE == "task.completed"
    assert bench.reported()[0].diff_artifact in bench.stored


async def test_work_that_cannot_be_kept_is_told_and_the_task_ends_as_it_did(bench: Bench) -> None:
    (bench.workspace.folder / ".git" / "HEAD").write_text("nonsense")
    bench.agent.outcomes = [COMPLETED]
    await bench.instruct(prompt("tsk_1"))
    assert (await bench.end("tsk_1")).TYPE == "task.completed"
    failed = bench.reported()[0]
    assert (failed.TYPE, failed.failure.code, failed.reason) == (
        "checkpoint.failed",
        "checkpoint_failed",
        "task",
    )


async def test_a_checkpoint_builds_on_the_one_before_and_stores_nothing_twice(bench: Bench) -> None:
    bench.agent.outcomes = [COMPLETED, COMPLETED, COMPLETED]
    for number in (1, 2, 3):
        bench.agent.memory = b"first" if number < 3 else b"second"
        await bench.instruct(prompt(f"tsk_{number}"))
        await bench.end(f"tsk_{number}")
    first, second, third = (fact for fact in bench.reported() if fact.TYPE == "checkpoint.created")
    assert [first.parent_id, second.parent_id, third.parent_id] == [
        "",
        first.checkpoint_id,
        second.checkpoint_id,
    ]
    assert first.agent_artifact == second.agent_artifact != third.agent_artifact
    assert bench.puts.count(first.agent_artifact) == 1


async def test_a_chain_of_checkpoints_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ship_runner.checkpoints.LINKS", 2)
    bench.agent.outcomes = [COMPLETED] * 4
    for number in range(4):
        await bench.instruct(prompt(f"tsk_{number}"))
        await bench.end(f"tsk_{number}")
    parents = [fact.parent_id for fact in bench.reported() if fact.TYPE == "checkpoint.created"]
    assert [bool(parent) for parent in parents] == [False, True, True, False]


async def test_a_checkpoint_can_be_asked_for_at_any_time_and_is_made_once(bench: Bench) -> None:
    await bench.instruct(TakeCheckpoint("ckp_idle", "asked"))
    await bench.until(lambda: bench.types() == ["checkpoint.created"])
    bench.agent.outcomes = [None]
    await bench.instruct(prompt("tsk_1"))
    await bench.agent.running.wait()
    (bench.workspace.folder / "half.txt").write_text("in the middle\n")
    await bench.instruct(TakeCheckpoint("ckp_mid", "pause"), TakeCheckpoint("ckp_mid", "pause"))
    await bench.until(lambda: len(bench.types()) == 2)
    await bench.instruct(TakeCheckpoint("ckp_mid", "pause"), TakeCheckpoint("ckp_idle", "asked"))
    assert bench.agent.working
    await bench.instruct(Cancel("tsk_1"))
    await bench.end("tsk_1")
    kept = [fact for fact in bench.reported() if fact.TYPE == "checkpoint.created"]
    assert [(fact.checkpoint_id, fact.task_id, fact.reason) for fact in kept[:2]] == [
        ("ckp_idle", "", "asked"),
        ("ckp_mid", "tsk_1", "pause"),
    ]
    assert [file.path for file in kept[1].files] == ["half.txt"]
    assert len(kept) == 3


async def test_a_long_task_gets_checkpoints_while_it_runs(bench: Bench) -> None:
    await bench.close()
    bench.checkpoint_every_s = 0.05
    bench.open([None])
    await bench.instruct(prompt("tsk_1"))
    await bench.until(lambda: bench.types().count("checkpoint.created") >= 2)
    assert bench.agent.working
    assert {(fact.task_id, fact.reason) for fact in bench.reported()} == {("tsk_1", "time")}
    await bench.instruct(Cancel("tsk_1"))
    await bench.end("tsk_1")
    assert [fact for fact in bench.reported() if fact.TYPE == "checkpoint.created"][-1].reason == "task"


async def test_a_memory_that_cannot_be_read_does_not_cost_the_files(bench: Bench) -> None:
    bench.agent.outcomes = [COMPLETED]
    bench.agent.memory = None
    await bench.instruct(prompt("tsk_1"))
    assert (await bench.end("tsk_1")).TYPE == "task.completed"
    checkpoint = bench.reported()[0]
    assert checkpoint.agent_artifact == ""
    assert checkpoint.bundle_artifact in bench.stored


async def test_the_first_task_after_a_restore_tells_what_was_lost(bench: Bench) -> None:
    bench.spool.note(news=briefing.news(["running processes"], remembers=False, summary="They said hello."))
    bench.agent.outcomes = [COMPLETED, COMPLETED]
    await bench.instruct(prompt("tsk_1", "the task"), prompt("tsk_2", "the next task"))
    await bench.end("tsk_2")
    first, second = (run.text for run in bench.agent.runs)
    assert first.startswith("the task\n")
    assert "new sandbox" in first and "running processes" in first and "They said hello." in first
    assert second == "the next task"


@pytest.mark.parametrize("restored", [True, False])
async def test_a_task_whose_sandbox_died_goes_on_in_one_clear_message(bench: Bench, restored: bool) -> None:
    if restored:
        bench.spool.note(news=briefing.news(["running processes"], remembers=True, summary="unused"))
    bench.agent.outcomes = [COMPLETED]
    await bench.instruct(Prompt("tsk_1", "the task", "", "build", recovered=True))
    await bench.end("tsk_1")
    (text,) = (run.text for run in bench.agent.runs)
    assert "replaced" in text and "go on with the task" in text
    assert text.endswith("the task")
    assert ("running processes" in text) == restored
    assert "unused" not in text


async def test_a_task_that_breaks_the_runner_does_not_stop_the_next(bench: Bench) -> None:
    def surprise(run: Run, sink: Sink) -> None:
        if run.task_id == "tsk_1":
            raise KeyError("a shape that nobody expected")

    bench.agent.during = surprise
    bench.agent.outcomes = [COMPLETED]
    await bench.instruct(prompt("tsk_1"), prompt("tsk_2"))
    assert (await bench.end("tsk_1")).failure.code == "runner_error"
    assert (await bench.end("tsk_2")).TYPE == "task.completed"


async def test_a_full_disk_ends_the_task_and_the_next_one_runs_when_there_is_room(bench: Bench) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(run: Run, sink: Sink) -> None:
        size = bench.spool.path.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        sink.report(facts.text_finished(run.task_id, "msg", "prt", "does not fit"), key="text:prt")

    try:
        bench.agent.during = fill
        bench.agent.outcomes = [None]
        await bench.instruct(prompt("tsk_1"))
        end = await bench.end("tsk_1")
        assert (end.TYPE, end.failure.code) == ("task.failed", "disk_full")
        assert "text.finished" in bench.types()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    bench.agent.during = lambda run, sink: None
    bench.agent.outcomes = [COMPLETED]
    await bench.instruct(prompt("tsk_2"))
    assert (await bench.end("tsk_2")).TYPE == "task.completed"
    assert not bench.spool.full
