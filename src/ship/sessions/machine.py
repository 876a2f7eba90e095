"""The session machine: what a command means in a state. Pure: no I/O, no clock, no chance.

``decide`` answers with facts, effects and alarms, or refuses with an error. The service commits them together.
"""

from functools import singledispatch

from ship.errors import Conflict, InvalidInput, NotFound, StaleGeneration
from ship.events import Cursor, Fact, Record, facts
from ship.model import (
    AGENT,
    SYSTEM,
    Actor,
    AgentMode,
    Answer,
    Failure,
    PermissionReply,
    RequestKind,
    SessionStatus,
    TaskStatus,
    Value,
)
from ship.sessions import commands
from ship.sessions.commands import Alarm, AnyEffect, CheckSandbox, Command, KillSandbox, ProvisionSandbox
from ship.sessions.fold import evolve
from ship.sessions.state import Request, SessionState, Task

PROVISION_DEADLINE_MS = 180_000
CANCEL_DEADLINE_MS = 45_000
SANDBOX_CHECK_MS = 60_000
DEADLINES = ("provision_deadline", "cancel_deadline")
OPEN_REQUESTS = 50
ARTIFACTS = 1_000

REPORTABLE: tuple[type[Fact], ...] = (
    facts.SandboxStepStarted,
    facts.SandboxStepFinished,
    facts.SandboxReady,
    facts.SandboxFailed,
    facts.TaskCompleted,
    facts.TaskFailed,
    facts.TaskCancelled,
    facts.TextFinished,
    facts.ReasoningFinished,
    facts.ToolStarted,
    facts.ToolFinished,
    facts.TodosUpdated,
    facts.RequestAsked,
    facts.RequestWithdrawn,
    facts.AgentRetried,
    facts.AgentRestarted,
    facts.CheckpointCreated,
    facts.SandboxRestored,
)
"""What a runner may say; everything else from it is a breach of the protocol."""


class Decision(Value, frozen=True):
    """What follows from a command: events to append, effects and alarms to keep with them, the caller's answer,
    and the state after it all."""

    records: tuple[Record, ...]
    effects: tuple[AnyEffect, ...]
    alarms: tuple[Alarm, ...]
    answer: dict[str, str | int]
    state: SessionState


class _Draft:
    """A decision in the making. Each fact is folded at once, so that what follows sees it."""

    def __init__(self, state: SessionState | None, actor: Actor, now_ms: int) -> None:
        self.before = state
        self.actor = actor
        self.now_ms = now_ms
        self.records: list[Record] = []
        self.effects: list[AnyEffect] = []
        self.alarms: list[Alarm] = []
        self.answer: dict[str, str | int] = {}
        self._state = state

    @property
    def state(self) -> SessionState:
        assert self._state is not None
        return self._state

    def add(self, fact: Fact, *, actor: Actor | None = None, frame: Cursor | None = None) -> None:
        record = Record(
            seq=(self._state.head_seq if self._state else 0) + 1,
            at_ms=self.now_ms,
            actor=actor or self.actor,
            fact=fact,
            frame=frame,
        )
        self.records.append(record)
        self._state = evolve(self._state, record)

    def decision(self) -> Decision:
        return Decision(
            records=tuple(self.records),
            effects=tuple(self.effects),
            alarms=tuple(self.alarms),
            answer={**self.answer, "seq": self.state.head_seq},
            state=self.state,
        )


def decide(state: SessionState | None, command: Command, actor: Actor, now_ms: int) -> Decision:
    """What follows from the command in this state.

    Raises:
        ShipError: the command is refused; nothing changes.
    """
    if isinstance(command, commands.CreateSession):
        if state is not None:
            raise Conflict("this session exists already", code="session_exists")
    elif state is None:
        raise NotFound("no such session", code="session_not_found")
    elif state.status is SessionStatus.ARCHIVED and not isinstance(command, commands.ArchiveSession):
        raise Conflict("this session is archived", code="session_archived", hint="Start a new session.")
    draft = _Draft(state, actor, now_ms)
    _apply(command, draft)
    return draft.decision()


@singledispatch
def _apply(command: Command, draft: _Draft) -> None:
    raise AssertionError(f"no rule for {type(command).__name__}")


@_apply.register
def _(command: commands.CreateSession, draft: _Draft) -> None:
    draft.add(
        facts.SessionCreated(
            title=command.title,
            repository=command.repository,
            model=command.model,
            approval=command.approval,
        )
    )
    if command.prompt:
        _queue(draft, command.task_id, command.prompt, command.model, command.agent)
    _request_sandbox(draft, "")


@_apply.register
def _(command: commands.QueueTask, draft: _Draft) -> None:
    _queue(draft, command.task_id, command.prompt, command.model, command.agent)
    _go_on(draft)


@_apply.register
def _(command: commands.SteerTask, draft: _Draft) -> None:
    running = draft.state.running
    if running is None or running.cancel_requested:
        _queue(draft, command.task_id, command.text, command.model, command.agent)
        _go_on(draft)
        return
    draft.add(facts.TaskSteered(task_id=running.id, steer_id=command.steer_id, text=command.text))
    draft.answer = {"task_id": running.id, "steer_id": command.steer_id}


@_apply.register
def _(command: commands.CancelTask, draft: _Draft) -> None:
    task = _known(draft.state, command.task_id)
    draft.answer = {"task_id": task.id}
    if task.status is TaskStatus.QUEUED:
        draft.add(facts.TaskCancelled(task_id=task.id))
    elif task.status is TaskStatus.RUNNING and not task.cancel_requested:
        draft.add(facts.TaskCancelRequested(task_id=task.id))
        draft.alarms.append(Alarm(name="cancel_deadline", after_ms=CANCEL_DEADLINE_MS))


@_apply.register
def _(command: commands.AnswerRequest, draft: _Draft) -> None:
    request = next((known for known in draft.state.requests if known.id == command.request_id), None)
    if request is None:
        raise Conflict(
            "nobody waits for this answer",
            code="request_closed",
            hint="It was answered already, or the agent went on without it.",
        )
    _check_answer(request, command.answer)
    draft.add(facts.RequestAnswered(request_id=request.id, answer=command.answer))


@_apply.register
def _(command: commands.PostMessage, draft: _Draft) -> None:
    draft.add(facts.MessagePosted(message_id=command.message_id, text=command.text))
    draft.answer = {"message_id": command.message_id}


@_apply.register
def _(command: commands.RetrySession, draft: _Draft) -> None:
    if draft.state.status is not SessionStatus.FAILED:
        raise Conflict("only a failed session can be retried", code="session_not_failed")
    _request_sandbox(draft, "retry")


@_apply.register
def _(command: commands.ArchiveSession, draft: _Draft) -> None:
    state = draft.state
    if state.status is SessionStatus.ARCHIVED:
        return
    for task in state.tasks:
        if task.status in (TaskStatus.QUEUED, TaskStatus.RUNNING):
            _end(draft, facts.TaskCancelled(task_id=task.id))
    draft.add(facts.SessionArchived())
    draft.effects.append(KillSandbox(generation=state.sandbox.generation))
    for name in (*DEADLINES, "sandbox_check"):
        draft.alarms.append(Alarm(name=name, after_ms=None))


@_apply.register
def _(command: commands.StoreArtifact, draft: _Draft) -> None:
    names = {artifact.name for artifact in draft.state.artifacts}
    if len(names) >= ARTIFACTS and command.name not in names:
        raise Conflict(f"a session has at most {ARTIFACTS} artifacts", code="too_many_artifacts")
    draft.add(
        facts.ArtifactStored(
            name=command.name,
            sha256=command.sha256,
            size_bytes=command.size_bytes,
            media_type=command.media_type,
        )
    )


@_apply.register
def _(command: commands.ReportFrame, draft: _Draft) -> None:
    _check_generation(draft.state, command.at.generation)
    expected = draft.state.cursor.n + 1
    if command.at.n < expected:
        return
    if command.at.n > expected:
        raise Conflict(f"frame {command.at.n} came before frame {expected}", code="frame_gap")
    if not isinstance(command.fact, REPORTABLE):
        _lose(draft, f"its runner reported {command.fact.TYPE}, which no runner may report")
        return
    _report(command.fact, draft, command.at)


@_apply.register
def _(command: commands.ReportProgress, draft: _Draft) -> None:
    if command.generation == draft.state.sandbox.generation and draft.state.sandbox.status == "creating":
        _report(command.fact, draft, None)


@_apply.register
def _(command: commands.ReportMissing, draft: _Draft) -> None:
    if command.generation == draft.state.sandbox.generation:
        _lose(draft, command.reason)


@_apply.register
def _(command: commands.RecordModelCall, draft: _Draft) -> None:
    _check_generation(draft.state, command.generation)
    draft.add(command.fact, actor=SYSTEM)


@_apply.register
def _(command: commands.RecordEffectFailure, draft: _Draft) -> None:
    draft.add(command.fact, actor=SYSTEM)
    if command.generation == draft.state.sandbox.generation and draft.state.sandbox.status == "creating":
        _fail(draft, command.failure)


@_apply.register
def _(command: commands.FireAlarm, draft: _Draft) -> None:
    state = draft.state
    sandbox = state.sandbox
    if command.name == "provision_deadline" and sandbox.status == "creating":
        step = next((known.step for known in reversed(sandbox.steps) if known.status == "running"), "create")
        _fail(
            draft,
            Failure(
                code="provision_timeout",
                reason=f"the sandbox was not ready after {PROVISION_DEADLINE_MS // 1000} s; it stood at the step {step}",
                hint="Retry; if it happens again, `ship doctor` checks the machine.",
            ),
        )
    elif command.name == "cancel_deadline" and state.running and state.running.cancel_requested:
        _end(draft, facts.TaskCancelled(task_id=state.running.id))
        _request_sandbox(draft, "the agent did not stop when it was told to")
    elif command.name == "sandbox_check" and sandbox.status in ("creating", "ready"):
        if sandbox.sandbox_id:
            draft.effects.append(CheckSandbox(generation=sandbox.generation, sandbox_id=sandbox.sandbox_id))
        draft.alarms.append(Alarm(name="sandbox_check", after_ms=SANDBOX_CHECK_MS))


@singledispatch
def _report(fact: Fact, draft: _Draft, frame: Cursor | None) -> None:
    """What follows from a fact about the sandbox or the agent. Most simply stand in the log."""
    task_id = getattr(fact, "task_id", "")
    if task_id and draft.state.task(task_id) is None:
        _lose(draft, f"its runner spoke of a task {task_id[:80]!r} that this session does not have")
        return
    draft.add(fact, actor=AGENT if frame else SYSTEM, frame=frame)


@_report.register
def _(fact: facts.SandboxReady, draft: _Draft, frame: Cursor | None) -> None:
    if draft.state.sandbox.status != "creating" or fact.generation != draft.state.sandbox.generation:
        _lose(draft, "its runner reported that it is ready at the wrong time")
        return
    draft.add(fact, actor=SYSTEM, frame=frame)
    draft.alarms.append(Alarm(name="provision_deadline", after_ms=None))
    _start_next(draft)


@_report.register
def _(fact: facts.RequestAsked, draft: _Draft, frame: Cursor | None) -> None:
    running = draft.state.running
    if running is None or running.id != fact.task_id:
        _lose(draft, "its runner asked something for a task that does not run")
        return
    if len(draft.state.requests) >= OPEN_REQUESTS:
        _lose(draft, f"its agent asked more than {OPEN_REQUESTS} things at once")
        return
    draft.add(fact, actor=AGENT, frame=frame)


@_report.register
def _(fact: facts.SandboxFailed, draft: _Draft, frame: Cursor | None) -> None:
    _fail(draft, fact.failure, frame)


@_report.register(facts.TaskCompleted)
@_report.register(facts.TaskFailed)
@_report.register(facts.TaskCancelled)
def _(
    fact: facts.TaskCompleted | facts.TaskFailed | facts.TaskCancelled, draft: _Draft, frame: Cursor | None
) -> None:
    running = draft.state.running
    if running is None or running.id != fact.task_id:
        _lose(draft, f"its runner ended a task that does not run: {fact.task_id[:80]!r}")
        return
    _end(draft, fact, frame=frame)
    _start_next(draft)


def _queue(draft: _Draft, task_id: str, prompt: str, model: str, agent: AgentMode) -> None:
    draft.add(facts.TaskQueued(task_id=task_id, prompt=prompt, model=model or draft.state.model, agent=agent))
    draft.answer = {"task_id": task_id}


def _go_on(draft: _Draft) -> None:
    """Start what was queued: now, when the sandbox is ready, or in a new sandbox."""
    if draft.state.status is SessionStatus.FAILED:
        _request_sandbox(draft, "a new task")
    elif draft.state.status is SessionStatus.READY:
        _start_next(draft)


def _start_next(draft: _Draft) -> None:
    queue = draft.state.queue
    if queue and draft.state.status is SessionStatus.READY:
        draft.add(facts.TaskStarted(task_id=queue[0].id), actor=SYSTEM)


def _end(
    draft: _Draft,
    fact: facts.TaskCompleted | facts.TaskFailed | facts.TaskCancelled,
    *,
    frame: Cursor | None = None,
) -> None:
    """End a task and withdraw what it asked."""
    for request in draft.state.requests:
        if request.task_id == fact.task_id:
            draft.add(facts.RequestWithdrawn(request_id=request.id), actor=SYSTEM)
    draft.add(fact, actor=AGENT if frame else draft.actor, frame=frame)
    draft.alarms.append(Alarm(name="cancel_deadline", after_ms=None))


def _request_sandbox(draft: _Draft, reason: str) -> None:
    old = draft.state.sandbox.generation
    if old:
        draft.effects.append(KillSandbox(generation=old))
    generation = old + 1
    draft.add(facts.SandboxRequested(generation=generation, reason=reason), actor=SYSTEM)
    draft.effects.append(ProvisionSandbox(generation=generation))
    draft.alarms += [
        Alarm(name="provision_deadline", after_ms=PROVISION_DEADLINE_MS),
        Alarm(name="sandbox_check", after_ms=SANDBOX_CHECK_MS),
    ]


def _fail(draft: _Draft, failure: Failure, frame: Cursor | None = None) -> None:
    """This sandbox will not become ready: the session waits for a person."""
    generation = draft.state.sandbox.generation
    draft.add(facts.SandboxFailed(generation=generation, failure=failure), actor=SYSTEM, frame=frame)
    _give_up(draft, failure)


def _lose(draft: _Draft, reason: str) -> None:
    """The sandbox is gone: its running task ends, the session waits for a person."""
    state = draft.state
    if state.sandbox.status not in ("creating", "ready"):
        return
    failure = Failure(
        code="sandbox_lost",
        reason=f"the sandbox was lost: {reason}",
        hint="Retry: a new sandbox starts from the last checkpoint.",
    )
    draft.add(facts.SandboxLost(generation=state.sandbox.generation, reason=reason), actor=SYSTEM)
    _give_up(draft, failure)


def _give_up(draft: _Draft, failure: Failure) -> None:
    running = draft.state.running
    if running is not None:
        _end(draft, facts.TaskFailed(task_id=running.id, failure=failure))
    draft.add(facts.SessionFailed(failure=failure), actor=SYSTEM)
    draft.effects.append(KillSandbox(generation=draft.state.sandbox.generation))
    for name in ("provision_deadline", "sandbox_check"):
        draft.alarms.append(Alarm(name=name, after_ms=None))


def _known(state: SessionState, task_id: str) -> Task:
    task = state.task(task_id)
    if task is None:
        raise NotFound("this session has no such task", code="task_not_found")
    return task


def _check_generation(state: SessionState, generation: int) -> None:
    if generation != state.sandbox.generation or state.sandbox.status not in ("creating", "ready"):
        raise StaleGeneration(f"the sandbox of generation {generation} is not this session's any more")


def _check_answer(request: Request, answer: Answer) -> None:
    if request.kind is RequestKind.PERMISSION:
        if answer.reply is None or answer.answers:
            raise InvalidInput(
                "a permission is answered with a reply",
                code="answer_invalid",
                hint="Send `reply`: once, always or reject.",
            )
        return
    if answer.reply is PermissionReply.REJECT and not answer.answers:
        return
    if answer.reply is not None or len(answer.answers) != len(request.questions):
        raise InvalidInput(
            f"{len(request.questions)} questions want as many answers",
            code="answer_invalid",
            hint="Send `answers`: one list of labels or texts for each question.",
        )
    for question, given in zip(request.questions, answer.answers, strict=True):
        labels = {choice.label for choice in question.options}
        if len(given) > 1 and not question.multiple:
            raise InvalidInput(f"{question.question!r} takes one answer", code="answer_invalid")
        if not question.custom and not set(given) <= labels:
            raise InvalidInput(f"{question.question!r} takes only what it offers", code="answer_invalid")
