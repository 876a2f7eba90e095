"""Bytes moved from a socket to a socket or a file inside the kernel, by splice(2): none of them is copied through here."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import AsyncIterator, Callable

PIPE_BYTES = 1024 * 1024


class CannotSplice(Exception):
    """The kernel does not splice between these two; nothing has been moved."""


class Splice:
    """A pipe between two descriptors, which stay the caller's. A socket must not block, and nobody else may read the
    source or write to the target meanwhile. A file is written to in a thread, as a slow disk must not stop the loop."""

    def __init__(self, source: int, target: int) -> None:
        self.taken = 0  # bytes that have left the source
        self._loop = asyncio.get_running_loop()
        self._to_file = stat.S_ISREG(os.fstat(target).st_mode)
        # The loop knows the sockets by the transports that it reads and writes for; these are for us.
        self._source, self._target = os.dup(source), os.dup(target)
        self._out, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # a smaller pipe does it too
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def __enter__(self) -> Splice:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (self._source, self._target, self._in, self._out):
            os.close(fd)

    async def move(self, size: int) -> None:
        """Move so many bytes. Raises EOFError when the source ends before, OSError, or CannotSplice at the start."""
        held = await self._start(min(size, PIPE_BYTES))
        while True:
            size -= held
            while held:
                held -= await self._drain(held)
            if not size:
                return
            held = await self._fill(min(size, PIPE_BYTES))

    async def _start(self, size: int) -> int:
        try:
            return await self._fill(size) if size else 0
        except ConnectionError:
            raise
        except OSError as error:
            raise CannotSplice(str(error)) from error

    async def _fill(self, size: int) -> int:
        while True:
            try:
                count = os.splice(self._source, self._in, size)
            except BlockingIOError:
                await self._ready(self._loop.add_reader, self._loop.remove_reader, self._source)
                continue
            if not count:
                raise EOFError
            self.taken += count
            return count

    async def _drain(self, size: int) -> int:
        if self._to_file:
            return await self._loop.run_in_executor(None, self._write_to_file, size)
        while True:
            try:
                return os.splice(self._out, self._target, size)
            except BlockingIOError:
                await self._ready(self._loop.add_writer, self._loop.remove_writer, self._target)

    def _write_to_file(self, size: int) -> int:
        try:
            return os.splice(self._out, self._target, size)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            data = os.read(self._out, size)  # the file takes no splices
            write_all(self._target, data)
            return len(data)

    async def _ready(self, add: Callable[..., object], remove: Callable[[int], object], fd: int) -> None:
        ready = asyncio.Event()
        add(fd, ready.set)
        try:
            await ready.wait()
        finally:
            remove(fd)


async def save(pieces: AsyncIterator[bytes], fd: int) -> None:
    """Write to a file what comes piece by piece, in a thread: many pieces at once, while the next ones are read."""
    loop = asyncio.get_running_loop()
    writing = loop.run_in_executor(None, write_all, fd, b"")
    held, held_bytes = [], 0
    try:
        async for piece in pieces:
            held.append(piece)
            held_bytes += len(piece)
            if held_bytes >= PIPE_BYTES:
                await writing
                writing = loop.run_in_executor(None, write_all, fd, b"".join(held))
                held, held_bytes = [], 0
    finally:
        await writing
    await loop.run_in_executor(None, write_all, fd, b"".join(held))


def write_all(fd: int, data: bytes) -> None:
    """Write to a file, however often that takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
