"""The rules of sandboxes: how one is asked for, what follows when it is lost, how it is paused and goes on."""

from ship.errors import Conflict
from ship.events import Cursor, facts
from ship.model import SYSTEM, CheckpointReason, Failure, SessionStatus
from ship.sessions import tasks
from ship.sessions.commands import KillSandbox, PauseSandbox, ProvisionSandbox, ResumeSandbox
from ship.sessions.draft import Draft
from ship.sessions.state import Sandbox, Task

PROVISION_DEADLINE_MS = 180_000
"""How long each step of a sandbox may take."""
CLONE_DEADLINE_MS = 3_660_000
"""The runner gives git an hour."""
PAUSE_DEADLINE_MS = 15_000
"""How long a pause waits for the checkpoint of a running task."""
SANDBOX_CHECK_MS = 60_000


def request_sandbox(draft: Draft, reason: str) -> None:
    """Make the next generation; the last one is ended."""
    old = draft.state.sandbox.generation
    if old:
        draft.effects.append(KillSandbox(generation=old))
    generation = old + 1
    draft.add(facts.SandboxRequested(generation=generation, reason=reason), actor=SYSTEM)
    draft.effects.append(ProvisionSandbox(generation=generation))
    draft.alarm("provision_deadline", PROVISION_DEADLINE_MS)
    draft.alarm("sandbox_check", SANDBOX_CHECK_MS)


def awaited(sandbox: Sandbox) -> tuple[str, int]:
    """The step that a sandbox stands at, and for how many milliseconds it may."""
    running = [known.step for known in sandbox.steps if known.status == "running"]
    if "clone" in running:
        return "clone", CLONE_DEADLINE_MS
    return running[-1] if running else "create", PROVISION_DEADLINE_MS


def fail(draft: Draft, failure: Failure, frame: Cursor | None = None) -> None:
    """This sandbox will not become ready: the session waits for a person."""
    generation = draft.state.sandbox.generation
    draft.add(facts.SandboxFailed(generation=generation, failure=failure), actor=SYSTEM, frame=frame)
    _give_up(draft, failure)


def lose(draft: Draft, reason: str) -> None:
    """The sandbox is gone. Its task goes on in the next one, unless too many were lost; a paused session waits with that."""
    if not draft.state.sandbox.is_alive:
        return
    generation = draft.state.sandbox.generation
    draft.add(facts.SandboxLost(generation=generation, reason=reason), actor=SYSTEM)
    _withdraw_requests(draft)
    tasks.end_stopped(draft)
    if draft.state.losses > draft.policy.recoveries:
        times = f", {draft.state.losses} times in a row" if draft.state.losses > 1 else ""
        failure = Failure(
            code="sandbox_lost",
            reason=f"the sandbox was lost{times}: {reason}",
            hint="Retry: a new sandbox starts from the last checkpoint.",
        )
        _give_up(draft, failure)
        return
    if running := draft.state.running:
        _say_answers_again(draft, running)
        interrupted = facts.TaskInterrupted(task_id=running.id, generation=generation, reason=reason)
        draft.add(interrupted, actor=SYSTEM)
    if draft.state.status is SessionStatus.PAUSED:
        draft.effects.append(KillSandbox(generation=generation))
    else:
        request_sandbox(draft, reason)


def _say_answers_again(draft: Draft, task: Task) -> None:
    """The next agent may not remember that it asked, and would ask the person again."""
    known_steers = {steer.steer_id for steer in task.steers}
    for known in draft.state.answers:
        steer_id = f"str_{known.request.id}"
        if known.answer.answers and steer_id not in known_steers:
            said = "\n".join(
                f"- {question.question} The answer: {', '.join(given)}"
                for question, given in zip(known.request.questions, known.answer.answers, strict=True)
            )
            text = f"Before you were started anew, you asked a person, who has answered:\n{said}"
            draft.add(facts.TaskSteered(task_id=task.id, steer_id=steer_id, text=text), actor=SYSTEM)


def _withdraw_requests(draft: Draft) -> None:
    """Who asked is gone."""
    for request in draft.state.requests:
        draft.add(facts.RequestWithdrawn(request_id=request.id), actor=SYSTEM)


def go_on(draft: Draft, reason: str) -> None:
    """Start what was queued: now, when the sandbox is ready, or in one that is thawed or new."""
    match draft.state.status:
        case SessionStatus.FAILED:
            request_sandbox(draft, "a new task")
        case SessionStatus.PAUSED:
            resume(draft, reason)
        case SessionStatus.READY:
            tasks.start_next(draft)


def pause(draft: Draft, reason: str, checkpoint_id: str) -> None:
    """Freeze the sandbox; a task that runs is kept in a checkpoint before. Raises Conflict (``session_not_pausable``)."""
    state = draft.state
    if state.status is SessionStatus.PAUSED:
        return
    running = state.running
    if state.status not in (SessionStatus.READY, SessionStatus.RUNNING):
        raise Conflict(f"a session that is {state.status} cannot be paused", code="session_not_pausable")
    if running and running.ending:
        raise Conflict(
            "its task is being ended", code="session_not_pausable", hint="Pause when it has ended."
        )
    draft.add(facts.SessionPaused(reason=reason))
    draft.alarm("sandbox_check", None)
    if running is None:
        freeze(draft)
        return
    if state.wanted_checkpoint is None:
        request = facts.CheckpointRequested(checkpoint_id=checkpoint_id, reason=CheckpointReason.PAUSE)
        draft.add(request, actor=SYSTEM)
    draft.alarm("pause_deadline", PAUSE_DEADLINE_MS)


def freeze(draft: Draft) -> None:
    """Let the host pause the sandbox of a session that is paused."""
    sandbox = draft.state.sandbox
    if draft.state.status is SessionStatus.PAUSED and sandbox.status == "ready":
        draft.effects.append(PauseSandbox(generation=sandbox.generation, sandbox_id=sandbox.sandbox_id))
        draft.alarm("pause_deadline", None)


def resume(draft: Draft, reason: str) -> None:
    """Let a paused session go on, in a new sandbox if its own was lost meanwhile."""
    if draft.state.status is not SessionStatus.PAUSED:
        return
    draft.add(facts.SessionResumed(reason=reason))
    draft.alarm("pause_deadline", None)
    sandbox = draft.state.sandbox
    if not sandbox.is_alive:
        request_sandbox(draft, "the last one was lost during a pause")
        return
    draft.effects.append(ResumeSandbox(generation=sandbox.generation, sandbox_id=sandbox.sandbox_id))
    draft.alarm("sandbox_check", SANDBOX_CHECK_MS)
    tasks.start_next(draft)


def frozen(draft: Draft) -> None:
    """The host has paused the sandbox, maybe once more to make sure; meanwhile it may be wanted again."""
    sandbox = draft.state.sandbox
    if sandbox.status != "paused":
        draft.add(facts.SandboxPaused(generation=sandbox.generation), actor=SYSTEM)
    if draft.state.status is not SessionStatus.PAUSED:
        draft.effects.append(ResumeSandbox(generation=sandbox.generation, sandbox_id=sandbox.sandbox_id))


def thawed(draft: Draft, memory: bool) -> None:
    """The host has resumed the sandbox; meanwhile the session may have been paused again. Without its memory the agent is started
    anew: it waits for nobody, and has not heard what it was answered during the pause."""
    draft.add(facts.SandboxResumed(generation=draft.state.sandbox.generation, memory=memory), actor=SYSTEM)
    if not memory:
        _withdraw_requests(draft)
        if running := draft.state.running:
            _say_answers_again(draft, running)
    freeze(draft)


def stay(draft: Draft, kind: str) -> None:
    """The host could not pause or resume the sandbox: the session stays what it was, and the log says why."""
    if kind == "pause_sandbox" and draft.state.status is SessionStatus.PAUSED:
        resume(draft, "pause_failed")
    elif kind == "resume_sandbox" and draft.state.status is not SessionStatus.PAUSED:
        draft.add(facts.SessionPaused(reason="resume_failed"), actor=SYSTEM)
        draft.alarm("sandbox_check", None)
        freeze(draft)


def pause_when_idle(draft: Draft, checkpoint_id: str) -> None:
    """The alarm of idleness: pause, or wait for the rest of the time."""
    state, idle_ms = draft.state, draft.policy.idle_pause_s * 1000
    if not state.is_waiting or not idle_ms:
        return
    passed_ms = draft.now_ms - state.updated_at_ms
    if passed_ms < idle_ms:
        draft.alarm("idle_pause", min(idle_ms, idle_ms - passed_ms))
    elif state.sandbox.status == "ready" and not (state.running and state.running.ending):
        pause(draft, "idle", checkpoint_id)


def _give_up(draft: Draft, failure: Failure) -> None:
    running = draft.state.running
    if running is not None:
        tasks.end(draft, facts.TaskFailed(task_id=running.id, failure=failure))
    draft.add(facts.SessionFailed(failure=failure), actor=SYSTEM)
    draft.effects.append(KillSandbox(generation=draft.state.sandbox.generation))
    for name in ("provision_deadline", "sandbox_check", "pause_deadline"):
        draft.alarm(name, None)
