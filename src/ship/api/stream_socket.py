"""The stream as a WebSocket, straight on the connection: ``docs/protocol.md`` has its rules."""

import asyncio
import contextlib
import logging
import socket
from typing import cast

from starlette.requests import HTTPConnection
from uvicorn.server import ServerState

from ship.api import asked, websocket
from ship.api.services import Services, caller
from ship.errors import Forbidden, InvalidInput, NotFound, ShipError, Unauthenticated
from ship.sessions.feeds import End

CLOSE_INVALID, CLOSE_UNAUTHENTICATED, CLOSE_NOT_FOUND = 4400, 4401, 4404
CLOSE_TOO_SLOW, CLOSE_ARCHIVED, CLOSE_RETRY = 4408, 4409, 1013
CLOSE_SHUTDOWN, CLOSE_DEFECT, CLOSE_TALKATIVE = 1012, 1011, 1008

BUFFER_BYTES = 256 * 1024
"""How much waits for a client before it gets no more; one piece comes on top."""
HEARD_BYTES = 1024**2
"""How much a client may say in all, which has nothing to say but pings."""
CLOSE_TIMEOUT_S, SLOW_CLOSE_TIMEOUT_S = 10.0, 1.0
UNACKNOWLEDGED_MS = 30_000
"""When the system gives up a connection whose other end does not take what we send."""

_ENDS = {End.ARCHIVED: CLOSE_ARCHIVED, End.TOO_SLOW: CLOSE_TOO_SLOW, End.UNAVAILABLE: CLOSE_RETRY}

_log = logging.getLogger("ship.api")


class StreamSocket(asyncio.Protocol):
    """One client that follows a session: a follower of the session's feed."""

    __slots__ = (
        "_closing",
        "_connections",
        "_feeds",
        "_frames",
        "_heard",
        "_transport",
        "full",
        "seen",
        "types",
    )

    encode = staticmethod(websocket.texts)

    def __init__(self, services: Services, state: ServerState) -> None:
        self.types: frozenset[str] = frozenset()
        self.seen = 0
        self.full = False
        self._feeds = services.sessions.feeds
        self._connections = cast("set[object]", state.connections)
        self._frames = websocket.ClientFrames()
        self._heard = 0
        self._closing = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is over."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(BUFFER_BYTES)
        with contextlib.suppress(OSError):
            made: socket.socket = transport.get_extra_info("socket")
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
        self._connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        """The client has gone."""
        self._closing = True
        self._feeds.leave(self)
        self._connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """The client says something."""
        self._heard += len(data)
        if self._heard > HEARD_BYTES:
            self.close(CLOSE_TALKATIVE, "too_much_said")
            self._transport.close()
            return
        try:
            for frame in self._frames.read(data):
                self._hear(frame)
        except websocket.Malformed:
            self.close(websocket.PROTOCOL_ERROR, "malformed")
            self._transport.close()

    def pause_writing(self) -> None:
        """The client takes less than comes."""
        self.full = True

    def resume_writing(self) -> None:
        """The client takes something again."""
        self.full = False
        self._feeds.resume(self)

    async def begin(self, connection: HTTPConnection, services: Services, session_id: str) -> None:
        """See who it is and what it wants, and let it follow; or close with the reason."""
        try:
            await caller(connection, services)
            after = asked.place(connection.query_params.get("after", "0"))
            self.types = frozenset(asked.event_types(connection.query_params.get("types", "")))
            await self._feeds.join(session_id, after, self)
        except ShipError as error:
            self.close(_close_code(error), error.code)
        except Exception as error:  # the edge of the protocol
            _log.error("the stream of %s failed", session_id, exc_info=error)
            self.close(CLOSE_DEFECT, "internal_error")
        if self._closing:
            self._feeds.leave(self)

    def send(self, piece: bytes) -> None:
        """As the feed's protocol says."""
        if not self._closing:
            self._transport.write(piece)

    def end(self, why: End) -> None:
        """As the feed's protocol says."""
        self.close(_ENDS[why], why.value)

    def close(self, code: int, reason: str) -> None:
        """Say why, and wait a moment for the client to hear it."""
        if self._closing:
            return
        self._closing = True
        self._feeds.leave(self)
        self._transport.write(websocket.closing(code, reason))
        wait_s = SLOW_CLOSE_TIMEOUT_S if self.full else CLOSE_TIMEOUT_S
        asyncio.get_running_loop().call_later(wait_s, self._transport.abort)

    def shutdown(self) -> None:
        """The server ends."""
        self.close(CLOSE_SHUTDOWN, "restart")
        self._transport.close()

    def _hear(self, frame: websocket.Control) -> None:
        if frame.opcode == websocket.CLOSE:
            if not self._closing:
                self._closing = True
                self._feeds.leave(self)
                self._transport.write(websocket.control(websocket.CLOSE, frame.payload[:2]))
            self._transport.close()
        elif frame.opcode == websocket.PING and not self._closing:
            self._transport.write(websocket.control(websocket.PONG, frame.payload))


def _close_code(error: ShipError) -> int:
    if isinstance(error, NotFound):
        return CLOSE_NOT_FOUND
    if isinstance(error, InvalidInput):
        return CLOSE_INVALID
    return CLOSE_UNAUTHENTICATED if isinstance(error, Unauthenticated | Forbidden) else CLOSE_RETRY
