"""A runner that speaks the link by hand."""

import asyncio
import json
from types import TracebackType
from typing import Any

import websockets
from tests.ship.api.conftest import Served


class HandRunner:
    """One link of one generation; ``acked`` is what the welcome said."""

    def __init__(self, served: Served, session_id: str, generation: int = 1) -> None:
        self._url = served.url.replace("http", "ws") + "/runner/v1/link"
        self.token = served.services.sandbox_tokens.issue(session_id, generation)
        self.generation = generation
        self.acked = 0
        self.n = 0

    async def __aenter__(self) -> "HandRunner":
        headers = {"Authorization": f"Bearer {self.token}"}
        self._socket = await websockets.connect(self._url, additional_headers=headers, proxy=None)
        await self.send({"t": "hello", "protocol": 1, "generation": self.generation, "spooled": 0})
        welcome = await self.receive()
        assert welcome["t"] == "welcome", welcome
        self.acked = self.n = welcome["acked"]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._socket.close()

    async def send(self, frame: dict[str, Any]) -> None:
        await self._socket.send(json.dumps(frame))

    async def receive(self) -> dict[str, Any]:
        async with asyncio.timeout(10):
            frame: dict[str, Any] = json.loads(await self._socket.recv())
        return frame

    async def report(self, type_name: str, n: int | None = None, **data: Any) -> None:
        """Send one fact and wait for its acknowledgement; other frames meanwhile are kept in ``told``."""
        self.n = n or self.n + 1
        await self.send({"t": "event", "n": self.n, "at_ms": 1, "type": type_name, "v": 1, "data": data})

    async def report_v(self, type_name: str, version: int, **data: Any) -> None:
        """The same for a fact of another version."""
        self.n += 1
        await self.send(
            {"t": "event", "n": self.n, "at_ms": 1, "type": type_name, "v": version, "data": data}
        )

    async def until(self, kind: str) -> dict[str, Any]:
        """The next frame of this kind."""
        while (frame := await self.receive())["t"] != kind:
            pass
        return frame
