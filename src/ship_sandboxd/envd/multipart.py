"""Streaming `multipart/form-data` (RFC 7578): parts are read as they come, in bounded memory."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from urllib.parse import unquote

from .http1 import ProtocolError

_MAX_PART_HEAD_BYTES = 16 * 1024
_ESCAPED = re.compile("%(22|[01][0-9A-F])")
_PARAMETER = re.compile(r';\s*([\w*-]+)=(?:"((?:[^"\\]|\\.)*)"|([^;\s]*))')


def parameter(field: str, name: str) -> str:
    """A parameter of a header field such as Content-Disposition; an empty string when it is absent."""
    for key, quoted, bare in _PARAMETER.findall(field):
        if key.lower() == name:
            return re.sub(r"\\(.)", r"\1", quoted) if quoted else str(bare)
    return ""


@dataclass
class Part:
    """One field or file of a form."""

    name: str
    filename: str
    data: AsyncIterator[bytes]


async def parts(body: AsyncIterator[bytes], boundary: str) -> AsyncGenerator[Part, None]:
    """The parts in turn; each one's data must be read to its end before the next is asked for."""
    reader = _Reader(body, b"\r\n--" + boundary.encode("latin-1"))
    await reader.skip_preamble()
    while await reader.next_part():
        head = await reader.head()
        yield Part(*_names(head), reader.data())
        async for _ in reader.data():
            pass  # what the caller did not want


def _names(head: str) -> tuple[str, str]:
    for line in head.split("\r\n"):
        field, _, value = line.partition(":")
        if field.strip().lower() == "content-disposition":
            # Browsers and httpx escape quotes and control characters in a file name, and leave everything else alone.
            filename = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), parameter(value, "filename"))
            extended = parameter(value, "filename*")
            return parameter(value, "name"), unquote(extended.rpartition("''")[2]) if extended else filename
    raise ProtocolError("a part has no Content-Disposition")


class _Reader:
    def __init__(self, body: AsyncIterator[bytes], delimiter: bytes) -> None:
        self._body = body
        self._delimiter = delimiter
        self._buffer = bytearray(b"\r\n")
        self._in_part = False

    async def _more(self) -> None:
        try:
            self._buffer += await self._body.__anext__()
        except StopAsyncIteration:
            raise ProtocolError("the multipart body ends before its last boundary") from None

    async def skip_preamble(self) -> None:
        self._in_part = True
        async for _ in self.data():
            pass

    async def next_part(self) -> bool:
        """Read what follows a boundary: another part, or the end."""
        while len(self._buffer) < 2:
            await self._more()
        more = self._buffer[:2] != b"--"
        self._in_part = more
        return more

    async def head(self) -> str:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > _MAX_PART_HEAD_BYTES:
                raise ProtocolError("a part's header fields are too large")
            await self._more()
        head = bytes(self._buffer[:end]).decode("utf-8", "replace")
        del self._buffer[: end + 4]
        return head

    async def data(self) -> AsyncGenerator[bytes, None]:
        while self._in_part:
            end = self._buffer.find(self._delimiter)
            safe = end if end >= 0 else max(0, len(self._buffer) - len(self._delimiter))
            if safe:
                with memoryview(self._buffer) as view:
                    piece = bytes(view[:safe])
                del self._buffer[:safe]
                yield piece
            if end >= 0:
                del self._buffer[: len(self._delimiter)]
                self._in_part = False
            else:
                await self._more()
