"""One sandbox, as this process knows it."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

from ..errors import NotFound
from ..isolation.backend import Backend, Streams
from ..isolation.cgroups import MemoryWatch
from ..journal import Journal
from ..network.egress import Egress
from .records import PAUSED, RESUMING, RUNNING, RecordFile, SandboxRecord

Value = TypeVar("Value")
_JUST_NOW_S = 5.0
_log = logging.getLogger("ship_sandboxd.lifecycle.sandboxes")


class Sandbox:
    """Its record, its folder, and what belongs to it in this process.

    Its state changes in turns, see `change`; `ending` is set once its end has begun.
    """

    def __init__(self, record: SandboxRecord, folder: Path, backend: Backend) -> None:
        self.record = record
        self.backend = backend
        self.folder = folder
        self.journal = Journal(folder)
        self._file = RecordFile(folder)
        self.egress: Egress | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.watch: asyncio.Task[None] | None = None
        self.ending: asyncio.Task[None] | None = None
        self.memory: MemoryWatch | None = None
        self.memory_ran_out_at = float("-inf")
        self._turn = asyncio.Lock()
        self._changes: set[asyncio.Task[Any]] = set()
        self._visits: WeakSet[asyncio.StreamWriter] = WeakSet()

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def there(self) -> bool:
        """Whether a client may know of it: it is made, and not about to be gone."""
        return self.record.state in (RUNNING, PAUSED, RESUMING) and self.ending is None

    @property
    def sleeps_lightly(self) -> bool:
        """Whether it is paused, and a request resumes it."""
        return self.record.state != RUNNING and self.record.auto_resume

    @property
    def end_failed(self) -> bool:
        """Whether its end began and could not be brought to an end."""
        ending = self.ending
        return (
            ending is not None and ending.done() and not ending.cancelled() and ending.exception() is not None
        )

    def save(self, *, lasting: bool = True) -> None:
        """Write its record down, see `RecordFile.save`. Raises OSError."""
        self._file.save(self.record, lasting=lasting)

    def tell(self, event: str, level: str = "info", **facts: object) -> None:
        """Into its own log, and the host's."""
        self.journal.write(event, level, **facts)
        _log.log(logging.getLevelNamesMapping()[level.upper()], event, extra={"sandbox": self.id, **facts})

    async def connect(self) -> Streams:
        """A connection to its daemon. Raises OSError when that does not answer."""
        reader, writer = await self.backend.connect(self.folder)
        if self.record.state == PAUSED:
            # A frozen daemon's socket still takes connections, and this one came too late to be broken by `disconnect`.
            writer.transport.abort()
            raise ConnectionAbortedError("the sandbox was paused meanwhile")
        self._visits.add(writer)
        return reader, writer

    def disconnect(self) -> None:
        """Break every connection to its daemon: who waits for a paused sandbox would wait for ever."""
        for writer in list(self._visits):
            writer.transport.abort()

    @property
    def ran_out_of_memory(self) -> bool:
        """Whether the kernel has ended a process of it for want of memory just now: what broke off meanwhile did so for that."""
        if self.memory is not None:
            self.memory.look()
        return time.monotonic() - self.memory_ran_out_at < _JUST_NOW_S

    def forget_memory(self) -> None:
        """Watch no longer for its memory to run out."""
        if self.memory is not None:
            self.memory.close()
            self.memory = None

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    async def change(self, work: Callable[[], Coroutine[None, None, Value]]) -> Value:
        """Do what changes its state, after the changes that were asked for earlier. It goes on when the caller goes away;
        the sandbox's end cuts it short. Raises NotFound when that happens, and what `work` raises."""
        task = asyncio.create_task(self._in_turn(work))
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and self.ending is not None:
                raise gone(self.id) from None
            raise

    async def _in_turn(self, work: Callable[[], Coroutine[None, None, Value]]) -> Value:
        async with self._turn:
            if self.ending is not None:
                raise gone(self.id)
            return await work()

    async def cut_changes(self) -> None:
        """Cut short what is being done to its state."""
        changes = list(self._changes)
        for change in changes:
            change.cancel()
        await asyncio.gather(*changes, return_exceptions=True)


def gone(sandbox_id: str, why: str = "") -> NotFound:
    return NotFound(f"sandbox '{sandbox_id}' not found{why}", "sandbox_not_found")
