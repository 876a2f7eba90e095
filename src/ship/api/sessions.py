"""Sessions and their tasks, requests and messages."""

import base64
import binascii
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Response

from ship.api import asked, schemas
from ship.api.answers import encoded, page
from ship.api.services import Caller, Key, Serving
from ship.errors import InvalidInput
from ship.model import Answer, Repository, SessionStatus
from ship.sessions import commands, views
from ship.sessions.ids import new_id

router = APIRouter(prefix="/api/v1", tags=["sessions"])

Limit = Annotated[int, Query(ge=1, le=500)]


@router.post("/sessions", status_code=201, response_model=schemas.SessionOut)
async def create_session(body: schemas.SessionIn, serving: Serving, actor: Caller, key: Key) -> Response:
    """Start a session; with a prompt it gets to work as soon as its sandbox is ready."""
    serving.check_repository(body.repository.source)
    prompt = asked.prompt(serving, body.prompt)
    model = asked.model(serving, body.model)
    command = commands.CreateSession(
        title=body.title or asked.title(prompt) or body.repository.source,
        repository=Repository(source=body.repository.source, branch=body.repository.branch),
        model=model,
        approval=body.approval,
        prompt=prompt,
        task_id=new_id("tsk"),
        agent=body.agent,
        limits=asked.limits(serving, body.limits, model),
    )
    outcome = await serving.sessions.create(command, actor, key)
    return encoded(outcome.answer, 201)


@router.get("/sessions", response_model=schemas.SessionPage)
async def list_sessions(
    serving: Serving,
    actor: Caller,
    status: SessionStatus | None = None,
    cursor: str | None = None,
    limit: Limit = 50,
) -> Response:
    """The sessions, newest first."""
    rows = await serving.sessions.summaries(status, _decoded(cursor), limit)
    following = _encoded(rows[-1][0], rows[-1][1]) if len(rows) == limit else None
    return page([body for _, _, body in rows], next_cursor=following)


@router.get("/sessions/{session_id}", response_model=schemas.SessionOut)
async def get_session(
    session_id: str, serving: Serving, actor: Caller, at: Annotated[int | None, Query(ge=1, le=2**53)] = None
) -> Response:
    """A session, whole: as it is, or as it was after the event ``at``."""
    sessions = serving.sessions
    state = await (sessions.state(session_id) if at is None else sessions.state_at(session_id, at))
    return encoded(views.session(session_id, state))


@router.post("/sessions/{session_id}/tasks", status_code=202, response_model=schemas.TaskAccepted)
async def queue_task(
    session_id: str, body: schemas.TaskIn, serving: Serving, actor: Caller, key: Key
) -> Response:
    """Queue a follow-up, or steer the running task with it."""
    prompt = asked.prompt(serving, body.prompt)
    model = asked.model(serving, body.model) if body.model else ""
    command: commands.Command = (
        commands.SteerTask(
            task_id=new_id("tsk"), steer_id=new_id("str"), text=prompt, model=model, agent=body.agent
        )
        if body.mode == "steer"
        else commands.QueueTask(
            task_id=new_id("tsk"),
            prompt=prompt,
            model=model,
            agent=body.agent,
            limits=asked.limits(serving, body.limits, model),
        )
    )
    outcome = await serving.sessions.execute(session_id, command, actor, key)
    return encoded(outcome.answer, 202)


@router.post(
    "/sessions/{session_id}/tasks/{task_id}/cancel", status_code=202, response_model=schemas.Accepted
)
async def cancel_task(session_id: str, task_id: str, serving: Serving, actor: Caller, key: Key) -> Response:
    """End a task: a queued one at once, a running one when its agent has stopped."""
    command = commands.CancelTask(task_id=task_id)
    outcome = await serving.sessions.execute(session_id, command, actor, key)
    return encoded(outcome.answer, 202)


@router.post("/sessions/{session_id}/retry", status_code=202, response_model=schemas.Accepted)
async def retry_session(session_id: str, serving: Serving, actor: Caller, key: Key) -> Response:
    """Give a failed session a new sandbox."""
    outcome = await serving.sessions.execute(session_id, commands.RetrySession(), actor, key)
    return encoded(outcome.answer, 202)


@router.post("/sessions/{session_id}/archive", status_code=202, response_model=schemas.Accepted)
async def archive_session(session_id: str, serving: Serving, actor: Caller, key: Key) -> Response:
    """End the session for good."""
    outcome = await serving.sessions.execute(session_id, commands.ArchiveSession(), actor, key)
    return encoded(outcome.answer, 202)


@router.post(
    "/sessions/{session_id}/requests/{request_id}/answer", status_code=202, response_model=schemas.Accepted
)
async def answer_request(
    session_id: str, request_id: str, body: schemas.AnswerIn, serving: Serving, actor: Caller, key: Key
) -> Response:
    """Answer what the agent asked."""
    answer = Answer(
        reply=body.reply, answers=tuple(tuple(given) for given in body.answers), message=body.message
    )
    command = commands.AnswerRequest(request_id=request_id, answer=answer)
    outcome = await serving.sessions.execute(session_id, command, actor, key)
    return encoded(outcome.answer, 202)


@router.post("/sessions/{session_id}/messages", status_code=201, response_model=schemas.MessageOut)
async def post_message(
    session_id: str, body: schemas.MessageIn, serving: Serving, actor: Caller, key: Key
) -> Response:
    """Leave a note for the other people."""
    command = commands.PostMessage(message_id=new_id("msg"), text=body.text)
    outcome = await serving.sessions.post(session_id, command, actor, key)
    return encoded(outcome.answer, 201)


@router.get("/sessions/{session_id}/messages", response_model=schemas.MessagePage)
async def list_messages(
    session_id: str,
    serving: Serving,
    actor: Caller,
    before: Annotated[int | None, Query(ge=1, le=2**53)] = None,
    limit: Limit = 50,
) -> Response:
    """What was said last, newest last."""
    rows = await serving.sessions.messages(session_id, before, limit + 1)
    return page(rows[-limit:], has_more=len(rows) > limit)


@router.get("/models", response_model=schemas.ModelPage, tags=["models"])
async def list_models(serving: Serving, actor: Caller) -> Response:
    """The models that tasks may name."""
    items = [
        {"id": f"{provider.name}/{model.name}", "provider": provider.name, "name": model.name}
        for provider in serving.providers
        for model in provider.models
    ]
    return encoded({"items": items, "default": serving.default_model})


_Moment = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


def _encoded(created_at_ms: int, session_id: str) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode((created_at_ms, session_id))).decode()


def _decoded(cursor: str | None) -> tuple[int, str] | None:
    if cursor is None:
        return None
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(cursor), type=tuple[_Moment, str])
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise InvalidInput(
            "this cursor is not one of ours", code="cursor_invalid", hint="Start without a cursor."
        ) from error
