"""How the daemon meets the host where no descriptor can be handed over: it dials the host, both ways.

The host listens on two Unix sockets in a folder that the sandbox sees read-only. On `control.sock` the daemon keeps a
few connections waiting, lines; the host takes one for each connection that it wants, and the daemon dials another.
Whatever a program of the sandbox sends to its proxy goes to `egress.sock`.

A sandbox whose memory is to be written out must hold no connection to the host: `hang_up` ends all of them, and the
daemon dials again as soon as the host listens again, be it in the same moment or after days.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from .http1 import CHUNK_BYTES, Connection
from .relay import relay

SPARE_LINES = 3
MAX_TUNNELS = 512
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.02, 0.5
_PATIENCE_S = 60.0
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Link:
    """`config` has `folder`, `key`, which every line begins with, and `proxy_port`."""

    def __init__(self, config: dict[str, Any], serve: Serve) -> None:
        self._folder = str(config["folder"])
        self._greeting = str(config["key"]).encode() + b"\n"
        self._proxy_port = int(config["proxy_port"])
        self._serve = serve
        self._tasks: set[asyncio.Task[None]] = set()
        self._tunnels = 0
        self._proxy: asyncio.AbstractServer | None = None
        self._opening = asyncio.Lock()

    async def run(self) -> None:
        """Serve for ever."""
        self._dial_lines()
        await asyncio.get_running_loop().create_future()

    async def hang_up(self) -> None:
        """End every connection with the host but the caller's own, and the listener of the proxy; begin to dial again."""
        if self._proxy is not None:
            self._proxy.close()
            self._proxy = None
        others = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self._dial_lines()

    def _dial_lines(self) -> None:
        for _ in range(SPARE_LINES):
            self._run(self._keep_line())

    def _run(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep_line(self) -> None:
        """One line waits at a time: another is dialled when the host has taken it, or has gone."""
        while True:
            line = await self._dial("control.sock")
            try:
                await self._open_proxy()
                await asyncio.get_running_loop().sock_sendall(line, self._greeting)
                await _readable(line)
                taken = line.recv(1, socket.MSG_PEEK)
            except OSError:
                taken = b""
            except asyncio.CancelledError:
                line.close()
                raise
            if taken:
                self._run(self._serve_line(line))
            else:
                line.close()

    async def _serve_line(self, line: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=line, limit=CHUNK_BYTES)
        await self._serve(reader, writer)

    async def _open_proxy(self) -> None:
        """The proxy is open while there is a host."""
        async with self._opening:
            if self._proxy is None:
                self._proxy = await asyncio.start_server(
                    self._tunnel, "127.0.0.1", self._proxy_port, reuse_address=True
                )

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or self._tunnels >= MAX_TUNNELS:
            writer.transport.abort()
            return
        self._tunnels += 1
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        program = Connection(reader, writer)
        try:
            host = await asyncio.wait_for(self._dial("egress.sock"), _PATIENCE_S)
            outside = Connection(*await asyncio.open_unix_connection(sock=host, limit=CHUNK_BYTES))
            try:
                await relay(program, outside)
            finally:
                outside.abort()
        except (OSError, asyncio.TimeoutError):
            program.abort()
        finally:
            self._tunnels -= 1
            await program.close()

    async def _dial(self, name: str) -> socket.socket:
        """A connection to the host. While it does not listen it is being started anew: wait for it."""
        loop, delay_s = asyncio.get_running_loop(), _FIRST_DELAY_S
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.setblocking(False)
            try:
                await loop.sock_connect(connection, f"{self._folder}/{name}")
                return connection
            except OSError:
                connection.close()
            except asyncio.CancelledError:
                connection.close()
                raise
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 1.3, _LONGEST_DELAY_S)


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(connection.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        with contextlib.suppress(OSError):
            loop.remove_reader(connection.fileno())
