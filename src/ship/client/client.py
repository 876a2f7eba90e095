"""The typed client of Ship's HTTP API; the command line is built on it."""

import asyncio
import ipaddress
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from ship import errors
from ship.client import problems, views
from ship.client.stream import HEARTBEAT_S, START_HINT, Events
from ship.events import decode
from ship.model import NO_LIMITS, AgentMode, Answer, Approval, LimitsPatch, SearchMode, SessionStatus

T = TypeVar("T")
_TOKEN = re.compile(r"[\x21-\x7e]+")
_LARGEST_PORT = 65535
_UPLOAD_CHUNK_BYTES = 1024 * 1024
_UPLOAD_TIMEOUT_S = 600.0


class _Items(msgspec.Struct, frozen=True):
    items: msgspec.Raw


class _RawEventPage(msgspec.Struct, frozen=True):
    items: list[msgspec.Raw]
    head_seq: int


class _Uploaded(msgspec.Struct, frozen=True):
    source: str


class _Me(msgspec.Struct, frozen=True):
    name: str


def server_root(url: str) -> str:
    """The URL without a slash at its end. Raises ``InvalidInput`` (``url_malformed``) when it names no server."""
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeEncodeError) as error:
        raise _malformed(url) from error
    if parts.scheme not in ("http", "https") or not parts.host or (parts.port or 0) > _LARGEST_PORT:
        raise _malformed(url)
    return url.rstrip("/")


class Client:
    """A connection to one Ship server, used as ``async with Client(url, token) as client``.

    Each method is one route of ``docs/protocol.md``. All raise what ``ship.errors`` names: the server's own errors by
    their code, and ``Unavailable`` (``not_reachable``) when no server answers. Every POST carries an idempotency key and is sent
    once more when the connection broke under it.

    Args:
        url: the server's root, like ``http://127.0.0.1:8700``.
        token: an API token, or what gives the one that holds now: it is asked before each request.
        timeout_s: how long one answer may take.

    Raises:
        InvalidInput: ``url_malformed`` at once; ``token_malformed`` from the first request that would carry it.
    """

    def __init__(self, url: str, token: str | Callable[[], str], *, timeout_s: float = 60.0) -> None:
        self.url = server_root(url)
        self._given_token = token if callable(token) else lambda: token
        # A proxy from the environment cannot reach this machine's own loopback.
        self._direct = _is_loopback(self.url)
        self._http = httpx.AsyncClient(
            base_url=self.url,
            auth=self._sign,
            timeout=httpx.Timeout(timeout_s, connect=10.0),
            trust_env=not self._direct,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    def _sign(self, request: httpx.Request) -> httpx.Request:
        request.headers["Authorization"] = f"Bearer {self._token()}"
        return request

    def _token(self) -> str:
        token = self._given_token()
        if not _TOKEN.fullmatch(token):
            raise errors.InvalidInput(
                "the token is malformed: it has blanks, line ends or characters that no token has",
                code="token_malformed",
                hint="Copy it again, as `ship token create` printed it.",
            )
        return token

    # Sessions

    async def create_session(
        self,
        source: str,
        *,
        branch: str = "",
        prompt: str = "",
        title: str = "",
        model: str = "",
        agent: AgentMode | None = None,
        approval: Approval | None = None,
        limits: LimitsPatch = NO_LIMITS,
    ) -> views.Session:
        """Makes a session on a repository; with a prompt it also queues the first task. ``limits`` hold for each task that names none."""
        body = _given(prompt=prompt, title=title, model=model, agent=agent, approval=approval)
        body |= _limits(limits)
        body["repository"] = {"source": source, **_given(branch=branch)}
        return await self._post("/sessions", body, views.Session)

    async def sessions(
        self, *, status: SessionStatus | None = None, cursor: str = "", limit: int = 50
    ) -> views.SessionPage:
        """One page of sessions, newest first."""
        return await self._get(
            "/sessions", views.SessionPage, _given(status=status, cursor=cursor, limit=limit)
        )

    async def all_sessions(
        self, *, status: SessionStatus | None = None
    ) -> AsyncIterator[views.SessionSummary]:
        """Every session, newest first, page by page."""
        cursor = ""
        while True:
            page = await self.sessions(status=status, cursor=cursor, limit=100)
            for item in page.items:
                yield item
            if not page.next_cursor:
                return
            cursor = page.next_cursor

    async def search(
        self,
        query: str,
        *,
        mode: SearchMode = SearchMode.WORDS,
        status: SessionStatus | None = None,
        repository: str = "",
        cursor: str = "",
        limit: int = 20,
    ) -> views.FoundPage:
        """One page of the sessions where something like that was said, the best first: words, "phrases", beginnings*, -not; or
        what means something like it.

        Raises:
            Conflict: ``semantic_search_off``.
            InvalidInput: ``search_empty``, ``search_too_long``.
        """
        asked = _given(q=query, mode=mode, status=status, repository=repository, cursor=cursor, limit=limit)
        return await self._get("/search", views.FoundPage, asked)

    async def watch_sessions(self) -> AsyncIterator[views.SessionSummary]:
        """The summary of each session that changes, from now on, until the connection ends."""
        timeout = httpx.Timeout(10.0, read=3 * HEARTBEAT_S)
        try:
            async with self._http.stream("GET", "/api/v1/sessions/stream", timeout=timeout) as response:
                if not response.is_success:
                    await response.aread()
                    raise problems.from_response(response)
                async for line in response.aiter_lines():
                    if line.startswith("data:"):
                        yield msgspec.json.decode(line.removeprefix("data:"), type=views.SessionSummary)
        except httpx.TransportError as error:
            raise _not_reachable(self.url, error) from error

    async def session(self, session_id: str, *, at: int | None = None) -> views.Session:
        """The session's folded state: as it is, or as it was after the event ``at``."""
        return await self._get(_path("sessions", session_id), views.Session, _given(at=at))

    async def archive(self, session_id: str) -> None:
        """Ends the session and its sandbox for good."""
        await self._tell(_path("sessions", session_id, "archive"))

    async def retry(self, session_id: str) -> None:
        """Provisions a failed session again."""
        await self._tell(_path("sessions", session_id, "retry"))

    async def pause(self, session_id: str) -> None:
        """Freezes the session's sandbox, with a task that runs."""
        await self._tell(_path("sessions", session_id, "pause"))

    async def resume(self, session_id: str) -> None:
        """Lets a paused session go on."""
        await self._tell(_path("sessions", session_id, "resume"))

    async def checkpoints(self, session_id: str) -> tuple[views.SavedPoint, ...]:
        """The checkpoints that can be restored or forked, oldest first."""
        return await self._items(_path("sessions", session_id, "checkpoints"), tuple[views.SavedPoint, ...])

    async def request_checkpoint(self, session_id: str) -> views.CheckpointAccepted:
        """Asks for a checkpoint of the workspace as it stands; it is there when the log has its ``checkpoint.created``."""
        return await self._post(_path("sessions", session_id, "checkpoints"), {}, views.CheckpointAccepted)

    async def fork(
        self,
        session_id: str,
        *,
        checkpoint_id: str = "",
        prompt: str = "",
        title: str = "",
        model: str = "",
        agent: AgentMode | None = None,
        limits: LimitsPatch = NO_LIMITS,
    ) -> views.Session:
        """A new session that begins with a checkpoint of this one, the newest where none is named."""
        body = _given(checkpoint_id=checkpoint_id, prompt=prompt, title=title, model=model, agent=agent)
        return await self._post(_path("sessions", session_id, "fork"), body | _limits(limits), views.Session)

    async def children(self, session_id: str) -> tuple[views.Child, ...]:
        """The sessions that this one started, oldest first."""
        return await self._items(_path("sessions", session_id, "children"), tuple[views.Child, ...])

    async def start_child(
        self, session_id: str, prompt: str, *, title: str = "", model: str = ""
    ) -> views.ChildAccepted:
        """Starts a session of its own on the same repository; its result comes as the event ``child.finished``."""
        body = _given(prompt=prompt, title=title, model=model)
        return await self._post(_path("sessions", session_id, "children"), body, views.ChildAccepted)

    # Tasks

    async def add_task(
        self,
        session_id: str,
        prompt: str,
        *,
        model: str = "",
        agent: AgentMode | None = None,
        steer: bool = False,
        limits: LimitsPatch = NO_LIMITS,
    ) -> views.TaskAccepted:
        """Queues a task with limits of its own, or steers the running one."""
        body = _given(prompt=prompt, model=model, agent=agent, mode="steer" if steer else "queue")
        return await self._post(
            _path("sessions", session_id, "tasks"), body | _limits(limits), views.TaskAccepted
        )

    async def edit_task(
        self,
        session_id: str,
        task_id: str,
        *,
        prompt: str = "",
        model: str = "",
        agent: AgentMode | None = None,
        limits: LimitsPatch = NO_LIMITS,
    ) -> None:
        """Changes a task that waits, or the limits of the one that runs; what is left out stays."""
        body = _given(prompt=prompt, model=model, agent=agent) | _limits(limits)
        await self._tell(_path("sessions", session_id, "tasks", task_id), body, method="PATCH")

    async def move_task(self, session_id: str, task_id: str, *, before: str = "") -> None:
        """Lets a waiting task come before another one, or last."""
        await self._tell(_path("sessions", session_id, "tasks", task_id, "move"), _given(before=before))

    async def cancel_task(self, session_id: str, task_id: str) -> None:
        """Asks for the task's end; a running one ends when the agent has stopped."""
        await self._tell(_path("sessions", session_id, "tasks", task_id, "cancel"))

    async def answer(self, session_id: str, request_id: str, answer: Answer) -> None:
        """Answers a permission or a question."""
        body: dict[str, Any] = _given(reply=answer.reply, message=answer.message)
        if answer.answers:
            body["answers"] = answer.answers
        await self._tell(_path("sessions", session_id, "requests", request_id, "answer"), body)

    # Messages and events

    async def post_message(self, session_id: str, text: str) -> views.Message:
        """A note to the other people; the agent does not see it."""
        return await self._post(_path("sessions", session_id, "messages"), {"text": text}, views.Message)

    async def messages(
        self, session_id: str, *, limit: int = 50, before: int | None = None
    ) -> views.MessagePage:
        """The newest messages before a seq, newest last; fewer where they are large, so go on while ``has_more``."""
        query = _given(limit=limit, before=before)
        return await self._get(_path("sessions", session_id, "messages"), views.MessagePage, query)

    async def event_page(
        self, session_id: str, *, after: int = 0, limit: int = 500, types: Iterable[str] = ()
    ) -> views.EventPage:
        """One page of records after a seq."""
        query = _given(after=after, limit=limit, types=",".join(types))
        page = await self._get(_path("sessions", session_id, "events"), _RawEventPage, query)
        return views.EventPage(items=tuple(decode(bytes(raw)) for raw in page.items), head_seq=page.head_seq)

    def events(
        self,
        session_id: str,
        *,
        after: int = 0,
        types: Iterable[str] = (),
        patience_s: float = 120.0,
        on_lost: Callable[[str], None] | None = None,
    ) -> Events:
        """Records after a seq, then live, with the deltas between them: ``async for item in client.events(…)``.

        It reconnects by itself and goes on without a gap or a duplicate; it ends when the session is archived.
        ``patience_s`` is how long it tries to come back, ``on_lost`` hears why a connection was lost.
        """
        scheme, _, rest = f"{self.url}/api/v1{_path('sessions', session_id, 'events', 'ws')}".partition("://")
        return Events(
            f"{'wss' if scheme.lower() == 'https' else 'ws'}://{rest}",
            self._token,
            after=after,
            types=tuple(types),
            patience_s=patience_s,
            on_lost=on_lost,
            options={"proxy": None} if self._direct else {},
        )

    # Workspace

    async def diff(self, session_id: str, *, live: bool = False, checkpoint_id: str = "") -> bytes:
        """The change against the base commit as ``git apply`` reads it: of the newest checkpoint, of the one that is named, or
        (``live``) of the workspace as it stands."""
        query = {"live": "true"} if live else _given(checkpoint=checkpoint_id)
        return (await self._send("GET", _path("sessions", session_id, "diff"), params=query)).content

    async def files(self, session_id: str, path: str = "") -> tuple[views.Entry, ...]:
        """What a folder of the workspace holds."""
        return await self._items(
            _path("sessions", session_id, "files"), tuple[views.Entry, ...], _given(path=path)
        )

    async def file_content(self, session_id: str, path: str) -> bytes:
        """A file of the workspace."""
        return (
            await self._send("GET", _path("sessions", session_id, "files", "content"), params={"path": path})
        ).content

    async def artifacts(self, session_id: str) -> tuple[views.Artifact, ...]:
        """The session's named blobs."""
        return await self._items(_path("sessions", session_id, "artifacts"), tuple[views.Artifact, ...])

    async def artifact(self, session_id: str, name: str) -> bytes:
        """One named blob."""
        return (await self._send("GET", _path("sessions", session_id, "artifacts", name))).content

    async def put_artifact(
        self, session_id: str, name: str, content: bytes, media_type: str = "application/octet-stream"
    ) -> None:
        """Stores a named blob; it replaces one of the same name."""
        headers = {"Content-Type": media_type}
        await self._send(
            "PUT", _path("sessions", session_id, "artifacts", name), content=content, headers=headers
        )

    async def upload(self, bundle: Path) -> str:
        """Sends a git bundle; answers the ``source`` for ``create_session``."""
        response = await self._send("PUT", "/uploads", content=_chunks(bundle), timeout=_UPLOAD_TIMEOUT_S)
        return msgspec.json.decode(response.content, type=_Uploaded).source

    # Server

    async def models(self) -> views.Models:
        """The models that a task may ask for."""
        return await self._get("/models", views.Models)

    async def me(self) -> str:
        """The name of this client's token."""
        return (await self._get("/me", _Me)).name

    async def ready(self) -> bool:
        """Whether the server can take sessions."""
        response = await self._request("GET", "/readyz")
        return response.is_success

    async def metrics(self) -> str:
        """The server's figures in Prometheus' text format."""
        response = await self._request("GET", "/metrics")
        if not response.is_success:
            raise problems.from_response(response)
        return response.text

    # The wire

    async def _get(self, path: str, kind: type[T], query: dict[str, Any] | None = None) -> T:
        return msgspec.json.decode((await self._send("GET", path, params=query)).content, type=kind)

    async def _items(self, path: str, kind: type[T], query: dict[str, Any] | None = None) -> T:
        return msgspec.json.decode(bytes((await self._get(path, _Items, query)).items), type=kind)

    async def _post(self, path: str, body: dict[str, Any], kind: type[T]) -> T:
        return msgspec.json.decode((await self._tell(path, body)).content, type=kind)

    async def _tell(
        self, path: str, body: dict[str, Any] | None = None, *, method: str = "POST"
    ) -> httpx.Response:
        headers = {"Content-Type": "application/json", "Idempotency-Key": uuid.uuid4().hex}
        return await self._send(method, path, content=msgspec.json.encode(body or {}), headers=headers)

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        response = await self._request(method, "/api/v1" + path, **options)
        if not response.is_success:
            raise problems.from_response(response)
        return response

    async def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        repeatable = not isinstance(options.get("content"), AsyncIterator)
        try:
            try:
                return await self._http.request(method, path, **options)
            except (httpx.RemoteProtocolError, httpx.ReadError):
                if not repeatable:
                    raise
                return await self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise _not_reachable(self.url, error) from error


async def _chunks(file: Path) -> AsyncIterator[bytes]:
    with file.open("rb") as stream:
        while chunk := await asyncio.to_thread(stream.read, _UPLOAD_CHUNK_BYTES):
            yield chunk


def _not_reachable(url: str, error: Exception) -> errors.Unavailable:
    reason = str(error) or type(error).__name__
    return errors.Unavailable(
        f"no Ship server answers at {url} ({reason})", code="not_reachable", hint=START_HINT
    )


def _path(*segments: str) -> str:
    return "".join("/" + quote(segment, safe="") for segment in segments)


def _given(**fields: Any) -> dict[str, Any]:
    """The fields that say something: what is empty is left to the server."""
    return {name: value for name, value in fields.items() if value not in ("", None)}


def _limits(limits: LimitsPatch) -> dict[str, Any]:
    said = {name: value for name in limits.__struct_fields__ if (value := getattr(limits, name)) is not None}
    return {"limits": said} if said else {}


def _malformed(url: str) -> errors.InvalidInput:
    return errors.InvalidInput(
        f"{url!r} is no URL of a server",
        code="url_malformed",
        hint="Give the whole of it, like http://127.0.0.1:8700.",
    )


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
