"""The fold: what each event changes in a session's state. Pure, and bounded however long the log is."""

from collections.abc import Iterable
from functools import singledispatch

import msgspec

from ship.events import Cursor, Fact, Record, facts
from ship.model import (
    Failure,
    SessionStatus,
    TaskStatus,
)
from ship.sessions.state import (
    Answered,
    Artifact,
    Checkpoint,
    Child,
    Request,
    Restored,
    Sandbox,
    SavedPoint,
    SessionState,
    Steer,
    Step,
    Task,
    Wanted,
)

ENDED_TASKS = 200
"""How many ended tasks a state remembers; the log has all."""
PROMPT_CHARACTERS = 2_000
"""How much of an ended task's prompt a state remembers."""
CHECKPOINTS = 200
"""How many checkpoints can be restored; older ones are dropped with their artifacts, except what these build on."""
SUMMARY_CHARACTERS = 8_000
"""How much of what a child's agent said last reaches its parent."""


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
            limits=fact.limits,
            origin=fact.origin,
            parent=fact.parent,
        )
    assert record.seq == state.head_seq + 1, f"event {record.seq} does not follow {state.head_seq}"
    changes: dict[str, object] = dict(_changes(fact, state, record))
    if record.frame is not None:
        changes["cursor"] = record.frame
    if record.frame is not None or isinstance(fact, _SIGNS_OF_LIFE):
        changes |= {"heard_at_ms": record.at_ms, "stuck": False}
    after = msgspec.structs.replace(state, head_seq=record.seq, updated_at_ms=record.at_ms, **changes)
    if state.is_working != after.is_working:
        return _clocked(state, after, record.at_ms)
    return after


_SIGNS_OF_LIFE = (
    *(facts.TaskStarted, facts.TaskSteered, facts.RequestAnswered, facts.SandboxResumed),
    *(facts.ModelCalled, facts.ChildFinished),
)
"""What is heard of a session, besides all that its runner reports."""


def _clocked(before: SessionState, after: SessionState, at_ms: int) -> SessionState:
    """With the running task's clock started or stopped."""
    task = (after if after.is_working else before).running
    now = task and after.task(task.id)
    if now is None:
        return after
    if after.is_working:
        tasks = _with_task(after, now.id, working_since_ms=at_ms)
    else:
        tasks = _with_task(after, now.id, worked_ms=now.worked(at_ms), working_since_ms=0)
    return msgspec.structs.replace(after, tasks=tasks)


def fold(records: Iterable[Record], state: SessionState | None = None) -> SessionState | None:
    """The state after all of these events, on top of an earlier state if one is given."""
    for record in records:
        state = evolve(state, record)
    return state


Changes = dict[str, object]


@singledispatch
def _changes(fact: Fact, state: SessionState, record: Record) -> Changes:
    """Which fields an event changes. Events that only tell a story change none."""
    return {}


@_changes.register
def _(fact: facts.SessionFailed, state: SessionState, record: Record) -> Changes:
    return {"status": SessionStatus.FAILED, "failure": fact.failure, "losses": 0}


@_changes.register
def _(fact: facts.SessionPaused, state: SessionState, record: Record) -> Changes:
    return {"status": SessionStatus.PAUSED, "pause_reason": fact.reason}


@_changes.register
def _(fact: facts.SessionResumed, state: SessionState, record: Record) -> Changes:
    return {"status": _at_work(state), "pause_reason": ""}


@_changes.register
def _(fact: facts.SessionArchived, state: SessionState, record: Record) -> Changes:
    return {
        "status": SessionStatus.ARCHIVED,
        "sandbox": _sandbox(state, status="none"),
        "pause_reason": "",
        "wanted_checkpoint": None,
    }


@_changes.register
def _(fact: facts.SandboxRequested, state: SessionState, record: Record) -> Changes:
    return {
        "status": SessionStatus.PROVISIONING,
        "failure": None,
        "pause_reason": "",
        "sandbox": Sandbox(generation=fact.generation, status="creating"),
        "cursor": Cursor(generation=fact.generation, n=0),
    }


@_changes.register
def _(fact: facts.SandboxCreated, state: SessionState, record: Record) -> Changes:
    return {"sandbox": _sandbox(state, sandbox_id=fact.sandbox_id)}


@_changes.register
def _(fact: facts.SandboxStepStarted, state: SessionState, record: Record) -> Changes:
    step = Step(step=fact.step, status="running", started_at_ms=record.at_ms, detail=fact.detail)
    others = tuple(known for known in state.sandbox.steps if known.step != fact.step)
    return {"sandbox": _sandbox(state, steps=(*others, step))}


@_changes.register
def _(fact: facts.SandboxStepFinished, state: SessionState, record: Record) -> Changes:
    steps = tuple(
        msgspec.structs.replace(step, status="done", took_ms=fact.took_ms, detail=fact.detail or step.detail)
        if step.step == fact.step
        else step
        for step in state.sandbox.steps
    )
    return {"sandbox": _sandbox(state, steps=steps)}


@_changes.register
def _(fact: facts.SandboxReady, state: SessionState, record: Record) -> Changes:
    return {
        "status": _at_work(state),
        "sandbox": _sandbox(state, status="ready"),
        "base_commit": fact.base_commit,
        "work_branch": fact.work_branch,
    }


@_changes.register
def _(fact: facts.SandboxFailed, state: SessionState, record: Record) -> Changes:
    return {"sandbox": _stopped(state, "failed", record.at_ms)}


@_changes.register
def _(fact: facts.SandboxLost, state: SessionState, record: Record) -> Changes:
    return {"sandbox": _stopped(state, "lost", record.at_ms), "losses": state.losses + 1}


@_changes.register
def _(fact: facts.SandboxPaused, state: SessionState, record: Record) -> Changes:
    return {"sandbox": _sandbox(state, status="paused")}


@_changes.register
def _(fact: facts.SandboxResumed, state: SessionState, record: Record) -> Changes:
    return {"sandbox": _sandbox(state, status="ready")}


@_changes.register
def _(fact: facts.SandboxRestored, state: SessionState, record: Record) -> Changes:
    restored = Restored(checkpoint_id=fact.checkpoint_id, conversation=fact.conversation, lost=fact.lost)
    return {"sandbox": _sandbox(state, restored=restored)}


@_changes.register
def _(fact: facts.TaskQueued, state: SessionState, record: Record) -> Changes:
    task = Task(
        id=fact.task_id,
        status=TaskStatus.QUEUED,
        prompt=fact.prompt,
        author=record.actor.name,
        model=fact.model,
        agent=fact.agent,
        queued_at_ms=record.at_ms,
        limits=fact.limits,
    )
    return {"tasks": (*state.tasks, task)}


@_changes.register
def _(fact: facts.TaskEdited, state: SessionState, record: Record) -> Changes:
    changed = {"prompt": fact.prompt, "model": fact.model, "agent": fact.agent, "limits": fact.limits}
    return {"tasks": _with_task(state, fact.task_id, **changed)}


@_changes.register
def _(fact: facts.TaskMoved, state: SessionState, record: Record) -> Changes:
    moved = state.task(fact.task_id)
    assert moved is not None
    tasks = [task for task in state.tasks if task.id != moved.id]
    places = [place for place, task in enumerate(tasks) if task.id == fact.before]
    tasks.insert(places[0] if places else len(tasks), moved)
    return {"tasks": tuple(tasks)}


@_changes.register
def _(fact: facts.TaskStarted, state: SessionState, record: Record) -> Changes:
    return {
        "status": SessionStatus.RUNNING,
        "tasks": _with_task(state, fact.task_id, status=TaskStatus.RUNNING, started_at_ms=record.at_ms),
    }


@_changes.register
def _(fact: facts.TaskSteered, state: SessionState, record: Record) -> Changes:
    task = state.task(fact.task_id)
    assert task is not None
    steers = (*task.steers, Steer(steer_id=fact.steer_id, text=fact.text))
    return {"tasks": _with_task(state, fact.task_id, steers=steers)}


@_changes.register
def _(fact: facts.TaskInterrupted, state: SessionState, record: Record) -> Changes:
    return {"tasks": _with_task(state, fact.task_id, recovered=True), "answers": ()}


@_changes.register
def _(fact: facts.TaskLimitReached, state: SessionState, record: Record) -> Changes:
    return {"tasks": _ending(state, fact.task_id, record, limit=fact.limit)}


@_changes.register
def _(fact: facts.TaskStuck, state: SessionState, record: Record) -> Changes:
    if fact.given_up:
        return {"tasks": _ending(state, fact.task_id, record, given_up=True)}
    return {"stuck": True}


@_changes.register
def _(fact: facts.TaskCancelRequested, state: SessionState, record: Record) -> Changes:
    return {"tasks": _ending(state, fact.task_id, record, cancel_requested=True)}


@_changes.register
def _(fact: facts.TaskCompleted, state: SessionState, record: Record) -> Changes:
    return {**_ended(state, fact.task_id, TaskStatus.COMPLETED, record.at_ms), "losses": 0}


@_changes.register
def _(fact: facts.TaskFailed, state: SessionState, record: Record) -> Changes:
    return _ended(state, fact.task_id, TaskStatus.FAILED, record.at_ms, failure=fact.failure)


@_changes.register
def _(fact: facts.TaskCancelled, state: SessionState, record: Record) -> Changes:
    return _ended(state, fact.task_id, TaskStatus.CANCELLED, record.at_ms)


@_changes.register
def _(fact: facts.TextFinished, state: SessionState, record: Record) -> Changes:
    return {"last_text": fact.text[:SUMMARY_CHARACTERS]} if state.parent else {}


@_changes.register
def _(fact: facts.TodosUpdated, state: SessionState, record: Record) -> Changes:
    return {"todos": fact.todos}


@_changes.register
def _(fact: facts.RequestAsked, state: SessionState, record: Record) -> Changes:
    request = Request(
        id=fact.request_id,
        task_id=fact.task_id,
        kind=fact.kind,
        title=fact.title,
        detail=fact.detail,
        questions=fact.questions,
        asked_at_ms=record.at_ms,
    )
    return {"requests": (*_without_request(state, fact.request_id), request)}


@_changes.register
def _(fact: facts.RequestAnswered, state: SessionState, record: Record) -> Changes:
    answered = (
        Answered(request=request, answer=fact.answer)
        for request in state.requests
        if request.id == fact.request_id
    )
    return {
        "requests": _without_request(state, fact.request_id),
        "answers": (*state.answers, *answered),
    }


@_changes.register
def _(fact: facts.RequestWithdrawn, state: SessionState, record: Record) -> Changes:
    return {"requests": _without_request(state, fact.request_id)}


@_changes.register
def _(fact: facts.CheckpointCreated, state: SessionState, record: Record) -> Changes:
    checkpoint = Checkpoint(
        id=fact.checkpoint_id,
        task_id=fact.task_id,
        commit=fact.commit,
        base_commit=fact.base_commit,
        files=fact.files,
        diff_artifact=fact.diff_artifact,
        bundle_artifact=fact.bundle_artifact,
    )
    point = SavedPoint(
        id=fact.checkpoint_id,
        seq=record.seq,
        at_ms=record.at_ms,
        task_id=fact.task_id,
        reason=fact.reason,
        commit=fact.commit,
        base_commit=fact.base_commit,
        parent_id=fact.parent_id,
        files_changed=len(fact.files),
        additions=sum(file.additions for file in fact.files),
        deletions=sum(file.deletions for file in fact.files),
        diff_artifact=fact.diff_artifact,
        bundle_artifact=fact.bundle_artifact,
        agent_artifact=fact.agent_artifact,
    )
    others = tuple(known for known in state.checkpoints if known.id != point.id)
    changes: Changes = {"checkpoint": checkpoint, **_kept((*others, point), state)}
    if state.wanted_checkpoint and state.wanted_checkpoint.id == point.id:
        changes["wanted_checkpoint"] = None
    return changes


@_changes.register
def _(fact: facts.CheckpointRequested, state: SessionState, record: Record) -> Changes:
    return {"wanted_checkpoint": Wanted(id=fact.checkpoint_id, reason=fact.reason)}


@_changes.register
def _(fact: facts.CheckpointFailed, state: SessionState, record: Record) -> Changes:
    wanted = state.wanted_checkpoint
    return {"wanted_checkpoint": None} if wanted and wanted.id == fact.checkpoint_id else {}


@_changes.register
def _(fact: facts.ArtifactStored, state: SessionState, record: Record) -> Changes:
    artifact = Artifact(
        name=fact.name, sha256=fact.sha256, size_bytes=fact.size_bytes, media_type=fact.media_type
    )
    others = tuple(known for known in state.artifacts if known.name != fact.name)
    return {"artifacts": (*others, artifact)}


@_changes.register
def _(fact: facts.ModelCalled, state: SessionState, record: Record) -> Changes:
    changes: Changes = {"usage": state.usage.plus(fact.usage)}
    task = state.task(fact.task_id)
    if task is not None:
        changes["tasks"] = _with_task(state, task.id, usage=task.usage.plus(fact.usage))
    return changes


@_changes.register
def _(fact: facts.ChildStarted, state: SessionState, record: Record) -> Changes:
    child = Child(id=fact.child_id, task_id=fact.task_id, title=fact.title)
    return {"children": (*state.children, child)}


@_changes.register
def _(fact: facts.ChildFinished, state: SessionState, record: Record) -> Changes:
    children = tuple(
        msgspec.structs.replace(
            child,
            status=fact.status,
            summary=fact.summary,
            files_changed=fact.files_changed,
            additions=fact.additions,
            deletions=fact.deletions,
            usage=fact.usage,
        )
        if child.id == fact.child_id
        else child
        for child in state.children
    )
    return {"children": children}


def _at_work(state: SessionState) -> SessionStatus:
    """Where a session stands that neither failed nor rests."""
    if state.sandbox.status == "creating" and state.status is not SessionStatus.PROVISIONING:
        return SessionStatus.PROVISIONING
    return SessionStatus.RUNNING if state.running else SessionStatus.READY


def _kept(points: tuple[SavedPoint, ...], state: SessionState) -> Changes:
    """The newest checkpoints and what they build on; the artifacts of those that are dropped go with them."""
    if len(points) <= CHECKPOINTS:
        return {"checkpoints": points}
    by_id = {point.id: point for point in points}
    needed = {point.id for point in points[-CHECKPOINTS:]}
    for point in points[-CHECKPOINTS:]:
        below = by_id.get(point.parent_id)
        while below is not None and below.id not in needed:
            needed.add(below.id)
            below = by_id.get(below.parent_id)
    kept = tuple(point for point in points if point.id in needed)
    names = {name for point in kept for name in point.artifacts}
    dropped = {name for point in points if point.id not in needed for name in point.artifacts} - names
    if not dropped:
        return {"checkpoints": kept}
    artifacts = tuple(artifact for artifact in state.artifacts if artifact.name not in dropped)
    return {"checkpoints": kept, "artifacts": artifacts}


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


def _ending(state: SessionState, task_id: str, record: Record, **why: object) -> tuple[Task, ...]:
    """The tasks with this one being ended, for the first reason or a further one."""
    task = state.task(task_id)
    since_ms = task.ending_since_ms if task and task.ending else record.at_ms
    return _with_task(state, task_id, ending_since_ms=since_ms, **why)


def _ended(
    state: SessionState,
    task_id: str,
    status: TaskStatus,
    at_ms: int,
    *,
    failure: Failure | None = None,
) -> Changes:
    task = state.task(task_id)
    assert task is not None
    ended = msgspec.structs.replace(
        task,
        status=status,
        ended_at_ms=at_ms,
        failure=failure,
        prompt=task.prompt[:PROMPT_CHARACTERS],
        steers=(),
    )
    tasks = tuple(ended if known.id == task_id else known for known in state.tasks)
    changes: Changes = {"tasks": _remembered(tasks)}
    if task.status is TaskStatus.RUNNING:
        changes |= {"answers": (), "stuck": False}
        if state.status is SessionStatus.RUNNING:
            changes["status"] = SessionStatus.READY
    return changes


def _remembered(tasks: tuple[Task, ...]) -> tuple[Task, ...]:
    """Without the task that ended first, when too many have."""
    ended = [task for task in tasks if task.ended_at_ms]
    if len(ended) <= ENDED_TASKS:
        return tasks
    first = min(ended, key=lambda task: task.ended_at_ms)
    return tuple(task for task in tasks if task is not first)


def _without_request(state: SessionState, request_id: str) -> tuple[Request, ...]:
    return tuple(request for request in state.requests if request.id != request_id)
