"""A stream of a daemon's messages that its reader is told the end of, also when the daemon has not lived to tell it."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator

from ..envd.http1 import CHUNKED, Connection, frame, last_frame

TYPE = "application/connect+json"
_HEAD = struct.Struct(">BI")
_LAST = 2


class StreamConnection(Connection):
    """A connection to a daemon that answers with a stream of the Connect protocol, see `envd/rpc.py`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self._kind = ""
        self._head = b""
        self._message_left = 0

    async def body(self, framing: tuple[str, int]) -> AsyncIterator[bytes]:
        self._kind = framing[0]
        async for piece in super().body(framing):
            self._follow(piece)
            yield piece

    def _follow(self, piece: bytes) -> None:
        while piece:
            if not self._message_left:
                missing = _HEAD.size - len(self._head)
                self._head, piece = self._head + piece[:missing], piece[missing:]
                if len(self._head) < _HEAD.size:
                    return
                self._message_left, self._head = _HEAD.unpack(self._head)[1], b""
            passed = min(self._message_left, len(piece))
            self._message_left, piece = self._message_left - passed, piece[passed:]

    def end(self, code: str, message: str) -> bytes:
        """What ends the stream with an error in place of what has not come; nothing where that is in the middle of a message."""
        if self._kind != CHUNKED or self._head or self._message_left:
            return b""
        data = json.dumps({"error": {"code": code, "message": message}}).encode()
        return frame(CHUNKED, _HEAD.pack(_LAST, len(data)) + data) + last_frame(CHUNKED)
