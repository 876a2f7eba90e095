"""The sandboxes of this host: made, found, kept alive for their time, found again after a restart, ended.

    creating ── launched ──► running ── killed, or its time is over ──► gone
        └── the launch failed, or the host died meanwhile ──► gone

A record on disk comes before anything else that a sandbox uses and goes last, so nothing can be left without one.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import cgroups, netfilter, network, records, templates
from .backend import Backend, Backends, LaunchSpec, Root, Streams
from .cgroups import Cgroups, Limits
from .egress import Egress, proxy_variables
from .errors import LaunchFailed, NotFound
from .gateway import Gateway
from .listeners import NAMES_PORT, OPENED, REDIRECTED_PORT, Listeners
from .records import DEFAULT_TENANT, RUNNING, SandboxRecord

DEFAULT_TIMEOUT_S = 300
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_UIDS = range(200_000, 265_536)
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_log = logging.getLogger("ship_sandboxd.sandboxes")


@dataclass(frozen=True)
class NewSandbox:
    """What a caller asks for; see `POST /v2/sandboxes` of E2B's API."""

    template: str = templates.BASE
    tenant: str = DEFAULT_TENANT
    timeout_s: int = DEFAULT_TIMEOUT_S
    envs: tuple[tuple[str, str], ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()
    allow_internet: bool = True
    allow_public_traffic: bool = True
    network: dict[str, Any] = field(default_factory=dict)
    idempotency_key: str = ""
    request_digest: str = ""


class Sandbox:
    """One sandbox of this host and what belongs to it in this process."""

    def __init__(self, record: SandboxRecord, folder: Path, backend: Backend) -> None:
        self.record = record
        self.backend = backend
        self.folder = folder
        self.egress: Egress | None = None
        self.expiry: asyncio.TimerHandle | None = None
        self.watch: asyncio.Task[None] | None = None
        self.ending: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        return self.record.id

    async def connect(self) -> Streams:
        """A connection to its daemon. Raises OSError when that does not answer."""
        return await self.backend.connect(self.folder)


class Sandboxes:
    """All of them. `data` holds one folder each; `per_uid` says whether each gets a Unix user of its own."""

    def __init__(
        self,
        data: Path,
        backends: Backends,
        groups: Cgroups,
        gateway: Gateway,
        per_uid: bool,
    ) -> None:
        self._folder = data / "sandboxes"
        self._trash = data / "trash"
        self._templates = data / "templates"
        self._backends = backends
        self._groups = groups
        self._gateway = gateway
        self._per_uid = per_uid
        self._sandboxes: dict[str, Sandbox] = {}
        self._uids_in_use: set[int] = set()
        # Another host on this machine has the same range: starting anywhere in it keeps the two apart.
        self._next_uid = secrets.randbelow(len(_UIDS))
        self._tasks: set[asyncio.Task[None]] = set()
        for folder in (self._folder, self._trash, self._templates):
            folder.mkdir(mode=0o700, exist_ok=True)

    def get(self, sandbox_id: str, tenant: str | None = None) -> Sandbox:
        """A running sandbox; one of `tenant` only, when that is given. Raises NotFound."""
        sandbox = self._sandboxes.get(sandbox_id)
        if (
            sandbox is None
            or sandbox.record.state != RUNNING
            or sandbox.ending is not None
            or tenant not in (None, sandbox.record.tenant)
        ):
            raise NotFound(f"sandbox '{sandbox_id}' not found", "sandbox_not_found")
        return sandbox

    def all(self) -> list[Sandbox]:
        return [
            sandbox
            for sandbox in self._sandboxes.values()
            if sandbox.record.state == RUNNING and not sandbox.ending
        ]

    async def create(self, wanted: NewSandbox, template: templates.Template | None = None) -> Sandbox:
        """Start a sandbox and wait until it answers; of `template`, where that is not one that `wanted` could name.
        Raises NotFound for the template, LaunchFailed."""
        template = template or templates.read(self._templates, wanted.template)
        sandbox = self._register(wanted, template)
        try:
            _make_folders(sandbox)
            await self._launch(sandbox, wanted, template)
        except BaseException:
            await asyncio.shield(self._end(sandbox))
            raise
        self._attend(sandbox)
        return sandbox

    def _register(self, wanted: NewSandbox, template: templates.Template) -> Sandbox:
        now = time.time()
        backend = self._backends.named(template.backend)
        record = SandboxRecord(
            id="".join(secrets.choice(_ALPHABET) for _ in range(20)),
            template=template.name,
            token=secrets.token_hex(32),
            traffic_token=secrets.token_hex(32),
            started_at=now,
            end_at=now + wanted.timeout_s,
            cpu_count=template.cpu_count,
            memory_mb=template.memory_mb,
            disk_mb=template.disk_mb,
            uid=self._take_uid() if self._per_uid else None,
            backend=backend.name,
            tenant=wanted.tenant,
            metadata=dict(wanted.metadata),
            allow_internet=wanted.allow_internet,
            allow_public_traffic=wanted.allow_public_traffic,
            network=wanted.network,
            idempotency_key=wanted.idempotency_key,
            request_digest=wanted.request_digest,
        )
        record.cgroups = self._groups.folders(record.id)
        sandbox = Sandbox(record, self._folder / record.id, backend)
        self._sandboxes[record.id] = sandbox
        return sandbox

    async def _launch(self, sandbox: Sandbox, wanted: NewSandbox, template: templates.Template) -> None:
        record = sandbox.record
        self._groups.create(record.id, Limits(template.memory_mb, template.pids, template.cpu_count))
        launched = await sandbox.backend.launch(
            LaunchSpec(
                id=record.id,
                folder=sandbox.folder,
                uid=record.uid,
                root=Root(),
                mounts=template.mounts,
                config={
                    "token": record.token,
                    "envs": _environment(record, template, wanted),
                    "memory_mb": record.memory_mb,
                    "cpu_count": record.cpu_count,
                    "listeners": OPENED,
                    "max_processes": None if "pids" in self._groups.controllers else template.pids,
                },
                cgroups=record.cgroups,
                disk_mb=record.disk_mb,
            )
        )
        record.init, record.monitor, record.state = launched.init, launched.monitor, RUNNING
        record.save(sandbox.folder)
        await self._redirect(sandbox, launched.listeners)
        await self._open_egress(sandbox, launched.listeners)
        _log.info("sandbox created", extra={"sandbox": record.id, "template": record.template})

    async def _redirect(self, sandbox: Sandbox, listeners: Listeners) -> None:
        """Lead connections of programs that know of no proxy to us. Without it the proxy is the one way out."""
        init = sandbox.record.init
        if init is None or listeners.redirected is None or not self._gateway.redirects:
            return
        try:
            await asyncio.to_thread(netfilter.redirect, init, REDIRECTED_PORT, NAMES_PORT)
        except OSError as error:
            _log.error("only the proxy leads out", extra={"sandbox": sandbox.id, "reason": str(error)})

    async def _open_egress(self, sandbox: Sandbox, listeners: Listeners) -> None:
        rules = self._gateway.rules(sandbox.record.network, sandbox.record.allow_internet)
        sandbox.egress = Egress(sandbox.id, self._gateway, rules, sandbox.folder)
        await sandbox.egress.serve(listeners)

    def update_network(self, sandbox_id: str, wanted: Any) -> None:
        """Replace the rules for what a running sandbox may reach; connections that they do not allow are cut. Raises
        NotFound, BadRequest, Unsupported."""
        sandbox = self.get(sandbox_id)
        record = sandbox.record
        record.network, record.allow_internet = network.update(record.network, wanted)
        record.save(sandbox.folder)
        if sandbox.egress is not None:
            sandbox.egress.update(self._gateway.rules(record.network, record.allow_internet))

    def _attend(self, sandbox: Sandbox) -> None:
        """End it when its time is over, and notice when it ends by itself."""
        self._arm(sandbox)
        sandbox.watch = asyncio.create_task(self._watch(sandbox))

    def _arm(self, sandbox: Sandbox) -> None:
        if sandbox.expiry is not None:
            sandbox.expiry.cancel()
        left = max(0.0, sandbox.record.end_at - time.time())
        sandbox.expiry = asyncio.get_running_loop().call_later(left, self._expire, sandbox)

    def _expire(self, sandbox: Sandbox) -> None:
        _log.info("sandbox reached its timeout", extra={"sandbox": sandbox.id})
        self._run(self._end(sandbox))

    async def _watch(self, sandbox: Sandbox) -> None:
        if sandbox.record.init is not None:
            await sandbox.record.init.wait()
        if sandbox.ending is None:
            _log.warning("sandbox ended by itself", extra={"sandbox": sandbox.id})
            self._run(self._end(sandbox))

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ran)

    def _ran(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("work behind the scenes failed", exc_info=task.exception())

    def set_timeout(self, sandbox_id: str, timeout_s: int, only_extend: bool = False) -> Sandbox:
        """Let it live for so many seconds from now. Raises NotFound."""
        sandbox = self.get(sandbox_id)
        end_at = time.time() + timeout_s
        sandbox.record.end_at = max(end_at, sandbox.record.end_at) if only_extend else end_at
        sandbox.record.save(sandbox.folder)
        self._arm(sandbox)
        return sandbox

    async def kill(self, sandbox_id: str) -> None:
        """End it and everything in it. Raises NotFound."""
        await asyncio.shield(self._end(self.get(sandbox_id)))
        _log.info("sandbox killed", extra={"sandbox": sandbox_id})

    async def kill_all(self) -> None:
        await asyncio.gather(*(self._end(sandbox) for sandbox in list(self._sandboxes.values())))

    async def _end(self, sandbox: Sandbox) -> None:
        """Once, however many ask for it."""
        if sandbox.ending is None:
            sandbox.ending = asyncio.create_task(self._take_down(sandbox))
        await asyncio.shield(sandbox.ending)

    async def _take_down(self, sandbox: Sandbox) -> None:
        record = sandbox.record
        if sandbox.expiry is not None:
            sandbox.expiry.cancel()
        if sandbox.watch is not None:
            sandbox.watch.cancel()
        if sandbox.egress is not None:
            await sandbox.egress.close()
        await sandbox.backend.end(record.id, record.init, record.monitor, record.cgroups)
        try:
            await cgroups.remove(record.cgroups)
        except OSError as error:
            _log.error("a cgroup cannot be removed", extra={"sandbox": record.id, "reason": str(error)})
        trash = self._trash / record.id
        with contextlib.suppress(FileNotFoundError):
            sandbox.folder.rename(trash)
        self._sandboxes.pop(record.id, None)
        if record.uid is not None:
            self._uids_in_use.discard(record.uid)
        self._run(_remove_tree(trash))

    def _take_uid(self) -> int:
        """The next uid that no sandbox has; round and round, so that one is not soon used again."""
        for _ in _UIDS:
            uid = _UIDS[self._next_uid % len(_UIDS)]
            self._next_uid += 1
            if uid not in self._uids_in_use:
                self._uids_in_use.add(uid)
                return uid
        raise LaunchFailed("every uid for sandboxes is in use", "no_uid_left")

    async def recover(self) -> None:
        """Find the sandboxes that an earlier process left running; clear away what it left half-made."""
        for folder in list(self._trash.iterdir()):
            self._run(_remove_tree(folder))
        found = []
        for folder in sorted(self._folder.iterdir()):
            record = records.load(folder)
            if record is None or record.id != folder.name:
                _log.error(
                    "a sandbox's record cannot be read: its folder is removed", extra={"sandbox": folder.name}
                )
                record = _unreadable(folder.name)
            sandbox = Sandbox(record, folder, self._backend_of(record))
            self._sandboxes[record.id] = sandbox
            if record.uid is not None:
                self._uids_in_use.add(record.uid)
            found.append(sandbox)
        await asyncio.gather(*(self._recover(sandbox) for sandbox in found))

    def _backend_of(self, record: SandboxRecord) -> Backend:
        """Its own; where the machine no longer has that, another one can at least end it."""
        return (
            self._backends.named(record.backend)
            if record.backend in self._backends.names
            else self._backends.default
        )

    async def _recover(self, sandbox: Sandbox) -> None:
        record = sandbox.record
        if (
            record.state != RUNNING
            or record.init is None
            or not record.init.alive
            or record.end_at <= time.time()
        ):
            await self._end(sandbox)
            return
        self._attend(sandbox)
        try:
            listeners = await sandbox.backend.listeners(sandbox.folder, record.token)
            await self._open_egress(sandbox, listeners)
        except (OSError, LaunchFailed) as error:
            _log.error("no way out for this sandbox", extra={"sandbox": record.id, "reason": str(error)})
        _log.info("sandbox found again", extra={"sandbox": record.id})

    async def leave(self) -> None:
        """Stop attending to the sandboxes; they run on."""
        for sandbox in self._sandboxes.values():
            if sandbox.expiry is not None:
                sandbox.expiry.cancel()
            if sandbox.watch is not None:
                sandbox.watch.cancel()
            if sandbox.egress is not None:
                await sandbox.egress.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _make_folders(sandbox: Sandbox) -> None:
    """The record, and what the sandbox may write to, before anything runs."""
    record = sandbox.record
    sandbox.folder.mkdir(mode=0o700)
    record.save(sandbox.folder)


def _environment(record: SandboxRecord, template: templates.Template, wanted: NewSandbox) -> dict[str, str]:
    return {
        "PATH": _PATH,
        "HOME": "/home/user",
        "USER": "user",
        "LOGNAME": "user",
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        "E2B_SANDBOX": "true",
        "E2B_SANDBOX_ID": record.id,
        "E2B_TEMPLATE_ID": record.template,
        **proxy_variables(),
        **template.env,
        **dict(wanted.envs),
    }


def _unreadable(sandbox_id: str) -> SandboxRecord:
    return SandboxRecord(sandbox_id, "", "", "", 0, 0, 1, 1, 1, None)


async def _remove_tree(folder: Path) -> None:
    """Delete what a sandbox left. `rm` copes with any depth, and follows no link."""
    process = await asyncio.create_subprocess_exec("rm", "-rf", "--one-file-system", "--", str(folder))
    await process.wait()
