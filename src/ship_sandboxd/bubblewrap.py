"""Sandboxes by bubblewrap: namespaces of their own, no capability, a filter on system calls, no network but lo."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from . import cgroups, layout
from .backend import Launched, LaunchSpec, Streams
from .cgroups import freeze, thaw
from .envd.daemon import LISTENER_PATH
from .errors import LaunchFailed, SetupError
from .pids import ProcessIdentity, find_by_argument, readable
from .staging import Stage

INSIDE_ID = 1000
_READY_TIMEOUT_S = 20.0
_MONITOR_TIMEOUT_S = 2.0
_HANDOVER_TIMEOUT_S = 5.0
_DAEMON = "import sys; sys.path.insert(0, '/run/envd/lib'); from envd.daemon import main; main()"
_NEEDED_OPTIONS = ("--disable-userns", "--as-pid-1", "--block-fd", "--info-fd", "--seccomp")


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

    def __init__(
        self, program: str, stage: Stage, daemon: Path, etc: Path, seccomp: bytes, freezes: bool
    ) -> None:
        self.keeps_memory = freezes
        self._program = program
        self._stage = stage
        self._daemon = daemon
        self._etc = etc
        self._seccomp = seccomp
        self._monitors: dict[int, subprocess.Popen[bytes]] = {}

    async def launch(self, spec: LaunchSpec) -> Launched:
        """Start a sandbox and wait until its daemon listens. Raises LaunchFailed with what was said last."""
        with self._prepared(spec) as preparation:
            monitor = preparation.start()
            self._monitors[monitor.pid] = monitor
            try:
                return await asyncio.wait_for(preparation.follow(monitor), _READY_TIMEOUT_S)
            except (LaunchFailed, OSError) as error:
                monitor.kill()
                monitor.wait()
                raise LaunchFailed(
                    f"the sandbox did not start: {error}; {_last_words(spec.folder)}"
                ) from error

    async def connect(self, folder: Path) -> Streams:
        with short_path(folder, "envd.sock") as path:
            return await asyncio.open_unix_connection(path)

    async def egress(self, folder: Path, token: str) -> socket.socket:
        return await asyncio.to_thread(_fetch_listener, folder, token)

    async def end(
        self, name: str, init: ProcessIdentity | None, monitor: ProcessIdentity | None, cgroups: list[str]
    ) -> None:
        """The end of the first process is the end of all others; bubblewrap's own has then nothing to wait for."""
        if init is not None:
            # The signal first: so nothing of a frozen sandbox runs before it ends.
            init.signal(signal.SIGKILL)
            await thaw(cgroups)
            await init.wait()
        if monitor is not None:
            # It ends by itself, having reaped the first process; only one that is stuck is killed.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(monitor.wait(), _MONITOR_TIMEOUT_S)
            await self._end_process(monitor)
        else:
            while found := find_by_argument(("bwrap", "python3"), name):
                for process in found:
                    await self._end_process(process)

    async def freeze(self, cgroups: list[str]) -> None:
        await freeze(cgroups)

    async def thaw(self, cgroups: list[str]) -> None:
        await thaw(cgroups)

    async def _end_process(self, process: ProcessIdentity) -> None:
        await process.kill()
        child = self._monitors.pop(process.pid, None)
        if child is not None:
            child.wait()

    @contextmanager
    def _prepared(self, spec: LaunchSpec) -> Iterator["_Preparation"]:
        binds = self._binds(spec)
        for source, _, _ in binds:
            if not Path(source).exists():
                raise LaunchFailed(f"the mount source {source} does not exist", "mount_missing")
        with self._stage.bound([source for source, _, _ in binds]) as staged, ExitStack() as stack:
            reachable = [
                (source, target, mode) for source, (_, target, mode) in zip(staged, binds, strict=True)
            ]
            yield _Preparation(self._program, spec, reachable, self._seccomp, stack)

    def _binds(self, spec: LaunchSpec) -> list[tuple[str, str, str]]:
        """Every (source, target, bwrap option); what comes later lies on top."""
        read_only = [(str(self._etc / name), f"/etc/{name}") for name in layout.etc_names()]
        read_only += [(path, path) for path in layout.HOST_ETC if Path(path).exists()]
        read_only.append((str(self._daemon), "/run/envd/lib"))
        read_only += [(mount.source, mount.target) for mount in spec.mounts]
        own = [("home", "/home/user"), ("workspace", "/workspace"), ("tmp", "/tmp")]  # noqa: S108 - the sandbox's
        return [
            *((str(spec.folder / name), target, "--bind") for name, target in own),
            *((os.path.realpath(source), target, "--ro-bind") for source, target in read_only),
        ]


class _Preparation:
    """The descriptors of one launch. `stack` closes what is ours; what is theirs is closed once they have it, so that
    their end shows here as an end of the stream."""

    def __init__(
        self,
        program: str,
        spec: LaunchSpec,
        binds: list[tuple[str, str, str]],
        seccomp: bytes,
        stack: ExitStack,
    ) -> None:
        self._program = program
        self._spec = spec
        self._binds = binds
        self._theirs = stack.enter_context(ExitStack())
        self._info, self._info_there = os.pipe()
        self._block_there, self._block = os.pipe()
        self._ready, self._ready_there = socket.socketpair()
        self._listener = self._theirs.enter_context(_bind_control_socket(spec.folder))
        for fd in (self._info, self._block):
            stack.callback(os.close, fd)
        for fd in (self._info_there, self._block_there):
            self._theirs.callback(os.close, fd)
        stack.enter_context(self._ready)
        self._theirs.enter_context(self._ready_there)
        self._ready.setblocking(False)
        self._seccomp = self._memory_file("seccomp", seccomp)
        config = {**spec.config, "listen_fd": self._listener.fileno(), "ready_fd": self._ready_there.fileno()}
        self._config = self._memory_file("config", json.dumps(config).encode())

    def _memory_file(self, name: str, content: bytes) -> int:
        fd = os.memfd_create(name)
        self._theirs.callback(os.close, fd)
        os.write(fd, content)
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    def start(self) -> subprocess.Popen[bytes]:
        uid = self._spec.uid
        theirs = (self._info_there, self._block_there, self._seccomp, self._config)
        sockets = (self._listener.fileno(), self._ready_there.fileno())
        options = arguments(self._program, self._binds, self._info_there, self._block_there, self._seccomp)
        log = os.open(
            self._spec.folder / "envd.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        try:
            return subprocess.Popen(
                [
                    *options,
                    layout.SANDBOX_PYTHON,
                    "-I",
                    "-S",
                    "-B",
                    "-c",
                    _DAEMON,
                    str(self._config),
                    self._spec.id,
                ],
                env={},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=theirs + sockets,
                start_new_session=True,
                user=uid,
                group=uid,
                extra_groups=None if uid is None else [],
            )
        finally:
            os.close(log)
            self._theirs.close()

    async def follow(self, monitor: subprocess.Popen[bytes]) -> Launched:
        """Learn the sandbox's first process, put limits on it, let it run, and wait for the daemon's word."""
        init = await self._read_init()
        cgroups.join(self._spec.cgroups, init.pid)
        os.write(self._block, b"go")
        egress = await self._read_ready()
        identity = ProcessIdentity.of(monitor.pid)
        if identity is None:
            raise LaunchFailed("bubblewrap has ended")
        return Launched(init, identity, egress)

    async def _read_init(self) -> ProcessIdentity:
        text = b""
        while not text.rstrip().endswith(b"}"):
            await readable(self._info)
            piece = os.read(self._info, 4096)
            if not piece:
                raise LaunchFailed("bubblewrap refused")
            text += piece
        init = ProcessIdentity.of(json.loads(text)["child-pid"])
        if init is None:
            raise LaunchFailed("the sandbox's first process has ended")
        return init

    async def _read_ready(self) -> socket.socket:
        await readable(self._ready.fileno())
        word, descriptors, _, _ = socket.recv_fds(self._ready, 16, 1)
        if word != b"ready" or len(descriptors) != 1:
            for descriptor in descriptors:
                os.close(descriptor)
            raise LaunchFailed("the daemon in the sandbox did not start")
        return checked_listener(descriptors[0])


def arguments(
    program: str, binds: list[tuple[str, str, str]], info_fd: int, block_fd: int, seccomp_fd: int
) -> list[str]:
    """bubblewrap's command line, up to the command."""
    words = [program, "--unshare-all", "--unshare-user", "--disable-userns", "--as-pid-1", "--new-session"]
    words += [
        "--uid",
        str(INSIDE_ID),
        "--gid",
        str(INSIDE_ID),
        "--hostname",
        layout.HOSTNAME,
        "--cap-drop",
        "ALL",
        "--clearenv",
    ]
    words += ["--info-fd", str(info_fd), "--block-fd", str(block_fd), "--seccomp", str(seccomp_fd)]
    words += ["--ro-bind", "/usr", "/usr", *_system_links()]
    words += ["--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev"]
    for folder in ("/home", "/etc", "/run", "/run/envd", "/var", "/opt"):
        words += ["--perms", "0755", "--dir", folder]
    words += ["--symlink", "/tmp", "/var/tmp", "--symlink", "/run", "/var/run"]  # noqa: S108 - paths of the sandbox
    for source, target, option in binds:
        words += [option, source, target]
    return [*words, "--remount-ro", "/", "--chdir", "/home/user", "--"]


def _system_links() -> list[str]:
    """/bin, /lib and their like, as the host has them: links into /usr, or folders of their own."""
    words: list[str] = []
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/", name)
        if path.is_symlink():
            words += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            words += ["--ro-bind", str(path), str(path)]
    return words


def _fetch_listener(folder: Path, token: str) -> socket.socket:
    """Ask a running sandbox's daemon for the listener of its proxy. What answers is not trusted."""
    with short_path(folder, "envd.sock") as path, socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_HANDOVER_TIMEOUT_S)
        connection.connect(path)
        connection.sendall(
            f"GET {LISTENER_PATH} HTTP/1.1\r\nHost: envd\r\nX-Access-Token: {token}\r\n\r\n".encode()
        )
        _, descriptors, _, _ = socket.recv_fds(connection, 4096, 1)
    if not descriptors:
        raise LaunchFailed("the daemon did not hand over its listener")
    return checked_listener(descriptors[0])


def checked_listener(descriptor: int) -> socket.socket:
    """A descriptor that came out of a sandbox, once it has proved to be a listening TCP socket."""
    listener = socket.socket(fileno=descriptor)
    try:
        is_tcp = listener.family == socket.AF_INET and listener.type == socket.SOCK_STREAM
        if not is_tcp or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise LaunchFailed("the sandbox handed over something else than its listener")
    except OSError as error:
        listener.close()
        raise LaunchFailed("the sandbox handed over something else than a socket") from error
    except LaunchFailed:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


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


def _last_words(folder: Path) -> str:
    """The end of what bubblewrap and the daemon have logged."""
    with contextlib.suppress(OSError):
        return (folder / "envd.log").read_text(errors="replace")[-2000:].strip() or "nothing was logged"
    return "nothing was logged"
