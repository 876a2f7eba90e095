"""The rules of tasks: how they are queued, started and ended, and what ends them before they are done."""

from typing import NamedTuple

from ship.errors import Conflict, NotFound
from ship.events import Cursor, facts
from ship.model import (
    AGENT,
    NO_LIMITS,
    SYSTEM,
    AgentMode,
    Failure,
    LimitKind,
    Limits,
    LimitsPatch,
    SessionStatus,
    TaskStatus,
)
from ship.sessions.commands import EndChildren
from ship.sessions.draft import Draft
from ship.sessions.state import SessionState, Task

CANCEL_DEADLINE_MS = 45_000
KEEP_DEADLINE_MS = 600_000
QUEUED_TASKS = 1_000
QUEUED_CHARACTERS = 16 * 1024**2

End = facts.TaskCompleted | facts.TaskFailed | facts.TaskCancelled


class Used(NamedTuple):
    """A limit that is reached: ``value`` of what is ``allowed``, in seconds, tokens or dollars."""

    kind: LimitKind
    value: float
    allowed: float

    def __str__(self) -> str:
        if self.kind is LimitKind.COST:
            return f"${self.value:.4g} of ${self.allowed:.4g}"
        unit = "s" if self.kind is LimitKind.TIME else "tokens"
        return f"{self.value:,.0f} of {self.allowed:,.0f} {unit}"


def known(state: SessionState, task_id: str) -> Task:
    """The task. Raises NotFound (``task_not_found``)."""
    task = state.task(task_id)
    if task is None:
        raise NotFound("this session has no such task", code="task_not_found")
    return task


def queue(
    draft: Draft, task_id: str, prompt: str, model: str, agent: AgentMode, limits: LimitsPatch = NO_LIMITS
) -> None:
    """Let it wait for its turn. Raises Conflict (``queue_full``)."""
    check_room(draft.state, prompt)
    draft.add(
        facts.TaskQueued(
            task_id=task_id,
            prompt=prompt,
            model=model or draft.state.model,
            agent=agent,
            limits=limits.applied_to(draft.state.limits),
        )
    )
    draft.answer = {"task_id": task_id}


def check_room(state: SessionState, text: str, instead_of: Task | None = None) -> None:
    """Whether a session has room for one more prompt or steer, or for another prompt of a task. Raises Conflict (``queue_full``)."""
    kept = [task.prompt for task in state.queue if task is not instead_of]
    if state.running is not None:
        kept += [steer.text for steer in state.running.steers]
    if len(kept) >= QUEUED_TASKS or sum(map(len, kept)) + len(text) > QUEUED_CHARACTERS:
        raise Conflict(
            "too much waits in this session already",
            code="queue_full",
            hint="Wait until something is done, or cancel what is not needed.",
        )


def start_next(draft: Draft) -> None:
    """Begin the next task, if the session is ready for it."""
    if draft.state.status is SessionStatus.READY and (waiting := draft.state.queue):
        draft.add(facts.TaskStarted(task_id=waiting[0].id), actor=SYSTEM)


def end(draft: Draft, fact: End, *, frame: Cursor | None = None) -> None:
    """End a task and withdraw what it asked. One that was being ended for a reason ends for that reason, unless it was done before."""
    task = known(draft.state, fact.task_id)
    for request in draft.state.requests:
        if request.task_id == task.id:
            draft.add(facts.RequestWithdrawn(request_id=request.id), actor=SYSTEM)
    if task.ending and not isinstance(fact, facts.TaskCompleted):
        _end_children(draft, task)
        if failure := _why(draft.state, task, draft.now_ms):
            fact = facts.TaskFailed(task_id=task.id, failure=failure)
    draft.add(fact, actor=AGENT if frame else draft.actor, frame=frame)
    draft.alarm("cancel_deadline", None)


def stop(draft: Draft) -> None:
    """The runner is told to end the running task; if it does not, its sandbox is replaced."""
    draft.alarm("cancel_deadline", CANCEL_DEADLINE_MS)


def go_on_stopping(draft: Draft, task: Task) -> None:
    """The runner still ends it: to keep what the agent has left, it may have to pack and send gigabytes. It has not for ever."""
    if draft.now_ms - task.ending_since_ms < KEEP_DEADLINE_MS:
        draft.alarm("cancel_deadline", CANCEL_DEADLINE_MS)


def end_stopped(draft: Draft) -> None:
    """End the running task that was being ended, without its runner."""
    task = draft.state.running
    if task is not None and task.ending:
        end(draft, facts.TaskCancelled(task_id=task.id))


def measured(state: SessionState, task: Task, now_ms: int) -> tuple[Used, Used, Used]:
    """What the task has used of each limit, cost, tokens and time, with the children that it started and that have ended."""
    usage = task.usage
    for child in state.children:
        if child.task_id == task.id:
            usage = usage.plus(child.usage)
    return (
        Used(LimitKind.COST, usage.cost_usd, task.limits.cost_usd),
        Used(LimitKind.TOKENS, usage.tokens, task.limits.tokens),
        Used(LimitKind.TIME, task.worked(now_ms) / 1000, task.limits.time_s),
    )


def reached(state: SessionState, task: Task, now_ms: int) -> Used | None:
    """The limit that the task has used up."""
    for used in measured(state, task, now_ms):
        if used.allowed and used.value >= used.allowed:
            return used
    return None


def left(state: SessionState, task: Task, now_ms: int) -> Limits:
    """What the task may still use, for a child that it starts: of each limit there is, at least a little."""
    cost, tokens, time = measured(state, task, now_ms)
    return Limits(
        time_s=max(1, round(time.allowed - time.value)) if time.allowed else 0,
        tokens=max(1, round(tokens.allowed - tokens.value)) if tokens.allowed else 0,
        cost_usd=max(1e-6, cost.allowed - cost.value) if cost.allowed else 0.0,
    )


def check_limits(draft: Draft) -> None:
    """End the running task if it has used up a limit. One that is paused stays so: it is ended before its next call of a model."""
    task, sandbox = draft.state.running, draft.state.sandbox
    if (
        task is None
        or task.ending
        or draft.state.status is SessionStatus.PAUSED
        or sandbox.status == "paused"
    ):
        return
    if used := reached(draft.state, task, draft.now_ms):
        draft.add(
            facts.TaskLimitReached(task_id=task.id, limit=used.kind, value=used.value, allowed=used.allowed),
            actor=SYSTEM,
        )
        if sandbox.status == "ready":
            stop(draft)
        else:
            end_stopped(draft)


def check_time(draft: Draft) -> None:
    """The alarm of the time limit: end the task, or wait for the rest of its time."""
    task = draft.state.running
    if task is None or task.ending or not draft.state.is_working or not task.limits.time_s:
        return
    left_ms = task.limits.time_s * 1000 - task.worked(draft.now_ms)
    if left_ms > 0:
        draft.alarm("time_limit", left_ms)
    else:
        check_limits(draft)


def check_stuck(draft: Draft) -> None:
    """The alarm of silence: tell people, at the second time end the task. Who waits for a child is not stuck."""
    state, stuck_ms = draft.state, draft.policy.stuck_s * 1000
    task = state.running
    if task is None or task.ending or not state.is_working or not stuck_ms:
        return
    idle_ms = draft.now_ms - state.heard_at_ms
    if any(child.task_id == task.id and child.status is TaskStatus.RUNNING for child in state.children):
        draft.alarm("stuck", stuck_ms)
    elif idle_ms < stuck_ms:
        draft.alarm("stuck", min(stuck_ms, stuck_ms - idle_ms))
    else:
        draft.add(
            facts.TaskStuck(task_id=task.id, idle_ms=idle_ms, given_up=state.stuck),
            actor=SYSTEM,
        )
        if state.stuck:
            stop(draft)
        else:
            draft.alarm("stuck", stuck_ms)


def _why(state: SessionState, task: Task, now_ms: int) -> Failure | None:
    if task.limit is not None:
        used = reached(state, task, now_ms)
        return Failure(
            code="limit_reached",
            reason=f"the task has used {used}" if used else f"the task has reached its {task.limit} limit",
            hint="What it did is kept. Send a follow-up with a higher limit to go on.",
        )
    if task.given_up:
        return Failure(
            code="task_stuck",
            reason="nothing was heard of the agent for too long",
            hint="Send the task again, in smaller steps if need be.",
        )
    return None


def _end_children(draft: Draft, task: Task) -> None:
    at_work = tuple(
        child.id
        for child in draft.state.children
        if child.task_id == task.id and child.status is TaskStatus.RUNNING
    )
    if at_work:
        draft.effects.append(EndChildren(generation=draft.state.sandbox.generation, child_ids=at_work))
