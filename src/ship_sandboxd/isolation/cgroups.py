"""Limits of memory, processes and processor time by cgroup, version 1 or 2, where this process may make them; and
halting all processes of a group.

Sandboxes' groups are made below the group that the host itself runs in, so a limit on the host bounds them too; with version
2 below the nearest one above it that may have groups with limits.
"""

import asyncio
import contextlib
import errno
import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import FreezeFailed

_PARENT = "ship-sandboxd"
_PERIOD_US = 100_000
_CONTROLLERS = ("memory", "pids", "cpu")
_FREEZER_1 = "freezer"
_ACCOUNT_1 = "cpuacct"
_REMOVE_TIMEOUT_S = 2.0
_FREEZE_TIMEOUT_S = 2.0
_FREEZE_SOON_S = 0.002
_FREEZE_POLL_S = 0.001
_CHOSEN_WITHIN_S = 0.02


@dataclass(frozen=True)
class Limits:
    memory_mb: int
    pids: int
    cpu_count: int

    def files(self, controller: str, version: int) -> dict[str, str]:
        """What to write where, for one controller."""
        memory, quota = self.memory_mb * 1024 * 1024, self.cpu_count * _PERIOD_US
        if controller == "memory":
            if version == 1:
                return {"memory.limit_in_bytes": str(memory), "memory.memsw.limit_in_bytes": str(memory)}
            return {"memory.max": str(memory), "memory.swap.max": "0"}
        if controller == "pids":
            return {"pids.max": str(self.pids)}
        if controller in (_FREEZER_1, _ACCOUNT_1):
            return {}
        if version == 1:
            return {"cpu.cfs_period_us": str(_PERIOD_US), "cpu.cfs_quota_us": str(quota)}
        return {"cpu.max": f"{quota} {_PERIOD_US}"}


# Files that only some kernels have: without swap accounting there is nothing to limit.
_OPTIONAL = {"memory.memsw.limit_in_bytes", "memory.swap.max"}


@dataclass(frozen=True)
class Hierarchy:
    """A folder to make groups in, and the controllers that they then have."""

    version: int
    folder: Path
    controllers: tuple[str, ...]


class Cgroups:
    """The hierarchies that can be used; none at all is possible."""

    def __init__(self, hierarchies: list[Hierarchy]) -> None:
        self._hierarchies = hierarchies
        self._failed: set[str] = set()

    @property
    def controllers(self) -> set[str]:
        """Those that limit something, and that no sandbox had to do without so far."""
        known = {name for hierarchy in self._hierarchies for name in hierarchy.controllers}
        return known.intersection(_CONTROLLERS) - self._failed

    @property
    def can_freeze(self) -> bool:
        return any(
            hierarchy.version == 2 or _FREEZER_1 in hierarchy.controllers for hierarchy in self._hierarchies
        )

    def folders(self, name: str) -> list[str]:
        """Where a sandbox's groups will be; to be written down before they are made."""
        return [str(hierarchy.folder / name) for hierarchy in self._hierarchies]

    def create(self, name: str, limits: Limits) -> list[tuple[tuple[str, ...], str]]:
        """Make a sandbox's groups. Answers those that it has to do without, and thereby their limits: (controllers, why)."""
        missing = []
        for hierarchy in self._hierarchies:
            try:
                _make(hierarchy, hierarchy.folder / name, limits)
            except OSError as error:
                self._failed.update(hierarchy.controllers)
                missing.append((hierarchy.controllers, str(error)))
        return missing


def _make(hierarchy: Hierarchy, folder: Path, limits: Limits) -> None:
    folder.mkdir(exist_ok=True)
    for controller in hierarchy.controllers:
        for file, value in limits.files(controller, hierarchy.version).items():
            with contextlib.suppress(FileNotFoundError) if file in _OPTIONAL else contextlib.nullcontext():
                _write(folder / file, value)


class MemoryWatch:
    """Tells each time that a sandbox's memory ran out and the kernel ended one of its processes. To be made in a
    running loop, and closed before the groups are removed; where no group limits memory it never tells."""

    def __init__(self, folders: list[str], tell: Callable[[], None]) -> None:
        self._tell = tell
        self._undo = contextlib.ExitStack()
        self._counts: Path | None = None
        self._ended = 0
        with contextlib.suppress(OSError):  # of a group that could not be made
            self._open([Path(folder) for folder in folders])

    def close(self) -> None:
        self._counts = None
        self._undo.close()

    def look(self) -> None:
        """Tell now what the loop, or the kernel, has not come to tell yet."""
        with contextlib.suppress(OSError):  # its group is gone
            ended = 0 if self._counts is None else _ended_processes(self._counts)
            if ended > self._ended:
                self._ended = ended
                self._tell()

    def _open(self, folders: list[Path]) -> None:
        for folder in folders:
            if (folder / "memory.oom_control").exists():
                self._count(folder / "memory.oom_control")
                self._watch_version_1(folder)
            elif (folder / "memory.events").exists():
                self._count(folder / "memory.events")
                self._watch_version_2(folder / "memory.events")

    def _count(self, counts: Path) -> None:
        self._counts, self._ended = counts, _ended_processes(counts)

    def _watch_version_1(self, folder: Path) -> None:
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._undo.callback(os.close, event)
        with (folder / "memory.oom_control").open() as control:
            _write(folder / "cgroup.event_control", f"{event} {control.fileno()}")

        def happened() -> None:
            os.eventfd_read(event)
            self.look()
            # It is told before the kernel has chosen a process. The end of a group shows here too.
            asyncio.get_running_loop().call_later(_CHOSEN_WITHIN_S, self.look)

        self._listen(event, happened)

    def _watch_version_2(self, events: Path) -> None:
        file = self._undo.enter_context(events.open())
        # The file is always readable; only an epoll of our own can be asked for its changes alone.
        changes = self._undo.enter_context(select.epoll())
        changes.register(file.fileno(), select.EPOLLPRI)

        def happened() -> None:
            changes.poll(0)
            self.look()

        self._listen(changes.fileno(), happened)

    def _listen(self, fd: int, happened: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(fd, happened)
        self._undo.callback(loop.remove_reader, fd)


def _ended_processes(counts: Path) -> int:
    fields = dict(line.split(" ") for line in counts.read_text().splitlines())
    return int(fields.get("oom_kill", 0))


def memory_mb(folders: list[str]) -> int | None:
    """What a sandbox's groups use of memory, caches included; None where no group tells."""
    for folder in map(Path, folders):
        for name in ("memory.usage_in_bytes", "memory.current"):
            with contextlib.suppress(FileNotFoundError):
                return int((folder / name).read_text()) // (1024 * 1024) + 1
    return None


def join(folders: list[str], pid: int) -> None:
    for folder in folders:
        _write(Path(folder) / "cgroup.procs", str(pid))


async def freeze(folders: list[str]) -> None:
    """Halt every process of a sandbox's groups; returns when they stand still. Raises FreezeFailed."""
    switch = _freezer(folders)
    if switch is None:
        raise FreezeFailed("this machine offers no cgroup that can halt processes")
    try:
        await switch.set(frozen=True)
    except (OSError, TimeoutError) as error:
        with contextlib.suppress(OSError):
            await switch.set(frozen=False)
        raise FreezeFailed(f"the sandbox's processes do not stand still: {error}") from error


async def thaw(folders: list[str]) -> None:
    """Let the processes of a sandbox's groups run on."""
    switch = _freezer(folders)
    if switch is not None:
        with contextlib.suppress(FileNotFoundError):
            await switch.set(frozen=False)


@dataclass(frozen=True)
class _Freezer:
    """The file that halts a group, the one that tells whether it stands still, and the words for both."""

    control: Path
    words: tuple[str, str]
    state: Path
    frozen: str

    async def set(self, *, frozen: bool) -> None:
        """Raises OSError, or TimeoutError when a process does not stand still."""
        _write(self.control, self.words[frozen])
        began = time.monotonic()
        while frozen and self.frozen not in self.state.read_text():
            waited_s = time.monotonic() - began
            if waited_s > _FREEZE_TIMEOUT_S:
                raise TimeoutError(f"{self.state} does not say {self.frozen}")
            # Most stand still within a tenth of a millisecond of processor time, which they may have to get from this
            # thread; the loop's shortest sleep takes ten times that.
            os.sched_yield()
            await asyncio.sleep(0 if waited_s < _FREEZE_SOON_S else _FREEZE_POLL_S)
            # Version 1 asks each process once, and one that is just forking may miss it: it is asked again.
            _write(self.control, self.words[frozen])


def _freezer(folders: list[str]) -> _Freezer | None:
    """Version 2's where there is one: its processes can be ended while they are halted."""
    for folder in map(Path, folders):
        if (folder / "cgroup.freeze").exists():
            return _Freezer(folder / "cgroup.freeze", ("0", "1"), folder / "cgroup.events", "frozen 1")
    for folder in map(Path, folders):
        if (folder / "freezer.state").exists():
            return _Freezer(
                folder / "freezer.state", ("THAWED", "FROZEN"), folder / "freezer.state", "FROZEN"
            )
    return None


async def remove(folders: list[str]) -> None:
    """Remove groups whose processes have ended; the kernel may need a moment to notice that they have."""
    deadline = time.monotonic() + _REMOVE_TIMEOUT_S
    for folder in folders:
        while True:
            try:
                os.rmdir(folder)  # noqa: PTH106 - in the kernel's own file system this does not block
            except FileNotFoundError:
                break
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.005)
            else:
                break


def detect(membership: str, mounts: str) -> Cgroups:
    """Find what can be used. `membership` is the text of /proc/self/cgroup, `mounts` that of /proc/self/mounts."""
    own = {}
    for line in membership.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            own[name] = path
    hierarchies: list[Hierarchy | None] = []
    for line in mounts.splitlines():
        _, point, kind, options = line.split(" ")[:4]
        if kind == "cgroup":
            known = (*_CONTROLLERS, _FREEZER_1, _ACCOUNT_1)
            controllers = tuple(name for name in known if name in options.split(",") and name in own)
            if controllers:
                hierarchies.append(_prepare(Hierarchy(1, Path(point + own[controllers[0]]), controllers)))
        elif kind == "cgroup2" and "" in own:
            hierarchies.append(_version_2(Path(point), Path(point + own[""])))
    return Cgroups([hierarchy for hierarchy in hierarchies if hierarchy is not None])


def _version_2(root: Path, own: Path) -> Hierarchy | None:
    """A group with processes cannot hand controllers on, unless it is the root of all; so ours is below the nearest one
    above the host's own that may. Where none does, as where version 1 has the controllers, a group of version 2 can still
    halt its processes."""
    ladder = [folder for folder in (own, *own.parents) if folder.is_relative_to(root)]
    for folder in sorted(ladder, key=lambda folder: len(_offered(folder)), reverse=True):
        controllers = _offered(folder)
        if controllers and (prepared := _prepare(Hierarchy(2, folder, controllers))) is not None:
            return prepared
    return _prepare(Hierarchy(2, own, ()))


def _offered(folder: Path) -> tuple[str, ...]:
    """Those of our controllers that a group may hand on."""
    with contextlib.suppress(OSError):
        offered = (folder / "cgroup.controllers").read_text().split()
        return tuple(name for name in _CONTROLLERS if name in offered)
    return ()


def _hand_on(folder: Path, controllers: tuple[str, ...]) -> None:
    """Let groups below this one have the controllers. Raises OSError."""
    switch = folder / "cgroup.subtree_control"
    if missing := set(controllers).difference(switch.read_text().split()):
        _write(switch, " ".join(f"+{name}" for name in missing))


def _prepare(hierarchy: Hierarchy) -> Hierarchy | None:
    """Make our parent group, or answer None when we may not."""
    folder = hierarchy.folder / _PARENT
    try:
        if hierarchy.version == 2:
            _hand_on(hierarchy.folder, hierarchy.controllers)
        folder.mkdir(exist_ok=True)
        if hierarchy.version == 2:
            _hand_on(folder, hierarchy.controllers)
        probe = folder / f"probe-{os.getpid()}"  # another host may start at the same time
        probe.mkdir()
        probe.rmdir()
    except OSError:
        return None
    return Hierarchy(hierarchy.version, folder, hierarchy.controllers)


def _write(path: Path, value: str) -> None:
    # Opened without O_CREAT: a file that the kernel does not offer must not appear as an ordinary one.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)
