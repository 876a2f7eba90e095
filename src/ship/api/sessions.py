"""Sessions and their tasks, requests and messages."""

import base64
import binascii
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Response

from ship.api import hot, inputs, schemas
from ship.api.answers import encoded, page
from ship.api.dependencies import Caller, Key, Serving
from ship.errors import InvalidInput
from ship.model import Answer, SessionStatus
from ship.sessions import commands, views

router = APIRouter(prefix="/api/v1", tags=["sessions"])


@router.post("/sessions", status_code=201, response_model=schemas.SessionOut)
async def create_session(body: inputs.SessionIn, serving: Serving, actor: Caller, key: Key) -> Response:
    """Start a session; with a prompt it gets to work as soon as its sandbox is ready."""
    return await hot.create_session(hot.Asker(serving, actor, key), body)


@router.get("/sessions", response_model=schemas.SessionPage)
async def list_sessions(
    serving: Serving,
    actor: Caller,
    status: SessionStatus | None = None,
    cursor: str | None = None,
    limit: inputs.Limit = 50,
) -> Response:
    """The sessions, newest first."""
    rows = await serving.sessions.summaries(status, _decoded(cursor), limit)
    following = _encoded(rows[-1][0], rows[-1][1]) if len(rows) == limit else None
    return page([body for _, _, body in rows], next_cursor=following)


@router.get("/sessions/{session_id}", response_model=schemas.SessionOut)
async def get_session(
    session_id: str, serving: Serving, actor: Caller, at: inputs.Place | None = None
) -> Response:
    """A session, whole: as it is, or as it was after the event ``at``."""
    sessions = serving.sessions
    state = await (sessions.state(session_id) if at is None else sessions.state_at(session_id, at))
    return encoded(views.session(session_id, state))


@router.post("/sessions/{session_id}/tasks", status_code=202, response_model=schemas.TaskAccepted)
async def queue_task(
    session_id: str, body: inputs.TaskIn, serving: Serving, actor: Caller, key: Key
) -> Response:
    """Queue a follow-up, or steer the running task with it."""
    return await hot.queue_task(hot.Asker(serving, actor, key), session_id, body)


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
    session_id: str, request_id: str, body: inputs.AnswerIn, serving: Serving, actor: Caller, key: Key
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
    session_id: str, body: inputs.MessageIn, serving: Serving, actor: Caller, key: Key
) -> Response:
    """Leave a note for the other people."""
    return await hot.post_message(hot.Asker(serving, actor, key), session_id, body)


@router.get("/sessions/{session_id}/messages", response_model=schemas.MessagePage)
async def list_messages(
    session_id: str, serving: Serving, actor: Caller, query: Annotated[inputs.MessagesQuery, Query()]
) -> Response:
    """What was said last, newest last."""
    return await hot.list_messages(hot.Asker(serving, actor), session_id, query)


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
