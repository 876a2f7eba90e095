"""The sandboxes of this host: made, found, kept alive for their time, found again after a restart, ended.

    creating ── launched ──► running ⇄ paused ── killed, or a running one's time is over ──► gone
        │├─ launched ahead ──► warm ── handed out ──► running         see pool.py
        │└─ its processes ahead of all else ──► warm ── told what it is ──► creating
        └── the launch failed, or the host died meanwhile ──► gone

A record on disk comes before anything else that a sandbox uses and goes last, so nothing can be left without one.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any

from .. import templates
from ..errors import ApiError, Conflict, LaunchFailed, NotFound
from ..isolation.backend import Backend, Backends
from ..moments import Moment
from ..network import policy
from ..pids import ProcessIdentity
from ..quotas import Quotas
from ..settings import PARK_AFTER_S
from ..templates import Template
from . import notices, records, startup
from .captures import Captures
from .folders import Folders
from .launches import Launches
from .new_sandbox import NewSandbox
from .pauses import UNFINISHED, Pauses
from .pool import Pool
from .records import (
    CREATING,
    DEFAULT_TENANT,
    ENDING,
    KILL,
    PAUSE,
    PAUSED,
    RESUMING,
    RUNNING,
    WARM,
    SandboxRecord,
)
from .sandbox import Sandbox, gone
from .uids import Uids

Find = Callable[[str, str], Awaitable[Template]]
_AUTO_RESUME_S = 300
_RETRY_S = 5.0
"""After so long what was due and failed is tried again."""
_SYNC_AFTER_S = 0.1
"""For so long the disk is left to whoever waits for an answer."""
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_UNLIMITED = 1_000_000
_STARVED_KEPT = 1000
_END_WITHIN_S, _END_POLL_S = 2.0, 0.01
_log = logging.getLogger("ship_sandboxd.lifecycle.sandboxes")


class Sandboxes:
    """All of them. `data` holds one folder each; `find` tells what a template's or a snapshot's name means to a tenant, and
    raises NotFound; `per_uid` says whether each gets a Unix user of its own. A frozen one
    is parked after `park_after_s` seconds. `spares` processes wait to become a sandbox of any template."""

    def __init__(
        self,
        data: Path,
        backends: Backends,
        launches: Launches,
        captures: Captures,
        find: Find,
        per_uid: bool,
        quotas: Quotas,
        park_after_s: float = PARK_AFTER_S,
        warm: Iterable[str] = (),
        spares: int = 0,
    ) -> None:
        self._folders = Folders(data, self._run)
        self._backends = backends
        self._launches = launches
        self._templates = data / "templates"
        self._captures = captures
        self._find = find
        self._quotas = quotas
        self._pauses = Pauses(launches, quotas, self._attend, self._attend_later, self._sync)
        self._warm = frozenset(warm)
        able = backends.preparing
        self._spare = Template(
            templates.SPARE,
            memory_mb=_UNLIMITED,  # limits are lowered more easily than raised
            pids=_UNLIMITED,
            backend=able,
            warm=spares if able else 0,
        )
        self.pool = Pool(self._make_warm, self._end)
        self._per_uid = per_uid
        self._park_after_s = park_after_s
        self._sandboxes: dict[str, Sandbox] = {}
        self._starved: OrderedDict[str, str] = OrderedDict()
        self._uids = Uids()
        self._unknown: list[Path] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def memory_shortages(self) -> Mapping[str, int]:
        """How often memory ran out since the start, by backend."""
        return self._launches.shortages

    def get(self, sandbox_id: str, tenant: str | None = None) -> Sandbox:
        """A sandbox, running or paused; one of `tenant` only, when that is given. Raises NotFound."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None or not sandbox.there or tenant not in (None, sandbox.record.tenant):
            raise gone(sandbox_id, self.why(sandbox_id, tenant))
        return sandbox

    def why(self, sandbox_id: str, tenant: str | None = None) -> str:
        """What is known of why a sandbox, of `tenant` only when that is given, does not run: words to go on with, or none."""
        owner = self._starved.get(sandbox_id)
        return ": it ran out of memory" if owner is not None and tenant in (None, owner) else ""

    def running(self, sandbox_id: str) -> Sandbox:
        """One that runs. Raises NotFound."""
        sandbox = self.get(sandbox_id)
        if sandbox.record.state != RUNNING:
            raise NotFound(f"sandbox '{sandbox_id}' is paused{self.why(sandbox_id)}", "sandbox_paused")
        return sandbox

    async def recheck(self, sandbox_id: str) -> None:
        """Whether one whose daemon has broken off runs. After a want of memory the end of its processes takes a moment: that
        is waited for. Raises NotFound."""
        deadline = time.monotonic() + _END_WITHIN_S
        while self.running(sandbox_id).ran_out_of_memory:
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(_END_POLL_S)

    async def awake(self, sandbox_id: str) -> Sandbox:
        """One that runs, for a request to it: a paused one is resumed first, if it was made to be. Raises NotFound."""
        sandbox = self.get(sandbox_id)
        while sandbox.sleeps_lightly:  # again when a pause that was asked for meanwhile has come before us
            await self.resume(sandbox_id, max(sandbox.record.timeout_s, _AUTO_RESUME_S))
        return self.running(sandbox_id)

    def all(self) -> list[Sandbox]:
        """Every one that runs or is paused."""
        return [sandbox for sandbox in self._sandboxes.values() if sandbox.there]

    async def create(self, wanted: NewSandbox, template: Template | None = None) -> Sandbox:
        """Start a sandbox and wait until it answers; of `template`, where that is not one that `wanted` could name.
        Raises NotFound for the template, LaunchFailed, QuotaExceeded, DiskFull."""
        self._quotas.check_room()
        sandbox = None
        if template is None:
            template = await self._find(wanted.template, wanted.tenant)
            sandbox = await self._hand_out(wanted, template)
        warm = sandbox is not None
        if sandbox is None:
            sandbox = await self._furnish(wanted, template)
        if sandbox is None:
            self._check_quota(wanted.tenant, template)
            sandbox = self._register(template)
            wanted.give(sandbox.record)
            await self._launch(sandbox, RUNNING)
        sandbox.tell("sandbox created", template=template.name, warm=warm)
        self._attend(sandbox)
        return sandbox

    def _check_quota(self, tenant: str, template: Template) -> None:
        """Whether a tenant may have one more of this template. Raises QuotaExceeded."""
        quota = self._quotas.of(tenant)
        own = [
            sandbox.record
            for sandbox in self._sandboxes.values()
            if sandbox.record.tenant == tenant and sandbox.record.state != WARM and sandbox.ending is None
        ]
        quota.check("sandboxes", len(own))
        quota.check("memory_mb", sum(record.memory_mb for record in own), template.memory_mb)
        quota.check("disk_mb", sum(record.disk_mb for record in own), template.disk_mb)

    async def _launch(self, sandbox: Sandbox, state: str) -> None:
        record = sandbox.record
        try:
            _make_folder(sandbox)
            if record.made_of == self._spare:
                await self._launches.prepare(sandbox)
            else:
                await self._launches.start(sandbox)
                await startup.start(sandbox, record.made_of)
            # Its time begins when it is there to be used.
            record.state = state
            record.started_at, record.end = round(time.time(), 3), Moment.after(record.timeout_s)
            sandbox.save()
        except BaseException:
            await asyncio.shield(self._end(sandbox))
            raise

    async def _furnish(self, wanted: NewSandbox, template: Template) -> Sandbox | None:
        """A sandbox of processes that waited for it; None when there are none that could be it, or these are of no use.
        Raises StartFailed, QuotaExceeded."""
        backend = self._backends.named(template.backend)
        if not template.lies_on_machine or backend.name != self._spare.backend:
            return None
        sandbox = self._take(self._spare, wanted, template)
        if sandbox is None:
            return None
        try:
            await self._launch(sandbox, RUNNING)
        except startup.StartFailed:
            raise  # its template's fault, in any other processes as well
        except LaunchFailed as error:
            sandbox.tell("what was to become a sandbox is of no use", "warning", reason=str(error))
            return None
        return sandbox

    async def _make_warm(self, template: Template) -> Sandbox:
        sandbox = self._register(template)
        await self._launch(sandbox, WARM)
        self._attend(sandbox)
        return sandbox

    async def _hand_out(self, wanted: NewSandbox, template: Template) -> Sandbox | None:
        """A warm sandbox that is now the caller's; None when there is none. Raises QuotaExceeded."""
        while (sandbox := self._take(template, wanted, template)) is not None:
            try:
                self._launches.update_rules(sandbox)
                await notices.hand_out(sandbox, sandbox.record.envs)
                sandbox.record.state = RUNNING
                sandbox.save()
            except (ApiError, OSError) as error:
                sandbox.tell("a warm sandbox is of no use", "warning", reason=str(error))
                await self._end(sandbox)
            except BaseException:
                await asyncio.shield(self._end(sandbox))
                raise
            else:
                return sandbox
        return None

    def _take(self, waiting: Template, wanted: NewSandbox, template: Template) -> Sandbox | None:
        """What waits as one of `waiting` and becomes the caller's, whose quota it counts for from here on; None when there
        is none. Raises QuotaExceeded."""
        self._check_quota(wanted.tenant, template)
        sandbox = self.pool.take(waiting)
        if sandbox is not None:
            _make_of(sandbox.record, template)
            wanted.give(sandbox.record)
        return sandbox

    async def warm_up(self) -> None:
        """Start filling the pool with what the operator wants to have at hand."""
        self.pool.fill(self._spare)
        for name in {*self._warm, *templates.names(self._templates)}:
            try:
                self.pool.fill(await self._find(name, DEFAULT_TENANT))
            except (ApiError, OSError) as error:
                _log.error("no warm sandboxes of a template", extra={"template": name, "reason": str(error)})

    def _register(self, template: Template) -> Sandbox:
        backend = self._backends.named(template.backend)
        record = SandboxRecord(
            id="".join(secrets.choice(_ALPHABET) for _ in range(20)),
            template=template.name,
            token=secrets.token_hex(32),
            traffic_token=secrets.token_hex(32),
            started_at=round(time.time(), 3),
            end=Moment.after(0),
            timeout_s=0,
            cpu_count=template.cpu_count,
            memory_mb=template.memory_mb,
            disk_mb=template.disk_mb,
            uid=self._uids.take() if self._per_uid else None,
            made_of=template,
            backend=backend.name,
        )
        record.cgroups = self._launches.groups_of(record.id)
        sandbox = Sandbox(record, self._folders.of(record.id), backend)
        self._sandboxes[record.id] = sandbox
        return sandbox

    def _attend(self, sandbox: Sandbox) -> None:
        """Do what is due when its time has come, and notice when its processes end by themselves."""
        sandbox.stop_timer()
        left_s = self._left_s(sandbox.record)
        if left_s is not None:
            sandbox.timer = asyncio.get_running_loop().call_later(max(0.0, left_s), self._due, sandbox)
        if sandbox.watch is None and sandbox.record.init is not None:
            sandbox.watch = asyncio.create_task(self._watch(sandbox, sandbox.record.init))

    def _left_s(self, record: SandboxRecord) -> float | None:
        """Seconds until something is due, negative when it is over; None where nothing is."""
        if record.state == WARM or (record.state == PAUSED and record.init is None):
            return None
        if record.state == RUNNING:
            return record.end.left_s
        if record.frozen and record.paused is not None:
            return self._park_after_s + record.paused.left_s
        return 0.0  # it was to be parked, and that failed

    def _due(self, sandbox: Sandbox) -> None:
        sandbox.timer = None
        self._run(self._persist(sandbox, self._time_is_over(sandbox)))

    async def _persist(self, sandbox: Sandbox, work: Coroutine[None, None, None]) -> None:
        """Do what is due, as far as it still is; when it fails, look again after a pause what is due then."""
        try:
            await work
        except (ApiError, OSError) as error:
            if sandbox.ending is None:
                sandbox.tell("what is due failed, and is tried again", "error", reason=str(error))
                self._attend_later(sandbox)

    def _attend_later(self, sandbox: Sandbox) -> None:
        """After something failed."""
        sandbox.stop_timer()
        sandbox.timer = asyncio.get_running_loop().call_later(_RETRY_S, self._attend, sandbox)

    async def _time_is_over(self, sandbox: Sandbox) -> None:
        record = sandbox.record
        if (self._left_s(record) or 0) > 0:
            # It was given more time just now, or the timer was a little early.
            self._attend(sandbox)
            return
        if record.state == RUNNING and record.on_timeout == KILL:
            sandbox.tell("sandbox reached its timeout")
            await self._end(sandbox)
            return

        async def give_way() -> None:
            if record.state in (PAUSED, RESUMING):
                reason = "paused for long" if record.frozen else UNFINISHED
                await self._pauses.park(sandbox, reason)
            elif record.state == RUNNING and record.end.left_s <= 0:
                sandbox.tell("sandbox reached its timeout")
                await self._pauses.pause(sandbox, keep_memory=record.pause_keeps_memory)

        await sandbox.change(give_way)

    async def _watch(self, sandbox: Sandbox, init: ProcessIdentity) -> None:
        await init.wait()
        sandbox.watch = None
        self._run(self._persist(sandbox, self._processes_ended(sandbox, init)))

    async def _processes_ended(self, sandbox: Sandbox, init: ProcessIdentity) -> None:
        """Somebody has ended its supervisor: the kernel, when memory ran out, or a person on the host."""
        record = sandbox.record
        if sandbox.ending is not None or record.init != init or record.state == CREATING:
            return  # it has others by now, or who makes it finds out
        event, reason, facts = "sandbox ended by itself", "its processes have ended", {}
        if sandbox.ran_out_of_memory:
            event, reason = "sandbox ended: it ran out of memory", "it ran out of memory"
            facts = {"code": "out_of_memory"}
            self._starved[sandbox.id] = record.tenant
            if len(self._starved) > _STARVED_KEPT:
                self._starved.popitem(last=False)

        async def park() -> None:
            if record.init == init:
                await self._pauses.park(sandbox, reason)

        if record.state == WARM:
            self.pool.lost(sandbox)
            await self._end(sandbox)
        elif record.state == PAUSED or record.on_timeout == PAUSE:
            await sandbox.change(park)
        else:
            sandbox.tell(event, "warning", **facts)
            await self._end(sandbox)

    def _sync(self, sandbox: Sandbox) -> None:
        async def sync() -> None:
            await asyncio.sleep(_SYNC_AFTER_S)
            if sandbox.record.state != PAUSED:
                return  # it runs again, and writes on
            try:
                await self._captures.sync(sandbox)
            except OSError as error:
                if sandbox.ending is None:
                    sandbox.tell("its files could not be synced", "warning", reason=str(error))

        self._run(sync())

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ran)

    def _ran(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("work behind the scenes failed", exc_info=task.exception())

    def set_timeout(self, sandbox_id: str, timeout_s: int, only_extend: bool = False) -> Sandbox:
        """Let it live for so many seconds from now. Raises NotFound, and Conflict of a paused one, which has no time."""
        sandbox = self.get(sandbox_id)
        record = sandbox.record
        if record.state != RUNNING:
            raise Conflict(f"sandbox '{sandbox_id}' is paused: resume it first", "sandbox_paused")
        if only_extend and record.end.left_s >= timeout_s:
            return sandbox
        end, granted = record.end, record.timeout_s
        record.end, record.timeout_s = Moment.after(timeout_s), timeout_s
        try:
            sandbox.save()
        except OSError:
            record.end, record.timeout_s = end, granted
            raise
        self._attend(sandbox)
        return sandbox

    def update_network(self, sandbox_id: str, wanted: Any) -> None:
        """Replace the rules for what a sandbox may reach; connections that they do not allow are cut. Raises
        NotFound, BadRequest, Unsupported."""
        sandbox = self.get(sandbox_id)
        record = sandbox.record
        before = record.network, record.allow_internet
        record.network, record.allow_internet = policy.update(record.network, wanted)
        try:
            sandbox.save()
        except OSError:
            record.network, record.allow_internet = before
            raise
        self._launches.update_rules(sandbox)

    async def pause(self, sandbox_id: str, *, keep_memory: bool = True) -> None:
        """Halt it until it is resumed. Raises NotFound, Conflict when it is paused already, FreezeFailed."""
        sandbox = self.get(sandbox_id)
        await sandbox.change(lambda: self._pauses.pause(sandbox, keep_memory=keep_memory))

    async def resume(self, sandbox_id: str, timeout_s: int) -> bool:
        """Let a paused one run on for so many seconds, and a running one for at least so many. Answers whether it was
        paused. Raises NotFound, LaunchFailed."""
        sandbox = self.get(sandbox_id)
        while sandbox.record.state != RUNNING:
            if await sandbox.change(lambda: self._pauses.resume(sandbox, timeout_s)):
                self._starved.pop(sandbox_id, None)
                return True
        self.set_timeout(sandbox_id, timeout_s, only_extend=True)
        return False

    async def capture(self, sandbox_id: str) -> tuple[Template, int]:
        """A template of a sandbox as it is now, see `Captures.take`. Raises NotFound."""
        sandbox = self.get(sandbox_id)
        return await sandbox.change(lambda: self._captures.take(sandbox))

    async def fork(self, sandbox: Sandbox, template: Template, timeout_s: int) -> Sandbox:
        """Another sandbox that was made as this one was, of a capture of it. Raises LaunchFailed."""
        return await self.create(NewSandbox.like(sandbox.record, timeout_s), template)

    async def kill(self, sandbox_id: str, tenant: str | None = None) -> None:
        """End it and everything in it, or what an end that failed has left of it; one of `tenant` only, when that is
        given. Raises NotFound, OSError."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None or not sandbox.end_failed or tenant not in (None, sandbox.record.tenant):
            sandbox = self.get(sandbox_id, tenant)
        await asyncio.shield(self._end(sandbox))
        self._starved.pop(sandbox_id, None)
        _log.info("sandbox killed", extra={"sandbox": sandbox_id})

    async def kill_all(self) -> None:
        """Raises OSError when the end of one failed, after that of the others."""
        ends = [asyncio.ensure_future(self._end(sandbox)) for sandbox in self._sandboxes.values()]
        await asyncio.gather(*ends, return_exceptions=True)
        await asyncio.gather(*ends)

    async def _end(self, sandbox: Sandbox) -> None:
        """Once, however many ask for it, and again when that failed."""
        if sandbox.ending is None or sandbox.end_failed:
            sandbox.ending = asyncio.create_task(self._take_down(sandbox))
        await asyncio.shield(sandbox.ending)

    async def _take_down(self, sandbox: Sandbox) -> None:
        record = sandbox.record
        sandbox.stop_timer()
        await sandbox.cut_changes()
        search = record.state in (CREATING, RESUMING, ENDING)
        record.state = ENDING
        with contextlib.suppress(
            OSError
        ):  # there may be no folder yet, or no room; it is only for a crash from here on
            sandbox.save()
        try:
            await self._launches.stop(sandbox, for_good=True, search=search)
            self._folders.throw_away(sandbox.folder)
        except OSError as error:
            sandbox.tell("the sandbox's end failed, and is tried again", "error", reason=str(error))
            again = asyncio.get_running_loop().call_later(_RETRY_S, lambda: self._run(self._end(sandbox)))
            sandbox.timer = again
            raise
        self._sandboxes.pop(record.id, None)
        self._uids.give_back(record.uid)

    def layers_in_use(self) -> Iterable[str]:
        """The digests of all layers that these sandboxes lie on. Raises OSError when a record could not be read: what lies on
        which layer is not known then."""
        if self._unknown:
            names = ", ".join(folder.name for folder in self._unknown)
            raise OSError(f"the records of these sandboxes could not be read at the start: {names}")
        for sandbox in self._sandboxes.values():
            yield from sandbox.record.made_of.layers

    async def recover(self) -> None:
        """Find the sandboxes that an earlier process left, running or paused; clear away what it left half-made, and leave
        alone what the disk does not tell of."""
        self._folders.empty_trash()
        found, unreadable = [], []
        for folder in self._folders.all():
            try:
                record = records.load(folder)
            except OSError as error:
                reason = {"folder": str(folder), "reason": str(error)}
                _log.error("a sandbox's record cannot be read now: it is left alone", extra=reason)
                if not isinstance(error, NotADirectoryError):
                    self._unknown.append(folder)
                continue
            if record is None or record.id != folder.name:
                unreadable.append(folder)
                continue
            sandbox = Sandbox(record, folder, self._backend_of(record))
            self._sandboxes[record.id] = sandbox
            self._uids.found(record.uid)
            found.append(sandbox)
        await asyncio.gather(
            *(self._persist(sandbox, self._recover(sandbox)) for sandbox in found),
            *(self._clear_unreadable(folder) for folder in unreadable),
        )

    def _backend_of(self, record: SandboxRecord) -> Backend:
        """Its own; where the machine no longer has that, another one can at least end it."""
        return (
            self._backends.named(record.backend)
            if record.backend in self._backends.names
            else self._backends.default
        )

    async def _recover(self, sandbox: Sandbox) -> None:
        record = sandbox.record
        alive = record.init is not None and record.init.alive
        if record.state == RUNNING and alive and (record.end.left_s > 0 or record.on_timeout == PAUSE):
            # The earlier process may have ended while it was halted for a snapshot, or half paused.
            await sandbox.backend.thaw(record.cgroups)
            self._attend(sandbox)
            self._launches.watch_memory(sandbox)
            # A daemon that does not answer must hold up nobody else. Until it has, connections wait in its listeners.
            self._run(self._find_egress(sandbox))
        elif record.state == PAUSED and (record.init is None or (alive and record.frozen)):
            self._attend(sandbox)
            if alive:
                self._launches.watch_memory(sandbox)
        elif record.state in (PAUSED, RESUMING) or (record.state == RUNNING and record.on_timeout == PAUSE):
            await self._pauses.park(sandbox, "its processes ended while no host ran")
        else:
            await self._end(sandbox)
            return
        _log.info("sandbox found again", extra={"sandbox": record.id, "state": record.state})

    async def _find_egress(self, sandbox: Sandbox) -> None:
        async def find() -> None:
            if sandbox.record.state == RUNNING and sandbox.egress is None:
                await self._launches.find_egress(sandbox)

        with contextlib.suppress(NotFound):
            await sandbox.change(find)

    async def _clear_unreadable(self, folder: Path) -> None:
        """End what may run of it. Its files are not ours to delete: another version may read them; but a folder that
        never had a record was never a sandbox."""
        try:
            await self._backends.default.end(folder.name, None, None, [])
            if (folder / records.FILE_NAME).exists():
                self._folders.put_aside(folder)
            else:
                self._folders.throw_away(folder)
        except OSError as error:
            reason = {"folder": str(folder), "reason": str(error)}
            _log.error("what has no record that can be read cannot be cleared away", extra=reason)

    async def leave(self) -> None:
        """Stop attending to the sandboxes; they run on, and the paused ones stay paused. Warm ones end."""
        await self.pool.close()
        for sandbox in self._sandboxes.values():
            sandbox.stop_timer()
            if sandbox.watch is not None:
                sandbox.watch.cancel()
            sandbox.forget_memory()
            await self._launches.close_egress(sandbox)
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _make_of(record: SandboxRecord, template: Template) -> None:
    """Make what waited become a sandbox of this template."""
    record.template, record.made_of, record.state = template.name, template, CREATING
    record.cpu_count, record.memory_mb, record.disk_mb = (
        template.cpu_count,
        template.memory_mb,
        template.disk_mb,
    )


def _make_folder(sandbox: Sandbox) -> None:
    """With the record, before anything runs."""
    sandbox.folder.mkdir(mode=0o700, exist_ok=True)
    sandbox.save()
