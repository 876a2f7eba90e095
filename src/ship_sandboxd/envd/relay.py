"""Two connections tied together, byte for byte."""

from __future__ import annotations

import asyncio

from .http1 import Connection


async def relay(left: Connection, right: Connection) -> None:
    """Copy both ways until both sides have ended. A half that ends is ended on the other side; a connection that
    breaks breaks the other, so a torn stream never looks like a finished one."""
    directions = [asyncio.ensure_future(_copy(left, right)), asyncio.ensure_future(_copy(right, left))]
    try:
        await asyncio.gather(*directions)
    except OSError:
        left.abort()
        right.abort()
    finally:
        for direction in directions:
            direction.cancel()
        await asyncio.gather(*directions, return_exceptions=True)


async def _copy(source: Connection, target: Connection) -> None:
    async for data in source.raw():
        await target.send(data)
    target.write_eof()
