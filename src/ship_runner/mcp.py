"""``ship-runner mcp``: the runner's tools for the agent, by the Model Context Protocol over standard input and output.

One JSON-RPC 2.0 message a line, https://modelcontextprotocol.io/specification/2025-06-18/basic/transports; of the protocol only what a
client of tools needs. Calls run side by side, and a call that waits says so as progress, lest its client gives it up.
"""

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ship_runner import __version__

log = logging.getLogger(__name__)

PROTOCOLS = ("2025-06-18", "2025-03-26", "2024-11-05")
PROGRESS_S = 10.0
_LINE_BYTES = 16 << 20
_PARSE_ERROR, _INVALID_REQUEST, _NO_METHOD, _INVALID_PARAMS = -32700, -32600, -32601, -32602

Json = dict[str, Any]


class ToolFailed(Exception):
    """A call that did not work, in words for the model."""


@dataclass(frozen=True, slots=True)
class Tool:
    """``schema`` is the JSON Schema of the arguments; ``call`` answers with text, or raises ToolFailed."""

    name: str
    description: str
    schema: Mapping[str, Any]
    call: Callable[[Mapping[str, Any]], Awaitable[str]]


class ToolServer:
    """Answers one client. ``send`` takes a message; requests are known by the client's ids."""

    def __init__(self, tools: list[Tool], send: Callable[[Json], None]) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._send = send
        self._calls: dict[str | int, asyncio.Task[None]] = {}

    def hear(self, line: bytes) -> None:
        """Take in one message; what takes time is answered later."""
        try:
            message = json.loads(line)
        except ValueError as error:
            self._refuse(None, _PARSE_ERROR, str(error))
            return
        if not isinstance(message, dict) or not isinstance(message.get("method"), str):
            self._refuse(None, _INVALID_REQUEST, "not a request")
            return
        method, params = message["method"], message.get("params") or {}
        if "id" not in message:
            if method == "notifications/cancelled" and (call := self._calls.get(params.get("requestId", ""))):
                call.cancel()
            return
        self._answer(message["id"], method, params)

    async def stop(self) -> None:
        """Give up the calls that still run."""
        calls = list(self._calls.values())
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    def _answer(self, number: str | int, method: str, params: Json) -> None:
        match method:
            case "initialize":
                wanted = params.get("protocolVersion")
                result: Json = {
                    "protocolVersion": wanted if wanted in PROTOCOLS else PROTOCOLS[0],
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "ship", "version": __version__},
                }
            case "ping":
                result = {}
            case "tools/list":
                result = {
                    "tools": [
                        {"name": tool.name, "description": tool.description, "inputSchema": tool.schema}
                        for tool in self._tools.values()
                    ]
                }
            case "tools/call":
                self._begin_call(number, params)
                return
            case _:
                self._refuse(number, _NO_METHOD, f"there is no method {method}")
                return
        self._send({"jsonrpc": "2.0", "id": number, "result": result})

    def _begin_call(self, number: str | int, params: Json) -> None:
        tool = self._tools.get(params.get("name", ""))
        if tool is None:
            self._refuse(number, _INVALID_PARAMS, f"there is no tool {params.get('name')!r}")
            return
        call = asyncio.create_task(self._call(number, tool, params))
        self._calls[number] = call
        call.add_done_callback(lambda _: self._calls.pop(number, None))

    async def _call(self, number: str | int, tool: Tool, params: Json) -> None:
        token = (params.get("_meta") or {}).get("progressToken")
        telling = asyncio.create_task(self._tell_progress(token)) if token is not None else None
        try:
            text, failed = await tool.call(params.get("arguments") or {}), False
        except ToolFailed as error:
            text, failed = str(error), True
        finally:
            if telling is not None:
                telling.cancel()
        result = {"content": [{"type": "text", "text": text}], "isError": failed}
        self._send({"jsonrpc": "2.0", "id": number, "result": result})

    async def _tell_progress(self, token: str | int) -> None:
        waited = 0
        while True:
            await asyncio.sleep(PROGRESS_S)
            waited += 1
            params = {"progressToken": token, "progress": waited}
            self._send({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})

    def _refuse(self, number: str | int | None, code: int, message: str) -> None:
        self._send({"jsonrpc": "2.0", "id": number, "error": {"code": code, "message": message}})


async def serve(tools: list[Tool]) -> None:
    """Serve on standard input and output until the input ends."""
    reader = asyncio.StreamReader(limit=_LINE_BYTES)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    server = ToolServer(tools, _write)
    with contextlib.suppress(ValueError, BrokenPipeError):  # a line beyond all bounds; a client that has gone
        while line := await reader.readline():
            server.hear(line)
    await server.stop()


def _write(message: Json) -> None:
    sys.stdout.buffer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")
    sys.stdout.buffer.flush()
