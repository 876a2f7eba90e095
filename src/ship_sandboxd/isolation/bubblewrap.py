"""Sandboxes by bubblewrap: namespaces of their own, no capability, a filter on system calls, no network but lo."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..envd.daemon import LISTENER_PATH
from ..envd.http1 import CHUNK_BYTES
from ..errors import CheckpointFailed, LaunchFailed, SetupError
from ..network.listeners import OPENED, Listeners
from ..pids import ProcessIdentity, find_by_argument, readable
from . import daemon_log, layout
from .backend import Launched, LaunchSpec, Streams
from .cgroups import freeze, thaw
from .forkserver import FIRST_FD, ForkServer, Launch, memory_file
from .rootfs import PreparedRoot, Roots

INSIDE_ID = 1000
_READY_TIMEOUT_S = 20.0
_MONITOR_TIMEOUT_S = 2.0
_HANDOVER_TIMEOUT_S = 5.0
_ENDED = "what was to become a sandbox has ended"
_LIBRARY = "/run/envd/lib"
# TLS ends at the host: asyncio does without `ssl` where it cannot be imported, which saves a fifth of the daemon's start.
# What is loaded stays, so collecting garbage meanwhile is for nothing.
_DAEMON = (
    f"import gc, sys; gc.disable(); sys.modules['ssl'] = None; sys.path.insert(0, '{_LIBRARY}'); "
    "from envd import later; later.put_off(); from envd.daemon import main; gc.freeze(); gc.enable(); main()"
)
_PYTHON = (layout.SANDBOX_PYTHON, "-I", "-S", "-B", "-c")
_NEEDED_OPTIONS = ("--disable-userns", "--as-pid-1", "--info-fd", "--seccomp")
# Where a launch's descriptors stand among those that are handed to it.
_INFO, _SECCOMP, _HOST = range(3)


def find() -> str:
    """The path of a usable bwrap. Raises SetupError `bubblewrap_missing` or `bubblewrap_too_old`."""
    path = shutil.which("bwrap")
    if path is None:
        raise SetupError("bubblewrap is missing: install it (apt install bubblewrap)", "bubblewrap_missing")
    options = subprocess.run([path, "--help"], capture_output=True, text=True, check=False).stdout
    missing = [option for option in _NEEDED_OPTIONS if option not in options]
    if missing:
        raise SetupError(
            f"{path} is too old (no {', '.join(missing)}): install bubblewrap 0.8 or later",
            "bubblewrap_too_old",
        )
    return path


def check(program: str, uid: int | None) -> None:
    """Try a sandbox that does nothing. Raises SetupError `namespaces_refused` where the kernel does not allow one."""
    words = [program, "--unshare-all", "--unshare-user", "--disable-userns", "--ro-bind", "/usr", "/usr"]
    words += [*_system_links(), "--proc", "/proc", "--dev", "/dev", "--", "/usr/bin/env", "true"]
    tried = subprocess.run(
        words,
        capture_output=True,
        text=True,
        env={},
        cwd="/",
        user=uid,
        group=uid,
        extra_groups=None if uid is None else [],
        check=False,
    )
    if tried.returncode != 0:
        raise SetupError(
            f"this machine lets no sandbox start ({tried.stderr.strip() or f'bwrap: exit status {tried.returncode}'}): "
            "allow unprivileged user namespaces (sysctl user.max_user_namespaces above 0, "
            "kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0, where they exist)",
            "namespaces_refused",
        )


class Bubblewrap:
    """The backend of namespaces, see `Backend`; knows what its sandboxes all have in common."""

    name = "bubblewrap"
    parks_memory = False
    shares_kernel = True

    def __init__(
        self,
        program: str,
        forks: ForkServer,
        roots: Roots,
        daemon: Path,
        seccomp: bytes,
        freezes: bool,
        redirects: bool,
    ) -> None:
        self.keeps_memory = freezes
        self.redirects = redirects
        self._program = program
        self._forks = forks
        self._roots = roots
        self._daemon = daemon
        self._seccomp = seccomp
        self._waiting: dict[str, _Waiting] = {}

    @property
    def prepares(self) -> bool:
        return not self._roots.obstacle

    async def launch(self, spec: LaunchSpec) -> Launched:
        """Raises also Unsupported `layers_unsupported` where roots cannot be laid of layers."""
        await self._roots.disks.get_ready(spec.folder, spec.disk_mb)
        with self._root(spec) as root:
            async with self._within_time(spec):
                waiting = await self._start(spec, root)
                return await waiting.configure(spec)

    async def prepare(self, spec: LaunchSpec) -> tuple[ProcessIdentity, ProcessIdentity]:
        async with self._within_time(spec):
            waiting = await self._start(spec, self._roots.empty([(str(self._daemon), _LIBRARY)]))
        self._waiting[spec.id] = waiting
        return waiting.init, waiting.monitor

    async def furnish(self, spec: LaunchSpec) -> Launched:
        await self._roots.disks.get_ready(spec.folder, spec.disk_mb)
        waiting = self._waiting.pop(spec.id, None)
        if waiting is None:
            raise LaunchFailed(_ENDED)
        with (
            waiting.host,
            waiting.monitor.opened() as outside,
            waiting.init.opened() as inside,
            self._root(spec) as root,
        ):
            if root.plan is None or outside is None or inside is None:
                raise LaunchFailed(_ENDED)
            async with self._within_time(spec):
                await self._forks.furnish(root.plan, root.device, outside, inside)
                return await waiting.configure(spec)

    def _root(self, spec: LaunchSpec) -> contextlib.AbstractContextManager[PreparedRoot]:
        binds = [(str(self._daemon), _LIBRARY), *((mount.source, mount.target) for mount in spec.mounts)]
        return self._roots.prepared(spec.folder, spec.uid, spec.root, binds, spec.disk_mb)

    @asynccontextmanager
    async def _within_time(self, spec: LaunchSpec) -> AsyncIterator[None]:
        """A launch, of which nothing is left if it fails."""
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                yield
        except (LaunchFailed, OSError) as error:
            await self.end(spec.id, None, None, spec.cgroups)
            reason = str(error) or f"it did not answer within {_READY_TIMEOUT_S:.0f} s"
            raise LaunchFailed(
                f"the sandbox did not start: {reason}; {daemon_log.last_words(spec.folder)}"
            ) from error

    async def _start(self, spec: LaunchSpec, root: PreparedRoot) -> "_Waiting":
        """Start its daemon, which waits for its configuration then."""
        argv = [*arguments(self._program, root), *_PYTHON, _DAEMON, str(FIRST_FD + _HOST), spec.id]
        launch = Launch(
            argv=tuple(argv),
            uid=spec.uid,
            cgroups=tuple(spec.cgroups),
            root=root.plan,
            stage=root.stage,
            staged=root.staged,
        )
        host, host_there = socket.socketpair()
        host.setblocking(False)
        info, info_there = os.pipe()
        try:
            # What is theirs is closed once they have it, so that their end shows here as an end of the stream.
            with ExitStack() as theirs:
                theirs.callback(os.close, info_there)
                theirs.enter_context(host_there)
                seccomp = theirs.enter_context(memory_file("seccomp", self._seccomp))
                log = theirs.enter_context(daemon_log.opened(spec.folder))
                given = [info_there, seccomp, host_there.fileno()]
                monitor = ProcessIdentity.of(await self._forks.launch(launch, log, root.device, given))
            if monitor is None:
                raise LaunchFailed("bubblewrap has ended")
            waiting = _Waiting(await _read_init(info), monitor, host)
            await waiting.hear(b"here")
        except BaseException:
            host.close()
            raise
        finally:
            os.close(info)
        return waiting

    async def connect(self, folder: Path) -> Streams:
        with short_path(folder, "envd.sock") as path:
            return await asyncio.open_unix_connection(path, limit=CHUNK_BYTES)

    async def listeners(self, folder: Path, token: str, init: ProcessIdentity) -> Listeners:
        async with asyncio.timeout(_HANDOVER_TIMEOUT_S):
            return await _fetch_listeners(folder, token)

    def abandon(self, folder: Path, monitor: ProcessIdentity) -> None:
        self._roots.disks.abandon(folder, monitor)

    async def end(
        self, name: str, init: ProcessIdentity | None, monitor: ProcessIdentity | None, cgroups: list[str]
    ) -> None:
        """The end of the first process is the end of all others; bubblewrap's own has then nothing to wait for."""
        if (waiting := self._waiting.pop(name, None)) is not None:
            waiting.host.close()
        if init is not None:
            # The signal first: so nothing of a frozen sandbox runs before it ends.
            init.signal(signal.SIGKILL)
            await thaw(cgroups)
            await init.wait()
        if monitor is not None:
            # It ends by itself, having reaped the first process; only one that is stuck is killed.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(monitor.wait(), _MONITOR_TIMEOUT_S)
            await monitor.kill()
        else:
            while found := find_by_argument(("bwrap", "python3"), name):
                for process in found:
                    await process.kill()
        self._roots.disks.forget(name)

    async def freeze(self, cgroups: list[str]) -> None:
        await freeze(cgroups)

    async def thaw(self, cgroups: list[str]) -> None:
        await thaw(cgroups)

    async def checkpoint(self, folder: Path, token: str, cgroups: list[str]) -> None:
        raise CheckpointFailed("bubblewrap cannot write a sandbox's memory out")


@dataclass(frozen=True)
class _Waiting:
    """A daemon that is there and waits for its configuration; `host` is our end of the socket that it waits on."""

    init: ProcessIdentity
    monitor: ProcessIdentity
    host: socket.socket

    async def configure(self, spec: LaunchSpec) -> Launched:
        """Let it begin, and wait until it listens."""
        content = json.dumps({**spec.config, "file_bytes": spec.disk_mb * 1024 * 1024}).encode()
        with self.host, memory_file("config", content) as config:
            with _bind_control_socket(spec.folder) as listener:
                socket.send_fds(self.host, [b"go"], [config, listener.fileno()])
            return Launched(self.init, self.monitor, Listeners.of(await self.hear(b"ready")))

    async def hear(self, word: bytes) -> list[int]:
        """Wait for a word of it; answers the descriptors that came with it."""
        await readable(self.host.fileno())
        said, descriptors, _, _ = socket.recv_fds(self.host, 16, len(OPENED))
        if said != word:
            for descriptor in descriptors:
                os.close(descriptor)
            raise LaunchFailed("the daemon in the sandbox did not start")
        return descriptors


async def _read_init(info: int) -> ProcessIdentity:
    """The first process, of what bubblewrap says of it."""
    text = b""
    while not text.rstrip().endswith(b"}"):
        await readable(info)
        piece = os.read(info, 4096)
        if not piece:
            raise LaunchFailed("bubblewrap refused")
        text += piece
    init = ProcessIdentity.of(json.loads(text)["child-pid"])
    if init is None:
        raise LaunchFailed("the sandbox's first process has ended")
    return init


def arguments(program: str, root: PreparedRoot) -> list[str]:
    """bubblewrap's command line, up to the command."""
    words = [program, "--unshare-all", "--unshare-user", "--disable-userns", "--as-pid-1", "--new-session"]
    words += ["--uid", str(INSIDE_ID), "--gid", str(INSIDE_ID), "--hostname", layout.HOSTNAME]
    words += ["--cap-drop", "ALL", "--clearenv", "--chdir", "/"]
    words += ["--info-fd", str(FIRST_FD + _INFO), "--seccomp", str(FIRST_FD + _SECCOMP)]
    if root.plan is not None:
        words += ["--bind", root.plan.root, "/", *_kernel_folders()]
        words += ["--ro-bind", root.plan.boot_id, "/proc/sys/kernel/random/boot_id"]
        return [*words, "--"]
    words += ["--ro-bind", "/usr", "/usr", *_system_links(), *_kernel_folders()]
    for folder in ("/home", "/etc", "/run", "/run/envd", "/var", "/opt"):
        words += ["--perms", "0755", "--dir", folder]
    words += ["--symlink", "/tmp", "/var/tmp", "--symlink", "/run", "/var/run"]  # noqa: S108 - paths of the sandbox
    for source, target, option in root.binds:
        words += [option, source, target]
    return [*words, "--remount-ro", "/", "--"]


def _kernel_folders() -> list[str]:
    return ["--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev"]


def _system_links() -> list[str]:
    """/bin, /lib and their like, as the host has them: links into /usr, or folders of their own."""
    words: list[str] = []
    for name in layout.SYSTEM_FOLDERS:
        path = Path("/", name)
        if path.is_symlink():
            words += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            words += ["--ro-bind", str(path), str(path)]
    return words


async def _fetch_listeners(folder: Path, token: str) -> Listeners:
    """Ask a running sandbox's daemon for the listeners that lead out of it. What answers is not trusted, and may never
    answer: no thread waits for it."""
    loop = asyncio.get_running_loop()
    request = f"GET {LISTENER_PATH} HTTP/1.1\r\nHost: envd\r\nX-Access-Token: {token}\r\n\r\n".encode()
    with short_path(folder, "envd.sock") as path, socket.socket(socket.AF_UNIX) as connection:
        connection.setblocking(False)
        await loop.sock_connect(connection, path)
        await loop.sock_sendall(connection, request)
        await readable(connection.fileno())
        _, descriptors, _, _ = socket.recv_fds(connection, 4096, len(OPENED))
    return Listeners.of(descriptors)


@contextmanager
def short_path(folder: Path, name: str) -> Iterator[str]:
    """A path to a socket that fits into the 107 bytes that the kernel allows, however deep the folder lies."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def _bind_control_socket(folder: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.suppress(FileNotFoundError):
        (folder / "envd.sock").unlink()
    with short_path(folder, "envd.sock") as path:
        listener.bind(path)
    listener.listen(128)
    return listener
