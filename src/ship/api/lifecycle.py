"""The life of a session beyond its next task: the queue, pauses, checkpoints, forks and children."""

from functools import partial

from fastapi import APIRouter, Response

from ship.api import artifacts, asked, inputs, schemas
from ship.api.answers import encoded
from ship.api.dependencies import Caller, Key, Serving
from ship.model import NO_LIMITS
from ship.sessions import commands, forks, views
from ship.sessions.ids import new_id

router = APIRouter(prefix="/api/v1", tags=["lifecycle"])


@router.patch("/sessions/{session_id}/tasks/{task_id}", status_code=202, response_model=schemas.Accepted)
async def edit_task(
    session_id: str, task_id: str, body: inputs.TaskChange, serving: Serving, actor: Caller, key: Key
) -> Response:
    """Change a task that waits, or the limits of the one that runs."""
    limits = NO_LIMITS
    if body.limits:
        task = (await serving.sessions.state(session_id)).task(task_id)
        limits = asked.limits(serving, body.limits, body.model or (task.model if task else ""))
    command = commands.EditTask(
        task_id=task_id,
        prompt=asked.prompt(serving, body.prompt) if body.prompt else None,
        model=asked.model(serving, body.model) if body.model else None,
        agent=body.agent,
        limits=limits,
    )
    outcome = await serving.sessions.execute(session_id, command, actor, key)
    return encoded(outcome.answer, 202)


@router.post("/sessions/{session_id}/tasks/{task_id}/move", status_code=202, response_model=schemas.Accepted)
async def move_task(
    session_id: str, task_id: str, body: inputs.TaskMove, serving: Serving, actor: Caller, key: Key
) -> Response:
    """Let a waiting task come before another one, or last."""
    command = commands.MoveTask(task_id=task_id, before=body.before)
    outcome = await serving.sessions.execute(session_id, command, actor, key)
    return encoded(outcome.answer, 202)


@router.post("/sessions/{session_id}/pause", status_code=202, response_model=schemas.Accepted)
async def pause_session(session_id: str, serving: Serving, actor: Caller, key: Key) -> Response:
    """Freeze the session's sandbox with what runs in it."""
    command = commands.PauseSession(checkpoint_id=new_id("ckp"))
    outcome = await serving.sessions.execute(session_id, command, actor, key)
    return encoded(outcome.answer, 202)


@router.post("/sessions/{session_id}/resume", status_code=202, response_model=schemas.Accepted)
async def resume_session(session_id: str, serving: Serving, actor: Caller, key: Key) -> Response:
    """Let a paused session go on."""
    outcome = await serving.sessions.execute(session_id, commands.ResumeSession(), actor, key)
    return encoded(outcome.answer, 202)


@router.get("/sessions/{session_id}/checkpoints", response_model=schemas.SavedPointPage)
async def list_checkpoints(session_id: str, serving: Serving, actor: Caller) -> Response:
    """The checkpoints that can be restored or forked, oldest first."""
    state = await serving.sessions.state(session_id)
    return encoded({"items": [views.checkpoint(point) for point in state.checkpoints]})


@router.post("/sessions/{session_id}/checkpoints", status_code=202, response_model=schemas.CheckpointAccepted)
async def request_checkpoint(session_id: str, serving: Serving, actor: Caller, key: Key) -> Response:
    """Make a checkpoint of the workspace as it stands, also in the middle of a task."""
    command = commands.RequestCheckpoint(checkpoint_id=new_id("ckp"))
    outcome = await serving.sessions.execute(session_id, command, actor, key)
    return encoded(outcome.answer, 202)


@router.post("/sessions/{session_id}/fork", status_code=201, response_model=schemas.SessionOut)
async def fork_session(
    session_id: str, body: inputs.ForkIn, serving: Serving, actor: Caller, key: Key
) -> Response:
    """A new session that begins with a checkpoint of this one: its files, and what its agent remembers."""
    state = await serving.sessions.state(session_id)
    model = asked.model(serving, body.model or state.model)
    command = commands.CreateSession(
        title=body.title or state.title,
        repository=state.repository,
        model=model,
        approval=state.approval,
        prompt=asked.prompt(serving, body.prompt),
        task_id=new_id("tsk"),
        agent=body.agent,
        limits=asked.limits(serving, body.limits, model),
    )
    is_there = partial(artifacts.is_kept, serving, state)
    forked = await forks.from_checkpoint(serving.sessions, session_id, body.checkpoint_id, command, is_there)
    outcome = await serving.sessions.create(forked, actor, key)
    return encoded(outcome.answer, 201)


@router.get("/sessions/{session_id}/children", response_model=schemas.ChildPage)
async def list_children(session_id: str, serving: Serving, actor: Caller) -> Response:
    """The sessions that this one started, oldest first."""
    state = await serving.sessions.state(session_id)
    return encoded({"items": state.children})


@router.post("/sessions/{session_id}/children", status_code=201, response_model=schemas.ChildAccepted)
async def start_child(
    session_id: str, body: inputs.ChildIn, serving: Serving, actor: Caller, key: Key
) -> Response:
    """Start a session of its own on the same repository; its result comes back as an event."""
    outcome = await serving.sessions.execute(session_id, child(serving, body), actor, key)
    return encoded(outcome.answer, 201)


def child(serving: Serving, body: inputs.ChildIn) -> commands.StartChild:
    """The command for it, whoever asks."""
    prompt = asked.prompt(serving, body.prompt)
    return commands.StartChild(
        child_id=new_id("ses"),
        title=body.title or asked.title(prompt),
        prompt=prompt,
        model=asked.model(serving, body.model) if body.model else "",
    )
