"""An application that comes later than its server."""

import asyncio
import gc
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Receive, Scope, Send


class LateApplication:
    """An ASGI application that is built while its server listens already. Requests that need it wait for it.

    ``make`` builds it; what takes long of that belongs into a thread.
    """

    def __init__(self, make: Callable[[], Awaitable[ASGIApp]]) -> None:
        self._make = make
        self._app: ASGIApp | None = None
        self._is_there = asyncio.Event()

    async def build(self) -> None:
        """Build it. Raises what ``make`` raises: then there will never be one, and the server has to end."""
        self._app = await self._make()
        self._is_there.set()
        # What is loaded by now stays, so the garbage collector passes over it; and it comes less often than every 700 objects, which
        # are those of two requests. Together that is a tenth of all appends. Old cycles, of connections that are gone, do not wait
        # for millions of new objects.
        gc.freeze()
        gc.set_threshold(5_000, 10, 5)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if self._app is None:
            await self._is_there.wait()
            assert self._app is not None
        await self._app(scope, receive, send)
