"""The port behind which sandboxes are started, halted and ended; an adapter for each way to isolate them."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import BadRequest
from ..network.listeners import Listeners
from ..pids import ProcessIdentity
from ..templates import Mount

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Root:
    """What a sandbox's own files lie on: unpacked layers, lowest first, each a folder that belongs to `STORAGE_UID`; and
    the machine's `/usr`, read-only, if `on_machine`."""

    layers: tuple[Path, ...] = ()
    on_machine: bool = True


@dataclass(frozen=True)
class LaunchSpec:
    """One sandbox to start.

    `folder` is its own: record, control socket, logs, disk. A launch on a folder that was launched on before goes on
    with the same files. `uid` is the Unix user outside, None where all share the host's. `config` goes to the daemon;
    `cgroups` are folders that exist. `disk_mb` bounds what it may write, where the machine can bound it.
    `resumes`: it may go on from what `checkpoint` has written; else that is thrown away.
    """

    id: str
    folder: Path
    uid: int | None
    root: Root
    mounts: tuple[Mount, ...]
    config: dict[str, Any]
    cgroups: list[str]
    disk_mb: int
    resumes: bool = False


@dataclass(frozen=True)
class Launched:
    """`init` is the sandbox's process 1, whose end is the end of the sandbox; `monitor` the backend's own process
    beside it; `listeners` wait for what its programs send out; `memory_kept` says that it went on from a checkpoint."""

    init: ProcessIdentity
    monitor: ProcessIdentity
    listeners: Listeners
    memory_kept: bool = False


class Backend(Protocol):
    """Starts sandboxes and ends them. It remembers nothing: what it must find again is in `Launched` and on disk, so a
    new host process can end, freeze and thaw what an earlier one launched.

        (nothing) ── launch ──► running ⇄ frozen            freeze, thaw: no process of it runs meanwhile
            └── prepare ──► waiting ── furnish ──► running
                                   └── end, or checkpoint, from either ──► (nothing)
    """

    @property
    def name(self) -> str:
        """One word, told by `GET /health`."""

    @property
    def keeps_memory(self) -> bool:
        """Whether `freeze` works here. Where it does not, a pause can only end the processes and keep the disk."""

    @property
    def prepares(self) -> bool:
        """Whether `prepare` and `furnish` work here."""

    @property
    def parks_memory(self) -> bool:
        """Whether `checkpoint` works here."""

    @property
    def shares_kernel(self) -> bool:
        """Whether a sandbox's processes are processes of this machine, which a cgroup can count. Where they are not, the
        daemon limits their number, and a cgroup counts the backend's own."""

    @property
    def redirects(self) -> bool:
        """Whether what programs send that know of no proxy can be led to `Listeners`: by `netfilter.redirect`, or by
        `wire.redirect` where the kernel is not shared."""

    async def launch(self, spec: LaunchSpec) -> Launched:
        """Start a sandbox and wait until its daemon answers.

        Raises LaunchFailed with what was said last; nothing of it runs then.
        """

    async def prepare(self, spec: LaunchSpec) -> tuple[ProcessIdentity, ProcessIdentity]:
        """Start the processes of a sandbox, and wait until they wait for what it is to be: of `spec` the id, the folder, the
        uid and the groups count. Answers `Launched.init` and `monitor`. They end with this host. Raises what `launch`
        raises."""

    async def furnish(self, spec: LaunchSpec) -> Launched:
        """Let what was prepared with this id become the sandbox, on a root with the machine's `/usr`. Raises what `launch`
        raises."""

    async def connect(self, folder: Path) -> Streams:
        """A connection to the daemon of the sandbox that was launched on this folder. Raises OSError when it does not
        answer."""

    async def listeners(self, folder: Path, token: str, init: ProcessIdentity) -> Listeners:
        """`Launched.listeners` again, for a host that was started anew. `token` is the daemon's, `init` the sandbox's
        process 1. Raises OSError, or LaunchFailed when something else came than listeners."""

    def abandon(self, folder: Path, monitor: ProcessIdentity) -> None:
        """Before the `end` of a sandbox whose disk nobody wants any more: what it has not written out yet need not be.
        What it writes from here on is lost. Nothing is raised: it only saves time."""

    async def end(
        self, name: str, init: ProcessIdentity | None, monitor: ProcessIdentity | None, cgroups: list[str]
    ) -> None:
        """End it and everything in it, frozen or not, and return when it has ended. `name` is its id: where the
        processes were never written down they are found by it. Of one that has ended already: nothing happens."""

    async def freeze(self, cgroups: list[str]) -> None:
        """Halt every process in it; returns when they stand still. Raises FreezeFailed, and then they run."""

    async def thaw(self, cgroups: list[str]) -> None:
        """Let it run on. Of one that is not frozen: nothing happens."""

    async def checkpoint(self, folder: Path, token: str, cgroups: list[str]) -> None:
        """Write its memory into its folder and end its processes, frozen or not; nothing else must be connected with
        them. Raises CheckpointFailed, and then its processes are in no state to go on."""


class Backends:
    """The backends that this machine has, by name, and the one for sandboxes whose template names none."""

    def __init__(self, default: Backend, *others: Backend) -> None:
        self.default = default
        self._by_name = {backend.name: backend for backend in (default, *others)}

    @property
    def names(self) -> list[str]:
        return list(self._by_name)

    @property
    def preparing(self) -> str:
        """The name of the one that starts processes ahead of what they become; empty where none does."""
        return next((backend.name for backend in self._by_name.values() if backend.prepares), "")

    def named(self, name: str) -> Backend:
        """The one of this name; the default for an empty one. Raises BadRequest `backend_missing`."""
        if name and name not in self._by_name:
            raise BadRequest(
                f"this host has no backend {name}: it offers {', '.join(self.names)}", "backend_missing"
            )
        return self._by_name[name] if name else self.default
