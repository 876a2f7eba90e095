"""A small server that answers by ``docs/protocol.md`` from memory, for tests of those who speak to one.

It keeps what a test gives it and shows what it was sent; it decides nothing.
"""

import asyncio
import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from ship.events import Fact, Record, encode, facts
from ship.events.frames import Delta
from ship.model import AGENT, SYSTEM, Actor, ActorKind, Repository

TOKEN = "tok_of_the_test"
POLL_S = 0.005
DEADLINE_S = 10.0


@dataclass
class Log:
    """One session: its records, and what is asked of it."""

    id: str
    repository: Repository
    records: list[Record] = field(default_factory=list)
    frames: list[tuple[int, Record | Delta]] = field(default_factory=list)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    diff: bytes = b""
    ended: bool = False

    def append(self, fact: Fact, actor: Actor = AGENT) -> Record:
        """Adds a record and keeps the tasks as the log says they are."""
        record = Record(
            seq=len(self.records) + 1, at_ms=1_790_000_000_000 + len(self.records), actor=actor, fact=fact
        )
        match fact:
            case facts.TaskQueued():
                self.tasks.append(_task(fact.task_id, fact.prompt, actor.name))
            case facts.TaskStarted():
                self._task(fact.task_id)["status"] = "running"
            case facts.TaskCompleted() | facts.TaskFailed() | facts.TaskCancelled():
                self._task(fact.task_id)["status"] = fact.TYPE.removeprefix("task.")
        self.records.append(record)
        self.frames.append((record.seq, record))
        return record

    def say(self, delta: Delta) -> None:
        """Sends a delta to whoever listens now or later."""
        self.frames.append((len(self.records), delta))

    def _task(self, task_id: str) -> dict[str, Any]:
        return next(task for task in self.tasks if task["id"] == task_id)

    def view(self) -> dict[str, Any]:
        """The session as ``GET /sessions/{id}`` answers it."""
        running = [task for task in self.tasks if task["status"] == "running"]
        return {
            "id": self.id,
            "title": "a title",
            "status": "running" if running else "ready",
            "failure": None,
            "repository": {"source": self.repository.source, "branch": self.repository.branch},
            "model": "scripted/demo",
            "approval": "auto",
            "work_branch": None,
            "base_commit": None,
            "created_by": "test",
            "created_at_ms": 1_790_000_000_000,
            "updated_at_ms": 1_790_000_000_000,
            "head_seq": len(self.records),
            "sandbox": {"generation": 1, "sandbox_id": "sbx_1", "status": "ready", "steps": []},
            "tasks": self.tasks,
            "requests": [],
            "todos": [],
            "usage": {},
            "checkpoint": None,
            "artifacts": [],
            "field_of_the_future": True,
        }

    def summary(self) -> dict[str, Any]:
        """The session as a line of the list."""
        names = (
            "id",
            "title",
            "status",
            "failure",
            "repository",
            "model",
            "created_by",
            "created_at_ms",
            "updated_at_ms",
            "head_seq",
        )
        view = self.view()
        running = next((task["id"] for task in self.tasks if task["status"] == "running"), None)
        counts = {"open_requests": 0, "files_changed": 0, "additions": 0, "deletions": 0}
        return {name: view[name] for name in names} | {"running_task": running} | counts


@dataclass
class ProtocolServer:
    """The server as a test holds it.

    ``requests`` lists (method, path, JSON body or None, headers) in the order of arrival. ``on_task`` is called when a session gets a
    task, with its log and the task's id. ``refuse_next`` streams are closed at once with the code given.
    """

    logs: dict[str, Log] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, Any, dict[str, str]]] = field(default_factory=list)
    connections: list[str] = field(default_factory=list)
    on_task: Callable[[Log, str], None] = lambda log, task_id: None
    on_answer: Callable[[Log, str, dict[str, Any]], None] = lambda log, request_id, body: None
    on_cancel: Callable[[Log, str], None] = lambda log, task_id: log.append(
        facts.TaskCancelled(task_id=task_id)
    )
    close_codes: list[int] = field(default_factory=list)
    close_reason: str = ""
    refuse_handshakes: bool = False
    cut_after: int = 0
    skip_seq: int = 0
    break_requests: int = 0
    url: str = ""

    def log(self, session_id: str = "ses_1", source: str = "https://example.com/repo.git") -> Log:
        """A new session."""
        self.logs[session_id] = Log(id=session_id, repository=Repository(source=source))
        return self.logs[session_id]

    def forget(self) -> None:
        """As if it had just been started."""
        for log in self.logs.values():
            log.ended = True
        fresh = ProtocolServer(url=self.url)
        self.__dict__.update(fresh.__dict__)

    def sent(self, method: str, path: str) -> list[Any]:
        """The bodies that this route was sent."""
        return [
            body
            for sent_method, sent_path, body, _ in self.requests
            if (sent_method, sent_path) == (method, path)
        ]

    # Routes

    def application(self) -> Starlette:
        """The routes."""
        api = "/api/v1"
        one = f"{api}/sessions/{{id}}"
        return Starlette(
            routes=[
                Route(f"{api}/sessions", self._create, methods=["POST"]),
                Route(f"{api}/sessions", self._list),
                Route(f"{api}/sessions/stream", self._session_stream),
                Route(one, self._get),
                Route(f"{one}/tasks", self._add_task, methods=["POST"]),
                Route(f"{one}/tasks/{{task}}/cancel", self._cancel, methods=["POST"]),
                Route(f"{one}/requests/{{request}}/answer", self._answer, methods=["POST"]),
                Route(f"{one}/messages", self._message, methods=["POST"]),
                Route(f"{one}/archive", self._archive, methods=["POST"]),
                Route(f"{one}/retry", self._accept, methods=["POST"]),
                Route(f"{one}/events", self._events),
                Route(f"{one}/diff", self._diff),
                Route(f"{api}/uploads", self._upload, methods=["PUT"]),
                Route(f"{api}/models", self._models),
                Route(f"{api}/me", self._me),
                Route("/readyz", lambda request: PlainTextResponse("ready")),
                WebSocketRoute(f"{one}/events/ws", self._socket),
            ]
        )

    async def _note(self, request: Request) -> tuple[Any, Response | None]:
        content = await request.body()
        body = (
            json.loads(content)
            if request.headers.get("content-type") == "application/json" and content
            else None
        )
        path = request.url.path.removeprefix("/api/v1")
        self.requests.append((request.method, path, body, dict(request.headers)))
        if self.break_requests:
            self.break_requests -= 1
            raise ConnectionResetError
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return None, _problem(401, "unauthenticated", "who are you?")
        if "id" in request.path_params and request.path_params["id"] not in self.logs:
            return None, _problem(404, "session_not_found", "no such session", "List them with `ship ls`.")
        return body, None

    def _of(self, request: Request) -> Log:
        return self.logs[request.path_params["id"]]

    async def _create(self, request: Request) -> Response:
        body, problem = await self._note(request)
        if problem:
            return problem
        repository = Repository(**body["repository"])
        log = Log(id=f"ses_{len(self.logs) + 1}", repository=repository)
        self.logs[log.id] = log
        actor = Actor(kind=ActorKind.USER, name="test")
        log.append(facts.SessionCreated(title="a title", repository=repository, model="scripted/demo"), actor)
        if body.get("prompt"):
            log.append(facts.TaskQueued(task_id="tsk_1", prompt=body["prompt"], model="scripted/demo"), actor)
        answer = JSONResponse(log.view(), status_code=201)
        if body.get("prompt"):
            self.on_task(log, "tsk_1")
        return answer

    async def _list(self, request: Request) -> Response:
        _, problem = await self._note(request)
        first = int(request.query_params.get("cursor") or 0)
        limit = int(request.query_params.get("limit", 50))
        summaries = [log.summary() for log in reversed(self.logs.values())]
        following = str(first + limit) if first + limit < len(summaries) else None
        return problem or JSONResponse({"items": summaries[first : first + limit], "next_cursor": following})

    async def _session_stream(self, request: Request) -> Response:
        _, problem = await self._note(request)

        async def lines() -> Any:
            yield ": hello\n\n"
            for log in self.logs.values():
                yield f"data: {json.dumps(log.summary())}\n\n"

        return problem or StreamingResponse(lines(), media_type="text/event-stream")

    async def _get(self, request: Request) -> Response:
        _, problem = await self._note(request)
        return problem or JSONResponse(self._of(request).view())

    async def _add_task(self, request: Request) -> Response:
        body, problem = await self._note(request)
        if problem:
            return problem
        log = self._of(request)
        if log.ended:
            return _problem(409, "session_archived", "this session is archived", "Start another one.")
        running = next((task["id"] for task in log.tasks if task["status"] == "running"), None)
        if body["mode"] == "steer" and running:
            log.append(facts.TaskSteered(task_id=running, steer_id="str_1", text=body["prompt"]))
            return JSONResponse(
                {"task_id": running, "steer_id": "str_1", "seq": len(log.records)}, status_code=202
            )
        task_id = f"tsk_{len(log.tasks) + 1}"
        record = log.append(facts.TaskQueued(task_id=task_id, prompt=body["prompt"], model="scripted/demo"))
        self.on_task(log, task_id)
        return JSONResponse({"task_id": task_id, "steer_id": None, "seq": record.seq}, status_code=202)

    async def _cancel(self, request: Request) -> Response:
        _, problem = await self._note(request)
        if not problem:
            self.on_cancel(self._of(request), request.path_params["task"])
        return problem or Response(status_code=202)

    async def _answer(self, request: Request) -> Response:
        body, problem = await self._note(request)
        if not problem:
            self.on_answer(self._of(request), request.path_params["request"], body)
        return problem or Response(status_code=202)

    async def _message(self, request: Request) -> Response:
        body, problem = await self._note(request)
        message = {"seq": 9, "kind": "note", "author": "test", "task_id": None, "at_ms": 1}
        return problem or JSONResponse(message | {"text": body["text"]}, status_code=201)

    async def _archive(self, request: Request) -> Response:
        _, problem = await self._note(request)
        if not problem:
            self._of(request).append(facts.SessionArchived(), SYSTEM)
            self._of(request).ended = True
        return problem or Response(status_code=202)

    async def _accept(self, request: Request) -> Response:
        _, problem = await self._note(request)
        return problem or Response(status_code=202)

    async def _events(self, request: Request) -> Response:
        _, problem = await self._note(request)
        if problem:
            return problem
        records = self._of(request).records
        page = [json.loads(encode(record)) for record in records[int(request.query_params["after"]) :]]
        return JSONResponse({"items": page, "head_seq": len(records)})

    async def _diff(self, request: Request) -> Response:
        _, problem = await self._note(request)
        return problem or Response(self._of(request).diff, media_type="text/x-diff")

    async def _upload(self, request: Request) -> Response:
        content = await request.body()
        _, problem = await self._note(request)
        digest = hashlib.sha256(content).hexdigest()
        self.uploads[digest] = content
        return problem or JSONResponse({"source": f"upload:{digest}"}, status_code=201)

    async def _models(self, request: Request) -> Response:
        _, problem = await self._note(request)
        item = {"id": "scripted/demo", "provider": "scripted", "name": "demo"}
        return problem or JSONResponse({"items": [item], "default": "scripted/demo"})

    async def _me(self, request: Request) -> Response:
        _, problem = await self._note(request)
        return problem or JSONResponse({"name": "test", "search_modes": ["words"]})

    async def _socket(self, socket: WebSocket) -> None:
        self.connections.append(str(socket.url.query))
        if self.refuse_handshakes:
            return await socket.close()
        await socket.accept()
        if socket.headers.get("authorization") != f"Bearer {TOKEN}":
            return await socket.close(4401)
        if socket.path_params["id"] not in self.logs:
            return await socket.close(4404)
        if self.close_codes:
            return await socket.close(self.close_codes.pop(0), self.close_reason)
        try:
            await self._feed(socket, self.logs[socket.path_params["id"]])
        except (WebSocketDisconnect, RuntimeError):
            return None

    async def _feed(self, socket: WebSocket, log: Log) -> None:
        after = int(socket.query_params.get("after", 0))
        types = socket.query_params.get("types", "").split(",") if socket.query_params.get("types") else None
        skipped, self.skip_seq = self.skip_seq, 0
        position = sent = 0
        live = False
        while True:
            # Asked first: what is added before the end must still be sent.
            ended = log.ended
            while position < len(log.frames):
                seq, frame = log.frames[position]
                position += 1
                if isinstance(frame, Delta):
                    await socket.send_text(msgspec.json.encode(frame).decode())
                elif seq > after and seq != skipped and (not types or frame.fact.TYPE in types):
                    await socket.send_text(encode(frame).decode())
                    sent += 1
                    if self.cut_after and sent >= self.cut_after:
                        return await socket.close(1012)
            if not live:
                live = True
                await socket.send_json({"t": "live", "head_seq": len(log.records)})
                await socket.send_json({"t": "head", "head_seq": len(log.records)})
            if ended:
                return await socket.close(4409)
            await asyncio.sleep(POLL_S)


def _problem(status: int, code: str, detail: str, hint: str = "") -> Response:
    body = {
        "type": "about:blank",
        "title": code,
        "status": status,
        "code": code,
        "detail": detail,
        "hint": hint,
    }
    return JSONResponse(body, status_code=status, media_type="application/problem+json")


def _task(task_id: str, prompt: str, author: str) -> dict[str, Any]:
    return {
        "id": task_id,
        "status": "queued",
        "prompt": prompt,
        "author": author,
        "model": "scripted/demo",
        "agent": "build",
        "queued_at_ms": 1_790_000_000_000,
        "started_at_ms": None,
        "ended_at_ms": None,
        "cancel_requested": False,
        "failure": None,
        "usage": {},
    }


@contextmanager
def serving() -> Iterator[ProtocolServer]:
    """A server on a free port of this machine, in a thread of its own."""
    protocol_server = ProtocolServer()
    listener = socket.create_server(("127.0.0.1", 0))
    protocol_server.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        protocol_server.application(),
        log_level="critical",
        ws="websockets-sansio",
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not server.started:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(POLL_S)
        yield protocol_server
    finally:
        for log in protocol_server.logs.values():
            log.ended = True
        server.should_exit = True
        thread.join(DEADLINE_S)
        listener.close()
