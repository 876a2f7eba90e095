"""A WebSocket by hand, for clients that no library would let one write: they do not read, flood, or send what no client may."""

import asyncio
import base64
import os
import socket
import struct

from tests.chaos.nodes import Node

GREETING_S = 30.0
TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA


class Wire:
    """A connection after its handshake."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, opcode: int, body: bytes, *, masked: bool = True, final: bool = True) -> None:
        """One frame, and wait until the server has taken it."""
        mask = os.urandom(4) if masked else b""
        first = (0x80 if final else 0) | opcode
        bit = 0x80 if masked else 0
        if len(body) < 126:
            head = struct.pack("!BB", first, bit | len(body))
        elif len(body) < 1 << 16:
            head = struct.pack("!BBH", first, bit | 126, len(body))
        else:
            head = struct.pack("!BBQ", first, bit | 127, len(body))
        if masked:
            whole = int.from_bytes((mask * (len(body) // 4 + 1))[: len(body)], "big")
            body = (int.from_bytes(body, "big") ^ whole).to_bytes(len(body), "big")
        await self.raw(head + mask + body)

    async def raw(self, content: bytes) -> None:
        """These bytes, and wait until the server has taken them."""
        self.writer.write(content)
        await self.writer.drain()

    async def receive(self) -> tuple[int, bytes]:
        """The next frame: its opcode and body. Raises IncompleteReadError at the end."""
        first, second = await self.reader.readexactly(2)
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", await self.reader.readexactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
        return first & 0x0F, await self.reader.readexactly(size)

    def close(self) -> None:
        """Without a word."""
        self.writer.transport.abort()


class Wires:
    """All connections of a test to one node; used as ``async with Wires(node) as wires``."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._open: list[Wire] = []

    async def __aenter__(self) -> "Wires":
        return self

    async def __aexit__(self, *ending: object) -> None:
        for wire in self._open:
            wire.close()
        await asyncio.gather(*(wire.writer.wait_closed() for wire in self._open), return_exceptions=True)

    async def dial(self, session_id: str, *, after: int = 0, buffer_bytes: int = 0) -> Wire:
        """A stream of the session's events, not read yet. A client with a small ``buffer_bytes`` soon takes nothing more."""
        wire = await _dial(self._node, session_id, after, buffer_bytes)
        self._open.append(wire)
        return wire


async def _dial(node: Node, session_id: str, after: int, buffer_bytes: int) -> Wire:
    host, _, port = node.url.removeprefix("http://").rpartition(":")
    plain = socket.socket()
    if buffer_bytes:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=plain, limit=buffer_bytes or 1 << 16)
    request = (
        f"GET /api/v1/sessions/{session_id}/events/ws?after={after} HTTP/1.1\r\nHost: {host}:{port}\r\n"
        f"Authorization: Bearer {node.token}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n\r\n"
    )
    writer.write(request.encode())
    async with asyncio.timeout(GREETING_S):
        status = await reader.readuntil(b"\r\n\r\n")
    assert status.startswith(b"HTTP/1.1 101"), status
    return Wire(reader, writer)
