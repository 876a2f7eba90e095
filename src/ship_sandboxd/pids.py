"""Processes of the host, told apart for good: a pid alone may come to mean another process."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .moments import boot_id


@dataclass(frozen=True)
class ProcessIdentity:
    """A pid and the time of its start, in clock ticks since the boot ``boot``: a machine that boots as it always does
    gives the same pids at the same times."""

    pid: int
    started: int
    boot: str = field(default_factory=boot_id)

    @classmethod
    def of(cls, pid: int) -> "ProcessIdentity | None":
        """The process that has this pid now; None when there is none, or only its remains."""
        fields = _stat_fields(pid)
        return None if fields is None or fields[0] == "Z" else cls(pid, int(fields[19]))

    @property
    def alive(self) -> bool:
        return ProcessIdentity.of(self.pid) == self

    @contextlib.contextmanager
    def opened(self) -> Iterator[int | None]:
        """A pidfd for it while it lives, else None."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            yield None
            return
        try:
            yield fd if self.alive else None
        finally:
            os.close(fd)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it lives."""
        with self.opened() as fd:
            if fd is not None:
                _send(fd, number)

    async def kill(self) -> None:
        """End it for sure, and return when it has ended."""
        with self.opened() as fd:
            if fd is not None:
                _send(fd, signal.SIGKILL)
                await readable(fd)

    async def wait(self) -> None:
        with self.opened() as fd:
            if fd is not None:
                await readable(fd)


def _send(fd: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended since it was looked for
        signal.pidfd_send_signal(fd, number)


async def readable(fd: int) -> None:
    """Wait until there is something to read: data, an end, or for a pidfd the exit of its process."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)


def find_by_argument(programs: tuple[str, ...], argument: str) -> list[ProcessIdentity]:
    """Processes that run one of the programs with exactly this argument."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                words = (path / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it ended while we were looking
            if words[0].rpartition(b"/")[2].decode("latin-1") in programs and argument.encode() in words:
                identity = ProcessIdentity.of(int(path.name))
                if identity is not None:
                    found.append(identity)
    return found


def _stat_fields(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()
