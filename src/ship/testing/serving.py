"""Serve an ASGI application on the running loop, on a port of its own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.types import ASGIApp

from ship.api.server import listen, server
from ship.api.services import Services


@contextlib.asynccontextmanager
async def serving(
    app: ASGIApp, services: Services | None = None, *, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[str]:
    """Serves the application until the block ends, with the API's door before it if there are services; gives its URL, without a slash
    at the end. Port 0 picks a free one."""
    with listen(host, port) as listener:
        address, bound = listener.getsockname()[:2]
        running_server = server(app, services)
        running = asyncio.create_task(running_server.serve(sockets=[listener]))
        try:
            yield f"http://{address}:{bound}"
        finally:
            running_server.should_exit = True
            await running
