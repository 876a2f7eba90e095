"""HTTP/1.1 as the host, the proxy and the daemon speak it."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator

import pytest

from ship_sandboxd.envd import http1
from ship_sandboxd.envd.http1 import (
    BrokenStreamError,
    Connection,
    Exchange,
    Handler,
    ProtocolError,
    serve_connection,
)


class Peer:
    """A server made of one handler, and a raw connection to it."""

    def __init__(
        self, server: asyncio.Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.server = server
        self.reader = reader
        self.writer = writer

    async def say(self, data: bytes, *, end: bool = True) -> bytes:
        """Send bytes; answers everything that comes until the server closes."""
        self.writer.write(data)
        if end:
            self.writer.write_eof()
        return await asyncio.wait_for(self.reader.read(), 5)


async def echo(exchange: Exchange) -> None:
    request = exchange.request
    body = await exchange.read_all(100)
    await exchange.respond(200, f"{request.method} {request.target} {body.decode()}\n".encode(), "text/plain")


def error_body(status: int, message: str) -> tuple[bytes, str]:
    return message.encode(), "text/plain"


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve_connection(reader, writer, echo, error_body)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    yield Peer(server, reader, writer)
    writer.close()
    server.close()


class Served:
    """A server of one handler, of which each connection's end can be waited for."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.ended = asyncio.Event()

    async def __aenter__(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        _, self._writer = opened = await asyncio.open_connection(*self._server.sockets[0].getsockname())
        return opened

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve_connection(reader, writer, self._handler, error_body)
        self.ended.set()

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        self._server.close()


async def refuse(exchange: Exchange) -> None:
    await exchange.respond(401, b"x" * 1_000_000)


async def test_a_body_that_never_comes_holds_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "IDLE_TIMEOUT_S", 0.2)
    served = Served(refuse)
    async with served as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc")
        assert (await reader.readline()).startswith(b"HTTP/1.1 401")
        await asyncio.wait_for(served.ended.wait(), 5)


async def test_a_client_that_reads_no_answer_holds_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "IDLE_TIMEOUT_S", 0.2)
    served = Served(refuse)
    async with served as (_, writer):
        writer.write(b"GET / HTTP/1.1\r\n\r\n" * 100)
        await asyncio.wait_for(served.ended.wait(), 5)


async def test_a_client_that_vanishes_is_noticed() -> None:
    seen: list[int] = []

    async def look(exchange: Exchange) -> None:
        with socket.socket(fileno=os.dup(exchange.connection.fileno())) as copy:
            seen.append(copy.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
            seen.append(copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE))
        await exchange.respond(204)

    async with Served(look) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await reader.readline()
    assert seen == [1, 60]


async def test_requests_follow_each_other_on_one_connection(peer: Peer) -> None:
    first = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    second = b"POST /b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n1;x=y\r\nf\r\n0\r\nTrailer: 1\r\n\r\n"
    third = b"GET /c HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = await peer.say(first + second + third)
    assert [line for line in answer.splitlines() if b" /" in line] == [
        b"POST /a abc",
        b"POST /b def",
        b"GET /c ",
    ]
    assert answer.count(b"Connection: close") == 1


@pytest.mark.parametrize(
    "head",
    [
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 3, 3\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding : chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n folded: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab0\r\n\r\n",
    ],
)
async def test_what_can_be_framed_in_two_ways_is_refused(peer: Peer, head: bytes) -> None:
    answer = await peer.say(head)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501"))
    assert b"Connection: close" in answer


async def test_a_head_without_end_is_refused(peer: Peer) -> None:
    answer = await peer.say(b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000, end=False)
    assert answer.startswith(b"HTTP/1.1 431")


async def test_a_body_over_the_limit_is_refused(peer: Peer) -> None:
    answer = await peer.say(b"POST / HTTP/1.1\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000)
    assert answer.startswith(b"HTTP/1.1 413")


async def test_a_client_that_waits_is_told_to_continue(peer: Peer) -> None:
    peer.writer.write(b"POST / HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert await peer.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (await peer.say(b"ok")).endswith(b"POST / ok\n")


async def test_a_request_that_is_cut_short_is_broken_off(peer: Peer) -> None:
    with pytest.raises(ConnectionResetError):
        await peer.say(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc")


async def test_a_response_without_a_length_ends_with_the_connection() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(b"HTTP/1.0 200 OK\r\nX: y\r\n\r\nbody")
    reader.feed_eof()
    connection = Connection(reader, _Nowhere())  # type: ignore[arg-type] # only reads are tried here
    response = await connection.read_response()
    assert b"".join([piece async for piece in connection.body(response.framing("GET"))]) == b"body"


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc"])
async def test_a_response_that_is_cut_short_is_an_error(data: bytes) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    connection = Connection(reader, _Nowhere())  # type: ignore[arg-type] # only reads are tried here

    async def read() -> None:
        response = await connection.read_response()
        async for _ in connection.body(response.framing("GET")):
            pass

    with pytest.raises(BrokenStreamError):
        await read()


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 \xb9\xb2\xb3 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
    ],
)
async def test_a_response_that_is_no_http_is_an_error(data: bytes) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    with pytest.raises(ProtocolError):
        await Connection(reader, _Nowhere()).read_response()  # type: ignore[arg-type] # only reads are tried here


class _Nowhere:
    """A writer that has no socket."""

    def get_extra_info(self, name: str) -> None:
        return None
