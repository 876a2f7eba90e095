"""The git gateway: a session's repository over smart HTTP, wherever it really is.

A sandbox clones ``/git/repo.git`` with its session token; the token says which repository that is. Reading only: a push is
refused. Source: https://git-scm.com/docs/http-protocol and https://git-scm.com/docs/protocol-v2
"""

import asyncio
import logging
import re
import tempfile
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import urljoin, urlsplit

import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ship.errors import Forbidden, InvalidInput, NotFound, ShipError, TooLarge, Unavailable
from ship.gateway.credentials import session_token
from ship.gateway.grants import Grants
from ship.gateway.slots import Slots
from ship.repositories import git
from ship.repositories.sources import (
    LocalSource,
    RemoteSource,
    Source,
    UploadSource,
    local_git_folder,
    parse_source,
)
from ship.repositories.uploads import Uploads

logger = logging.getLogger(__name__)

SERVICE = "git-upload-pack"
REQUEST_LIMIT_BYTES = 64 * 1024 * 1024
"""Of what a client sends to ask for objects, decompressed."""

CALLS_PER_SESSION = 8
"""How many may be under way at once."""

_MEMORY_BYTES = 1024 * 1024
_LEAVE_S = 1.0
_CHUNK_BYTES = 64 * 1024
_REDIRECTS = 4
_PROTOCOL = re.compile(r"[\w.=:-]{1,200}")
_ADVERTISEMENT = f"application/x-{SERVICE}-advertisement"
_RESULT = f"application/x-{SERVICE}-result"
_ANNOUNCEMENT = b"001e# service=git-upload-pack\n0000"


class ForgeCredentials(Protocol):
    """What opens a private repository on its forge."""

    async def headers(self, url: str) -> dict[str, str]:
        """The headers to send to this URL; none for a repository that everybody may read."""
        ...


class NoCredentials:
    """Reads what everybody may read."""

    async def headers(self, url: str) -> dict[str, str]:
        """None."""
        return {}


def routes(
    grants: Grants,
    http: httpx.AsyncClient,
    *,
    local_roots: Iterable[str],
    uploads: Uploads,
    credentials: ForgeCredentials | None = None,
) -> list[Route]:
    """The gateway's routes, to be mounted at the root."""
    gateway = _Gateway(grants, http, tuple(local_roots), uploads, credentials or NoCredentials())
    return [
        Route("/git/repo.git/info/refs", gateway, methods=["GET"]),
        Route(f"/git/repo.git/{SERVICE}", gateway, methods=["POST"]),
        Route("/git/repo.git/git-receive-pack", gateway, methods=["POST"]),
    ]


@dataclass(frozen=True)
class _Asked:
    """One step of the protocol. ``body`` is None for the advertisement, ``protocol`` is the ``Git-Protocol`` header."""

    protocol: str
    body: IO[bytes] | None

    @property
    def media_type(self) -> str:
        return _ADVERTISEMENT if self.body is None else _RESULT


class _Gateway:
    def __init__(
        self,
        grants: Grants,
        http: httpx.AsyncClient,
        local_roots: tuple[str, ...],
        uploads: Uploads,
        credentials: ForgeCredentials,
    ) -> None:
        self._grants = grants
        self._local_roots = local_roots
        self._uploads = uploads
        self._remote = _Remote(http, credentials)
        self._slots = Slots(CALLS_PER_SESSION)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one step. A body is whole on disk before the answer starts: streaming both at once corrupts packs."""
        request = Request(scope, receive)
        protocol = request.headers.get("git-protocol", "")
        with tempfile.SpooledTemporaryFile(_MEMORY_BYTES) as body:
            asked = _Asked(
                protocol if _PROTOCOL.fullmatch(protocol) else "", body if request.method == "POST" else None
            )
            try:
                _require_reading(request)
                grant = await self._grants.authorize(session_token(request))
                with self._slots.taken(grant.session_id):
                    if asked.body is not None:
                        await _spool(request, asked.body)
                    response = await self._serve(parse_source(grant.repository.source), asked)
                    await response(scope, receive, send)
                return
            except (NotFound, Unavailable, InvalidInput) as error:
                refusal = _error_packet(error, asked)
            except ShipError as error:
                refusal = _plain(error)
            except ClientDisconnect:
                return
            await refusal(scope, receive, send)

    async def _serve(self, source: Source, asked: _Asked) -> Response:
        match source:
            case RemoteSource():
                return await self._remote.serve(source.url, asked)
            case LocalSource():
                folder = await asyncio.to_thread(local_git_folder, source, self._local_roots)
                return await _serve_local(folder, asked)
            case UploadSource():
                return await _serve_local(await self._uploads.repository(source.sha256), asked)


def _require_reading(request: Request) -> None:
    service = request.query_params.get("service") or request.url.path.rpartition("/")[2]
    if service == "git-receive-pack":
        raise Forbidden(
            "Sessions cannot push yet; take the change with `ship apply`.", code="push_not_allowed"
        )
    if service != SERVICE:
        raise Forbidden("Only git's smart HTTP protocol is served here.", code="git_service_unknown")


async def _serve_local(folder: Path, asked: _Asked) -> Response:
    arguments = ["upload-pack", "--strict", "--stateless-rpc"]
    if asked.body is None:
        arguments.append("--advertise-refs")
    with tempfile.TemporaryFile() as words:
        process = await asyncio.create_subprocess_exec(
            *git.command(*arguments, str(folder)),
            cwd="/",
            env=git.environment({"GIT_PROTOCOL": asked.protocol} if asked.protocol else None),
            stdin=asyncio.subprocess.DEVNULL if asked.body is None else asked.body.fileno(),
            stdout=asyncio.subprocess.PIPE,
            stderr=words.fileno(),
        )
        assert process.stdout is not None, "it was started with a pipe"
        first = await process.stdout.read(_CHUNK_BYTES)
        if not first and await process.wait():
            logger.warning("git upload-pack in %s: %s", folder, _end_of(words))
            raise Unavailable(
                "git cannot read the repository",
                code="repository_unreadable",
                hint="Run `git fsck` in it; Ship's log has git's own words.",
            )
    head = _ANNOUNCEMENT if asked.body is None and "version=2" not in asked.protocol else b""
    return _Streamed(_output(process.stdout, head + first), partial(_end, process), asked.media_type)


def _end_of(words: IO[bytes]) -> str:
    words.seek(0)
    return words.read()[-500:].decode(errors="replace").strip()


async def _output(stdout: asyncio.StreamReader, first: bytes) -> AsyncIterator[bytes]:
    yield first
    while chunk := await stdout.read(_CHUNK_BYTES):
        yield chunk


async def _end(process: asyncio.subprocess.Process) -> None:
    """See the process end: by itself when it has said everything, else for a reader that has left.

    A kill comes last: one that meets a process that has just ended takes its exit status away from asyncio.
    """
    try:
        async with asyncio.timeout(_LEAVE_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


class _Streamed(StreamingResponse):
    """An answer whose source is closed whatever happens, even when the client leaves before the first byte."""

    def __init__(
        self, content: AsyncIterator[bytes], close: Callable[[], Awaitable[None]], media_type: str
    ) -> None:
        super().__init__(content, headers=_headers(media_type))
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends, then closes."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._close()


class _Remote:
    """A forge, by way of our HTTP client."""

    def __init__(self, http: httpx.AsyncClient, credentials: ForgeCredentials) -> None:
        self._http = http
        self._credentials = credentials

    async def serve(self, url: str, asked: _Asked) -> Response:
        """The forge's answer, streamed. Raises ``NotFound`` and ``Unavailable``."""
        path = f"/info/refs?service={SERVICE}" if asked.body is None else f"/{SERVICE}"
        response = await self._open(url, f"{url}{path}", asked)
        if response.status_code != 200 or response.headers.get("content-type", "") != asked.media_type:
            await response.aclose()
            raise _refused(url, response)
        return _Streamed(_passed_on(response), response.aclose, asked.media_type)

    async def _open(self, url: str, target: str, asked: _Asked) -> httpx.Response:
        for _ in range(_REDIRECTS):
            response = await self._send(url, target, asked)
            if not response.has_redirect_location:
                return response
            await response.aclose()
            target = urljoin(target, response.headers["location"])
            if not _same_family(url, target):
                break
        raise Unavailable(
            f"{url} redirects to another place",
            code="repository_unreachable",
            hint="Name the address that it has moved to.",
        )

    async def _send(self, url: str, target: str, asked: _Asked) -> httpx.Response:
        headers = {
            "user-agent": "git/2.39 (ship)",
            "accept-encoding": "identity",
            **({"git-protocol": asked.protocol} if asked.protocol else {}),
            **(await self._credentials.headers(target)),
        }
        if asked.body is None:
            request = self._http.build_request("GET", target, headers={**headers, "accept": "*/*"})
        else:
            asked.body.seek(0)
            headers |= {"content-type": f"application/x-{SERVICE}-request", "accept": _RESULT}
            request = self._http.build_request("POST", target, headers=headers, content=_chunks(asked.body))
        try:
            return await self._http.send(request, stream=True)
        except httpx.TransportError as error:
            raise _unreachable(
                url, "took too long" if isinstance(error, httpx.TimeoutException) else "no connection"
            ) from error


async def _passed_on(response: httpx.Response) -> AsyncIterator[bytes]:
    """The bytes of the answer. One that breaks off ends early, which git sees: packets say how long they are."""
    try:
        async for chunk in response.aiter_bytes():
            yield chunk
    except httpx.TransportError as error:
        logger.warning("a repository's answer broke off: %s", type(error).__name__)


async def _chunks(body: IO[bytes]) -> AsyncIterator[bytes]:
    while chunk := body.read(_CHUNK_BYTES):
        yield chunk


async def _spool(request: Request, body: IO[bytes]) -> None:
    """The request's body into the file, unpacked and rewound. Raises ``TooLarge`` and ``InvalidInput``."""
    gzipped = request.headers.get("content-encoding", "").lower() in ("gzip", "x-gzip")
    unpacking = zlib.decompressobj(wbits=31) if gzipped else None
    size_bytes = 0
    async for chunk in request.stream():
        pending = chunk
        while pending:
            if unpacking is None:
                plain, pending = pending, b""
            else:
                plain, pending = _unpacked(unpacking, pending)
            size_bytes += len(plain)
            if size_bytes > REQUEST_LIMIT_BYTES:
                raise TooLarge("the request of git is too large", code="git_request_too_large")
            body.write(plain)
    body.seek(0)


def _unpacked(unpacking: "zlib._Decompress", packed: bytes) -> tuple[bytes, bytes]:
    try:
        return unpacking.decompress(packed, _MEMORY_BYTES), unpacking.unconsumed_tail
    except zlib.error as error:
        raise InvalidInput("the request of git is not gzip as it says", code="git_request_invalid") from error


def _same_family(url: str, target: str) -> bool:
    """Whether credentials for one may go to the other: the same scheme and port, and a host that is the same or below it."""
    before, after = urlsplit(url), urlsplit(target)
    if (before.scheme, before.port) != (after.scheme, after.port) and (before.scheme, after.scheme) != (
        "http",
        "https",
    ):
        return False
    hosts = sorted((before.hostname or "", after.hostname or ""), key=len)
    return bool(hosts[0]) and (hosts[0] == hosts[1] or hosts[1].endswith("." + hosts[0]))


def _refused(url: str, response: httpx.Response) -> ShipError:
    match response.status_code:
        case 200:
            return NotFound(
                f"{url} is no git repository",
                code="repository_not_found",
                hint="Use the address that git clone takes.",
            )
        case 401 | 403 | 404 | 410:
            return NotFound(
                f"{url} was not found, or Ship may not read it",
                code="repository_not_found",
                hint="Check the address; a private repository needs credentials in Ship.",
            )
        case status:
            return _unreachable(url, f"it answered with status {status}")


def _unreachable(url: str, why: str) -> Unavailable:
    return Unavailable(
        f"{urlsplit(url).hostname} cannot be reached: {why}",
        code="repository_unreachable",
        hint="Check the address and the network of the machine that Ship runs on, then try again.",
    )


def _error_packet(error: ShipError, asked: _Asked) -> Response:
    """The error as git prints it: ``fatal: remote error: …``."""
    said = f"ERR {error.message} [{error.code}]. {error.hint}".strip()[:1000].encode()
    packet = f"{len(said) + 4:04x}".encode() + said
    head = _ANNOUNCEMENT if asked.body is None else b""
    return Response(head + packet, headers=_headers(asked.media_type))


def _plain(error: ShipError) -> Response:
    """The error as text, which git prints line by line after ``remote:``."""
    return PlainTextResponse(f"{error.message} [{error.code}]\n{error.hint}\n", error.status)


def _headers(media_type: str) -> dict[str, str]:
    return {"content-type": media_type, "cache-control": "no-cache"}
