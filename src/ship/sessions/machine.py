"""The session machine: what a command means in a state. Pure: no I/O, no clock, no chance.

``decide`` answers with facts, effects and alarms, or refuses with an error. The service commits them together. What follows from
what is spread over ``tasks`` (the queue and the running task), ``recovery`` (sandboxes) and ``reports`` (what a runner says).
"""

from functools import singledispatch

from ship.errors import Conflict, InvalidInput, NotFound, StaleGeneration
from ship.events import facts
from ship.model import (
    SYSTEM,
    Actor,
    ActorKind,
    Answer,
    CheckpointReason,
    Failure,
    PermissionReply,
    RequestKind,
    SessionStatus,
    TaskStatus,
)
from ship.sessions import commands, recovery, reports, tasks
from ship.sessions.commands import BeginChild, CheckSandbox, Command, EndChildren, KillSandbox, PackLog
from ship.sessions.draft import Decision, Draft
from ship.sessions.policy import ORDINARY, Policy
from ship.sessions.state import Request, SessionState

DEADLINES = ("provision_deadline", "cancel_deadline", "pause_deadline", "time_limit", "stuck")
"""Alarms that must not fire right after a start: what they wait for may have happened while nobody listened."""
PACK_LOG = "pack_log"
"""The alarm of a session that is over."""
ALARMS = (*DEADLINES, "sandbox_check", "idle_pause")
ARTIFACTS = 2_000

__all__ = ["ALARMS", "DEADLINES", "Decision", "decide"]


def decide(
    state: SessionState | None, command: Command, actor: Actor, now_ms: int, policy: Policy = ORDINARY
) -> Decision:
    """What follows from the command in this state.

    Raises:
        ShipError: the command is refused; nothing changes.
    """
    if isinstance(command, commands.CreateSession):
        if state is not None:
            raise Conflict("this session exists already", code="session_exists")
    elif state is None:
        raise NotFound("no such session", code="session_not_found")
    elif state.status is SessionStatus.ARCHIVED and not _is_heard_after_the_end(command):
        raise Conflict("this session is archived", code="session_archived", hint="Start a new session.")
    draft = Draft(state, actor, now_ms, policy)
    _apply(command, draft)
    return draft.decision()


def _is_heard_after_the_end(command: Command) -> bool:
    return isinstance(command, commands.ArchiveSession) or (
        isinstance(command, commands.FireAlarm) and command.name == PACK_LOG
    )


@singledispatch
def _apply(command: Command, draft: Draft) -> None:
    raise AssertionError(f"no rule for {type(command).__name__}")


@_apply.register
def _(command: commands.CreateSession, draft: Draft) -> None:
    draft.add(
        facts.SessionCreated(
            title=command.title,
            repository=command.repository,
            model=command.model,
            approval=command.approval,
            limits=command.limits.applied_to(draft.policy.limits),
            origin=command.origin,
            parent=command.parent,
        )
    )
    for fact in command.inherited:
        draft.add(fact, actor=SYSTEM)
    if command.prompt:
        tasks.queue(draft, command.task_id, command.prompt, command.model, command.agent)
    recovery.request_sandbox(draft, "")


@_apply.register
def _(command: commands.QueueTask, draft: Draft) -> None:
    tasks.queue(draft, command.task_id, command.prompt, command.model, command.agent, command.limits)
    recovery.go_on(draft, "task")


@_apply.register
def _(command: commands.EditTask, draft: Draft) -> None:
    task = tasks.known(draft.state, command.task_id)
    others = (command.prompt, command.model, command.agent) != (None, None, None)
    if task.status is not TaskStatus.QUEUED and (others or task.status is not TaskStatus.RUNNING):
        raise Conflict(
            f"this task is {task.status}: what it asks for cannot be changed any more",
            code="task_not_queued",
            hint="Steer it, or send a follow-up."
            if task.status is TaskStatus.RUNNING
            else "Send a follow-up.",
        )
    if command.prompt is not None:
        tasks.check_room(draft.state, command.prompt, instead_of=task)
    edited = facts.TaskEdited(
        task_id=task.id,
        prompt=task.prompt if command.prompt is None else command.prompt,
        model=task.model if command.model is None else command.model,
        agent=task.agent if command.agent is None else command.agent,
        limits=command.limits.applied_to(task.limits),
    )
    draft.answer = {"task_id": task.id}
    if (edited.prompt, edited.model, edited.agent, edited.limits) != (
        *(task.prompt, task.model, task.agent),
        task.limits,
    ):
        draft.add(edited)
        tasks.check_limits(draft)


@_apply.register
def _(command: commands.MoveTask, draft: Draft) -> None:
    for task_id in filter(None, (command.task_id, command.before)):
        if tasks.known(draft.state, task_id).status is not TaskStatus.QUEUED:
            raise Conflict("only a waiting task can be moved, before another one", code="task_not_queued")
    draft.answer = {"task_id": command.task_id}
    waiting = [task.id for task in draft.state.queue]
    place = waiting.index(command.task_id)
    follower = waiting[place + 1] if place + 1 < len(waiting) else ""
    if command.before not in (command.task_id, follower):
        draft.add(facts.TaskMoved(task_id=command.task_id, before=command.before))


@_apply.register
def _(command: commands.SteerTask, draft: Draft) -> None:
    running = draft.state.running
    if running is None or running.ending:
        tasks.queue(draft, command.task_id, command.text, command.model, command.agent, command.limits)
        recovery.go_on(draft, "task")
        return
    tasks.check_room(draft.state, command.text)
    recovery.resume(draft, "steer")
    draft.add(facts.TaskSteered(task_id=running.id, steer_id=command.steer_id, text=command.text))
    draft.answer = {"task_id": running.id, "steer_id": command.steer_id}


@_apply.register
def _(command: commands.CancelTask, draft: Draft) -> None:
    task = tasks.known(draft.state, command.task_id)
    draft.answer = {"task_id": task.id}
    if task.status is TaskStatus.QUEUED:
        draft.add(facts.TaskCancelled(task_id=task.id))
    elif task.status is TaskStatus.RUNNING and not task.cancel_requested:
        recovery.resume(draft, "cancel")
        draft.add(facts.TaskCancelRequested(task_id=task.id))
        if draft.state.sandbox.status in ("ready", "paused"):
            tasks.stop(draft)
        else:
            tasks.end(draft, facts.TaskCancelled(task_id=task.id))


@_apply.register
def _(command: commands.AnswerRequest, draft: Draft) -> None:
    request = next((known for known in draft.state.requests if known.id == command.request_id), None)
    if request is None:
        raise Conflict(
            "nobody waits for this answer",
            code="request_closed",
            hint="It was answered already, or the agent went on without it.",
        )
    _check_answer(request, command.answer)
    recovery.resume(draft, "answer")
    draft.add(facts.RequestAnswered(request_id=request.id, answer=command.answer))


@_apply.register
def _(command: commands.PostMessage, draft: Draft) -> None:
    draft.add(facts.MessagePosted(message_id=command.message_id, text=command.text))
    draft.answer = {"message_id": command.message_id}


@_apply.register
def _(command: commands.RetrySession, draft: Draft) -> None:
    if draft.state.status is not SessionStatus.FAILED:
        raise Conflict("only a failed session can be retried", code="session_not_failed")
    recovery.request_sandbox(draft, "retry")


@_apply.register
def _(command: commands.PauseSession, draft: Draft) -> None:
    recovery.pause(draft, "asked", command.checkpoint_id)


@_apply.register
def _(command: commands.ResumeSession, draft: Draft) -> None:
    recovery.resume(draft, "asked")


@_apply.register
def _(command: commands.RequestCheckpoint, draft: Draft) -> None:
    recovery.resume(draft, "checkpoint")
    if draft.state.status not in (SessionStatus.READY, SessionStatus.RUNNING):
        raise Conflict(
            "this session has no running sandbox",
            code="sandbox_not_running",
            hint="A new task or a retry starts one.",
        )
    wanted = draft.state.wanted_checkpoint
    if wanted is None:
        request = facts.CheckpointRequested(
            checkpoint_id=command.checkpoint_id, reason=CheckpointReason.ASKED
        )
        draft.add(request)
    draft.answer = {"checkpoint_id": wanted.id if wanted else command.checkpoint_id}


@_apply.register
def _(command: commands.StartChild, draft: Draft) -> None:
    state, policy = draft.state, draft.policy
    if (state.parent.depth if state.parent else 0) >= policy.child_depth:
        raise Conflict(
            f"children may be {policy.child_depth} deep, and this session is that deep already",
            code="child_too_deep",
        )
    if len(state.children) >= policy.children:
        raise Conflict(f"a session may start {policy.children} children", code="too_many_children")
    at_work = sum(child.status is TaskStatus.RUNNING for child in state.children)
    if at_work >= policy.children_at_once:
        raise Conflict(
            f"{at_work} children are at work already",
            code="too_many_children_at_once",
            hint="Wait until one has finished.",
        )
    task_id = state.running.id if state.running and draft.actor.kind is ActorKind.AGENT else ""
    model = command.model or state.model
    draft.add(
        facts.ChildStarted(
            child_id=command.child_id,
            task_id=task_id,
            title=command.title,
            prompt=command.prompt,
            model=model,
        )
    )
    draft.effects.append(
        BeginChild(
            generation=state.sandbox.generation,
            child_id=command.child_id,
            task_id=task_id,
            title=command.title,
            prompt=command.prompt,
            model=model,
            by=draft.actor,
        )
    )
    draft.answer = {"child_id": command.child_id}


@_apply.register
def _(command: commands.FinishChild, draft: Draft) -> None:
    fact = command.fact
    child = next((known for known in draft.state.children if known.id == fact.child_id), None)
    if child is None:
        raise NotFound("this session has no such child", code="child_not_found")
    if fact.usage.model_calls < child.usage.model_calls:
        return  # an older report that comes late
    if (child.status, child.summary, child.files_changed, child.additions, child.deletions, child.usage) != (
        *(fact.status, fact.summary),
        *(fact.files_changed, fact.additions, fact.deletions, fact.usage),
    ):
        draft.add(fact, actor=SYSTEM)
        tasks.check_limits(draft)
        draft.report_again()


@_apply.register
def _(command: commands.ArchiveSession, draft: Draft) -> None:
    state = draft.state
    if state.status is SessionStatus.ARCHIVED:
        return
    for task in state.tasks:
        if task.status in (TaskStatus.QUEUED, TaskStatus.RUNNING):
            tasks.end(draft, facts.TaskCancelled(task_id=task.id))
    at_work = tuple(child for child in state.children if child.status is TaskStatus.RUNNING)
    for child in at_work:  # they are ended, too, and could not tell it any more
        ended = facts.ChildFinished(
            child_id=child.id, status=TaskStatus.CANCELLED, summary="", usage=child.usage
        )
        draft.add(ended, actor=SYSTEM)
    draft.add(facts.SessionArchived())
    generation = state.sandbox.generation
    draft.effects.append(KillSandbox(generation=generation))
    if at_work:
        draft.effects = [effect for effect in draft.effects if not isinstance(effect, EndChildren)]
        ids = tuple(child.id for child in at_work)
        draft.effects.append(EndChildren(generation=generation, child_ids=ids))
    for name in ALARMS:
        draft.alarm(name, None)
    if draft.policy.pack_after_s:
        draft.alarm(PACK_LOG, draft.policy.pack_after_s * 1000)


@_apply.register
def _(command: commands.StoreArtifact, draft: Draft) -> None:
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
def _(command: commands.ReportFrame, draft: Draft) -> None:
    _check_generation(draft.state, command.at.generation)
    reports.hear(draft, command.fact, command.at)


@_apply.register
def _(command: commands.ReportProgress, draft: Draft) -> None:
    sandbox = draft.state.sandbox
    due = command.generation == sandbox.generation and sandbox.status == "creating"
    if due and not reports.is_told(command.fact, sandbox):
        reports.report(command.fact, draft, None)


@_apply.register
def _(command: commands.ReportMissing, draft: Draft) -> None:
    if command.generation == draft.state.sandbox.generation:
        recovery.lose(draft, command.reason)


@_apply.register
def _(command: commands.ReportFrozen, draft: Draft) -> None:
    if _is_present(draft.state, command.generation):
        recovery.frozen(draft)


@_apply.register
def _(command: commands.ReportThawed, draft: Draft) -> None:
    if _is_present(draft.state, command.generation):
        recovery.thawed(draft, command.memory)


@_apply.register
def _(command: commands.ReportEnding, draft: Draft) -> None:
    running = draft.state.running
    if running and running.ending and _is_present(draft.state, command.generation):
        tasks.go_on_stopping(draft, running)


@_apply.register
def _(command: commands.RecordModelCall, draft: Draft) -> None:
    _check_generation(draft.state, command.generation)
    draft.add(command.fact, actor=SYSTEM)
    tasks.check_limits(draft)


@_apply.register
def _(command: commands.RecordEffectFailure, draft: Draft) -> None:
    draft.add(command.fact, actor=SYSTEM)
    if command.child_id:
        never_began = facts.ChildFinished(
            child_id=command.child_id, status=TaskStatus.FAILED, summary=command.failure.reason
        )
        draft.add(never_began, actor=SYSTEM)
    sandbox = draft.state.sandbox
    if command.generation == sandbox.generation and sandbox.status == "creating":
        if command.fact.kind == "provision_sandbox":
            recovery.fail(draft, command.failure)
    elif _is_present(draft.state, command.generation):
        recovery.stay(draft, command.fact.kind)


@_apply.register
def _(command: commands.FireAlarm, draft: Draft) -> None:
    state = draft.state
    sandbox = state.sandbox
    if state.status is SessionStatus.ARCHIVED:
        draft.effects.append(PackLog(generation=sandbox.generation))
    elif command.name == "provision_deadline" and sandbox.status == "creating":
        step, deadline_ms = recovery.awaited(sandbox)
        recovery.fail(
            draft,
            Failure(
                code="provision_timeout",
                reason=f"the sandbox was not ready: the step {step} took more than {deadline_ms // 1000} s",
                hint="Retry; if it happens again, `ship doctor` checks the machine.",
            ),
        )
    elif command.name == "cancel_deadline" and state.running and state.running.ending:
        tasks.end_stopped(draft)
        recovery.request_sandbox(draft, "the agent did not stop when it was told to")
    elif command.name == "time_limit":
        tasks.check_time(draft)
    elif command.name == "stuck":
        tasks.check_stuck(draft)
    elif command.name == "idle_pause":
        recovery.pause_when_idle(draft, command.checkpoint_id)
    elif command.name == "pause_deadline":
        recovery.freeze(draft)
    elif command.name == "sandbox_check" and state.status is SessionStatus.PAUSED:
        return
    elif command.name == "sandbox_check" and sandbox.status == "paused":
        draft.alarm("sandbox_check", recovery.SANDBOX_CHECK_MS)
    elif command.name == "sandbox_check" and sandbox.status in ("creating", "ready"):
        if sandbox.sandbox_id:
            draft.effects.append(CheckSandbox(generation=sandbox.generation, sandbox_id=sandbox.sandbox_id))
        draft.alarm("sandbox_check", recovery.SANDBOX_CHECK_MS)


def _check_generation(state: SessionState, generation: int) -> None:
    if generation != state.sandbox.generation or not state.sandbox.is_alive:
        raise StaleGeneration(f"the sandbox of generation {generation} is not this session's any more")


def _is_present(state: SessionState, generation: int) -> bool:
    return generation == state.sandbox.generation and state.sandbox.status in ("ready", "paused")


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
