"""Follows a session to the end of its work, with a person at the terminal or without."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.text import Text

from ship import errors
from ship.cli import asking, terminal
from ship.cli.exits import Exit
from ship.cli.transcript import Transcript, files_changed
from ship.client import Client
from ship.client.views import Session
from ship.events import Record, encode, facts
from ship.model import ChangedFile, TaskStatus, Usage

_OPEN = (TaskStatus.QUEUED, TaskStatus.RUNNING)
_ENDS = {
    facts.TaskCompleted: TaskStatus.COMPLETED,
    facts.TaskFailed: TaskStatus.FAILED,
    facts.TaskCancelled: TaskStatus.CANCELLED,
}


@dataclass
class Progress:
    """What of a session's work is known so far. ``ended`` is how the last task ended, or FAILED when the session did."""

    waits_for: str = ""
    """The task that we follow; empty means whatever is queued or runs."""
    open_tasks: set[str] = field(default_factory=set)
    requests: dict[str, facts.RequestAsked] = field(default_factory=dict)
    ended: TaskStatus | None = None
    files: tuple[ChangedFile, ...] = ()
    usage: Usage = field(default_factory=Usage)
    started_at_ms: int = 0
    took_ms: int = 0
    over: bool = False

    def see(self, record: Record) -> None:
        """Takes one record into account."""
        match record.fact:
            case facts.TaskQueued() as fact:
                self.open_tasks.add(fact.task_id)
                self.over = False
            case facts.TaskStarted():
                self.started_at_ms = record.at_ms
            case facts.TaskCompleted() | facts.TaskFailed() | facts.TaskCancelled() as fact:
                self.open_tasks.discard(fact.task_id)
                self.requests.clear()
                if self.waits_for in ("", fact.task_id):
                    self.ended = _ENDS[type(fact)]
                    self.took_ms = record.at_ms - self.started_at_ms if self.started_at_ms else 0
                    self.over = bool(self.waits_for) or not self.open_tasks
            case facts.SandboxRequested():
                self.over = False
            case facts.SessionFailed():
                self.ended, self.over = TaskStatus.FAILED, True
            case facts.CheckpointCreated() as fact:
                self.files = fact.files
            case facts.ModelCalled() as fact:
                self.usage = self.usage.plus(fact.usage)
            case facts.RequestAsked() as fact:
                self.requests[fact.request_id] = fact
            case facts.RequestAnswered() | facts.RequestWithdrawn() as fact:
                self.requests.pop(fact.request_id, None)

    @property
    def exit(self) -> Exit:
        """The exit code that says how it ended."""
        return Exit.OK if self.ended in (None, TaskStatus.COMPLETED) else Exit.FAILED


async def follow(
    client: Client, session_id: str, *, task_id: str = "", after: int = 0, as_json: bool = False
) -> Exit:
    """Shows the session from a seq on until the task (or, without one, all work) has ended.

    With ``as_json`` each record is one line of JSON, as the log holds it. Ctrl-C leaves the task running.
    """
    session = await client.session(session_id)
    progress = Progress(
        waits_for=task_id, open_tasks={task.id for task in session.tasks if task.status in _OPEN}
    )
    following = _Following(client, session, progress, as_json=as_json)
    with following.transcript, _interrupts() as interrupted:
        work = asyncio.create_task(following.run(after))
        while not work.done():
            interrupt = asyncio.create_task(interrupted.wait())
            await asyncio.wait({work, interrupt}, return_when=asyncio.FIRST_COMPLETED)
            await _end(interrupt)
            if not work.done() and interrupted.is_set():
                interrupted.clear()
                if await following.leaves(interrupted):
                    await _end(work)
                    terminal.messages().print(
                        f"Detached; the task goes on. Come back with: ship attach {session_id}"
                    )
                    return Exit.DETACHED
        await work
    if not as_json:
        following.sum_up()
    return progress.exit


class _Following:
    """One run of ``follow``: the stream on one side, the screen and the keyboard on the other."""

    def __init__(self, client: Client, session: Session, progress: Progress, *, as_json: bool) -> None:
        self._client = client
        self._session_id = session.id
        self._head_seq = session.head_seq
        self._as_json = as_json
        self._interactive = terminal.interactive() and not as_json
        self._console = terminal.output()
        self._asking: asyncio.Task[None] | None = None
        self._asked: set[str] = set()
        self._current = ""
        self._lost_before = False
        self.progress = progress
        self.transcript = Transcript(self._console)

    async def run(self, after: int) -> None:
        """Shows what comes after that seq until all is over."""
        try:
            if self._over(after):
                return
            events = self._client.events(self._session_id, after=after, on_lost=self._lost)
            async with contextlib.aclosing(aiter(events)) as items:
                async for item in items:
                    self._lost_before = False
                    if isinstance(item, Record):
                        await self._show(item)
                        if self._over(item.seq):
                            return
                    elif not self._as_json and not self._asking:
                        self.transcript.show(item)
        finally:
            await _end(self._asking)

    async def leaves(self, interrupted: asyncio.Event) -> bool:
        """After Ctrl-C: whether to leave. A person may stop the task instead; a second Ctrl-C leaves."""
        if not self._interactive:
            return True
        await self._stop_asking()
        self.transcript.pause()
        choice = asyncio.create_task(
            asking.read_line(self._console, "\n[d]etach, [s]top the task, [c]ontinue › ")
        )
        again = asyncio.create_task(interrupted.wait())
        await asyncio.wait({choice, again}, return_when=asyncio.FIRST_COMPLETED)
        word = (choice.result() or "d")[:1].lower() if choice.done() else "d"
        await _end(choice)
        await _end(again)
        if word == "s":
            for task_id in self._to_stop():
                await self._client.cancel_task(self._session_id, task_id)
        else:
            self._ask_next()
        return word not in ("s", "c")

    def sum_up(self) -> None:
        """The last lines: what changed, how long it took, what it cost."""
        progress = self.progress
        if progress.files:
            self._console.print(files_changed(progress.files))
        words = [f"{progress.ended}" if progress.ended else "nothing runs"]
        if progress.took_ms:
            words.append(f"in {terminal.duration(progress.took_ms)}")
        if tokens := progress.usage.input_tokens + progress.usage.output_tokens:
            words.append(f"with {tokens:,} tokens")
        if progress.usage.cost_usd:
            words.append(f"for ${progress.usage.cost_usd:.4f}")
        color = "green" if progress.exit is Exit.OK else "red"
        self._console.print(Text(" ".join(words), color))

    def _over(self, seq: int) -> bool:
        """Whether there is nothing left to wait for; what lies before the head is history."""
        if seq < self._head_seq:
            return False
        return self.progress.over or not (self.progress.open_tasks or self.progress.waits_for)

    def _to_stop(self) -> list[str]:
        return [self.progress.waits_for] if self.progress.waits_for else sorted(self.progress.open_tasks)

    async def _show(self, record: Record) -> None:
        self.progress.see(record)
        if self._as_json:
            terminal.print_bytes(encode(record) + b"\n")
            return
        self.transcript.show(record)
        if self._asking and self._current not in self.progress.requests:
            # Somebody else answered, or the agent gave up waiting.
            await self._stop_asking()
        if record.seq >= self._head_seq:
            self._ask_next()

    def _ask_next(self) -> None:
        waiting = [request for key, request in self.progress.requests.items() if key not in self._asked]
        if not waiting or self._asking:
            return
        if self._interactive:
            self.transcript.pause()
            self._current = waiting[0].request_id
            self._asked.add(self._current)
            self._asking = asyncio.create_task(self._ask(waiting[0]))
        else:
            self._asked.update(request.request_id for request in waiting)
            self.transcript.say(
                f"  answer in the browser, or with `ship attach {self._session_id}` in a terminal", "yellow"
            )

    async def _ask(self, request: facts.RequestAsked) -> None:
        answer = await asking.ask(self._console, request)
        if answer is not None:
            # Whoever is slower is told so by the log; there is nothing to do about it here.
            with contextlib.suppress(errors.Conflict, errors.NotFound):
                await self._client.answer(self._session_id, request.request_id, answer)
        self._asking = None
        self._ask_next()

    async def _stop_asking(self) -> None:
        if self._asking:
            await _end(self._asking)
            self._asking = None
            self._asked.discard(self._current)

    def _lost(self, reason: str) -> None:
        if not self._as_json and not self._lost_before:
            self._lost_before = True
            self.transcript.say(f"connection lost, trying again ({reason})", "yellow")


async def _end(task: "asyncio.Task[Any] | None") -> None:
    if task is None or task is asyncio.current_task():
        return
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@contextlib.contextmanager
def _interrupts() -> Iterator[asyncio.Event]:
    """Turns Ctrl-C into an event."""
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, interrupted.set)
    try:
        yield interrupted
    finally:
        loop.remove_signal_handler(signal.SIGINT)
