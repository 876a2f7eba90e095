"""A session's events as a person reads them in a terminal."""

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markdown import Markdown
from rich.padding import Padding
from rich.text import Text

from ship.cli.terminal import clean, count, duration, one_line, source_name
from ship.events import Fact, Record, facts
from ship.events.frames import Delta
from ship.model import ChangedFile, CheckpointReason, Failure, RequestKind, Todo

INDENT = 2
LIVE_LINES = 12
"""How many lines of unfinished text are shown; the rest follows when it is finished."""
REASONING_LINES = 6
_TARGETS = ("filePath", "path", "command", "pattern", "url", "query", "description", "prompt")
_WORKSPACE = ("/workspace/repo/", "workspace/repo/", "repo/", "/workspace/")
_SHOWN_ELSEWHERE = ("todowrite", "todoread")
_SUMMED_UP_LAST = ("bash", "edit", "write")
_TODO_MARKS = {"completed": ("✓", "green"), "in_progress": ("▸", "cyan"), "cancelled": ("✗", "dim")}


class Transcript:
    """Prints records as they come; on a terminal unfinished text grows below them.

    Use it as a context manager: it owns the lines at the bottom of the screen. ``pause`` gives them up for a while.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._parts: dict[str, tuple[str, str]] = {}
        self._tools: dict[str, facts.ToolStarted] = {}
        self._failure: Failure | None = None
        self._model_failure: Failure | None = None
        self._todos: tuple[Todo, ...] = ()
        self._live: Live | None = None

    def __enter__(self) -> "Transcript":
        return self

    def __exit__(self, *_: object) -> None:
        self.pause()

    def show(self, item: Record | Delta) -> None:
        """Prints a record, or lets its part grow."""
        if isinstance(item, Delta):
            self._grow(item)
            return
        lines = self._render(item.fact, item.actor.name)
        self._finish(item.fact)
        if lines is not None:
            # In a file or a pipe a line is as long as it is.
            self._console.print(lines, soft_wrap=not self._console.is_terminal)

    def say(self, text: str, style: str = "dim") -> None:
        """A line of our own."""
        self._console.print(Text(clean(text), style))

    def pause(self) -> None:
        """Takes the growing text off the screen; the next delta brings it back."""
        if self._live:
            self._live.stop()
            self._live = None

    def _grow(self, delta: Delta) -> None:
        _, known = self._parts.get(delta.part_id, ("", ""))
        if delta.offset > len(known):
            return
        self._parts[delta.part_id] = (delta.kind, known[: delta.offset] + delta.text)
        self._redraw()

    def _finish(self, fact: Fact) -> None:
        match fact:
            case facts.ToolStarted():
                self._tools[fact.part_id] = fact
            case facts.ToolFinished():
                self._tools.pop(fact.part_id, None)
                self._parts.pop(fact.part_id, None)
            case facts.TextFinished() | facts.ReasoningFinished():
                self._parts.pop(fact.part_id, None)
            case facts.TaskCompleted() | facts.TaskFailed() | facts.TaskCancelled():
                self._parts.clear()
                self._tools.clear()
            case _:
                return
        self._redraw()

    def _redraw(self) -> None:
        if not self._console.is_terminal:
            return
        growing = self._growing()
        if growing is None:
            self.pause()
        elif self._live is None:
            self._live = Live(
                growing, console=self._console, transient=True, refresh_per_second=8, vertical_overflow="crop"
            )
            self._live.start()
        else:
            self._live.update(growing)

    def _growing(self) -> RenderableType | None:
        rows: list[RenderableType] = []
        for kind, text in self._parts.values():
            style = {"reasoning": "dim italic", "tool": "dim"}.get(kind, "")
            tail = clean(text).splitlines()[-LIVE_LINES:]
            rows.append(Padding(Text("\n".join(tail), style, overflow="fold"), (0, 0, 0, INDENT)))
        for tool in self._tools.values():
            rows.append(Text.assemble(("… ", "cyan"), (tool.tool, "bold"), " ", _target(tool)))
        return Group(*rows) if rows else None

    def _render(self, fact: Fact, author: str) -> RenderableType | None:
        """The record as it stays on the screen; None for what only programs need."""
        match fact:
            case facts.SessionCreated():
                branch = f" @ {fact.repository.branch}" if fact.repository.branch else ""
                return _quiet(f"session on {source_name(fact.repository.source)}{branch} with {fact.model}")
            case facts.SandboxStepFinished():
                detail = f"  {one_line(fact.detail, 80)}" if fact.detail else ""
                return _quiet(f"sandbox: {fact.step}{detail}  {duration(fact.took_ms)}")
            case facts.SandboxReady():
                return _quiet(f"sandbox ready on {fact.work_branch or 'a detached head'}")
            case facts.SandboxFailed() | facts.SessionFailed() | facts.TaskFailed() | facts.EffectFailed():
                told, self._failure = self._failure, fact.failure
                if fact.failure == told:
                    # One failure passes through several hands; it is told once.
                    return None
                return _failure(_WHAT_FAILED[type(fact)], fact.failure)
            case facts.SandboxLost():
                return _warning(f"the sandbox is gone: {fact.reason}")
            case facts.TaskQueued():
                self._failure = None
                return _said(author, fact.prompt, "bold")
            case facts.TaskSteered():
                return _said(f"{author} (steers)", fact.text, "bold")
            case facts.MessagePosted():
                return _said(f"{author} (note)", fact.text, "")
            case facts.TextFinished():
                return self._markdown(clean(fact.text).strip())
            case facts.ReasoningFinished():
                return _reasoning(fact)
            case facts.ToolFinished():
                return _tool(self._tools.get(fact.part_id), fact)
            case facts.TodosUpdated():
                plan, self._todos = self._todos, fact.todos
                return _todos(plan, fact.todos)
            case facts.RequestAsked():
                return _asked(fact)
            case facts.RequestAnswered():
                return _quiet(f"{author} answered: {_answer(fact)}")
            case facts.RequestWithdrawn():
                return _quiet("the agent does not wait for an answer any more")
            case facts.AgentRetried():
                why = (
                    ""
                    if self._model_failure and fact.reason == self._model_failure.reason
                    else f": {fact.reason}"
                )
                return _warning(f"the agent tries its model again (attempt {fact.attempt}){why}")
            case facts.AgentRestarted():
                return _warning(f"the agent was started anew ({fact.code}): {fact.reason}")
            case facts.ModelCalled():
                known, self._model_failure = self._model_failure, fact.failure
                if fact.failure is None or fact.failure == known:
                    return None
                return _warning(f"{fact.provider}/{fact.model}: {fact.failure.reason}", fact.failure.hint)
            case facts.SessionPaused():
                return _quiet(f"paused ({fact.reason})")
            case facts.SessionResumed():
                return _quiet("the session goes on")
            case facts.SandboxResumed() if not fact.memory:
                return _warning("the sandbox was started anew from its files: what ran in it is gone")
            case facts.SandboxRestored():
                lost = f"; lost: {', '.join(fact.lost)}" if fact.lost else ""
                memory = "and the agent's memory" if fact.conversation else "without the agent's memory"
                point = (
                    f"restored from checkpoint {fact.checkpoint_id}" if fact.checkpoint_id else "begun anew"
                )
                return _quiet(f"{point}, {memory}{lost}")
            case facts.TaskInterrupted():
                return _quiet("the task goes on in a new sandbox")
            case facts.TaskLimitReached():
                return _warning(
                    f"the task has reached its {fact.limit} limit: {fact.value:g} of {fact.allowed:g}"
                )
            case facts.TaskStuck():
                minutes = f"nothing was heard of the agent for {duration(fact.idle_ms)}"
                return _warning(f"{minutes}; the task is ended" if fact.given_up else minutes)
            case facts.TaskEdited():
                return _quiet(f"{author} changed a task: {one_line(fact.prompt, 80)}")
            case facts.TaskMoved():
                return _quiet(f"{author} moved a waiting task")
            case facts.CheckpointCreated() if fact.reason is not CheckpointReason.TASK:
                return _quiet(f"checkpoint {fact.checkpoint_id}")
            case facts.ChildStarted():
                return _quiet(f"started {fact.child_id}: {one_line(fact.title, 80)}")
            case facts.ChildFinished():
                return _quiet(f"{fact.child_id} {fact.status}: {one_line(fact.summary, 100)}")
            case facts.TaskCancelRequested():
                return _quiet(f"{author} stops the task")
            case facts.TaskCancelled():
                return _warning("the task was stopped")
            case facts.SessionArchived():
                return _quiet(f"{author} archived the session")
            case _:
                return None

    def _markdown(self, text: str) -> RenderableType:
        if self._console.is_terminal:
            return Padding(Markdown(text), (1, 0, 1, INDENT))
        return _indented(Text(f"\n{text}\n"))


_WHAT_FAILED: dict[type[Fact], str] = {
    facts.SandboxFailed: "the sandbox did not start",
    facts.SessionFailed: "the session cannot go on",
    facts.TaskFailed: "the task failed",
    facts.EffectFailed: "Ship could not do its part",
}


def files_changed(files: Sequence[ChangedFile]) -> RenderableType:
    """The files of a diff with how many lines came and went."""
    rows = [
        Text.assemble(
            " " * INDENT,
            (file.status, "cyan"),
            f"  {clean(file.path)}  ",
            (f"+{file.additions}", "green"),
            " ",
            (f"-{file.deletions}", "red"),
        )
        for file in files
    ]
    added, deleted = sum(file.additions for file in files), sum(file.deletions for file in files)
    total = Text.assemble(
        f"{count(len(files), 'file')} changed, ", (f"+{added}", "green"), " ", (f"-{deleted}", "red")
    )
    return Text("\n").join([*rows, total])


def _quiet(text: str) -> Text:
    return Text(f"· {clean(text)}", "dim")


def _warning(text: str, hint: str = "") -> Text:
    return Text(f"! {clean(text)}" + (f"\n  {clean(hint)}" if hint else ""), "yellow")


def _failure(what: str, failure: Failure) -> Text:
    lines = Text.assemble((f"✗ {what}: {clean(failure.reason)}", "red"), (f" [{clean(failure.code)}]", "dim"))
    if failure.hint:
        lines.append(f"\n  {clean(failure.hint)}")
    return lines


def _said(author: str, text: str, style: str) -> RenderableType:
    return Text.assemble("\n", (f"{clean(author)} › ", "cyan"), (clean(text), style))


def _reasoning(fact: facts.ReasoningFinished) -> RenderableType | None:
    lines = [line for line in clean(fact.text).strip().splitlines() if line.strip()]
    if not lines:
        return None
    shown = lines[:REASONING_LINES] + (["…"] if len(lines) > REASONING_LINES else [])
    return _indented(Text("\n".join(shown), "dim italic"))


def _indented(text: Text) -> Text:
    """The text moved in, without the spaces behind it that a padding would leave in a file."""
    lines = text.split("\n", allow_blank=True)
    return Text("\n").join(Text.assemble(" " * INDENT, line) if line.plain else line for line in lines)


def _tool(started: facts.ToolStarted | None, finished: facts.ToolFinished) -> Text | None:
    if finished.tool in _SHOWN_ELSEWHERE and not finished.error:
        return None
    mark, color = ("✗", "red") if finished.error else ("✓", "green")
    target = _target(started) if started else _in_workspace(one_line(finished.title, 100))
    result = one_line(finished.error, 120) if finished.error else _result(finished.tool, finished.output)
    line = Text.assemble((f"{mark} ", color), (clean(finished.tool), "bold"), f" {target}", no_wrap=False)
    return line.append(
        f"  {result}  {duration(finished.took_ms)}".replace("    ", "  "), "red" if finished.error else "dim"
    )


def _target(tool: facts.ToolStarted) -> str:
    """What the call is about: its file, its command, …"""
    for name in _TARGETS:
        value = tool.input.get(name)
        if isinstance(value, str) and value:
            return _in_workspace(one_line(value, 100))
    return _in_workspace(one_line(tool.title, 100))


def _in_workspace(path: str) -> str:
    prefix = next((prefix for prefix in _WORKSPACE if path.startswith(prefix)), "")
    return path.removeprefix(prefix)


def _result(tool: str, output: str) -> str:
    """One line for what came out: how a command summed up, what an edit said, else how much there was."""
    lines = [line for line in clean(output).splitlines() if line.strip()]
    if not lines:
        return ""
    if tool in _SUMMED_UP_LAST and len(lines[-1]) <= 60:
        return one_line(lines[-1], 60)
    return one_line(lines[0], 60) if len(lines) == 1 else count(len(lines), "line")


def _todos(known: Sequence[Todo], todos: Sequence[Todo]) -> RenderableType | None:
    """The whole plan when it is new, else what has changed in it."""
    same_plan = [todo.content for todo in known] == [todo.content for todo in todos]
    shown = [todo for todo in todos if not same_plan or todo not in known]
    rows = []
    for todo in shown:
        mark, style = _TODO_MARKS.get(todo.status, ("○", "dim"))
        rows.append(
            Text.assemble(
                (f"{mark} ", style), (clean(todo.content), "dim" if todo.status == "completed" else "")
            )
        )
    return _indented(Text("\n").join(rows)) if rows else None


def _asked(fact: facts.RequestAsked) -> RenderableType:
    rows = [Text.assemble("\n", ("? ", "bold yellow"), (clean(fact.title), "bold"))]
    if fact.detail:
        rows.append(_indented(Text(clean(fact.detail))))
    if fact.kind is RequestKind.QUESTION:
        for question in fact.questions:
            rows.append(Text(f"  {clean(question.question)}"))
            rows += [
                Text(f"    {number}. {clean(option.label)}  {clean(option.description)}".rstrip())
                for number, option in enumerate(question.options, 1)
            ]
    return Text("\n").join(rows)


def _answer(fact: facts.RequestAnswered) -> str:
    said = [", ".join(labels) for labels in fact.answer.answers]
    return "; ".join(filter(None, [fact.answer.reply or "", *said, fact.answer.message]))
