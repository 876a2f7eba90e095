"""Pausing and resuming.

    running ── pause ──► frozen ── after a while, or the processes die ──► parked
       ▲                    │                                                 │
       ├── thawed: memory came back                                           │
       └── started anew on the same disk: id, uid and token stay; memory is lost, or read in where it was written out

A frozen sandbox costs memory and comes back at once; a parked one costs nothing but its disk. Both are `paused` for
clients; `memory_kept` of the record says which it is, and after a resume, which it was. Every function here runs in the
sandbox's turn.
"""

import contextlib
import logging
import time
from collections.abc import Callable

from ..errors import ApiError, CheckpointFailed, Conflict, DiskFull
from ..isolation import cgroups
from ..moments import Moment
from ..quotas import Quotas
from . import startup
from .launches import Launches
from .records import PAUSED, RESUMING, RUNNING
from .sandbox import Sandbox

Attend = Callable[[Sandbox], None]
Sync = Callable[[Sandbox], None]
UNFINISHED = "an earlier attempt to end its processes failed"
_log = logging.getLogger("ship_sandboxd.lifecycle.pauses")


class Pauses:
    """`attend` is called with each sandbox whose timer and watch have to be set anew, `attend_later` with each whose processes
    did not end and are to be ended after a while, `sync` with each whose files have to come to the disk in the background, so
    that a power cut takes nothing of it."""

    def __init__(
        self, launches: Launches, quotas: Quotas, attend: Attend, attend_later: Attend, sync: Sync
    ) -> None:
        self._launches = launches
        self._quotas = quotas
        self._attend = attend
        self._attend_later = attend_later
        self._sync = sync

    async def pause(self, sandbox: Sandbox, *, keep_memory: bool) -> None:
        """Raises Conflict when it is paused, FreezeFailed, and OSError: then it runs on, or its processes are yet to be
        ended."""
        if sandbox.record.state != RUNNING:
            raise Conflict(f"sandbox '{sandbox.id}' is paused already", "sandbox_paused")
        sandbox.memory_ran_out_at = float("-inf")  # what breaks off from here on does so for the pause
        if keep_memory and sandbox.backend.keeps_memory:
            await self._freeze(sandbox)
        else:
            reason = "asked for" if not keep_memory else "this machine cannot freeze processes"
            await self.park(sandbox, reason, keep_memory=keep_memory)

    async def _freeze(self, sandbox: Sandbox) -> None:
        record, backend = sandbox.record, sandbox.backend
        await backend.freeze(record.cgroups)
        record.state, record.paused, record.memory_kept = PAUSED, Moment.after(0), True
        try:
            sandbox.save()
        except OSError:
            record.state, record.paused = RUNNING, None
            await backend.thaw(record.cgroups)
            raise
        sandbox.disconnect()
        sandbox.tell("sandbox paused", memory_kept=True)
        self._attend(sandbox)
        self._sync(sandbox)

    async def park(self, sandbox: Sandbox, reason: str, *, keep_memory: bool = True) -> None:
        """End its processes and keep its files, and its memory where that is wanted and its backend can write it out; of
        one that is parked already, nothing happens. Raises OSError; once its processes are being ended, that is then due
        and is tried again."""
        record = sandbox.record
        if record.state == PAUSED and record.init is None:
            return
        before = record.state, record.paused, record.memory_kept
        search = record.state == RESUMING  # which it says until they have ended
        record.state = RESUMING if search else PAUSED
        record.paused, record.memory_kept = record.paused or Moment.after(0), False
        try:
            # Written first: a host that finds its processes gone must not take it for one that has ended.
            sandbox.save()
        except OSError:
            record.state, record.paused, record.memory_kept = before
            raise
        sandbox.stop_timer()
        sandbox.disconnect()
        is_written = keep_memory and await self._write_memory_out(sandbox)
        await self._stop(sandbox, search=search)
        record.state, record.memory_kept = PAUSED, is_written
        event = "its memory is written out" if is_written else "its memory is given up"
        sandbox.tell(f"sandbox parked: {event}, its files are kept", reason=reason)
        # What was written first says enough: a new host finds it parked as well.
        with contextlib.suppress(OSError):
            sandbox.save()
        self._attend(sandbox)
        self._sync(sandbox)

    async def _stop(self, sandbox: Sandbox, *, search: bool) -> None:
        try:
            await self._launches.stop(sandbox, search=search)
        except OSError:
            self._attend_later(sandbox)
            raise

    async def _write_memory_out(self, sandbox: Sandbox) -> bool:
        record, backend = sandbox.record, sandbox.backend
        if not backend.parks_memory or record.init is None or not record.init.alive:
            return False
        try:
            self._quotas.check_room(cgroups.memory_mb(record.cgroups) or record.memory_mb)
            if sandbox.watch is not None:
                sandbox.watch.cancel()
                sandbox.watch = None
            await self._launches.close_egress(sandbox)
            await backend.checkpoint(sandbox.folder, record.token, record.cgroups)
        except (CheckpointFailed, DiskFull, OSError) as error:
            sandbox.tell("the sandbox's memory cannot be written out", "warning", reason=str(error))
            return False
        return True

    async def resume(self, sandbox: Sandbox, timeout_s: int) -> bool:
        """Let it run for so many seconds; answers whether it had been paused at all. Raises LaunchFailed, OSError: then it
        is still paused."""
        record = sandbox.record
        if record.state == RUNNING:
            return False
        began = time.monotonic()
        end, granted = record.end, record.timeout_s
        record.end, record.timeout_s = Moment.after(timeout_s), timeout_s
        try:
            if record.frozen and record.init is not None and record.init.alive:
                await self._thaw(sandbox)
            else:
                # Nobody may have noticed yet that they have ended.
                await self.park(sandbox, "its processes have ended" if record.frozen else UNFINISHED)
                await self._start_anew(sandbox)
        except BaseException:
            record.end, record.timeout_s = end, granted
            raise
        took_ms = round((time.monotonic() - began) * 1000, 1)
        event, level = "sandbox resumed", "info"
        if not record.memory_kept:
            event, level = "sandbox resumed without its memory: its processes are new", "warning"
        sandbox.tell(event, level, memory_kept=record.memory_kept, took_ms=took_ms)
        self._attend(sandbox)
        return True

    async def _thaw(self, sandbox: Sandbox) -> None:
        record = sandbox.record
        paused, record.state, record.paused = record.paused, RUNNING, None
        try:
            # Written first: a running sandbox that a new host finds frozen is thawed, and never the other way round. After a
            # power cut it is better paused than running.
            sandbox.save(lasting=False)
            await sandbox.backend.thaw(record.cgroups)
        except OSError:
            record.state, record.paused = PAUSED, paused
            with contextlib.suppress(OSError):
                sandbox.save(lasting=False)
            raise
        if sandbox.egress is None:
            await self._launches.find_egress(sandbox)

    async def _start_anew(self, sandbox: Sandbox) -> None:
        record = sandbox.record
        paused, record.state, record.memory_kept = record.paused, RESUMING, False
        # The host may be in another group than when it was made, and after a reboot the groups of another version.
        record.cgroups = self._launches.groups_of(record.id)
        try:
            sandbox.save(lasting=False)
            await self._launches.start(sandbox)
            record.state, record.paused = RUNNING, None
            sandbox.save(lasting=False)
            if not record.memory_kept:
                await startup.start(sandbox, record.made_of)
        except (ApiError, OSError):
            record.state, record.paused, record.memory_kept = RESUMING, paused, False
            try:
                await self._stop(sandbox, search=True)
                record.state = PAUSED
            finally:
                with contextlib.suppress(OSError):
                    sandbox.save()
            raise
