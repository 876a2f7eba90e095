"""The server's protocol, with a shorter way for the requests that come most.

A hot request (``hot.py``) goes from the parser straight to its function: no ASGI, no middleware, no dependency graph. It is
authenticated by the same function, validated by the same schema, answered by the same function and refused with the same problems.
What is not plain takes the ordinary way: a body in chunks or above the bound, an encoded path, a request behind another on one
connection, and all that its schema refuses.

Nothing that is imported here knows FastAPI: a server that starts answers hot requests long before its application is there.
"""

import asyncio
import math
import re
from http import HTTPStatus
from typing import Any, cast

from pydantic import BaseModel
from starlette.requests import HTTPConnection
from starlette.responses import Response
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from ship.api import hot, problems, websocket
from ship.api.hot import Asker, HotCall
from ship.api.services import Services, caller, key_of
from ship.api.stream_socket import StreamSocket

BODY_BYTES = 256 * 1024

_STREAM = re.compile(rb"/api/v1/sessions/([A-Za-z0-9_-]+)/events/ws")
_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode()) for status in HTTPStatus
}


def door(services: Services) -> type[asyncio.Protocol]:
    """What uvicorn makes a protocol of each connection with."""

    def protocol(
        config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: asyncio.AbstractEventLoop
    ) -> Door:
        return Door(services, config, server_state, app_state, _loop)

    return cast("type[asyncio.Protocol]", protocol)


class _Turn:
    """A hot request's place among the requests of its connection, in the shape in which uvicorn keeps one."""

    message_event = asyncio.Event()
    """Set when more of a request has come, or no more will: nobody waits for more of a hot one."""

    def __init__(self, keep_alive: bool) -> None:
        self.keep_alive = keep_alive
        self.response_complete = False
        self.disconnected = False


class Door(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self,
        services: Services,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(config, server_state, app_state, loop)
        self._services = services
        self._call: HotCall | None = None
        self._path = self._query = self._body = b""
        self._idle_since = math.inf
        self._idling: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        super().connection_lost(exc)
        self._idle_no_more()

    def on_message_begin(self) -> None:
        """The parser has the first of a request."""
        super().on_message_begin()
        self._idle_since = math.inf

    def on_headers_complete(self) -> None:
        """The parser has a request's head. Its beginning may have come before the last answer went out."""
        self._idle_since = math.inf
        self._call = self._hot_call()
        if self._call is None:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """The parser has a piece of its body."""
        if self._call is None:
            super().on_body(body)
        else:
            self._body += body

    def on_message_complete(self) -> None:
        """The parser has the whole of it."""
        call, self._call = self._call, None
        if call is None:
            super().on_message_complete()
            return
        body, self._body = self._body, b""
        what = call.route.read(self._query, body)
        if what is None or len(body) > BODY_BYTES:
            super().on_headers_complete()
            super().on_body(body)
            super().on_message_complete()
            return
        turn = _Turn(self.parser.should_keep_alive())
        self.cycle = cast("Any", turn)
        self.tasks.add(self.loop.create_task(self._serve(turn, call, what, self._connection(), body)))

    def on_response_complete(self) -> None:
        """A request is answered: the next one's turn, or the connection idles. Uvicorn sets a timer for each request; here one looks
        how long the connection has idled when it fires."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since = self.loop.time()
        if self._idling is None:
            self._idling = self.loop.call_at(self._idle_since + self.timeout_keep_alive, self._idle)

    def _idle(self) -> None:
        self._idling = None
        closes_at = self._idle_since + self.timeout_keep_alive
        if closes_at <= self.loop.time():
            self.timeout_keep_alive_handler()
        elif closes_at < math.inf:
            self._idling = self.loop.call_at(closes_at, self._idle)

    def _idle_no_more(self) -> None:
        if self._idling is not None:
            self._idling.cancel()
            self._idling = None

    def handle_websocket_upgrade(self) -> None:
        """The parser has a handshake: the stream's is answered here."""
        path, _, self._query = self.url.partition(b"?")
        self._path = path
        found = _STREAM.fullmatch(path)
        connection = self._connection() if found else None
        answer = websocket.accept(connection.headers) if connection else None
        self._idle_no_more()
        if found is None or connection is None or answer is None:
            super().handle_websocket_upgrade()
            return
        self.connections.discard(self)
        stream = StreamSocket(self._services, self.server_state)
        self.transport.set_protocol(stream)
        self.transport.write(answer)
        stream.connection_made(self.transport)
        task = self.loop.create_task(stream.begin(connection, self._services, found[1].decode()))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        self.parser = cast("Any", None)  # it knows us, and we it: together they would outlive the handshake

    def _hot_call(self) -> HotCall | None:
        path, _, self._query = self.url.partition(b"?")
        self._path = path
        method = self.parser.get_method()
        call = hot.find(method, path)
        if call is None or not (self.cycle is None or self.cycle.response_complete):
            return None
        if (
            self.parser.get_http_version() != "1.1"
            or self.parser.should_upgrade()
            or self.expect_100_continue
        ):
            return None
        return call if self._is_plain(call.route.posts) else None

    def _is_plain(self, takes_body: bool) -> bool:
        """Whether the body, if there is one, is JSON of a known and moderate length."""
        length, is_json = 0, False
        for name, value in self.headers:
            if name == b"content-length":
                length = int(value) if value.isdigit() else -1
            elif name == b"content-type":
                is_json = value.partition(b";")[0] == b"application/json"
            elif name == b"transfer-encoding":
                return False
        return is_json and 0 < length <= BODY_BYTES if takes_body else length == 0

    def _connection(self) -> HTTPConnection:
        """What tells who asks, without the body."""
        path = self._path.decode("latin-1")
        self.scope |= {
            "method": self.parser.get_method().decode("ascii"),
            "path": path,
            "raw_path": self._path,
            "query_string": self._query,
        }
        return HTTPConnection(cast("dict[str, Any]", self.scope))

    async def _serve(
        self, turn: _Turn, call: HotCall, what: BaseModel, connection: HTTPConnection, body: bytes
    ) -> None:
        try:
            try:
                actor = await caller(connection, self._services)
                key = key_of(actor.name, connection, body) if call.route.posts else None
                response = await call.answer(Asker(self._services, actor, key), what)
            except Exception as error:  # the edge of the protocol, as the application's error handlers are
                response = problems.answer(error, connection)
            if self.flow.write_paused:
                await self.flow.drain()
        finally:
            self.tasks.discard(cast("asyncio.Task[None]", asyncio.current_task()))
        if not turn.disconnected:
            self._respond(turn, response)

    def _respond(self, turn: _Turn, response: Response) -> None:
        lines = [_STATUS_LINES[response.status_code]]
        for name, value in (*self.server_state.default_headers, *response.raw_headers):
            lines += (name, b": ", value, b"\r\n")
        lines.append(b"\r\n" if turn.keep_alive else b"connection: close\r\n\r\n")
        lines.append(bytes(response.body))
        self.transport.write(b"".join(lines))
        turn.response_complete = True
        if not turn.keep_alive:
            self.transport.close()
        self.on_response_complete()
