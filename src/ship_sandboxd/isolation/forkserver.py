"""A small process that starts sandboxes: it has one thread and little memory, and forks once per launch.

The child gives itself a mount namespace, assembles the sandbox's root in it, joins the sandbox's groups, becomes the
sandbox's uid and then the program that it was asked for; or it gives its root to a sandbox whose processes are there
already, and ends. What it mounted ends with that program's namespaces, whether
or not a host still runs. The fork server ends with its host; until both and every child that has not become its program
yet are gone, they hold a lock that the next host waits for. A fork server that ends alone is started anew.
"""

import asyncio
import contextlib
import fcntl
import gc
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..errors import LaunchFailed, SetupError
from ..pids import readable
from . import mounts
from .rootfs import RootPlan, assemble, furnish

_log = logging.getLogger("ship_sandboxd.isolation.forkserver")
FIRST_FD = 10
_MESSAGE_BYTES = 160 * 1024
_LOCK_TIMEOUT_S = 10.0
_FAILURE_BYTES = 2000
_PROGRAM = "from ship_sandboxd.isolation.forkserver import main; main()"
_DEFAULT_SIGNALS = (signal.SIGCHLD, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM, signal.SIGXFSZ)


@dataclass(frozen=True)
class Launch:
    """What a child does, in this order: join `cgroups`; assemble `root` or, where roots cannot be assembled, bind
    `staged` to `stage/0`, `stage/1` and so on; become `uid`; run `argv` with no environment.

    `feeds_stdin`: the first descriptor that is handed to it becomes its standard input. `hides`: a folder of /proc that it
    finds empty; there is a `root` then.
    """

    argv: tuple[str, ...]
    uid: int | None
    cgroups: tuple[str, ...]
    root: RootPlan | None = None
    stage: str = ""
    staged: tuple[str, ...] = ()
    feeds_stdin: bool = False
    hides: str = ""


class ForkServer:
    """The host's side of it."""

    def __init__(self, lock: int, stage: str) -> None:
        self._lock = lock
        self._stage = stage
        self._turn = asyncio.Lock()
        self._channel = self._spawn()

    @classmethod
    def start(cls, data: Path, stage: str) -> "ForkServer":
        """Start it in this process's mount namespace. Waits for the launches of an earlier host on this data folder.
        `stage` is the folder that no sandbox must inherit what is mounted on, or empty.

        Raises SetupError `launches_under_way`.
        """
        return cls(_take_lock(data / "launches.lock"), stage)

    def close(self) -> None:
        """Let it end. What it has started runs on."""
        self._channel.close()
        self._process.wait()
        os.close(self._lock)

    def _spawn(self) -> socket.socket:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with there:
            theirs = (there.fileno(), self._lock)
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, *map(str, theirs), self._stage],
                pass_fds=theirs,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        here.setblocking(False)
        here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _MESSAGE_BYTES)
        return here

    def _respawn(self) -> None:
        self._channel.close()
        self._process.kill()
        self._process.wait()
        _log.error("the process that starts sandboxes has ended: another one takes its place")
        self._channel = self._spawn()

    async def launch(self, launch: Launch, log: int, device: int | None, theirs: Sequence[int]) -> int:
        """Start a child and wait until it runs its program; answers its pid. It finds `theirs` as descriptors from
        FIRST_FD on, and writes to `log`. Raises LaunchFailed."""
        return await self._fork("launch", asdict(launch), device, [log, *theirs])

    async def furnish(self, root: RootPlan, device: int | None, outside: int, inside: int) -> None:
        """Give processes that run their root, see `rootfs.furnish`. Raises LaunchFailed."""
        await self._fork("furnish", asdict(root), device, [outside, inside])

    async def _fork(self, task: str, values: dict[str, object], device: int | None, theirs: list[int]) -> int:
        """A child that does this, until it runs a program or has ended; answers its pid."""
        message = {"task": task, "values": values, "has_device": device is not None}
        failure, failure_there = os.pipe()
        try:
            try:
                given = [failure_there, *([] if device is None else [device]), *theirs]
                pid = await self._ask(json.dumps(message).encode(), given)
            finally:
                os.close(failure_there)
            try:
                await readable(failure)
            except asyncio.CancelledError:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)  # nobody could find it before it runs its program
                raise
            words = os.read(failure, _FAILURE_BYTES)
            if words:
                raise LaunchFailed(words.decode(errors="replace"))
            return pid
        finally:
            os.close(failure)

    async def _ask(self, message: bytes, given: list[int]) -> int:
        if len(message) > _MESSAGE_BYTES:
            raise LaunchFailed("too many mounts or layers for one sandbox", "root_too_large")
        await self._turn.acquire()
        try:
            self._send(message, given)
            answer = asyncio.create_task(self._answer())
        except BaseException:
            self._turn.release()
            raise
        answer.add_done_callback(lambda _: self._turn.release())
        try:
            # Whoever asks may go away; the answer must be read all the same, or the next one would take it for its own.
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            # It ends before anybody looks for what is left of this launch: later, it might be missed.
            await asyncio.wait({answer})
            _end_unwanted(answer)
            raise

    def _send(self, message: bytes, given: list[int]) -> None:
        try:
            socket.send_fds(self._channel, [message], given)
        except (BrokenPipeError, ConnectionResetError):
            self._respawn()
            socket.send_fds(self._channel, [message], given)

    async def _answer(self) -> int:
        try:
            await readable(self._channel.fileno())
            answer = json.loads(self._channel.recv(_MESSAGE_BYTES))
        except (OSError, ValueError) as error:
            self._respawn()
            raise LaunchFailed(
                "the process that starts sandboxes ended just now: try again", "fork_server_ended"
            ) from error
        if "pid" not in answer:
            raise LaunchFailed(f"no process can be made: {answer['error']}", "no_process_left")
        return int(answer["pid"])


@contextmanager
def memory_file(name: str, content: bytes) -> Iterator[int]:
    """A descriptor to hand to a child, which reads this from it."""
    fd = os.memfd_create(name)
    try:
        os.write(fd, content)
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


def _end_unwanted(answer: "asyncio.Task[int]") -> None:
    if not answer.cancelled() and answer.exception() is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(answer.result(), signal.SIGKILL)


def _take_lock(path: Path) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                os.close(lock)
                raise SetupError(
                    f"an earlier host on {path.parent} still starts a sandbox: try again, or end that process",
                    "launches_under_way",
                ) from error
            time.sleep(0.005)
        else:
            return lock


def main() -> None:
    """The fork server itself; its arguments are the descriptors of the channel and the lock, and the stage."""
    channel, lock, stage = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    for fd in (channel, lock):
        os.set_inheritable(fd, False)
    _serve(socket.socket(fileno=channel), stage)


def _serve(channel: socket.socket, stage: str) -> None:
    """Fork a child for each message, until the host has ended."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the host decides when this ends
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    gc.freeze()
    while True:
        message, given, _, _ = socket.recv_fds(channel, _MESSAGE_BYTES, 32)
        if not message:
            return
        for fd in given:
            os.set_inheritable(fd, False)
        try:
            pid = os.fork()
        except OSError as error:
            answer: dict[str, object] = {"error": error.strerror}
        else:
            if pid == 0:
                _do(json.loads(message), given, stage)
            answer = {"pid": pid}
        for fd in given:
            os.close(fd)
        channel.send(json.dumps(answer).encode())


def _do(message: dict[str, Any], given: list[int], stage: str) -> NoReturn:
    """The child: do the task, or say why not."""
    failure = given[0]
    try:
        for number in _DEFAULT_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        # Out of the way of the numbers that a program is promised.
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 200) for fd in given[1:]]
        device = theirs.pop(0) if message["has_device"] else None
        values = message["values"]
        if message["task"] == "furnish":
            furnish(RootPlan(**values), device, *theirs)
        else:
            root = values.pop("root")
            launch = Launch(**values, root=None if root is None else RootPlan(**root))
            _become(launch, device, theirs, stage)
    except BaseException as error:
        os.write(failure, f"{type(error).__name__}: {error}".encode()[:_FAILURE_BYTES])
    finally:
        os._exit(127)


def _become(launch: Launch, device: int | None, theirs: list[int], stage: str) -> NoReturn:
    """Turn into the sandbox's program."""
    log, *others = theirs
    _prepare(launch, device, stage)
    os.setsid()
    if launch.feeds_stdin:
        os.dup2(others.pop(0), 0)
    for place, fd in ((1, log), (2, log), *((FIRST_FD + count, fd) for count, fd in enumerate(others))):
        os.dup2(fd, place)
    os.chdir("/")
    if launch.uid is not None:
        os.setgroups([])
        os.setresgid(launch.uid, launch.uid, launch.uid)
        os.setresuid(launch.uid, launch.uid, launch.uid)
    os.execve(launch.argv[0], launch.argv, {})  # noqa: S606 - no shell is wanted


def _prepare(launch: Launch, device: int | None, stage: str) -> None:
    for folder in launch.cgroups:
        with contextlib.suppress(FileNotFoundError):  # one that could not be made was told when it failed
            (Path(folder) / "cgroup.procs").write_text("0")
    if stage:
        mounts.own_namespace()
        mounts.unmount(stage)
    if launch.root is not None:
        assemble(launch.root, device)
        if launch.hides:
            mounts.hide(launch.hides, launch.root.stage)
    elif launch.staged:
        mounts.mount("tmpfs", stage, "tmpfs", mounts.NOSUID | mounts.NODEV, "mode=0755,size=1m")
        for number, source in enumerate(launch.staged):
            point = Path(stage, str(number))
            point.mkdir() if Path(source).is_dir() else point.touch()
            mounts.bind(source, str(point))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
