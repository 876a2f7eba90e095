"""The one port of the host: requests for a sandbox go to the sandbox, all others to the REST API.

A request names a sandbox by the headers E2b-Sandbox-Id and E2b-Sandbox-Port, or by a host name
`{port}-{sandbox id}.{domain}`. Port 49983 is the sandbox's daemon; any other is a server on the sandbox's loopback,
which the daemon connects us to.
"""

import asyncio
import contextlib
import json
import logging
import re
import time
from dataclasses import dataclass
from hmac import compare_digest

from ..api import pages
from ..api.router import Api
from ..envd.daemon import is_for_host, parse_target
from ..envd.http1 import (
    BrokenStreamError,
    Connection,
    Exchange,
    Headers,
    ProtocolError,
    Request,
    serve_connection,
)
from ..envd.signature import is_signed, is_valid
from ..errors import ApiError, NotFound
from ..lifecycle.records import SandboxRecord
from ..lifecycle.sandbox import Sandbox
from ..lifecycle.sandboxes import Sandboxes
from ..network.forward import forward, onward
from ..network.listeners import OPENED
from ..telemetry.metrics import Metrics
from . import answers, streams, visits

ENVD_PORT = 49983
MAX_CONNECTIONS = 10_000
_CONNECT_TIMEOUT_S = 15.0
"""A daemon gives up on a port after 10 s itself."""
# Where a sandbox's programs find their way out. A visitor who came to these would go out in the sandbox's name.
_WAYS_OUT = frozenset(port for _, port in OPENED)
_START = "/process.Process/Start"
_HOST = re.compile(r"(?P<port>\d{1,5})-(?P<id>[a-z0-9]+)(-[a-z0-9]+)?\.(?P<domain>[^:]+?)\.?(:\d+)?")
# What belongs to the host and its callers, and is none of a sandbox's business.
_log = logging.getLogger("ship_sandboxd.edge.front")
_OURS = ("x-api-key", "e2b-sandbox-id", "e2b-sandbox-port", visits.TOKEN)

_NOT_FOUND = "It has ended, or the address is wrong."
_PAUSED = "It is paused. Resume it and load this page again."
_NOT_OPEN = "Nothing listens on this port of the sandbox yet. Start a server there and load this page again."
_NO_ANSWER = "Load this page again in a moment; if that does not help, look into the log of the sandbox."
_NO_MEMORY = "it ran out of memory"
_PRIVATE = "Ports of this sandbox are shown only to who has its token. Open them once with ?e2b-traffic-access-token=…"


class Unreachable(Exception):
    """The sandbox, or the port in it, does not answer; `hint` says what to do about it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class NotOpen(Unreachable):
    """The sandbox's daemon has answered that nothing listens there."""


@dataclass(frozen=True)
class Target:
    """A port of a sandbox; `signed` when a URL on the API's own name led to it, which shares its origin with the API."""

    sandbox_id: str
    port: int
    signed: bool = False


class Front:
    def __init__(self, sandboxes: Sandboxes, api: Api, domain: str, metrics: Metrics) -> None:
        self._sandboxes = sandboxes
        self._api = api
        self._metrics = metrics
        self._domains = {domain.partition(":")[0].lower(), "localhost"}
        self._connections: set[asyncio.Task[None]] = set()

    async def serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        if task is not None:
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
        with contextlib.suppress(asyncio.CancelledError):
            await serve_connection(reader, writer, self._handle, error_body)

    async def close(self) -> None:
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _handle(self, exchange: Exchange) -> None:
        target = self._target(exchange.request)
        if target is None:
            await self._api.handle(exchange)
            return
        began = time.monotonic()
        try:
            sandbox = self._sandboxes.get(target.sandbox_id)
            if target.port == ENVD_PORT and is_for_host(exchange.request.target):
                await _refuse(exchange, target, 403, "this path is the host's own", "")
                return
            if target.signed and not _loads_file(exchange.request):
                await _refuse(
                    exchange, target, 403, "a signed URL is a file, and no program of this site", ""
                )
                return
            if target.port != ENVD_PORT and await _stopped(exchange, target, sandbox.record):
                return
            wakes = target.port != ENVD_PORT or _is_known(exchange.request, sandbox.record)
            sandbox, server = await self._reach(exchange, target, wakes=wakes)
            await self._forward(exchange, sandbox, server, target)
        except NotFound as error:
            # Clients know both cases by this text.
            hint = _PAUSED if error.code == "sandbox_paused" else _NOT_FOUND
            message = f"The sandbox was not found{self._sandboxes.why(target.sandbox_id)}"
            await _refuse(exchange, target, 502, message, hint)
        except ApiError as error:
            _log.warning("a paused sandbox does not resume", extra={"code": error.code, "reason": str(error)})
            await _refuse(exchange, target, 502, str(error), _NO_ANSWER)
        except Unreachable as error:
            await _refuse(exchange, target, 502, str(error), error.hint)
        finally:
            self._count(exchange, target.port, began)

    def _count(self, exchange: Exchange, port: int, began: float) -> None:
        if not exchange.responded:
            return
        self._metrics.forwarded.add("envd" if port == ENVD_PORT else "port", str(exchange.status))
        if port == ENVD_PORT and exchange.request.target == _START and exchange.status == 200:
            self._metrics.command_seconds.observe(exchange.responded_at - began)

    def _target(self, request: Request) -> Target | None:
        """What a request is for; None when it is for the host itself."""
        sandbox_id, port = request.headers.get("e2b-sandbox-id"), request.headers.get("e2b-sandbox-port")
        if not sandbox_id:
            match = _HOST.fullmatch(request.headers.get("host").lower())
            if match is None or match["domain"] not in self._domains:
                signer = self._signer(request)
                return Target(signer, ENVD_PORT, signed=True) if signer else None
            sandbox_id, port = match["id"], match["port"]
        port = port or str(ENVD_PORT)
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ProtocolError("E2b-Sandbox-Port is not a port")
        return Target(sandbox_id.partition("-")[0], int(port))

    def _signer(self, request: Request) -> str:
        """The sandbox whose token has signed a file's URL; empty when none has. Clients that are aimed at this one
        address make such URLs without the sandbox's id."""
        path, query = parse_target(request.target)
        if path != "/files" or not query.get("signature"):
            return ""
        signers = (
            box.id for box in self._sandboxes.all() if is_signed(query, request.method, box.record.token)
        )
        return next(signers, "")

    async def _reach(self, exchange: Exchange, target: Target, *, wakes: bool) -> tuple[Sandbox, Connection]:
        """The sandbox, resumed if that is due and the request `wakes` it, and a connection to the port in it."""
        is_stream = _is_stream(exchange.request)
        while True:
            if wakes:
                await self._sandboxes.awake(target.sandbox_id)
            sandbox = self._sandboxes.running(target.sandbox_id)
            try:
                return sandbox, await _open(sandbox, target.port, is_stream=is_stream)
            except NotOpen:
                raise
            except Unreachable:
                # A pause may have overtaken the request.
                if not (wakes and sandbox.sleeps_lightly):
                    await self._sandboxes.recheck(sandbox.id)
                    raise

    async def _forward(
        self, exchange: Exchange, sandbox: Sandbox, server: Connection, target: Target
    ) -> None:
        port = target.port
        try:
            shown = answers.as_file if target.signed else answers.own_cookies
            await forward(exchange, server, _inward(exchange, sandbox, port), shown)
        except (OSError, BrokenStreamError, ProtocolError) as error:
            reason = _NO_MEMORY if sandbox.ran_out_of_memory else str(error)
            if not exchange.responded:
                self._sandboxes.running(sandbox.id)
                raise Unreachable(
                    f"The sandbox does not answer on port {port}: {reason}", _NO_ANSWER
                ) from error
            await self._cut_off(exchange, sandbox, server)
        finally:
            await server.close()

    async def _cut_off(self, exchange: Exchange, sandbox: Sandbox, server: Connection) -> None:
        """End an answer that the sandbox has not brought to its end: with an error that says why, where the reader can be
        told, else by breaking the connection off."""
        exchange.reusable = False
        end = b""
        if sandbox.ran_out_of_memory and isinstance(server, streams.StreamConnection):
            end = server.end("unavailable", "the sandbox ran out of memory")
        if not end:
            exchange.connection.abort()
            return
        with contextlib.suppress(NotFound):  # who asks next shall find that it has ended
            await self._sandboxes.recheck(sandbox.id)
        with exchange.connection.bounded(), contextlib.suppress(OSError):
            await exchange.connection.send(end)


async def _stopped(exchange: Exchange, target: Target, record: SandboxRecord) -> bool:
    """Whether a visitor of a port has been answered here and goes no further, as it is not for everybody."""
    request = exchange.request
    if request.method == "CONNECT" or not request.target.startswith(("/", "*")):
        await _refuse(exchange, target, 400, "a port of a sandbox is no proxy", "")
        return True
    if target.port in _WAYS_OUT:
        await _refuse(exchange, target, 403, f"port {target.port} is the sandbox's own way out", "")
        return True
    if record.allow_public_traffic or visits.may_visit(request, record.traffic_token):
        return False
    if fields := visits.welcome(request, record.traffic_token, secure=exchange.connection.secure):
        await exchange.respond(303, fields=fields)
    else:
        await _refuse(exchange, target, 403, "the traffic access token is missing or wrong", _PRIVATE)
    return True


def _loads_file(request: Request) -> bool:
    """Whether a request by a signed URL wants nothing but bytes."""
    return request.headers.get("service-worker").lower() != "script" and not request.upgrade


def _is_known(request: Request, record: SandboxRecord) -> bool:
    """Whether a request to the daemon shows that it may ask for something: only such a one wakes a paused sandbox."""
    if compare_digest(request.headers.get("x-access-token").encode(), record.token.encode()):
        return True
    path, query = parse_target(request.target)
    return path == "/files" and is_valid(query, request.method, record.token)


def _inward(exchange: Exchange, sandbox: Sandbox, port: int) -> Request:
    """The request that the sandbox sees. A server in it learns how it was called, which a proxy in front of this host
    knows better; the daemon has no use for that. `maskRequestHost` is what its Host field says, with the port for
    `${PORT}`."""
    request = exchange.request
    if port == ENVD_PORT:
        return onward(request, request.target, _OURS)
    mask = str(sandbox.record.network.get("maskRequestHost", "")).replace("${PORT}", str(port))
    sent = onward(request, request.target, (*_OURS, "x-access-token"), host=mask)
    called = {
        "X-Forwarded-Host": request.headers.get("host"),
        "X-Forwarded-Proto": "https" if exchange.connection.secure else "http",
    }
    sent.headers.fields += [item for item in called.items() if not sent.headers.get(item[0])]
    sent.headers.fields = visits.without_token(sent.headers.fields)
    return sent


def _is_stream(request: Request) -> bool:
    return request.headers.get("content-type").startswith(streams.TYPE)


async def _open(sandbox: Sandbox, port: int, *, is_stream: bool) -> Connection:
    """A connection to the daemon, or through it to a port of the sandbox's loopback."""
    try:
        kind = streams.StreamConnection if is_stream and port == ENVD_PORT else Connection
        connection = kind(*await sandbox.connect())
    except OSError as error:
        message = "The sandbox is running but port is not open: its daemon does not listen"
        raise Unreachable(message, _NO_ANSWER) from error
    if port == ENVD_PORT:
        return connection
    fields = Headers([("Host", "envd"), ("X-Access-Token", sandbox.record.token)])
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            await connection.send(Request("CONNECT", f"127.0.0.1:{port}", "HTTP/1.1", fields).encode())
            answer = await connection.read_response()
    except (OSError, BrokenStreamError, ProtocolError) as error:
        await connection.close()
        raise Unreachable("The sandbox does not answer", _NO_ANSWER) from error
    if answer.status != 200:
        await connection.close()
        raise NotOpen(f"The sandbox is running but port is not open: {port}", _NOT_OPEN)
    return connection


def error_body(status: int, message: str) -> tuple[bytes, str]:
    return json.dumps({"code": status, "message": message}).encode(), "application/json"


async def _refuse(exchange: Exchange, target: Target, status: int, message: str, hint: str) -> None:
    if pages.wanted(exchange.request):
        page = pages.error(message, hint, f"sandbox {target.sandbox_id}, port {target.port}")
        await exchange.respond(status, page, pages.HTML, pages.ERROR_FIELDS)
        return
    value = {"code": status, "message": message, "sandboxId": target.sandbox_id, "port": target.port}
    await exchange.respond(status, json.dumps(value).encode(), "application/json")
