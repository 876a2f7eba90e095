"""Sandboxes by gVisor: a kernel of their own, in user space, serves their system calls.

`runsc` starts two processes for a sandbox: its kernel (the sentry), as `nobody` in a user namespace, with an empty root, no
network and a short list of system calls; and its file server (the gofer), as an id of the sandbox's own, which sees
the sandbox's files and nothing else. Neither takes descriptors from us, so the daemon inside dials the host, see
`lines.py`. What its programs send elsewhere comes to the host over a wire, see `network/netfilter.py`.
"""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import uuid
from dataclasses import replace
from io import FileIO
from pathlib import Path

from .. import durable
from ..envd.daemon import OPEN_FILES
from ..errors import CheckpointFailed, LaunchFailed, SetupError
from ..network import namespaces, wire
from ..network.listeners import PROXY_PORT, Listeners
from ..pids import ProcessIdentity
from . import daemon_log, layout, lines, oci
from .backend import Launched, LaunchSpec, Streams
from .cgroups import freeze, thaw
from .forkserver import ForkServer, Launch, memory_file
from .lines import Lines
from .rootfs import PreparedRoot, RootPlan, Roots

_READY_TIMEOUT_S = 30.0
_CHECKPOINT_TIMEOUT_S = 60.0
_KERNEL = "runsc-sandbox"
_PROGRAMS = ("runsc", _KERNEL, "runsc-gofer")
_BUNDLE, _MEMORY = "gvisor", "memory"
_LIBRARY, _LINK, _BOOT = "/run/envd/lib", "/run/envd/link", "/run/envd/boot"
_DAEMON = f"import sys; sys.path.insert(0, '{_LIBRARY}'); from envd.daemon import main; main()"
# The host changes what is in the first while the sandbox runs; runsc would keep the second in memory, and its /proc lacks
# the third.
_MOUNTS = (
    (_LINK, _LINK, "ro"),
    ("/tmp", "/tmp", "rw"),  # noqa: S108 - a path of the sandbox
    (_BOOT, "/proc/sys/kernel/random", "ro"),
)
_NEWER_OPTIONS = ("--overlay2=none", "--directfs=false")
# Debian's build takes a network namespace where it finds rmem_default in this folder for the machine's own, and refuses it;
# newer versions of Linux show that in each.
_HIDDEN = "/proc/sys/net"
_SLOW_PLATFORM = "ptrace"
# There, each process of a sandbox costs a thread of the machine for each thread of its kernel.
_MAX_PROCESSES_PTRACE = 128
_log = logging.getLogger("ship_sandboxd.isolation.gvisor")


def obstacle(roots: Roots) -> str:
    """Why this machine cannot have this backend; empty where it can."""
    if shutil.which("runsc") is None:
        return "gVisor is missing: install it (apt install runsc)"
    return roots.obstacle


def find(roots: Roots) -> str:
    """The path of runsc. Raises SetupError `runsc_missing`, or `runsc_refused` where sandboxes have no root of their own."""
    path, reason = shutil.which("runsc"), obstacle(roots)
    if path is None:
        raise SetupError(reason, "runsc_missing")
    if reason:
        raise SetupError(f"gVisor needs sandboxes to have a root of their own: {reason}", "runsc_refused")
    return path


class GVisor:
    """The backend of gVisor, see `Backend`."""

    name = "gvisor"
    prepares = False
    parks_memory = True
    shares_kernel = False

    def __init__(
        self, program: str, forks: ForkServer, roots: Roots, daemon: Path, freezes: bool, redirects: bool
    ) -> None:
        self.keeps_memory = freezes
        self.redirects = redirects
        self._program = program
        flags = _flags(program)
        self._platform = "systrap" if "systrap" in flags else _SLOW_PLATFORM
        self._options = [
            f"--platform={self._platform}",
            f"--network={'sandbox' if redirects else 'none'}",
            "--ignore-cgroups",
            "--host-uds=open",
            # The build of 2022 sends empty datagrams for ever once its queue was full.
            "--qdisc=none",
        ]
        # Of newer builds: writes go to the sandbox's disk, and the file server alone opens files.
        self._options += [option for option in _NEWER_OPTIONS if option.partition("=")[0][1:] in flags]
        self._forks = forks
        self._roots = roots
        self._daemon = daemon
        self._lines: dict[str, Lines] = {}

    async def launch(self, spec: LaunchSpec) -> Launched:
        memory, taken = spec.folder / _MEMORY, spec.folder / f"{_MEMORY}.taken"
        for leftover in (taken, spec.folder / f"{_MEMORY}.new"):
            await _remove(leftover)
        if spec.resumes and memory.is_dir():
            (spec.folder / "boot").mkdir(exist_ok=True)  # an earlier version of the host made none
            # Taken before it is used: what the sandbox does from now on, the memory would not know of, not
            # even after a loss of power.
            memory.rename(taken)
            await asyncio.to_thread(durable.sync, spec.folder)
            try:
                return await self._launch(spec, ["restore", f"--image-path={taken}"], None)
            except LaunchFailed as error:
                _log.warning("a sandbox's memory is lost", extra={"sandbox": spec.id, "reason": str(error)})
            finally:
                await _remove(taken)
        await _remove(memory)
        _new_boot(spec.folder)
        key = lines.new_key(spec.folder, spec.uid or os.getuid())
        config = {**spec.config, "link": {"folder": _LINK, "key": key, "proxy_port": PROXY_PORT}}
        if self._platform == _SLOW_PLATFORM:
            config["max_processes"] = min(config["max_processes"], _MAX_PROCESSES_PTRACE)
        return await self._launch(spec, ["run"], json.dumps(config).encode())

    async def prepare(self, spec: LaunchSpec) -> tuple[ProcessIdentity, ProcessIdentity]:
        raise LaunchFailed("gVisor starts nothing before there is a root")

    async def furnish(self, spec: LaunchSpec) -> Launched:
        raise LaunchFailed("gVisor starts nothing before there is a root")

    async def _launch(self, spec: LaunchSpec, verb: list[str], config: bytes | None) -> Launched:
        """Start it: anew with a configuration for its daemon, or, without one, as it was."""
        binds = [(str(self._daemon), _LIBRARY), (str(spec.folder / "link"), _LINK)]
        binds += [(str(spec.folder / "boot"), _BOOT)]
        binds += [(mount.source, mount.target) for mount in spec.mounts]
        await self._forget(spec.id)
        await _remove(spec.folder / _BUNDLE)
        await self._roots.disks.get_ready(spec.folder, spec.disk_mb)
        try:
            with self._roots.prepared(spec.folder, spec.uid, spec.root, binds, spec.disk_mb) as root:
                async with asyncio.timeout(_READY_TIMEOUT_S):
                    return await self._start(spec, root, verb, config)
        except (LaunchFailed, OSError) as error:
            await self.end(spec.id, None, None, spec.cgroups)
            reason = str(error) or f"it did not answer within {_READY_TIMEOUT_S:.0f} s"
            raise LaunchFailed(
                f"the sandbox did not start: {reason}; {daemon_log.last_words(spec.folder)}"
            ) from error

    async def _start(
        self, spec: LaunchSpec, root: PreparedRoot, verb: list[str], config: bytes | None
    ) -> Launched:
        if root.plan is None:
            raise LaunchFailed(f"gVisor needs sandboxes to have a root of their own: {self._roots.obstacle}")
        plan = replace(root.plan, server=root.plan.uid + oci.ROOT_OFFSET)
        bundle = str(spec.folder / _BUNDLE)
        launch = Launch(
            argv=tuple(self._command(spec.folder, *verb, "--detach", "--bundle", bundle, spec.id)),
            uid=None,
            cgroups=tuple(spec.cgroups),
            root=plan,
            stage=root.stage,
            feeds_stdin=config is not None,
            hides=_HIDDEN if self.redirects else "",
        )
        found = await self._opened(spec.folder)
        with (
            await self._network() as network,
            memory_file("config", config or b"") as stdin,
            daemon_log.opened(spec.folder) as log,
        ):
            _write_bundle(spec, plan, network)
            pid = await self._forks.launch(launch, log, root.device, [stdin])
            runtime = ProcessIdentity.of(pid)
            if runtime is not None:
                await runtime.wait()
        kernel, files = _processes(spec)
        await _dialled(found, kernel)
        return Launched(kernel, files, await self._listeners(spec.folder, kernel), config is None)

    async def _network(self) -> contextlib.AbstractContextManager[FileIO | None]:
        """The network namespace of a sandbox that is being started; None where runsc makes an empty one."""
        return await asyncio.to_thread(wire.laid) if self.redirects else contextlib.nullcontext()

    async def checkpoint(self, folder: Path, token: str, cgroups: list[str]) -> None:
        scratch = folder / f"{_MEMORY}.new"
        try:
            await _remove(scratch)
            async with asyncio.timeout(_CHECKPOINT_TIMEOUT_S):
                # This kernel saves no connections that lead out of it: those that were open are broken by now, new ones are
                # refused.
                for kernel in _find(folder.name, _KERNEL) if self.redirects else ():
                    await asyncio.to_thread(wire.refuse, kernel)
                await thaw(cgroups)
                await (await self._opened(folder)).hang_up(token)
                await self._write_memory(folder, scratch)
            await self._roots.disks.sync(folder)
            await asyncio.to_thread(_keep, scratch, folder)
        except (OSError, TimeoutError) as error:
            await _remove(scratch)
            raise CheckpointFailed(f"gVisor: {error}") from error
        finally:
            await self._forget(folder.name)

    async def _write_memory(self, folder: Path, target: Path) -> None:
        # From then on no program begins a connection, and the last ones are refused before memory is read.
        await self._run(folder, "pause", folder.name)
        await self._run(folder, "checkpoint", f"--image-path={target}", folder.name)

    async def _run(self, folder: Path, *words: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *self._command(folder, *words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, complaint = await process.communicate()
        if process.returncode != 0:
            raise OSError(_reason(complaint))

    def _command(self, folder: Path, *words: str) -> list[str]:
        return [self._program, f"--root={folder / _BUNDLE / 'state'}", *self._options, *words]

    async def connect(self, folder: Path) -> Streams:
        return await (await self._opened(folder)).take()

    async def listeners(self, folder: Path, token: str, init: ProcessIdentity) -> Listeners:
        await self._opened(folder)
        return await self._listeners(folder, init)

    async def _listeners(self, folder: Path, kernel: ProcessIdentity) -> Listeners:
        if not self.redirects:
            return Listeners(lines.listen(folder, lines.EGRESS))

        def opened() -> Listeners:
            return Listeners.opened(lines.listen(folder, lines.EGRESS))

        return await asyncio.to_thread(namespaces.within, kernel, opened)

    def abandon(self, folder: Path, monitor: ProcessIdentity) -> None:
        self._roots.disks.abandon(folder, monitor)

    async def end(
        self, name: str, init: ProcessIdentity | None, monitor: ProcessIdentity | None, cgroups: list[str]
    ) -> None:
        """The end of the kernel is the end of every process that it serves; the file server has then nothing to do."""
        for process in (init, monitor):
            if process is not None:
                # The signal first: so nothing of a frozen sandbox runs before it ends.
                process.signal(signal.SIGKILL)
        await thaw(cgroups)
        for process in (init, monitor):
            if process is not None:
                await process.wait()
        while found := _find(name):
            for process in found:
                await process.kill()
        await self._forget(name)
        self._roots.disks.forget(name)

    async def freeze(self, cgroups: list[str]) -> None:
        await freeze(cgroups)

    async def thaw(self, cgroups: list[str]) -> None:
        await thaw(cgroups)

    async def _opened(self, folder: Path) -> Lines:
        """The lines of a sandbox, listened for from now on."""
        if folder.name not in self._lines:
            found = self._lines[folder.name] = Lines(folder)
            await found.open()
        return self._lines[folder.name]

    async def _forget(self, name: str) -> None:
        found = self._lines.pop(name, None)
        if found is not None:
            await found.close()


def _find(name: str, *programs: str) -> list[ProcessIdentity]:
    """Processes of runsc that one of their arguments, or a folder in it, names as this sandbox's."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended while we were looking
            program, *words = path.read_bytes().split(b"\0")
            is_runsc = program.rpartition(b"/")[2].decode(errors="replace") in (programs or _PROGRAMS)
            if is_runsc and any(name.encode() in word.split(b"/") for word in words):
                found.append(ProcessIdentity.of(int(path.parent.name)))
    return [process for process in found if process is not None]


def _flags(program: str) -> str:
    """What runsc says of the options that it knows."""
    told = subprocess.run([program, "flags"], capture_output=True, text=True, check=False)
    return told.stdout + told.stderr


def _write_bundle(spec: LaunchSpec, plan: RootPlan, network: FileIO | None) -> None:
    command = [layout.SANDBOX_PYTHON, "-I", "-S", "-B", "-c", _DAEMON, "0", spec.id]
    limits = {
        "RLIMIT_NOFILE": OPEN_FILES,
        "RLIMIT_CORE": 0,
        "RLIMIT_FSIZE": spec.disk_mb * 1024 * 1024,
    }
    path = "" if network is None else f"/proc/{os.getpid()}/fd/{network.fileno()}"
    oci.write_config(spec.folder / _BUNDLE, plan.root, _MOUNTS, command, plan.uid, limits, path)


def _new_boot(folder: Path) -> None:
    """What tells the sandbox's processes from those that it had before."""
    boot = folder / "boot"
    boot.mkdir(mode=0o755, exist_ok=True)
    (boot / "boot_id").write_text(f"{uuid.uuid4()}\n")
    (boot / "boot_id").chmod(0o644)


def _reason(words: bytes) -> str:
    """What of runsc's pages-long complaint says why: the end of its first line but for the objects that it dumps."""
    text = words.decode(errors="replace").partition("\ngoroutine ")[0].strip()
    return text.rpartition("}: ")[2][-500:].rstrip(":") or "runsc failed"


def _keep(memory: Path, folder: Path) -> None:
    """Give what was written its name. Whoever restores it believes that, also after a loss of power, and needs the disk and
    the key that it knows: all of them are on the machine's disk before."""
    for path in (memory, *folder.glob("boot"), folder):
        durable.sync_files(path)
    memory.rename(folder / _MEMORY)


async def _remove(folder: Path) -> None:
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _processes(spec: LaunchSpec) -> tuple[ProcessIdentity, ProcessIdentity]:
    """The kernel and the file server of a sandbox that runs."""
    kernel, files = _find(spec.id, _KERNEL), _find(spec.id, "runsc-gofer")
    if not kernel or not files:
        raise LaunchFailed("runsc refused")
    return kernel[0], files[0]


async def _dialled(found: Lines, kernel: ProcessIdentity) -> None:
    """Wait until the daemon has dialled. Raises LaunchFailed when its kernel ends before."""
    ready, end = asyncio.ensure_future(found.ready()), asyncio.ensure_future(kernel.wait())
    try:
        await asyncio.wait([ready, end], return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            raise LaunchFailed("the daemon in the sandbox did not start")
    finally:
        for task in (ready, end):
            task.cancel()
        await asyncio.gather(ready, end, return_exceptions=True)
