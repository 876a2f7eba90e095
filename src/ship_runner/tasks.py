"""One task after the other: prompt, continuations, cancel, checkpoint, end. What it knows stands in the spool's notes."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from ship_runner import briefing, facts
from ship_runner.agent import Agent, Outcome, Restart, Run
from ship_runner.checkpoints import DISK_HINT, Checkpoints, Taken
from ship_runner.facts import Delta, Fact
from ship_runner.failures import RunnerFailure
from ship_runner.instructions import Cancel, Instruction, Prompt, Reply, Steer, TakeCheckpoint
from ship_runner.spool import Spool

log = logging.getLogger(__name__)

CONTINUATIONS = 3
"""How often a task is continued after a lost connection, and how often after a restart of the agent."""
_BACKOFF_S = (1.0, 4.0, 10.0)
_REMEMBERED = 500


class Tasks:
    """Takes instructions, at least once each, and runs tasks one at a time.

    Notes: ``task`` (the running one: prompt, ids, counts), ``ended`` (ids of tasks), ``conversation``, ``open`` (requests that wait for
    a person), ``steers`` (by steer id ``{task_id, text, message, said}``), ``answers`` (request ids), ``plan``, ``checkpoints`` (ids of those
    that were asked for and made), ``news`` (what the next prompt tells the agent).

    A steer is noted when it comes and said to the agent while it runs. What no run took in starts a run of its own, before
    the task may end.
    """

    def __init__(
        self,
        agent: Agent,
        spool: Spool,
        checkpoints: Checkpoints,
        *,
        grow: Callable[[Delta], None],
        title: str,
        default_model: Callable[[], str],
        checkpoint_every_s: float,
    ) -> None:
        self._agent = agent
        self._spool = spool
        self._checkpoints = checkpoints
        self._sink = TaskSink(spool, grow, self._disk_filled)
        self._title = title
        self._default_model = default_model
        self._checkpoint_every_s = checkpoint_every_s
        self._queue: deque[Prompt] = deque()
        self._arrived = asyncio.Event()
        self._cancelled: set[str] = set()
        self._cancelling = asyncio.Event()
        self._steered = asyncio.Event()
        self._disk_full = False
        self._errands: set[asyncio.Task[None]] = set()
        self._taking: set[str] = set()
        if task := spool.notes.get("task"):
            self._queue.append(_prompt_of(task))
            self._arrived.set()

    async def instruct(self, instruction: Instruction) -> None:
        """Take an instruction; what takes time is done on the side."""
        match instruction:
            case Prompt():
                if not self._knows(instruction.task_id):
                    self._queue.append(instruction)
                    self._arrived.set()
            case Cancel():
                self._cancel(instruction.task_id)
            case Steer():
                self._steer(instruction)
            case TakeCheckpoint():
                self._errand(self._take_asked(instruction))
            case Reply():
                self._errand(self._answer(instruction))

    async def run(self) -> None:
        """Run tasks for ever."""
        while True:
            while not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
            prompt = self._queue[0]
            try:
                await self._run_task(prompt)
            except (
                Exception
            ) as error:  # the loop of effects: one task that we cannot run must not stop the others
                log.exception("task %s could not be run", prompt.task_id)
                why = facts.failure("runner_error", f"The runner failed: {error!r}", "Send the task again.")
                self._end(prompt.task_id, facts.task_failed(prompt.task_id, why))
            self._queue.popleft()

    def _is_cancelled(self, task_id: str) -> bool:
        noted = self._running() == task_id and self._spool.notes["task"].get("cancelled", False)
        return noted or task_id in self._cancelled

    def _knows(self, task_id: str) -> bool:
        return self._has_ended(task_id) or any(task_id == known.task_id for known in self._queue)

    def _has_ended(self, task_id: str) -> bool:
        return task_id in self._spool.notes.get("ended", ())

    def _cancel(self, task_id: str) -> None:
        if self._has_ended(task_id):
            return
        if self._queue and self._queue[0].task_id == task_id:
            if task_id not in self._cancelled:
                self._cancelled.add(task_id)
                self._cancelling.set()
                # A runner that dies before it has ended the task must not go on with it.
                if self._running() == task_id:
                    self._spool.note(task={**self._spool.notes["task"], "cancelled": True})
                self._errand(self._agent.abort())
            return
        self._queue = deque(prompt for prompt in self._queue if prompt.task_id != task_id)
        self._end(task_id, facts.task_cancelled(task_id))

    async def _take_asked(self, asked: TakeCheckpoint) -> None:
        """A checkpoint that somebody asked for, whatever the agent is doing; known by its id."""
        known = [*self._spool.notes.get("checkpoints", ()), *self._taking]
        if asked.checkpoint_id in known:
            return
        self._taking.add(asked.checkpoint_id)
        try:
            await self._take_beside(asked.reason, asked.checkpoint_id)
        finally:
            self._taking.discard(asked.checkpoint_id)

    async def _take_beside(self, reason: str, checkpoint_id: str = "") -> None:
        """Take a checkpoint beside what runs, and report it at once."""
        task_id = self._running()
        taken = await self._checkpoints.take(task_id, reason, checkpoint_id)
        # A task that has ended meanwhile has had its last report.
        task_id = task_id if task_id == self._running() else ""
        notes = dict(taken.notes)
        if checkpoint_id:
            notes["checkpoints"] = [*self._spool.notes.get("checkpoints", ()), checkpoint_id][-_REMEMBERED:]
        self._spool.report(Fact(taken.fact.type, {**taken.fact.data, "task_id": task_id}), notes=notes)

    async def _take_regularly(self) -> None:
        """Checkpoints of a task that takes long, so that a lost sandbox costs minutes. One that has begun is ended, whatever else ends."""
        while True:
            await asyncio.sleep(self._checkpoint_every_s)
            taking = asyncio.ensure_future(self._take_beside("time"))
            self._errand(taking)
            await asyncio.wait({taking})

    def _running(self) -> str:
        """The id of the task that runs, or empty."""
        return str(self._spool.notes.get("task", {}).get("task_id", ""))

    def _steer(self, steer: Steer) -> None:
        if steer.steer_id in self._spool.notes.get("steers", {}):
            return
        if not any(steer.task_id == prompt.task_id for prompt in self._queue) or self._has_ended(
            steer.task_id
        ):
            log.info("a word for a task that does not run: %s", steer.steer_id)
            return
        self._note_steer(steer.steer_id, task_id=steer.task_id, text=steer.text, message="", said=False)
        self._steered.set()

    def _note_steer(self, steer_id: str, **changes: Any) -> None:
        self._spool.note(steers=self._steers_with(steer_id, **changes))

    def _steers_with(self, steer_id: str, **changes: Any) -> dict[str, dict[str, Any]]:
        steers = self._spool.notes.get("steers", {})
        return {**steers, steer_id: {**steers.get(steer_id, {}), **changes}}

    def _unsaid(self, task_id: str) -> list[str]:
        """The steers of a task that the agent has not taken in, in the order in which they came."""
        steers = self._spool.notes.get("steers", {})
        return [name for name, steer in steers.items() if steer["task_id"] == task_id and not steer["said"]]

    async def _say_steers(self, task_id: str) -> None:
        """Say steers to the running agent, as they come; returns when it takes in no more."""
        while True:
            self._steered.clear()
            for steer_id in self._unsaid(task_id):
                try:
                    if not await self._say(steer_id):
                        return
                except RunnerFailure as error:
                    log.warning("the agent did not take %s: %s", steer_id, error)
                    break
            await self._steered.wait()

    async def _say(self, steer_id: str) -> bool:
        def note(message: str) -> None:
            self._note_steer(steer_id, message=message)

        steer = self._spool.notes["steers"][steer_id]
        taken = await self._agent.steer(steer["text"], steer["message"], note)
        if taken:
            self._note_steer(steer_id, said=True)
        return taken

    def _must_go_on(self, task_id: str, outcome: Outcome) -> bool:
        """Whether a steer is left that no run took in, and a run of its own may follow."""
        may = outcome.kind == "completed" and not self._is_cancelled(task_id)
        return may and bool(self._unsaid(task_id))

    def _take_up_steer(self, task_id: str, outcome: Outcome) -> bool:
        """Make ready for a run with the first steer that no run took in; False when the task may end."""
        if not self._must_go_on(task_id, outcome):
            return False
        steer_id = self._unsaid(task_id)[0]
        steer = self._spool.notes["steers"][steer_id]
        message = steer["message"] or self._agent.new_message()
        self._spool.note(
            task={**self._spool.notes["task"], "message": message, "steer": steer["text"]},
            steers=self._steers_with(steer_id, message=message, said=True),
        )
        return True

    async def _answer(self, reply: Reply) -> None:
        answered = self._spool.notes.get("answers", [])
        if reply.request_id in answered or reply.request_id not in self._spool.notes.get("open", ()):
            return
        await self._agent.answer(reply.request_id, reply.answer)
        self._spool.note(answers=[*answered, reply.request_id][-_REMEMBERED:])
        self._sink.answered(reply.request_id)

    async def _run_task(self, prompt: Prompt) -> None:
        self._disk_full = False
        self._cancelling.clear()
        begun = self._running() == prompt.task_id
        if not begun:
            message = self._agent.new_message()
            told = self._spool.notes.get("news")
            self._spool.note(
                news=None,
                task={
                    "task_id": prompt.task_id,
                    "text": briefing.first_words(prompt.text, told, recovered=prompt.recovered),
                    "model": prompt.model,
                    "agent": prompt.agent,
                    "first_message": message,
                    "message": message,
                    "continued": {"connection": 0, "restart": 0},
                },
            )
        while True:
            regularly = asyncio.create_task(self._take_regularly())
            try:
                outcome = await self._work(prompt, begun=begun)
            finally:
                regularly.cancel()
            self._sink.withdraw()
            taken = await self._checkpoint(prompt.task_id)
            # From here to the end nothing is awaited: no steer can come in between and be lost.
            if not self._take_up_steer(prompt.task_id, outcome):
                break
        if taken is not None:
            self._spool.report(taken.fact, key=self._checkpoint_key(), notes=taken.notes)
        self._end(prompt.task_id, self._end_fact(prompt.task_id, outcome))

    async def _work(self, prompt: Prompt, *, begun: bool) -> Outcome:
        """Run the agent, and again while it was interrupted and may go on. What an earlier runner has begun may run now, and is
        looked at even if it is to be stopped."""
        try:
            if restart := await self._agent.start():
                self._restarted(restart)
            if not self._spool.notes.get("conversation"):
                self._spool.note(conversation=await self._agent.begin(self._title))
        except RunnerFailure as error:
            return Outcome("failed", error.code, error.reason, error.hint)
        while True:
            if self._is_cancelled(prompt.task_id) and not begun:
                return Outcome("aborted")
            if self._spool.full:
                return Outcome("aborted") if self._disk_full else _disk_outcome()
            begun = False
            self._sink.task_id = prompt.task_id
            outcome = await self._run_agent(self._next_run())
            if self._take_up_steer(prompt.task_id, outcome):
                continue
            if outcome.kind != "interrupted" or self._is_cancelled(prompt.task_id):
                return outcome
            self._sink.withdraw()
            if given_up := await self._may_continue(prompt.task_id, outcome):
                return given_up

    async def _run_agent(self, run: Run) -> Outcome:
        saying = asyncio.create_task(self._say_steers(run.task_id))
        saying.add_done_callback(self._errand_done)
        try:
            return await self._agent.run(run, self._sink)
        finally:
            saying.cancel()
            await asyncio.gather(saying, return_exceptions=True)

    def _next_run(self) -> Run:
        task = self._spool.notes["task"]
        first = task["message"] == task["first_message"]
        return Run(
            task_id=task["task_id"],
            conversation=self._spool.notes["conversation"],
            first_message=task["first_message"],
            message=task["message"],
            text=task["text"] if first else task.get("steer") or briefing.CONTINUE,
            model=task["model"] or self._default_model(),
            mode=task["agent"],
            aborted=self._is_cancelled(task["task_id"]),
        )

    async def _may_continue(self, task_id: str, outcome: Outcome) -> Outcome | None:
        """Count an interruption and make ready for the continuation; or why the task has failed."""
        task = self._spool.notes["task"]
        cause = "connection" if outcome.code == "connection" else "restart"
        count = task["continued"][cause] + 1
        continued = {**task["continued"], cause: count}
        if count > CONTINUATIONS:
            if cause == "connection":
                return Outcome(
                    "failed",
                    "model_unreachable",
                    outcome.reason,
                    "The model's connection breaks again and again.",
                )
            reason = f"The agent had to be started anew {CONTINUATIONS} times; last: {outcome.reason}"
            return Outcome(
                "failed", "agent_crashed", reason, "Send the task again, in smaller steps if need be."
            )
        message = self._agent.new_message()
        # What was said last may not have arrived: it is said again, unless the agent finds it in its record.
        steers = {
            name: {**steer, "said": False} for name, steer in self._spool.notes.get("steers", {}).items()
        }
        self._spool.note(
            task={**task, "continued": continued, "message": message, "steer": ""}, steers=steers or None
        )
        if cause == "restart":
            self._restarted(Restart(outcome.code, outcome.reason))
            return None
        pause = _BACKOFF_S[count - 1]
        next_at_ms = time.time_ns() // 1_000_000 + int(pause * 1000)
        self._spool.report(facts.agent_retried(task_id, count, outcome.reason, next_at_ms))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._cancelling.wait()
        return None

    def _restarted(self, restart: Restart) -> None:
        self._spool.report(facts.agent_restarted(restart.code, restart.reason))

    def _checkpoint_key(self) -> str:
        """Of the run that it keeps: a steer that came between a checkpoint and the runner's death starts another run."""
        return f"checkpoint:{self._spool.notes['task']['message']}"

    async def _checkpoint(self, task_id: str) -> Taken | None:
        """Keep what the run has left; None when that was reported before."""
        if self._spool.reported(self._checkpoint_key()):
            return None
        return await self._checkpoints.take(task_id, "task")

    def _end_fact(self, task_id: str, outcome: Outcome) -> Fact:
        if outcome.kind == "completed":
            return facts.task_completed(task_id)
        if self._disk_full or (outcome.kind == "failed" and self._checkpoints.disk_full):
            outcome = _disk_outcome()
        elif outcome.kind == "aborted" or self._is_cancelled(task_id):
            return facts.task_cancelled(task_id)
        return facts.task_failed(task_id, facts.failure(outcome.code, outcome.reason, outcome.hint))

    def _end(self, task_id: str, fact: Fact) -> None:
        ended = [*self._spool.notes.get("ended", []), task_id][-_REMEMBERED:]
        notes: dict[str, Any] = {"ended": ended}
        if self._running() == task_id:
            notes.update(task=None, open=None)
        steers = self._spool.notes.get("steers", {})
        notes["steers"] = {
            name: steer for name, steer in steers.items() if steer["task_id"] != task_id
        } or None
        self._spool.report(fact, key=f"end:{task_id}", notes=notes)
        if "task" in notes:
            self._spool.forget_keys()
        self._cancelled.discard(task_id)

    def _disk_filled(self) -> None:
        """The spool cannot be written: end the task while its last words still fit into memory."""
        if not self._disk_full:
            self._disk_full = True
            self._errand(self._agent.abort())

    def _errand(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._errands.add(task)
        task.add_done_callback(self._errand_done)

    def _errand_done(self, task: asyncio.Task[None]) -> None:
        self._errands.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("an instruction could not be followed: %r", error)


class TaskSink:
    """Where the agent's doings go: the spool, with notes of who waits for whom."""

    def __init__(self, spool: Spool, grow: Callable[[Delta], None], disk_filled: Callable[[], None]) -> None:
        self.task_id = ""
        self._spool = spool
        self._grow = grow
        self._disk_filled = disk_filled

    @property
    def has_room(self) -> bool:
        return self._spool.has_room

    async def room(self) -> None:
        await self._spool.room()

    def report(self, fact: Fact, *, key: str) -> None:
        notes: dict[str, Any] = {}
        if fact.type == "request.asked":
            notes["open"] = [*self._spool.notes.get("open", []), fact.data["request_id"]]
        self._spool.report(fact, key=key, notes=notes)
        if self._spool.full:
            self._disk_filled()

    def plan(self, todos: list[dict[str, str]]) -> None:
        if todos != self._spool.notes.get("plan", []):
            self._spool.report(facts.todos_updated(self.task_id, todos), notes={"plan": todos})

    def answered(self, request_id: str) -> None:
        waiting = self._spool.notes.get("open", [])
        if request_id in waiting:
            self._spool.note(open=[other for other in waiting if other != request_id])

    def withdraw(self) -> None:
        """The agent waits for nobody any more."""
        for request_id in list(self._spool.notes.get("open", [])):
            left = [other for other in self._spool.notes["open"] if other != request_id]
            self._spool.report(facts.request_withdrawn(request_id), notes={"open": left})

    def grow(self, delta: Delta) -> None:
        self._grow(delta)


def _prompt_of(task: Mapping[str, Any]) -> Prompt:
    return Prompt(task_id=task["task_id"], text=task["text"], model=task["model"], agent=task["agent"])


def _disk_outcome() -> Outcome:
    return Outcome("failed", "disk_full", "The sandbox's disk is full.", DISK_HINT)
