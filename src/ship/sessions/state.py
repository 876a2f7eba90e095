"""What a session is: the value that its log folds to, and the fold."""

from collections.abc import Iterable
from functools import singledispatch

import msgspec

from ship.events import Cursor, Fact, Record, facts
from ship.model import (
    Actor,
    AgentMode,
    Answer,
    Approval,
    ChangedFile,
    Failure,
    Question,
    Repository,
    RequestKind,
    SessionStatus,
    TaskStatus,
    Todo,
    Usage,
    Value,
)


class Steer(Value, frozen=True):
    """More that was said to a running task."""

    steer_id: str
    text: str


class Task(Value, frozen=True):
    """One prompt and how it goes. Times are 0 until they are known."""

    id: str
    status: TaskStatus
    prompt: str
    author: str
    model: str
    agent: AgentMode
    queued_at_ms: int
    started_at_ms: int = 0
    ended_at_ms: int = 0
    cancel_requested: bool = False
    failure: Failure | None = None
    usage: Usage = Usage()
    steers: tuple[Steer, ...] = ()


class Request(Value, frozen=True):
    """Something the agent waits for a person to answer."""

    id: str
    task_id: str
    kind: RequestKind
    title: str
    detail: str
    questions: tuple[Question, ...]
    asked_at_ms: int


class Step(Value, frozen=True):
    """One step on the way to a ready sandbox; ``status`` is ``running``, ``done`` or ``failed``."""

    step: str
    status: str
    started_at_ms: int
    took_ms: int = 0
    detail: str = ""


class Sandbox(Value, frozen=True):
    """The sandbox of the present generation; ``status`` is ``none``, ``creating``, ``ready``, ``failed`` or ``lost``."""

    generation: int = 0
    sandbox_id: str = ""
    status: str = "none"
    steps: tuple[Step, ...] = ()


class Checkpoint(Value, frozen=True):
    """The newest point that can be restored."""

    id: str
    task_id: str
    commit: str
    base_commit: str
    files: tuple[ChangedFile, ...]
    diff_artifact: str
    bundle_artifact: str


class Artifact(Value, frozen=True):
    """A named blob of the session."""

    name: str
    sha256: str
    size_bytes: int
    media_type: str


class SessionState(Value, frozen=True):
    """All that is true of a session after ``head_seq`` events."""

    title: str
    status: SessionStatus
    repository: Repository
    model: str
    approval: Approval
    created_by: str
    created_at_ms: int
    updated_at_ms: int
    head_seq: int
    failure: Failure | None = None
    work_branch: str = ""
    base_commit: str = ""
    sandbox: Sandbox = Sandbox()
    cursor: Cursor = Cursor(generation=0, n=0)
    tasks: tuple[Task, ...] = ()
    requests: tuple[Request, ...] = ()
    answers: tuple[tuple[str, Answer], ...] = ()
    """Answers of the running task, kept until it ends so that a reconnecting runner hears them again."""
    todos: tuple[Todo, ...] = ()
    usage: Usage = Usage()
    checkpoint: Checkpoint | None = None
    artifacts: tuple[Artifact, ...] = ()

    @property
    def running(self) -> Task | None:
        """The running task; there is at most one."""
        return next((task for task in self.tasks if task.status is TaskStatus.RUNNING), None)

    @property
    def queue(self) -> tuple[Task, ...]:
        """Waiting tasks, the next first."""
        return tuple(task for task in self.tasks if task.status is TaskStatus.QUEUED)

    def task(self, task_id: str) -> Task | None:
        """The task of that id, if there is one."""
        return next((task for task in self.tasks if task.id == task_id), None)


def evolve(state: SessionState | None, record: Record) -> SessionState:
    """The state after one more event. The first event is always ``session.created``."""
    fact = record.fact
    if state is None:
        assert isinstance(fact, facts.SessionCreated), f"a log starts with session.created, not {fact.TYPE}"
        return SessionState(
            title=fact.title,
            status=SessionStatus.CREATED,
            repository=fact.repository,
            model=fact.model,
            approval=fact.approval,
            created_by=record.actor.name,
            created_at_ms=record.at_ms,
            updated_at_ms=record.at_ms,
            head_seq=record.seq,
        )
    assert record.seq == state.head_seq + 1, f"event {record.seq} does not follow {state.head_seq}"
    changes: dict[str, object] = dict(_changes(fact, state, record.actor, record.at_ms))
    if record.frame is not None:
        changes["cursor"] = record.frame
    return msgspec.structs.replace(state, head_seq=record.seq, updated_at_ms=record.at_ms, **changes)


def fold(records: Iterable[Record], state: SessionState | None = None) -> SessionState | None:
    """The state after all of these events, on top of an earlier state if one is given."""
    for record in records:
        state = evolve(state, record)
    return state


Changes = dict[str, object]


@singledispatch
def _changes(fact: Fact, state: SessionState, actor: Actor, at_ms: int) -> Changes:
    """Which fields an event changes. Events that only tell a story change none."""
    return {}


@_changes.register
def _(fact: facts.SessionFailed, state: SessionState, actor: Actor, at_ms: int) -> Changes:
    return {"status": SessionStatus.FAILED, "failure": fact.failure}


@_changes.register
def _(fact: facts.SessionArchived, state: SessionState, actor: Actor, at_ms: int) -> Changes:
    return {"status": SessionStatus.ARCHIVED, "sandbox": _sandbox(state, status="none")}


@_changes.register
def _(fact: facts.SandboxRequested, state: SessionState, actor: Actor, at_ms: int) -> Changes:
    return {
        "status": SessionStatus.PROVISIONING,
        "failure": None,
        "sandbox": Sandbox(generation=fact.generation, status="creating"),
        "cursor": Cursor(generation=fact.generation, n=0),
    }


@_changes.register
def _(fact: facts.SandboxCreated, state: SessionState, actor: Actor, at_ms: int) -> Changes:
    return {"sandbox": _sandbox(state, sandbox_id=fact.sandbox_id)}


@_changes.register
def _(fact: facts.SandboxStepStarted, state: SessionState, actor: Actor, at_ms: int) -> Changes:
    step = Step(step=fact.step, status="running", started_at_ms=at_ms, detail=fact.detail)
    others = tuple(known for known in state.sandbox.steps if known.step != fact.step)
    return {"sandbox": _sandbox(state, steps=(*others, step))}


@_changes.register
def _(fact: facts.SandboxStepFinished, state: SessionState, actor: Actor, at_ms: int) -> Changes:
    steps = tuple(
        msgspec.structs.replace(step, status="done", took_ms=fact.took_ms, detail=fact.detail or step.detail)
        if step.step == fact.step
        else step
        for step in state.sandbox.steps
    )
    return {"sandbox": _sandbox(state, steps=steps)}


@_changes.register
def _(fact: facts.SandboxReady, state: SessionState, actor: Actor, at_ms: int) -> Changes:
    return {
        "status": SessionStatus.READY,
        "sandbox": _sandbox(state, status="ready"),
        "base_commit": fact.base_commit,
        "work_branch": fact.work_branch,
    }


@_changes.register
def _(fact: facts.SandboxFailed, state: SessionState, actor: Actor, at_ms: int) -> Changes:
    return {"sandbox": _stopped(state, "failed", at_ms)}


@_changes.register
def _(fact: facts.SandboxLost, state: SessionState, actor: Actor, at_ms: int) -> Changes:
    return {"sandbox": _stopped(state, "lost", at_ms)}


@_changes.register
def _(fact: facts.TaskQueued, state: SessionState, actor: Actor, at_ms: int) -> Changes:
    task = Task(
        id=fact.task_id,
        status=TaskStatus.QUEUED,
        prompt=fact.prompt,
        author=actor.name,
        model=fact.model,
        agent=fact.agent,
        queued_at_ms=at_ms,
    )
    return {"tasks": (*state.tasks, task)}


@_changes.register
def _(fact: facts.TaskStarted, state: SessionState, actor: Actor, at_ms: int) -> Changes:
    return {
        "status": SessionStatus.RUNNING,
        "tasks": _with_task(state, fact.task_id, status=TaskStatus.RUNNING, started_at_ms=at_ms),
    }


@_changes.register
def _(fact: facts.TaskSteered, state: SessionState, actor: Actor, at_ms: int) -> Changes:
    task = state.task(fact.task_id)
    assert task is not None
    steers = (*task.steers, Steer(steer_id=fact.steer_id, text=fact.text))
    return {"tasks": _with_task(state, fact.task_id, steers=steers)}


@_changes.register
def _(fact: facts.TaskCancelRequested, state: SessionState, actor: Actor, at_ms: int) -> Changes:
    return {"tasks": _with_task(state, fact.task_id, cancel_requested=True)}


@_changes.register
def _(fact: facts.TaskCompleted, state: SessionState, actor: Actor, at_ms: int) -> Changes:
    return _ended(state, fact.task_id, TaskStatus.COMPLETED, at_ms)


@_changes.register
def _(fact: facts.TaskFailed, state: SessionState, actor: Actor, at_ms: int) -> Changes:
    return _ended(state, fact.task_id, TaskStatus.FAILED, at_ms, failure=fact.failure)


@_changes.register
def _(fact: facts.TaskCancelled, state: SessionState, actor: Actor, at_ms: int) -> Changes:
    return _ended(state, fact.task_id, TaskStatus.CANCELLED, at_ms)


@_changes.register
def _(fact: facts.TodosUpdated, state: SessionState, actor: Actor, at_ms: int) -> Changes:
    return {"todos": fact.todos}


@_changes.register
def _(fact: facts.RequestAsked, state: SessionState, actor: Actor, at_ms: int) -> Changes:
    request = Request(
        id=fact.request_id,
        task_id=fact.task_id,
        kind=fact.kind,
        title=fact.title,
        detail=fact.detail,
        questions=fact.questions,
        asked_at_ms=at_ms,
    )
    return {"requests": (*_without_request(state, fact.request_id), request)}


@_changes.register
def _(fact: facts.RequestAnswered, state: SessionState, actor: Actor, at_ms: int) -> Changes:
    return {
        "requests": _without_request(state, fact.request_id),
        "answers": (*state.answers, (fact.request_id, fact.answer)),
    }


@_changes.register
def _(fact: facts.RequestWithdrawn, state: SessionState, actor: Actor, at_ms: int) -> Changes:
    return {"requests": _without_request(state, fact.request_id)}


@_changes.register
def _(fact: facts.CheckpointCreated, state: SessionState, actor: Actor, at_ms: int) -> Changes:
    checkpoint = Checkpoint(
        id=fact.checkpoint_id,
        task_id=fact.task_id,
        commit=fact.commit,
        base_commit=fact.base_commit,
        files=fact.files,
        diff_artifact=fact.diff_artifact,
        bundle_artifact=fact.bundle_artifact,
    )
    return {"checkpoint": checkpoint}


@_changes.register
def _(fact: facts.ArtifactStored, state: SessionState, actor: Actor, at_ms: int) -> Changes:
    artifact = Artifact(
        name=fact.name, sha256=fact.sha256, size_bytes=fact.size_bytes, media_type=fact.media_type
    )
    others = tuple(known for known in state.artifacts if known.name != fact.name)
    return {"artifacts": (*others, artifact)}


@_changes.register
def _(fact: facts.ModelCalled, state: SessionState, actor: Actor, at_ms: int) -> Changes:
    changes: Changes = {"usage": state.usage.plus(fact.usage)}
    task = state.task(fact.task_id)
    if task is not None:
        changes["tasks"] = _with_task(state, task.id, usage=task.usage.plus(fact.usage))
    return changes


def _sandbox(state: SessionState, **changes: object) -> Sandbox:
    return msgspec.structs.replace(state.sandbox, **changes)


def _stopped(state: SessionState, status: str, at_ms: int) -> Sandbox:
    steps = tuple(
        msgspec.structs.replace(step, status="failed", took_ms=at_ms - step.started_at_ms)
        if step.status == "running"
        else step
        for step in state.sandbox.steps
    )
    return _sandbox(state, status=status, steps=steps)


def _with_task(state: SessionState, task_id: str, **changes: object) -> tuple[Task, ...]:
    return tuple(
        msgspec.structs.replace(task, **changes) if task.id == task_id else task for task in state.tasks
    )


def _ended(
    state: SessionState,
    task_id: str,
    status: TaskStatus,
    at_ms: int,
    *,
    failure: Failure | None = None,
) -> Changes:
    was_running = state.running is not None and state.running.id == task_id
    changes: Changes = {
        "tasks": _with_task(state, task_id, status=status, ended_at_ms=at_ms, failure=failure),
    }
    if was_running:
        changes |= {"status": SessionStatus.READY, "answers": ()}
    return changes


def _without_request(state: SessionState, request_id: str) -> tuple[Request, ...]:
    return tuple(request for request in state.requests if request.id != request_id)
