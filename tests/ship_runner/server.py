"""An ASGI application on a free port of the loopback, inside the test's own event loop."""

import asyncio

import uvicorn
from starlette.types import ASGIApp

from ship.testing.ports import free_port


class Server:
    """``url`` is known from the beginning; ``stop`` cuts every connection, and ``start`` works again afterwards."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        config = uvicorn.Config(
            self._app, host="127.0.0.1", port=self._port, log_level="critical", lifespan="off",
            ws="websockets-sansio", timeout_graceful_shutdown=0, ws_ping_interval=None,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._task = asyncio.create_task(self._server.serve())
        async with asyncio.timeout(10):
            while not self._server.started:
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        assert self._server is not None
        assert self._task is not None
        self._server.should_exit = self._server.force_exit = True
        await self._task
