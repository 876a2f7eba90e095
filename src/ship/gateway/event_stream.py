"""Cut a byte stream into Server-Sent Events. Source: https://html.spec.whatwg.org/multipage/server-sent-events.html"""

import re
from collections.abc import AsyncGenerator, AsyncIterable

EVENT_LIMIT_BYTES = 16 * 1024 * 1024
"""No single event may be larger."""

_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r")


class OversizedEvent(Exception):
    """An event passed ``EVENT_LIMIT_BYTES``."""


async def events(chunks: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    """Each event with the blank line that ends it; what follows the last blank line is dropped, as the standard says."""
    pending = bytearray()
    searched = 0
    async for chunk in chunks:
        pending += chunk
        while (end := _BLANK_LINE.search(pending, searched)) is not None:
            yield bytes(pending[: end.end()])
            del pending[: end.end()]
            searched = 0
        searched = max(0, len(pending) - 3)
        if len(pending) > EVENT_LIMIT_BYTES:
            raise OversizedEvent


def data(event: bytes) -> bytes:
    """The event's data: its ``data`` lines joined; empty for comments and the like."""
    lines = (line for line in event.splitlines() if line.startswith(b"data:"))
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines)
