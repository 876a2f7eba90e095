"""What is asked most, as plain functions without FastAPI, and which of them a request is for.

The application's routes call the same functions, so that both ways answer alike. The door hands whatever a schema refuses to the
application, which says what was wrong with it.
"""

from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from ship.api import asked
from ship.api.answers import encoded, page
from ship.api.inputs import MessageIn, MessagesQuery, RecordsQuery, SessionIn, TaskIn
from ship.api.services import Services
from ship.model import Actor, Repository
from ship.ports.store import PAGE_BYTES
from ship.sessions import commands
from ship.sessions.ids import new_id
from ship.sessions.service import IdempotencyKey


class Asker(NamedTuple):
    """Who asks, and whom; with a key where something is to be done once."""

    serving: Services
    actor: Actor
    key: IdempotencyKey | None = None


async def create_session(asker: Asker, body: SessionIn) -> Response:
    """201 with the new session, whole."""
    serving, actor, key = asker
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


async def queue_task(asker: Asker, session_id: str, body: TaskIn) -> Response:
    """202 with what became of it."""
    serving, actor, key = asker
    prompt = asked.prompt(serving, body.prompt)
    model = asked.model(serving, body.model) if body.model else ""
    limits = asked.limits(serving, body.limits, model)
    command: commands.Command = (
        commands.SteerTask(
            task_id=new_id("tsk"),
            steer_id=new_id("str"),
            text=prompt,
            model=model,
            agent=body.agent,
            limits=limits,
        )
        if body.mode == "steer"
        else commands.QueueTask(
            task_id=new_id("tsk"), prompt=prompt, model=model, agent=body.agent, limits=limits
        )
    )
    outcome = await serving.sessions.execute(session_id, command, actor, key)
    return encoded(outcome.answer, 202)


async def post_message(asker: Asker, session_id: str, body: MessageIn) -> Response:
    """201 with the message."""
    serving, actor, key = asker
    command = commands.PostMessage(message_id=new_id("msg"), text=body.text)
    outcome = await serving.sessions.post(session_id, command, actor, key)
    return encoded(outcome.answer, 201)


async def list_messages(asker: Asker, session_id: str, query: MessagesQuery) -> Response:
    """A page of messages, newest last."""
    rows = await asker.serving.sessions.messages(session_id, query.before, query.limit + 1)
    # A page that ends for its size may have been the last one: then an empty one follows.
    has_more = len(rows) > query.limit or sum(map(len, rows)) >= PAGE_BYTES
    return page(rows[-query.limit :], has_more=has_more)


async def list_events(asker: Asker, session_id: str, query: RecordsQuery) -> Response:
    """A page of the log, oldest first."""
    sessions = asker.serving.sessions
    head = await sessions.head(session_id)
    types = asked.event_types(query.types)
    rows = await sessions.events(session_id, query.after, query.limit, types)
    return page([body for _, body in rows], head_seq=head)


class HotRoute:
    """A function and the schema of what it is asked: a POST carries it in its body, with a key perhaps, a GET in its query."""

    def __init__(
        self, method: str, path: str, answer: Callable[..., Awaitable[Response]], schema: type[BaseModel]
    ) -> None:
        self.method = method
        self.path = path
        self.answer = answer
        self.posts = method == "POST"
        self._schema = schema
        self._query = lru_cache(256)(self._read_query)

    def read(self, query: bytes, body: bytes) -> BaseModel | None:
        """What it is asked; None when the schema refuses it."""
        try:
            return self._schema.model_validate_json(body) if self.posts else self._query(query)
        except (ValidationError, UnicodeDecodeError):
            return None

    def _read_query(self, query: bytes) -> BaseModel:
        return self._schema.model_validate(dict(parse_qsl(query.decode(), keep_blank_values=True)))


class HotCall(NamedTuple):
    """A route, and the id of the session that it is about, if it is about one."""

    route: HotRoute
    about: tuple[str, ...]

    async def answer(self, asker: Asker, what: BaseModel) -> Response:
        """The answer to it."""
        return await self.route.answer(asker, *self.about, what)


_SESSIONS = "/api/v1/sessions"
_ID_AT = 4
"""Where the session's id stands in ``/api/v1/sessions/{session_id}/…``, split at its slashes."""

ROUTES = (
    HotRoute("POST", _SESSIONS, create_session, SessionIn),
    HotRoute("POST", f"{_SESSIONS}/{{session_id}}/tasks", queue_task, TaskIn),
    HotRoute("POST", f"{_SESSIONS}/{{session_id}}/messages", post_message, MessageIn),
    HotRoute("GET", f"{_SESSIONS}/{{session_id}}/messages", list_messages, MessagesQuery),
    HotRoute("GET", f"{_SESSIONS}/{{session_id}}/events", list_events, RecordsQuery),
)
_FOUND = {(route.method.encode(), route.path.replace("{session_id}", "").encode()): route for route in ROUTES}


def find(method: bytes, path: bytes) -> HotCall | None:
    """The call that a request is, if it is one of a hot route."""
    parts = path.split(b"/")
    if len(parts) <= _ID_AT:
        route = _FOUND.get((method, path))
        return HotCall(route, ()) if route else None
    session_id, parts[_ID_AT] = parts[_ID_AT], b""
    route = _FOUND.get((method, b"/".join(parts)))
    if route is None or not session_id or b"%" in session_id or not session_id.isascii():
        return None
    return HotCall(route, (session_id.decode(),))
