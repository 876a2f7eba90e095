"""What the host itself does in a sandbox, by the sandbox's daemon: run a command, put a file.

The answers come from inside a sandbox. They are not trusted: whatever is malformed or too large ends the call.
"""

import asyncio
import base64
import binascii
import json
import os
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from ..envd.http1 import BrokenStreamError, Connection, Headers, ProtocolError, Request, Response
from ..errors import ApiError
from .sandbox import Sandbox

MAX_MESSAGE_BYTES = 256 * 1024
"""A daemon of ours sends at most 64 KiB of output in one, as base64."""
_TURN_MESSAGES = 128
_PIECE_BYTES = 64 * 1024
_LAST = 2
_KILLED = 137
OnOutput = Callable[[str, bytes], None]


class CommandFailed(ApiError):
    """A command that could not be run to its end, and why; one that ended with an error status is a result."""

    status = 500
    code = "command_failed"


async def run(
    sandbox: Sandbox,
    command: str,
    *,
    user: str,
    workdir: str,
    env: dict[str, str],
    on_output: OnOutput,
    on_start: Callable[[], None] | None = None,
) -> int:
    """Run a command by a login shell and wait for its end; answers its exit status, 128 and more for a signal.

    `on_output` gets ("stdout" or "stderr", bytes) as they come; `on_start` is called when it runs. Cancelling ends the wait and not the command, which ends
    with its sandbox. Raises CommandFailed.
    """
    message = {
        "process": {"cmd": "/bin/bash", "args": ["-l", "-c", command], "cwd": workdir, "envs": env},
        "stdin": False,
    }
    async for event in _stream(sandbox, "/process.Process/Start", message, user):
        data, end = event.get("data"), event.get("end")
        if on_start is not None and "start" in event:
            on_start()
        if isinstance(data, dict):
            for kind in ("stdout", "stderr"):
                if kind in data:
                    on_output(kind, _bytes(data[kind]))
        if isinstance(end, dict):
            return _status(end)
    raise CommandFailed("the sandbox's daemon did not say how the command ended")


def outcome(sandbox: Sandbox, status: int) -> str:
    """How a command of a sandbox has just ended, in words."""
    is_starved = status == _KILLED and sandbox.ran_out_of_memory
    return f"exit status {status}{': out of memory' if is_starved else ''}"


async def send(sandbox: Sandbox, file: Path, path: str) -> None:
    """Put a file of the host into the sandbox, at `path`. Raises CommandFailed."""
    # Here and not in a thread: one whose caller does not wait any more would leave it open.
    with file.open("rb") as opened:
        fields = [
            ("Content-Type", "application/octet-stream"),
            ("Content-Length", str(os.fstat(opened.fileno()).st_size)),
        ]
        async with _Call(sandbox) as call:
            await call.connection.send(
                call.request("POST", f"/files?{urlencode({'path': path})}", fields, "user")
            )
            while piece := await asyncio.to_thread(opened.read, _PIECE_BYTES):
                await call.connection.send(piece)
            answer, told = await call.answer()
            if answer.status != 200:
                raise CommandFailed(_reason(told) or f"writing {path} failed with status {answer.status}")


class _Call:
    """One request to the daemon, on a connection of its own."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self.connection: Connection

    async def __aenter__(self) -> "_Call":
        try:
            self.connection = Connection(*await self._sandbox.connect())
        except OSError as error:
            raise CommandFailed("the sandbox does not answer") from error
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, _: object) -> None:
        self.connection.abort()
        if isinstance(error, OSError | BrokenStreamError | ProtocolError):
            reason = "it ran out of memory" if self._sandbox.ran_out_of_memory else error
            raise CommandFailed(f"the sandbox broke off: {reason}") from error

    def request(self, method: str, target: str, fields: list[tuple[str, str]], user: str) -> bytes:
        known = base64.b64encode(f"{user}:".encode()).decode()
        return Request(
            method,
            target,
            "HTTP/1.1",
            Headers(
                [
                    ("Host", "envd"),
                    ("X-Access-Token", self._sandbox.record.token),
                    ("Authorization", f"Basic {known}"),
                    *fields,
                ]
            ),
        ).encode()

    async def answer(self) -> tuple[Response, bytes]:
        """The answer and its whole, small body."""
        answer = await self.connection.read_response()
        told = bytearray()
        async for piece in self.connection.body(answer.framing("POST")):
            told += piece
            if len(told) > _PIECE_BYTES:
                raise ProtocolError("the answer is too long")
        return answer, bytes(told)


async def _stream(
    sandbox: Sandbox, path: str, message: dict[str, Any], user: str
) -> AsyncIterator[dict[str, Any]]:
    """The events of a server stream."""
    data = json.dumps(message).encode()
    body = struct.pack(">BI", 0, len(data)) + data
    fields = [("Content-Type", "application/connect+json"), ("Content-Length", str(len(body)))]
    async with _Call(sandbox) as call:
        await call.connection.send(call.request("POST", path, fields, user) + body)
        answer = await call.connection.read_response()
        if answer.status != 200:
            raise CommandFailed(f"the sandbox's daemon answered with status {answer.status}")
        async for flags, value in _messages(call.connection.body(answer.framing("POST"))):
            if flags & _LAST:
                error = value.get("error")
                if isinstance(error, dict):
                    raise CommandFailed(f"{error.get('code')}: {error.get('message')}"[:2000])
                return
            event = value.get("event")
            if isinstance(event, dict):
                yield event


async def _messages(body: AsyncIterator[bytes]) -> AsyncIterator[tuple[int, dict[str, Any]]]:
    buffer, count = bytearray(), 0
    async for piece in body:
        buffer += piece
        while len(buffer) >= 5:
            count += 1
            if count % _TURN_MESSAGES == 0:
                await asyncio.sleep(0)  # who sends faster than we read keeps nobody else waiting
            flags, size = struct.unpack_from(">BI", buffer)
            if size > MAX_MESSAGE_BYTES:
                raise ProtocolError("a message is too large")
            if len(buffer) < 5 + size:
                break
            value = _object(bytes(buffer[5 : 5 + size]))
            del buffer[: 5 + size]
            yield flags, value


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a message is not JSON") from error
    if not isinstance(value, dict):
        raise ProtocolError("a message is not an object")
    return value


def _bytes(value: object) -> bytes:
    try:
        return base64.b64decode(str(value))
    except (binascii.Error, ValueError) as error:
        raise CommandFailed("the sandbox sent output that is not base64") from error


def _status(end: dict[str, Any]) -> int:
    """The exit status of an end event, in which 0 and False may be left out."""
    code = end.get("exitCode", 0)
    if not isinstance(code, int) or not -1 <= code <= 255:
        raise CommandFailed("the sandbox sent an exit status that is none")
    return code if code >= 0 else _KILLED if end.get("status") == "signal: killed" else 143


def _reason(told: bytes) -> str:
    try:
        return str(json.loads(told).get("message", ""))[:2000]
    except (ValueError, AttributeError):
        return ""
