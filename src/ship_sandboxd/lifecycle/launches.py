"""How a record comes to life: the environment, the limits, the processes, the way out; and how all that ends."""

import asyncio
import contextlib
import logging
import socket
import time
from collections import Counter
from functools import partial

from ..errors import LaunchFailed
from ..isolation import cgroups
from ..isolation.backend import LaunchSpec, Root
from ..isolation.cgroups import Cgroups, Limits, MemoryWatch
from ..network import netfilter, wire
from ..network.egress import Egress, proxy_variables
from ..network.gateway import Gateway
from ..network.listeners import NAMES_PORT, OPENED, REDIRECTED_PORT, Listeners
from ..storage.layers import Layers
from ..templates import PATH
from . import notices
from .records import RESUMING, SandboxRecord
from .sandbox import Sandbox

# What a kernel of the sandbox's own may need, with all the processes that it serves.
_TASKS_OF_A_KERNEL = 8192
_log = logging.getLogger("ship_sandboxd.lifecycle.launches")


class Launches:
    """Starts sandboxes from their records and ends them; the same for the first time and for every later one."""

    def __init__(self, groups: Cgroups, gateway: Gateway, layers: Layers) -> None:
        # Since the start, by the name of the backend.
        self.shortages: Counter[str] = Counter()
        self._groups = groups
        self._gateway = gateway
        self._layers = layers
        self._notices: set[asyncio.Task[None]] = set()

    def groups_of(self, sandbox_id: str) -> list[str]:
        """Where its control groups are going to be."""
        return self._groups.folders(sandbox_id)

    async def prepare(self, sandbox: Sandbox) -> None:
        """Start its processes, which wait until `start` tells them what it is. Raises LaunchFailed."""
        record = sandbox.record
        record.init, record.monitor = await sandbox.backend.prepare(await self._spec(sandbox))

    async def start(self, sandbox: Sandbox) -> None:
        """Start its processes, if they do not wait for this, and open its way out. The record knows them then, but is not
        saved.

        Raises LaunchFailed and what `Layers.unpacked` raises.
        """
        record, backend = sandbox.record, sandbox.backend
        begin = backend.launch if record.init is None else backend.furnish
        spec = await self._spec(sandbox)
        self.watch_memory(sandbox)
        try:
            launched = await begin(spec)
        except LaunchFailed as error:
            if sandbox.ran_out_of_memory:
                raise LaunchFailed(
                    f"{record.memory_mb} MB are not enough memory to start in: {error}"
                ) from error
            raise
        record.init, record.monitor = launched.init, launched.monitor
        if record.state == RESUMING:
            record.memory_kept = launched.memory_kept
        refused = await self._redirect(sandbox, launched.listeners)
        await self._open_egress(sandbox, launched.listeners, refused)

    async def _spec(self, sandbox: Sandbox) -> LaunchSpec:
        """What its backend must know. Its control groups are there then, with its limits."""
        record, template = sandbox.record, sandbox.record.made_of
        layers = [await self._layers.unpacked(digest) for digest in template.layers]
        tasks = template.pids if sandbox.backend.shares_kernel else _TASKS_OF_A_KERNEL
        limits = Limits(template.memory_mb, tasks, template.cpu_count)
        for controllers, reason in self._groups.create(record.id, limits):
            event = "a cgroup cannot be made: the sandbox is not limited by it"
            sandbox.tell(event, "error", controllers=controllers, reason=reason)
        is_counted = sandbox.backend.shares_kernel and "pids" in self._groups.controllers
        return LaunchSpec(
            id=record.id,
            folder=sandbox.folder,
            uid=record.uid,
            root=Root(tuple(layers), template.lies_on_machine),
            mounts=template.mounts,
            config={
                "token": record.token,
                "envs": _environment(record),
                "user": template.user,
                "workdir": template.workdir,
                "memory_mb": record.memory_mb,
                "cpu_count": record.cpu_count,
                "listeners": OPENED,
                "max_processes": None if is_counted else template.pids,
            },
            cgroups=record.cgroups,
            disk_mb=record.disk_mb,
            resumes=record.state == RESUMING,
        )

    def watch_memory(self, sandbox: Sandbox) -> None:
        """Tell its log and its daemon when the kernel ends a process of it for want of memory."""
        sandbox.forget_memory()
        sandbox.memory = MemoryWatch(sandbox.record.cgroups, lambda: self._out_of_memory(sandbox))

    def _out_of_memory(self, sandbox: Sandbox) -> None:
        self.shortages[sandbox.record.backend] += 1
        sandbox.memory_ran_out_at = time.monotonic()
        sandbox.tell("out of memory: the kernel has ended a process", "warning", code="out_of_memory")
        if sandbox.backend.shares_kernel:  # a kernel of its own has ended with all that could be told
            task = asyncio.create_task(self._tell_daemon(sandbox))
            self._notices.add(task)
            task.add_done_callback(self._notices.discard)

    async def _tell_daemon(self, sandbox: Sandbox) -> None:
        try:
            await notices.out_of_memory(sandbox)
        except (OSError, LaunchFailed) as error:
            reason = {"sandbox": sandbox.id, "reason": str(error)}
            _log.warning("a daemon was not told that memory ran out", extra=reason)

    async def find_egress(self, sandbox: Sandbox) -> None:
        """Take up the way out of a sandbox that an earlier host process has started. It must not be frozen."""
        init = sandbox.record.init
        if init is None:
            return
        try:
            listeners = await sandbox.backend.listeners(sandbox.folder, sandbox.record.token, init)
            await self._open_egress(sandbox, listeners, await self._hear(sandbox, listeners))
        except (OSError, LaunchFailed) as error:
            sandbox.tell("no way out for this sandbox", "error", reason=str(error))

    async def _redirect(self, sandbox: Sandbox, listeners: Listeners) -> socket.socket | None:
        """Lead connections of programs that know of no proxy to us. Without it the proxy is the one way out. Answers what
        tells of refused packets."""
        init, backend = sandbox.record.init, sandbox.backend
        if init is None or listeners.redirected is None or not backend.redirects:
            return None
        way = netfilter.redirect if backend.shares_kernel else wire.redirect
        redirect = partial(way, refuses=self._gateway.refuses)
        try:
            return await asyncio.to_thread(redirect, init, REDIRECTED_PORT, NAMES_PORT)
        except OSError as error:
            sandbox.tell("only the proxy leads out", "error", reason=str(error))
        return None

    async def _hear(self, sandbox: Sandbox, listeners: Listeners) -> socket.socket | None:
        """What tells of refused packets, for a sandbox that an earlier host process has started."""
        init = sandbox.record.init
        if init is None or listeners.redirected is None or not self._gateway.refuses:
            return None
        try:
            return await asyncio.to_thread(netfilter.listen, init)
        except OSError as error:
            sandbox.tell("packets that are refused are not told", "error", reason=str(error))
        return None

    async def _open_egress(
        self, sandbox: Sandbox, listeners: Listeners, refused: socket.socket | None
    ) -> None:
        rules = self._gateway.rules(sandbox.record.network, sandbox.record.allow_internet)
        sandbox.egress = Egress(sandbox.id, self._gateway, rules, sandbox.folder)
        await sandbox.egress.serve(listeners, refused)

    def update_rules(self, sandbox: Sandbox) -> None:
        """Let the way out go by the record's rules; connections that they do not allow are cut."""
        if sandbox.egress is not None:
            sandbox.egress.update(self._gateway.rules(sandbox.record.network, sandbox.record.allow_internet))

    async def stop(self, sandbox: Sandbox, *, for_good: bool = False, search: bool = False) -> None:
        """End its processes, frozen or not, and what they used; its files stay, or are of no use if `for_good`. `search`
        for them where the record may not know them."""
        if sandbox.watch is not None:
            sandbox.watch.cancel()
            sandbox.watch = None
        sandbox.forget_memory()
        await self.close_egress(sandbox)
        record = sandbox.record
        if for_good and record.monitor is not None:
            sandbox.backend.abandon(sandbox.folder, record.monitor)
        if record.init is not None or search:
            await sandbox.backend.end(record.id, record.init, record.monitor, record.cgroups)
            record.init = record.monitor = None
        try:
            await cgroups.remove(record.cgroups)
        except OSError as error:
            _log.error("a cgroup cannot be removed", extra={"sandbox": record.id, "reason": str(error)})
        with contextlib.suppress(FileNotFoundError):
            (sandbox.folder / "envd.sock").unlink()

    async def close_egress(self, sandbox: Sandbox) -> None:
        if sandbox.egress is not None:
            await sandbox.egress.close()
            sandbox.egress = None


def _environment(record: SandboxRecord) -> dict[str, str]:
    return {
        "PATH": PATH,
        "HOME": "/home/user",
        "USER": "user",
        "LOGNAME": "user",
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        "E2B_SANDBOX": "true",
        "E2B_SANDBOX_ID": record.id,
        "E2B_TEMPLATE_ID": record.template,
        **proxy_variables(),
        **record.made_of.env,
        **record.envs,
    }
