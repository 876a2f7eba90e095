"""HTTP/1.1 on asyncio streams: what a small server, a router and a proxy need (RFC 9112).

Strict on purpose: whatever could be framed in two ways is refused, because the host parses a request, decides by
it and sends it on to a parser that must agree.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field

from .splice import CannotSplice, Splice, save, write_all

MAX_HEAD_BYTES = 64 * 1024
MAX_FIELDS = 256
CHUNK_BYTES = 256 * 1024
SPLICE_FROM_BYTES = 256 * 1024
TURN_LINES = 256
IDLE_TIMEOUT_S = 75.0
BACKLOG = 4096

Fields = list[tuple[str, str]]
NONE, LENGTH, CHUNKED, UNTIL_CLOSE = "none", "length", "chunked", "until-close"
_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_HOP_BY_HOP = frozenset(
    [
        "connection",
        "content-length",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ]
)
_REASONS = {
    200: "OK",
    201: "Created",
    204: "No Content",
    206: "Partial Content",
    303: "See Other",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    408: "Request Timeout",
    409: "Conflict",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    416: "Range Not Satisfiable",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    507: "Insufficient Storage",
}


class ProtocolError(Exception):
    """The peer broke HTTP's rules; `status` is what a server answers."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class BrokenStreamError(Exception):
    """The peer closed the connection in the middle of a message."""


class Headers:
    """Header fields in the order in which they came; names compare without case."""

    def __init__(self, fields: Iterable[tuple[str, str]] = ()) -> None:
        self.fields: list[tuple[str, str]] = list(fields)

    def all(self, name: str) -> list[str]:
        name = name.lower()
        return [value for key, value in self.fields if key.lower() == name]

    def get(self, name: str, default: str = "") -> str:
        values = self.all(name)
        return values[0] if values else default

    def tokens(self, name: str) -> list[str]:
        """The members of a comma-separated field, in lower case."""
        members = ",".join(self.all(name)).lower().split(",")
        return [member.strip() for member in members if member.strip()]

    def end_to_end(self, without: Iterable[str] = ()) -> list[tuple[str, str]]:
        """The fields that a proxy passes on: no hop-by-hop ones, none named by Connection, none of `without`."""
        dropped = _HOP_BY_HOP.union(self.tokens("connection"), without)
        return [(key, value) for key, value in self.fields if key.lower() not in dropped]

    def encode(self) -> bytes:
        return b"".join(f"{key}: {value}\r\n".encode("latin-1") for key, value in self.fields)


@dataclass
class Request:
    """The head of a request."""

    method: str
    target: str
    version: str
    headers: Headers

    @property
    def framing(self) -> tuple[str, int]:
        return _framing(self.headers) or (NONE, 0)

    @property
    def keep_alive(self) -> bool:
        connection = self.headers.tokens("connection")
        return "close" not in connection and (self.version == "HTTP/1.1" or "keep-alive" in connection)

    @property
    def upgrade(self) -> str:
        """The protocol that the client wants to change to, or an empty string."""
        return self.headers.get("upgrade") if "upgrade" in self.headers.tokens("connection") else ""

    def encode(self) -> bytes:
        return f"{self.method} {self.target} HTTP/1.1\r\n".encode("latin-1") + self.headers.encode() + b"\r\n"


@dataclass
class Response:
    """The head of a response."""

    status: int
    reason: str
    headers: Headers
    version: str = "HTTP/1.1"

    def framing(self, method: str) -> tuple[str, int]:
        if method == "HEAD" or self.status < 200 or self.status in (204, 304):
            return NONE, 0
        return _framing(self.headers) or (UNTIL_CLOSE, 0)

    def encode(self) -> bytes:
        return f"HTTP/1.1 {self.status} {self.reason}\r\n".encode("latin-1") + self.headers.encode() + b"\r\n"


def _framing(headers: Headers) -> tuple[str, int] | None:
    encodings, lengths = headers.tokens("transfer-encoding"), headers.all("content-length")
    if encodings and lengths:
        raise ProtocolError("both Transfer-Encoding and Content-Length are given")
    if encodings:
        if encodings != ["chunked"]:
            raise ProtocolError("only the transfer encoding 'chunked' is understood", 501)
        return CHUNKED, 0
    if not lengths:
        return None
    if len(lengths) > 1 or not (lengths[0].isascii() and lengths[0].isdigit()) or len(lengths[0]) > 18:
        raise ProtocolError("Content-Length is not one number")
    return LENGTH, int(lengths[0])


class Connection:
    """One end of an HTTP connection.

    It holds its own read buffer, so that it can wait for the peer to go away (`peer_closed`) while bytes of a next
    message stay where they are.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._buffer = bytearray()
        self._eof = False
        self._lines = 0
        self.left = 0
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        sock = writer.get_extra_info("socket")
        self._tcp = sock if sock is not None and sock.family != socket.AF_UNIX else None
        if self._tcp is not None:
            # asyncio does so only where the listener was made with an explicit protocol number.
            self._tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A peer that has vanished without a word is noticed after two minutes.
            self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in (
                (socket.TCP_KEEPIDLE, 60),
                (socket.TCP_KEEPINTVL, 20),
                (socket.TCP_KEEPCNT, 3),
            ):
                self._tcp.setsockopt(socket.IPPROTO_TCP, option, value)

    async def read_request(self) -> Request | None:
        """The next request head; None when the client closed between two requests."""
        lines = await self._head_lines()
        if lines is None:
            return None
        parts = lines[0].split(" ")
        if (
            len(parts) != 3
            or not _is_token(parts[0])
            or not parts[1]
            or parts[2] not in ("HTTP/1.1", "HTTP/1.0")
        ):
            raise ProtocolError("the request line is malformed")
        request = Request(parts[0], parts[1], parts[2], _headers(lines[1:]))
        if len(request.headers.all("host")) > 1:
            raise ProtocolError("more than one Host field")
        return request

    async def read_response(self) -> Response:
        lines = await self._head_lines()
        if lines is None:
            raise BrokenStreamError("the server closed the connection before it answered")
        version, _, rest = lines[0].partition(" ")
        status, _, reason = rest.partition(" ")
        is_number = len(status) == 3 and status.isascii() and status.isdigit()
        if version not in ("HTTP/1.1", "HTTP/1.0") or not is_number:
            raise ProtocolError("the status line is malformed", 502)
        return Response(int(status), reason, _headers(lines[1:]), version)

    async def body(self, framing: tuple[str, int]) -> AsyncIterator[bytes]:
        """The message's body in pieces of at most 256 KiB; raises BrokenStreamError when it is cut short."""
        kind, length = framing
        if kind == LENGTH:
            async for piece in self._exactly(length):
                yield piece
        elif kind == CHUNKED:
            while True:
                size = _chunk_size(await self._line())
                if size == 0:
                    break
                async for piece in self._exactly(size):
                    yield piece
                if await self._line():
                    raise ProtocolError("a chunk is longer than it said")
            while await self._line():
                pass  # trailers carry nothing that we use
        elif kind == UNTIL_CLOSE:
            while self._buffer or await self._fill():
                yield self._take(CHUNK_BYTES)

    async def raw(self) -> AsyncIterator[bytes]:
        """Every byte from here to the end of the connection."""
        async for piece in self.body((UNTIL_CLOSE, 0)):
            yield piece

    async def send(self, data: bytes) -> None:
        """Send, and wait while too much of it is on its way. What is sent without a pause between goes out together:
        each piece would cost a system call here and wake the peer once more."""
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes >= CHUNK_BYTES:
            self._write()
        elif len(self._pending) == 1:
            asyncio.get_running_loop().call_soon(self._write)
        await self._writer.drain()

    def _write(self) -> None:
        if self._pending:
            data = self._pending[0] if len(self._pending) == 1 else b"".join(self._pending)
            self._pending, self._pending_bytes = [], 0
            self._writer.write(data)

    async def pass_on(self, framing: tuple[str, int], target: Connection) -> None:
        """Send the message's body to another connection, framed as it came; a long one moves inside the kernel."""
        kind, length = framing
        if kind == LENGTH:
            length = await self.splice(length, target)
        async for piece in self.body((kind, length)):
            await target.send(frame(kind, piece))
        await target.send(last_frame(kind))

    async def send_file(self, fd: int, start: int, size: int) -> None:
        """Send a part of a file. Raises BrokenStreamError when the file has become shorter."""
        self._write()
        with os.fdopen(os.dup(fd), "rb", buffering=0) as file:
            sent = await asyncio.get_running_loop().sendfile(self._writer.transport, file, start, size)
        if sent < size:
            raise BrokenStreamError("the file has become shorter while it was sent")

    async def splice(self, length: int, target: Connection | int) -> int:
        """Move the next `length` bytes to a connection or a file, where it is worth it and the kernel can; answers how
        many are left for the ordinary way, which `left` tells also after a failure."""
        self.left = length
        secure = self.secure or (isinstance(target, Connection) and target.secure)
        if length < SPLICE_FROM_BYTES or secure:
            return length
        await self._take_in(length)
        self._writer.transport.pause_reading()  # type: ignore[attr-defined] # a socket's transport can
        ahead = self._take(length)
        self.left -= len(ahead)
        try:
            if isinstance(target, Connection):
                await target.flush(ahead)
            else:
                await asyncio.get_running_loop().run_in_executor(None, write_all, target, ahead)
            with Splice(self.fileno(), target if isinstance(target, int) else target.fileno()) as splice:
                try:
                    await splice.move(self.left)
                finally:
                    self.left -= splice.taken
        except CannotSplice:
            pass  # the ordinary way it is
        except EOFError:
            raise BrokenStreamError("the connection ended in the middle of a body") from None
        finally:
            self._writer.transport.resume_reading()  # type: ignore[attr-defined] # as above
        return self.left

    async def _take_in(self, size: int) -> None:
        """Take what asyncio has read ahead, without waiting: reading it leaves no time for more to come."""
        while len(self._buffer) < size and self._reader._buffer:  # type: ignore[attr-defined] # noqa: SLF001 - no public name tells
            await self._fill()

    async def flush(self, data: bytes) -> None:
        """Send, and wait until the kernel has taken all of it."""
        self._pending.append(data)
        self._write()
        self._writer.transport.set_write_buffer_limits(0)
        try:
            await self._writer.drain()
        finally:
            self._writer.transport.set_write_buffer_limits()

    @property
    def secure(self) -> bool:
        """Whether it came over TLS."""
        return self._writer.get_extra_info("ssl_object") is not None

    def write_eof(self) -> None:
        """Tell the peer that nothing more will come; what it sends is still read."""
        self._write()
        if self._writer.transport.is_closing():
            return
        if self._writer.can_write_eof():
            self._writer.write_eof()
        else:
            self._writer.close()  # TLS knows no half that ends by itself

    async def peer_closed(self) -> None:
        """Return when the peer has closed its side; what it sends meanwhile is kept, up to a bound."""
        while len(self._buffer) < MAX_HEAD_BYTES:
            if not await self._fill():
                return
        await asyncio.get_running_loop().create_future()

    def fileno(self) -> int:
        return int(self._writer.get_extra_info("socket").fileno())

    def abort(self) -> None:
        """Break the connection off (over TCP with a reset), so that the peer cannot take it for a proper end."""
        if self._tcp is not None and not self._writer.transport.is_closing():
            self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._pending = []
        self._writer.transport.abort()

    @contextlib.contextmanager
    def bounded(self) -> Iterator[None]:
        """Break the connection off if what is done meanwhile takes longer than it may be idle."""
        timer = asyncio.get_running_loop().call_later(IDLE_TIMEOUT_S, self.abort)
        try:
            yield
        finally:
            timer.cancel()

    async def close(self) -> None:
        """End it, once the peer has taken what was sent; one that does not is waited for only so long."""
        self._write()
        self._writer.close()
        with self.bounded(), contextlib.suppress(OSError, EOFError):  # gone already, which is what we want
            await self._writer.wait_closed()

    async def _fill(self) -> bool:
        if self._eof:
            return False
        data = await self._reader.read(CHUNK_BYTES)
        self._eof = not data
        self._buffer += data
        return not self._eof

    def _take(self, size: int) -> bytes:
        with memoryview(self._buffer) as view:
            data = bytes(view[:size])
        del self._buffer[: len(data)]
        return data

    async def _exactly(self, size: int) -> AsyncIterator[bytes]:
        while size:
            if self._buffer:
                piece = self._take(min(size, CHUNK_BYTES))
            else:
                piece = await self._reader.read(min(size, CHUNK_BYTES))
            if not piece:
                raise BrokenStreamError("the connection ended in the middle of a body")
            size -= len(piece)
            yield piece

    async def _give_way(self) -> None:
        """Let others have a turn now and then: reading what is there already waits for nothing, and a peer can send short lines
        faster than they are read."""
        self._lines += 1
        if self._lines % TURN_LINES == 0:
            await asyncio.sleep(0)

    async def _line(self) -> bytes:
        await self._give_way()
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise ProtocolError("a line is too long")
            if not await self._fill():
                raise BrokenStreamError("the connection ended in the middle of a body")
        line = self._take(end)
        self._take(2)
        return line

    async def _head_lines(self) -> list[str] | None:
        await self._give_way()
        while True:
            if self._buffer[:2] == b"\r\n":
                self._take(2)
                continue
            end = self._buffer.find(b"\r\n\r\n")
            if end >= 0:
                break
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise ProtocolError("the header fields are too large", 431)
            if not await self._fill():
                if self._buffer:
                    raise BrokenStreamError("the connection ended in the middle of a head")
                return None
        head = self._take(end)
        self._take(4)
        return head.decode("latin-1").split("\r\n")


def _headers(lines: list[str]) -> Headers:
    if len(lines) > MAX_FIELDS:
        raise ProtocolError(f"there are more than {MAX_FIELDS} header fields", 431)
    fields = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _is_token(name) or any(char in value for char in "\r\n\0"):
            raise ProtocolError("a header field is malformed")
        fields.append((name, value.strip(" \t")))
    return Headers(fields)


def _is_token(text: str) -> bool:
    return bool(text) and text.isascii() and all(byte in _TOKEN for byte in text.encode("ascii"))


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip(b" \t")
    if not digits or len(digits) > 15 or any(byte not in b"0123456789abcdefABCDEF" for byte in digits):
        raise ProtocolError("a chunk's size is malformed")
    return int(digits, 16)


def frame(kind: str, data: bytes) -> bytes:
    """One piece of a body on the wire."""
    return b"%x\r\n%s\r\n" % (len(data), data) if kind == CHUNKED else data


def last_frame(kind: str) -> bytes:
    return b"0\r\n\r\n" if kind == CHUNKED else b""


def framing_fields(framing: tuple[str, int]) -> list[tuple[str, str]]:
    kind, length = framing
    if kind == CHUNKED:
        return [("Transfer-Encoding", "chunked")]
    return [("Content-Length", str(length))] if kind == LENGTH else []


@dataclass
class Exchange:
    """One request that we serve, and the way to answer it."""

    connection: Connection
    request: Request
    responded: bool = False
    reusable: bool = True
    status: int = 0
    responded_at: float = 0.0
    _body: AsyncIterator[bytes] | None = field(default=None, repr=False)

    def body(self) -> AsyncIterator[bytes]:
        """The request's body, once; a client that waits for `100 Continue` is told to go on."""
        if self._body is None:
            self._body = self._read_body()
        return self._body

    async def pass_body(self, target: Connection) -> None:
        """Send the request's body on to another connection, framed as it came."""
        await self._splice_body(target)
        kind = self.request.framing[0]
        async for piece in self.body():
            await target.send(frame(kind, piece))
        await target.send(last_frame(kind))

    async def save_body(self, fd: int) -> None:
        """Write the request's body to a file."""
        await self._splice_body(fd)
        await save(self.body(), fd)

    async def _splice_body(self, target: Connection | int) -> None:
        """What can be moved inside the kernel; the rest is what `body` gives from then on."""
        kind, length = self.request.framing
        if kind != LENGTH or length < SPLICE_FROM_BYTES:
            return
        await self._go_on()
        try:
            await self.connection.splice(length, target)
        finally:
            self._body = self.connection.body((LENGTH, self.connection.left))

    async def _go_on(self) -> None:
        if "100-continue" in self.request.headers.tokens("expect"):
            await self.connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def _read_body(self) -> AsyncIterator[bytes]:
        await self._go_on()
        async for piece in self.connection.body(self.request.framing):
            yield piece

    async def read_all(self, limit_bytes: int) -> bytes:
        """The whole body; a ProtocolError of status 413 when it is longer than `limit_bytes`."""
        data = bytearray()
        async for piece in self.body():
            data += piece
            if len(data) > limit_bytes:
                raise ProtocolError(f"the body is larger than {limit_bytes} bytes", 413)
        return bytes(data)

    async def respond(
        self, status: int, body: bytes = b"", content_type: str = "", fields: Iterable[tuple[str, str]] = ()
    ) -> None:
        headers = [("Content-Type", content_type)] if content_type else []
        headers += list(fields)
        if status != 204:
            headers.append(("Content-Length", str(len(body))))
        with self.connection.bounded():
            await self.send_head(status, headers)
            await self.connection.send(body if self.request.method != "HEAD" else b"")

    async def send_head(self, status: int, fields: Iterable[tuple[str, str]], reason: str = "") -> None:
        self.responded, self.status, self.responded_at = True, status, time.monotonic()
        headers = Headers(fields)
        if not (self.reusable and self.request.keep_alive):
            headers.fields.append(("Connection", "close"))
        await self.connection.send(
            Response(status, reason or _REASONS.get(status, "Unknown"), headers).encode()
        )

    async def finish(self) -> bool:
        """Read what is left of the request's body, up to a bound; whether the connection may serve another request. One of
        which nothing comes is broken off.

        Also before the connection is closed: a client whose request is cut off under it may not read the answer.
        """
        if self._body is None and "100-continue" in self.request.headers.tokens("expect"):
            return False
        left = CHUNK_BYTES
        with self.connection.bounded():
            async for piece in self.body():
                left -= len(piece)
                if left < 0:
                    return False
        return self.reusable and self.request.keep_alive


Handler = Callable[[Exchange], Awaitable[None]]
ErrorBody = Callable[[int, str], tuple[bytes, str]]


async def serve_connection(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler, error_body: ErrorBody
) -> None:
    """Serve requests on one connection until it ends. `error_body` makes (body, content type) of a status and text."""
    connection = Connection(reader, writer)
    try:
        await _serve(connection, handler, error_body)
    except (BrokenStreamError, OSError):
        connection.abort()
    except asyncio.CancelledError:
        connection.abort()
        raise
    finally:
        await connection.close()


async def _serve(connection: Connection, handler: Handler, error_body: ErrorBody) -> None:
    while True:
        try:
            request = await asyncio.wait_for(connection.read_request(), IDLE_TIMEOUT_S)
        except asyncio.TimeoutError:
            return
        except ProtocolError as error:
            bad = Exchange(connection, Request("GET", "/", "HTTP/1.1", Headers()), reusable=False)
            body, content_type = error_body(error.status, str(error))
            await bad.respond(error.status, body, content_type)
            return
        if request is None:
            return
        exchange = Exchange(connection, request)
        try:
            await handler(exchange)
            if not await exchange.finish():
                return
        except ProtocolError as error:
            if exchange.responded:
                raise BrokenStreamError(str(error)) from error
            exchange.reusable = False
            body, content_type = error_body(error.status, str(error))
            await exchange.respond(error.status, body, content_type)
            return
