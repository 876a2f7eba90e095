"""Large bodies: moved inside the kernel, exact to the byte, whatever came before and after them."""

import asyncio
import hashlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from ship_sandboxd.envd.http1 import SPLICE_FROM_BYTES, Connection, Exchange, serve_connection
from ship_sandboxd.envd.splice import CannotSplice, Splice

LARGE = os.urandom(1024) * 5000
Handler = Callable[[Exchange], Awaitable[None]]
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def error_body(status: int, message: str) -> tuple[bytes, str]:
    return message.encode(), "text/plain"


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Handler], Awaitable[Client]]]:
    servers: list[asyncio.Server] = []
    writers: list[asyncio.StreamWriter] = []

    async def start(handler: Handler) -> Client:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await serve_connection(reader, writer, handler, error_body)

        servers.append(await asyncio.start_server(connected, "127.0.0.1", 0))
        reader, writer = await asyncio.open_connection(*servers[-1].sockets[0].getsockname())
        writers.append(writer)
        return reader, writer

    yield start
    for writer in writers:
        writer.close()
    for server in servers:
        server.close()


def post(length: int) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length


async def saved(exchange: Exchange, path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        await exchange.save_body(fd)
    finally:
        os.close(fd)
    await exchange.respond(200, hashlib.sha256(path.read_bytes()).hexdigest().encode())


@pytest.mark.parametrize("size", [0, 1, SPLICE_FROM_BYTES - 1, SPLICE_FROM_BYTES, len(LARGE)])
async def test_a_body_is_saved_and_the_next_request_is_served(serve, tmp_path: Path, size: int) -> None:
    reader, writer = await serve(lambda exchange: saved(exchange, tmp_path / "body"))
    for data in (LARGE[:size], b"next"):
        writer.write(post(len(data)) + data)
    writer.write_eof()
    answers = await asyncio.wait_for(reader.read(), 10)
    for data in (LARGE[:size], b"next"):
        assert hashlib.sha256(data).hexdigest().encode() in answers


async def test_a_body_that_comes_in_small_pieces_is_passed_on_whole(serve) -> None:
    ours, theirs = socket.socketpair()
    received = asyncio.ensure_future(asyncio.to_thread(_read_all, theirs))

    async def handler(exchange: Exchange) -> None:
        target = Connection(*await asyncio.open_connection(sock=ours))
        await exchange.pass_body(target)
        await target.close()
        await exchange.respond(200, b"passed on")

    reader, writer = await serve(handler)
    writer.write(post(len(LARGE)) + LARGE[:10])
    for start in range(10, len(LARGE), 99_991):
        writer.write(LARGE[start : start + 99_991])
        await writer.drain()
    assert await asyncio.wait_for(received, 10) == LARGE
    assert b"passed on" in await asyncio.wait_for(reader.readuntil(b"passed on"), 10)


def _read_all(sock: socket.socket) -> bytes:
    data = bytearray()
    with sock:
        while piece := sock.recv(65_536):
            data += piece
    return bytes(data)


async def test_a_body_that_is_cut_short_is_never_answered(serve, tmp_path: Path) -> None:
    reader, writer = await serve(lambda exchange: saved(exchange, tmp_path / "body"))
    writer.write(post(len(LARGE)) + LARGE[:1_000_000])
    writer.write_eof()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 10)


async def test_what_is_left_of_a_body_that_could_not_be_saved_is_read_away(serve) -> None:
    async def handler(exchange: Exchange) -> None:
        fd = os.open("/dev/full", os.O_WRONLY)
        try:
            await exchange.save_body(fd)
        except OSError as error:
            await exchange.respond(507, error.strerror.encode())
        finally:
            os.close(fd)

    reader, writer = await serve(handler)
    writer.write(post(SPLICE_FROM_BYTES) + LARGE[:SPLICE_FROM_BYTES])
    writer.write(post(4) + b"next")
    writer.write_eof()
    answers = await asyncio.wait_for(reader.read(), 10)
    assert answers.count(b"HTTP/1.1 507") == 2


async def test_a_file_that_shrinks_while_it_is_sent_breaks_the_answer(serve, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"short")

    async def handler(exchange: Exchange) -> None:
        await exchange.send_head(200, [("Content-Length", "1000")])
        with path.open("rb") as file:
            await exchange.connection.send_file(file.fileno(), 0, 1000)

    reader, writer = await serve(handler)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 10)


async def test_a_source_that_cannot_be_spliced_is_told_before_anything_is_moved(tmp_path: Path) -> None:
    counter = os.eventfd(1)
    try:
        with (tmp_path / "file").open("wb") as file, Splice(counter, file.fileno()) as splice:
            with pytest.raises(CannotSplice):
                await splice.move(8)
            assert splice.taken == 0
    finally:
        os.close(counter)


async def test_a_file_that_cannot_be_spliced_to_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "file"
    out, into = os.pipe()
    os.write(into, b"0123456789")
    with (
        path.open("ab") as file,
        Splice(out, file.fileno()) as splice,
    ):  # the kernel refuses files that append
        await splice.move(10)
    for fd in (out, into):
        os.close(fd)
    assert path.read_bytes() == b"0123456789"
