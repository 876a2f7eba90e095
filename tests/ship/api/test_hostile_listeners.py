"""Clients of a stream that misbehave: each costs itself at most, and a bounded amount of memory."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.ship.api.conftest import Served
from tests.ship.api.test_sessions_api import begun

from ship.api import stream_socket
from ship.ports.store import PAGE_BYTES
from ship.sessions import feeds

TEXT, CLOSE, PING, PONG = 0x81, 0x88, 0x89, 0x8A
LONG = "x" * 20_000


class RawSocket:
    """A WebSocket by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, served: Served, session_id: str, after: int = 0) -> "RawSocket":
        """Connects with small buffers, so that who does not read soon holds up what is sent."""
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        made.setblocking(False)
        host, _, port = served.url.removeprefix("http://").partition(":")
        await asyncio.get_running_loop().sock_connect(made, (host, int(port)))
        reader, writer = await asyncio.open_connection(sock=made, limit=4096)
        writer.write(
            f"GET /api/v1/sessions/{session_id}/events/ws?after={after} HTTP/1.1\r\nHost: {host}:{port}\r\n"
            f"Authorization: Bearer {served.token}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 101 " in head
        assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head  # what RFC 6455 answers to its own example
        return cls(reader, writer)

    async def frames(self) -> AsyncIterator[tuple[int, bytes]]:
        """(first byte, payload) until the end of the connection."""
        while True:
            try:
                first, size = await self._reader.readexactly(2)
                if size >= 126:
                    size = int.from_bytes(await self._reader.readexactly(2 if size == 126 else 8), "big")
                yield first, await self._reader.readexactly(size)
            except (asyncio.IncompleteReadError, ConnectionError):
                return

    async def until_closed(self) -> tuple[list[int], int]:
        """(seqs that came, close code)."""
        seqs: list[int] = []
        async with asyncio.timeout(60):
            async for first, payload in self.frames():
                if first == CLOSE:
                    return seqs, int.from_bytes(payload[:2], "big")
                record: dict[str, Any] = json.loads(payload)
                if "seq" in record:
                    seqs.append(record["seq"])
        return seqs, 0

    async def until_live(self) -> list[int]:
        """Seqs of the replay."""
        seqs: list[int] = []
        async for _, payload in self.frames():
            record = json.loads(payload)
            if record.get("t") == "live":
                return seqs
            if "seq" in record:
                seqs.append(record["seq"])
        raise AssertionError("the server closed it")


async def notes(served: Served, session_id: str, count: int, text: str = "x") -> int:
    """Posts notes; the last one's seq."""
    path = f"/api/v1/sessions/{session_id}/messages"
    answers = await asyncio.gather(
        *(served.client.post(path, json={"text": text}, timeout=30) for _ in range(count))
    )
    return max(answer.json()["seq"] for answer in answers)


def followers(served: Served) -> int:
    return len(served.services.sessions.feeds._of)


async def eventually(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def test_who_never_reads_is_let_go_and_told_to_resume(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(feeds, "SLOW_S", 0.2)
    monkeypatch.setattr(stream_socket, "SLOW_CLOSE_TIMEOUT_S", 60.0)
    monkeypatch.setattr(stream_socket, "CLOSE_TIMEOUT_S", 60.0)
    session_id = (await begun(served))["id"]
    silent = await RawSocket.open(served, session_id)
    await eventually(lambda: followers(served) == 1)
    (follower,) = served.services.sessions.feeds._of
    for _ in range(20):
        await notes(served, session_id, 50, LONG)
        waiting = follower._transport.get_write_buffer_size()  # type: ignore[attr-defined]  # ours is a StreamSocket
        assert waiting < stream_socket.BUFFER_BYTES + PAGE_BYTES + 4 * feeds.RECENT_BYTES
    await eventually(lambda: followers(served) == 0)
    seqs, code = await silent.until_closed()
    assert code == stream_socket.CLOSE_TOO_SLOW
    assert seqs == list(range(1, len(seqs) + 1))
    head = await served.services.sessions.head(session_id)
    again = await RawSocket.open(served, session_id, seqs[-1])
    async with asyncio.timeout(60):
        assert (await again.until_live())[: head - seqs[-1]] == list(range(seqs[-1] + 1, head + 1))
    again.writer.close()
    silent.writer.close()


async def test_who_reads_late_misses_nothing(served: Served) -> None:
    session_id = (await begun(served))["id"]
    late = await RawSocket.open(served, session_id)
    await eventually(lambda: followers(served) == 1)
    for _ in range(10):
        await notes(served, session_id, 50, LONG)
    reading = asyncio.create_task(late.until_closed())
    await served.client.post(f"/api/v1/sessions/{session_id}/archive")
    seqs, code = await reading
    assert code == stream_socket.CLOSE_ARCHIVED
    assert seqs == list(range(1, await served.services.sessions.head(session_id) + 1))
    late.writer.close()


@pytest.mark.parametrize(
    "frame",
    [
        b"\x81\x01x",  # not masked
        b"\xc1\x80\x00\x00\x00\x00",  # a reserved bit
        b"\x83\x80\x00\x00\x00\x00",  # no such kind
        b"\x09\x80\x00\x00\x00\x00",  # a ping in pieces
        b"\x89\xfe\x01\x00\x00\x00\x00\x00",  # a long ping
    ],
)
async def test_a_malformed_frame_ends_the_connection(served: Served, frame: bytes) -> None:
    session_id = (await begun(served))["id"]
    made = await RawSocket.open(served, session_id)
    made.writer.write(frame)
    _, code = await made.until_closed()
    assert code == 1002
    await eventually(lambda: followers(served) == 0)
    made.writer.close()


async def test_pings_are_answered_and_other_frames_are_passed_over_byte_by_byte(served: Served) -> None:
    session_id = (await begun(served))["id"]
    made = await RawSocket.open(served, session_id)
    said = b"\x81\xfe\x01\x00\x01\x02\x03\x04" + b"y" * 256 + b"\x89\x84\x01\x02\x03\x04" + b"qgmc"
    for at in range(len(said)):
        made.writer.write(said[at : at + 1])
        await made.writer.drain()
    async with asyncio.timeout(60):
        async for first, payload in made.frames():
            if first == PONG:
                assert payload == bytes(a ^ b for a, b in zip(b"qgmc", b"\x01\x02\x03\x04", strict=True))
                break
    made.writer.write(b"\x88\x82\x00\x00\x00\x00\x03\xe8")
    _, code = await made.until_closed()
    assert code == 1000
    made.writer.close()


async def test_who_floods_is_let_go(served: Served) -> None:
    session_id = (await begun(served))["id"]
    flooding = await RawSocket.open(served, session_id)
    flooding.writer.write(b"\x82\xff" + (2 * stream_socket.HEARD_BYTES).to_bytes(8, "big") + b"\x00" * 4)
    flooding.writer.write(b"z" * 2 * stream_socket.HEARD_BYTES)
    await eventually(lambda: followers(served) == 0)
    flooding.writer.close()


async def test_hundreds_that_come_back_at_once_see_everything_once(served: Served) -> None:
    session_id = (await begun(served))["id"]
    after = await notes(served, session_id, 20)
    sending = asyncio.create_task(notes(served, session_id, 100))
    made = await asyncio.gather(*(RawSocket.open(served, session_id, after - 10) for _ in range(300)))
    await sending
    await served.client.post(f"/api/v1/sessions/{session_id}/archive")
    seen = await asyncio.gather(*(one.until_closed() for one in made))
    head = await served.services.sessions.head(session_id)
    for seqs, code in seen:
        assert code == stream_socket.CLOSE_ARCHIVED
        assert seqs == list(range(after - 9, head + 1))
    for one in made:
        one.writer.close()
    await eventually(lambda: followers(served) == 0)
