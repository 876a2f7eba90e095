"""A TCP connection between two parts of a system, to be stalled and cut."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator

PIECE_BYTES = 1 << 16
RESET = struct.pack("ii", 1, 0)


class Line:
    """Leads to a port of this machine from a port of its own. Used inside ``line``, from any thread."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._answers = asyncio.Event()
        self._answers.set()
        self._is_cut = False
        self._stalls_at: bytes | None = None
        self._open: set[asyncio.StreamWriter] = set()

    def stall(self, request: bytes) -> None:
        """From the next such request on what is asked arrives, but no answer does, and nobody is told."""
        self._do(self._stall, request)

    def cut(self) -> None:
        """Whoever is connected, or connects, is reset."""
        self._do(self._cut)

    def mend(self) -> None:
        """All is as before."""
        self._do(self._mend)

    def run(self, ready: threading.Event) -> None:
        """Carry until ``end``."""
        self._loop.run_until_complete(self._serve(ready))
        self._loop.close()

    def end(self) -> None:
        """Let ``run`` return."""
        self._do(self._ended.set)

    async def _serve(self, ready: threading.Event) -> None:
        self._ended = asyncio.Event()
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._ended.wait()
        server.close()
        self._cut()
        carrying = asyncio.all_tasks() - {asyncio.current_task()}
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)

    def _do(self, what: Callable[..., None], *arguments: object) -> None:
        self._loop.call_soon_threadsafe(what, *arguments)

    def _stall(self, request: bytes) -> None:
        self._stalls_at = request

    def _cut(self) -> None:
        self._is_cut, self._stalls_at = True, None
        for writer in self._open:
            _reset(writer)
        self._answers.set()

    def _mend(self) -> None:
        self._is_cut, self._stalls_at = False, None
        self._answers.set()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            _reset(writer)
            return
        try:
            there = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            _reset(writer)
            return
        ends = {writer, there[1]}
        self._open |= ends
        try:
            await asyncio.gather(
                _pump(reader, there[1], self._asked), _pump(there[0], writer, self._answered)
            )
        finally:
            self._open -= ends
            for end in ends:
                end.close()

    async def _asked(self, content: bytes) -> None:
        if self._stalls_at and self._stalls_at in content:
            self._answers.clear()

    async def _answered(self, content: bytes) -> None:
        await self._answers.wait()


@contextlib.contextmanager
def line(target: int) -> Iterator[Line]:
    """One that leads there, until the block ends."""
    laid, ready = Line(target), threading.Event()
    carrying = threading.Thread(target=laid.run, args=(ready,))
    carrying.start()
    ready.wait()
    try:
        yield laid
    finally:
        laid.end()
        carrying.join()


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()


async def _pump(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    before: Callable[[bytes], Awaitable[None]],
) -> None:
    with contextlib.suppress(OSError):
        while content := await reader.read(PIECE_BYTES):
            await before(content)
            writer.write(content)
            await writer.drain()
        writer.write_eof()
