"""A proxy before PostgreSQL that breaks the connection in the middle of a commit, in one of three ways."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

Fault = Literal["answer_lost", "command_lost", "command_late"]

LATE_S = 0.3
COMMITTED = b"Z\x00\x00\x00\x05I"
"""The server's word that it is idle again, outside of a transaction."""


class CommitProxy:
    """``faults`` happen one after the other, each to the next message with ``command`` in it. ``refusing`` turns new connections away."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self.faults: list[Fault] = []
        self.command = b""
        self.refusing = False
        self.broken = 0
        self.port = 0
        self.connections: set[asyncio.Task[None]] = set()

    def accept(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        """A new connection has come."""
        connection = asyncio.ensure_future(self.serve(client_in, client_out))
        self.connections.add(connection)
        connection.add_done_callback(self.connections.discard)

    async def serve(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        """One connection."""
        if self.refusing:
            client_out.close()
            return
        server_in, server_out = await asyncio.open_unix_connection(str(self._socket))
        answers = asyncio.create_task(_copy(server_in, client_out))
        try:
            await self._forward(client_in, client_out, server_in, server_out, answers)
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            answers.cancel()
            for writer in (client_out, server_out):
                writer.close()

    async def _forward(
        self,
        client_in: asyncio.StreamReader,
        client_out: asyncio.StreamWriter,
        server_in: asyncio.StreamReader,
        server_out: asyncio.StreamWriter,
        answers: "asyncio.Task[None]",
    ) -> None:
        while piece := await client_in.read(65_536):
            if self.faults and self.command in piece:
                fault = self.faults.pop(0)
                self.broken += 1
                answers.cancel()
                await asyncio.gather(answers, return_exceptions=True)
                if fault == "command_lost":
                    return
                if fault == "answer_lost":
                    server_out.write(piece)
                    await server_in.readuntil(COMMITTED)
                    return
                client_out.close()
                await asyncio.sleep(LATE_S)
                server_out.write(piece)
                await server_in.readuntil(COMMITTED)
                return
            server_out.write(piece)
            await server_out.drain()


@contextlib.asynccontextmanager
async def commit_proxy(socket: Path) -> AsyncIterator[CommitProxy]:
    """A proxy on a free port of loopback."""
    proxy = CommitProxy(socket)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for connection in proxy.connections:
            connection.cancel()
        await asyncio.gather(*proxy.connections, return_exceptions=True)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await source.read(65_536):
            target.write(piece)
            await target.drain()
        target.close()
