"""The host's end of the connections that a sandbox's daemon dials, see `envd/link.py`.

Whatever runs in the sandbox may dial as well, so a line counts only once it has given the key that its daemon alone was
told; how many wait is bounded.
"""

import asyncio
import contextlib
import hmac
import os
import secrets
import socket
from collections import deque
from pathlib import Path

from ..envd.daemon import HANG_UP_PATH
from ..envd.http1 import CHUNK_BYTES
from .backend import Streams
from .bubblewrap import short_path

CONTROL, EGRESS = "control.sock", "egress.sock"
_KEY_FILE = "link.key"
_KEY_BYTES = 32
_MAX_WAITING = 16
_MAX_GREETING = 32
_GREETING_TIMEOUT_S = 5.0
_TAKE_TIMEOUT_S = 10.0
_MAX_ANSWER_BYTES = 4096


def new_key(folder: Path, owner: int) -> str:
    """Make the folder of the sockets and the key of this sandbox's lines; answers the key. `owner` is the sandbox's uid,
    which alone may dial."""
    (folder / "link").mkdir(mode=0o755, exist_ok=True)
    os.chown(folder / "link", owner, owner)
    key = secrets.token_hex(_KEY_BYTES)
    with os.fdopen(os.open(folder / _KEY_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(key)
    return key


def listen(folder: Path, name: str) -> socket.socket:
    """A socket in the sandbox's link folder, in place of one that an earlier host has left."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.suppress(FileNotFoundError):
        (folder / "link" / name).unlink()
    with short_path(folder / "link", name) as path:
        listener.bind(path)
        owner = (folder / "link").stat().st_uid
        os.chown(path, owner, owner)
        os.chmod(path, 0o600)  # noqa: PTH101 - the path goes through a descriptor
    listener.listen(128)
    listener.setblocking(False)
    return listener


class Lines:
    """The lines of one sandbox."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = (folder / _KEY_FILE).read_bytes()
        self._server: asyncio.Server | None = None
        self._waiting: deque[Streams] = deque()
        self._arrived = asyncio.Event()
        self._closed = False
        self._greeting = 0

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(
            self._greet, sock=listen(self._folder, CONTROL), limit=CHUNK_BYTES
        )

    async def take(self) -> Streams:
        """A connection to the daemon. Raises ConnectionRefusedError when it has not dialled for a while."""
        try:
            return await asyncio.wait_for(self._take(), _TAKE_TIMEOUT_S)
        except TimeoutError as error:
            raise ConnectionRefusedError("the sandbox's daemon does not answer") from error

    async def ready(self) -> None:
        """Wait until the daemon has dialled. Raises ConnectionRefusedError when nobody listens any more."""
        while not self._waiting:
            if self._closed:
                raise ConnectionRefusedError("the sandbox has ended")
            self._arrived.clear()
            await self._arrived.wait()

    async def hang_up(self, token: str) -> None:
        """Listen no more, and have the daemon end every connection: it dials again where somebody listens. Raises
        OSError when it does not comply."""
        reader, writer = await self.take()
        self._stop()
        try:
            request = f"POST {HANG_UP_PATH} HTTP/1.1\r\nHost: envd\r\nX-Access-Token: {token}\r\nContent-Length: 0\r\n\r\n"
            writer.write(request.encode())
            answer = await reader.read(_MAX_ANSWER_BYTES)
            if not answer.startswith(b"HTTP/1.1 204 "):
                raise ConnectionRefusedError("the sandbox's daemon does not hang up")
            while await reader.read(_MAX_ANSWER_BYTES):
                pass
        finally:
            writer.transport.abort()

    def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
        with contextlib.suppress(FileNotFoundError):
            (self._folder / "link" / CONTROL).unlink()

    async def close(self) -> None:
        """Listen no more and end what waits; connections that were taken go on."""
        self._stop()
        self._closed = True
        while self._waiting:
            self._waiting.popleft()[1].transport.abort()
        self._arrived.set()

    async def _take(self) -> Streams:
        while True:
            await self.ready()
            reader, writer = self._waiting.popleft()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._greeting >= _MAX_GREETING or len(self._waiting) >= _MAX_WAITING:
            writer.transport.abort()
            return
        self._greeting += 1
        try:
            greeting = await asyncio.wait_for(reader.readexactly(len(self._key) + 1), _GREETING_TIMEOUT_S)
        except (OSError, EOFError, TimeoutError):
            greeting = b""
        finally:
            self._greeting -= 1
        if not hmac.compare_digest(greeting, self._key + b"\n"):
            writer.transport.abort()
            return
        self._waiting.append((reader, writer))
        self._arrived.set()
