"""`process.Process`: start, list, watch, feed and end the processes of a sandbox.

The daemon is process 1 of the sandbox, so it reaps whatever dies there, orphans included, and no signal sent from
inside can end it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import termios
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from .account import Account
from .memory import Memory
from .output import Output
from .rpc import Call, Message, RpcError, to_bytes

READ_BYTES = 32 * 1024
STOOD_STILL_S = 1.0
DEATH_WAIT_S = 2.0  # what hangs in a system call may take longer to die; nobody waits for that
DEATH_POLL_S = 0.002
DRAIN_READS = 32  # more than a pipe holds, so that a writer left behind cannot keep us here
ENDED_KEPT = 64
MAX_ROUNDS = 20
ENDED_KEPT_BYTES = 16 * 1024 * 1024
_OOM_SCORE_ADJ = b"500"
_SIGNALS = {
    "SIGNAL_SIGTERM": signal.SIGTERM,
    "SIGNAL_SIGKILL": signal.SIGKILL,
    15: signal.SIGTERM,
    9: signal.SIGKILL,
}


class Process:
    """One started command, its output and how it ended."""

    def __init__(self, popen: subprocess.Popen[bytes], config: Message, tag: str | None) -> None:
        self.popen = popen
        self.pid = popen.pid
        self.config = config
        self.tag = tag
        self.output = Output()
        self.output.on_relief = self._resume
        self.end: Message | None = None
        self.timed_out = False
        self.killed = False
        self.deadline: asyncio.TimerHandle | None = None
        self.terminal: int | None = None
        self.stdin: int | None = None
        self._readers: dict[int, str] = {}
        self._paused = False
        self._feeding = asyncio.Lock()
        self._feeder: asyncio.Future[None] | None = None

    def read_from(self, fd: int, kind: str) -> None:
        os.set_blocking(fd, False)
        self._readers[fd] = kind
        asyncio.get_running_loop().add_reader(fd, self._readable, fd)

    def _readable(self, fd: int) -> None:
        data = _read(fd)
        if data is None:
            return
        if not data:
            self._stop_reading(fd)
            return
        if self.end is None:
            self.output.append(self._readers[fd], data)
            if self.output.congested:
                self._pause()

    def _stop_reading(self, fd: int) -> None:
        asyncio.get_running_loop().remove_reader(fd)
        del self._readers[fd]
        if fd != self.terminal:
            os.close(fd)
        elif self.end is not None:
            self.close_terminal()

    def _pause(self) -> None:
        self._paused = True
        for fd in self._readers:
            asyncio.get_running_loop().remove_reader(fd)

    def _resume(self) -> None:
        if self._paused and not self.output.congested:
            self._paused = False
            for fd in self._readers:
                asyncio.get_running_loop().add_reader(fd, self._readable, fd)

    def exited(self, status: int, out_of_memory: bool = False) -> None:
        """Record the end. What is in the pipes by now belongs to the output; what a child that the process left
        behind writes later does not, and goes nowhere."""
        self.popen.returncode = os.waitstatus_to_exitcode(status)
        if self.deadline is not None:
            self.deadline.cancel()
        for fd in list(self._readers):
            self._drain(fd)
        self.end = _end_event(self.popen.returncode, out_of_memory)
        self.close_stdin()
        if self.terminal is not None and self.terminal not in self._readers:
            self.close_terminal()
        self.output.close()
        self._resume()

    def _drain(self, fd: int) -> None:
        for _ in range(DRAIN_READS):
            data = _read(fd)
            if data is None:
                return
            if not data:
                self._stop_reading(fd)
                return
            self.output.append(self._readers[fd], data)

    async def feed(self, data: bytes) -> None:
        """Write to the process's standard input or terminal; waits while it is full."""
        async with self._feeding:
            while data:
                fd = self.terminal if self.terminal is not None else self.stdin
                if fd is None:
                    raise RpcError("failed_precondition", "the process has no open stdin")
                try:
                    data = data[os.write(fd, data) :]
                except BlockingIOError:
                    await self._writable(fd)
                except OSError as error:
                    raise RpcError(
                        "failed_precondition", f"the process does not read: {error.strerror}"
                    ) from error

    async def _writable(self, fd: int) -> None:
        loop = asyncio.get_running_loop()
        self._feeder = loop.create_future()
        loop.add_writer(fd, self._wake_feeder, fd)
        try:
            await self._feeder
        except asyncio.CancelledError:
            self._wake_feeder(fd)
            raise

    def _wake_feeder(self, fd: int) -> None:
        if self._feeder is not None:
            asyncio.get_running_loop().remove_writer(fd)
            if not self._feeder.done():
                self._feeder.set_result(None)
            self._feeder = None

    def close_stdin(self) -> None:
        if self.stdin is not None:
            self._wake_feeder(self.stdin)
            os.close(self.stdin)
            self.stdin = None

    def close_terminal(self) -> None:
        if self.terminal is not None:
            self._wake_feeder(self.terminal)
            os.close(self.terminal)
            self.terminal = None

    def info(self) -> Message:
        info: Message = {"pid": self.pid, "config": self.config}
        if self.tag is not None:
            info["tag"] = self.tag
        return info


def _read(fd: int) -> bytes | None:
    """What is there to read; None when nothing is yet, empty bytes when it is over."""
    try:
        return os.read(fd, READ_BYTES)
    except BlockingIOError:
        return None
    except OSError:
        return b""  # a terminal whose other side is closed


def _end_event(returncode: int, out_of_memory: bool) -> Message:
    """The end of a process as Go's os.ProcessState tells it, which is what the protocol carries."""
    reason = ": out of memory" if out_of_memory else ""
    if returncode < 0:
        status = f"signal: {_SIGNAL_TEXT.get(-returncode, str(-returncode))}"
        return {"exitCode": -1, "exited": False, "status": status, "error": status + reason}
    status = f"exit status {returncode}"
    end: Message = {"exitCode": returncode, "exited": True, "status": status}
    if returncode:
        end["error"] = status + reason
    return end


def _is_killed(status: int) -> bool:
    """Whether SIGKILL ended a process, or the last one that a shell ran."""
    return os.waitstatus_to_exitcode(status) in (-signal.SIGKILL, 128 + signal.SIGKILL)


_SIGNAL_TEXT: dict[int, str] = {
    signal.SIGHUP: "hangup",
    signal.SIGINT: "interrupt",
    signal.SIGQUIT: "quit",
    signal.SIGABRT: "aborted",
    signal.SIGKILL: "killed",
    signal.SIGSEGV: "segmentation fault",
    signal.SIGPIPE: "broken pipe",
    signal.SIGTERM: "terminated",
}


def tree(root: int) -> set[int]:
    """The process `root`, its descendants, and what is left of its session."""
    table = _process_table()
    found = {pid for pid, (_, session) in table.items() if session == root or pid == root}
    while True:
        children = {pid for pid, (parent, _) in table.items() if parent in found} - found
        if not children:
            return found
        found |= children


def _process_table() -> dict[int, tuple[int, int]]:
    """Every process as pid -> (parent, session)."""
    table = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue  # it ended while we were looking
            table[int(name)] = (int(fields[1]), int(fields[3]))
    return table


def kill_tree(root: int) -> list[int]:
    """End a whole tree; answers its processes. It is stopped first, from the root on, so that nothing forks away meanwhile,
    and so that no parent tells of its child's death as its own end."""
    stopped: list[int] = []
    for _ in range(MAX_ROUNDS):
        new = sorted(tree(root) - set(stopped), key=lambda pid: pid != root)
        if not new:
            break
        for pid in new:
            _signal(pid, signal.SIGSTOP)
        stopped += new
    for pid in stopped:
        _signal(pid, signal.SIGKILL)
    return stopped


async def _gone(pids: list[int]) -> None:
    """Wait until there is nothing left of processes, their remains included."""
    while True:
        pids = [pid for pid in pids if _is_there(pid)]
        if not pids:
            return
        await asyncio.sleep(DEATH_POLL_S)


def _is_there(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        os.kill(pid, number)


class Processes:
    """The process table behind the `process.Process` service."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._running: dict[int, Process] = {}
        self._ended: OrderedDict[int, Process] = OrderedDict()
        self._memory = Memory()
        self._late: set[asyncio.Future[None] | None] = set()

    def watch_children(self) -> None:
        """Reap from now on; the loop must run in the main thread."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            process = self._running.pop(pid, None)
            if process is not None:
                self._remember(process)
                if _is_killed(status) and not process.killed and self._memory.is_suspect():
                    self._late.add(asyncio.ensure_future(self._end_late(process, status)))
                else:
                    process.exited(status)

    async def _end_late(self, process: Process, status: int) -> None:
        """End a process whose killer may have been the kernel: the host knows, and tells in a moment."""
        process.exited(status, out_of_memory=await self._memory.was_short())
        self._late.discard(asyncio.current_task())

    def tell_out_of_memory(self) -> None:
        """The host's word that the kernel has killed something in here for want of memory."""
        self._memory.tell()

    def _remember(self, process: Process) -> None:
        self._ended[process.pid] = process
        while len(self._ended) > ENDED_KEPT or (
            len(self._ended) > 1
            and sum(ended.output.kept_bytes for ended in self._ended.values()) > ENDED_KEPT_BYTES
        ):
            self._ended.popitem(last=False)

    async def list(self, call: Call, message: Message) -> Message:
        return {"processes": [process.info() for process in self._running.values()]}

    async def start(self, call: Call, message: Message) -> AsyncGenerator[Message, None]:
        """Start a process and stream its events. It outlives the stream; a timeout ends both."""
        process = self._spawn(message, self._account.require(call.username))
        if call.timeout_s is not None:
            self._limit(process, call.timeout_s)
        async for event in _events(process, call):
            yield event

    async def connect(self, call: Call, message: Message) -> AsyncGenerator[Message, None]:
        """Stream a process's events from the start of its kept output; also for one that ended not long ago."""
        process = self._select(message, self._running, self._ended)
        async for event in _events(process, call):
            yield event

    async def update(self, call: Call, message: Message) -> Message:
        process = self._select(message, self._running)
        size = _terminal_size(message.get("pty"))
        if process.terminal is None:
            raise RpcError("failed_precondition", "the process has no terminal")
        if size is not None:
            fcntl.ioctl(process.terminal, termios.TIOCSWINSZ, size)
        return {}

    async def send_input(self, call: Call, message: Message) -> Message:
        await self._select(message, self._running).feed(_input(message.get("input")))
        return {}

    async def stream_input(self, call: Call, messages: AsyncIterator[Message]) -> Message:
        process: Process | None = None
        async for message in messages:
            if "start" in message:
                process = self._select(message["start"] or {}, self._running)
            elif "data" in message:
                if process is None:
                    raise RpcError("invalid_argument", "the stream does not begin with a start event")
                await process.feed(_input((message["data"] or {}).get("input")))
        return {}

    async def close_stdin(self, call: Call, message: Message) -> Message:
        process = self._select(message, self._running)
        if process.terminal is not None:
            raise RpcError("failed_precondition", "a terminal's input is closed by sending it Ctrl+D")
        process.close_stdin()
        return {}

    async def send_signal(self, call: Call, message: Message) -> Message:
        process = self._select(message, self._running)
        number = _SIGNALS.get(message.get("signal", ""))
        if number is None:
            raise RpcError("invalid_argument", "the signal must be SIGNAL_SIGTERM or SIGNAL_SIGKILL")
        if number == signal.SIGKILL:
            process.killed = True
            killed = kill_tree(process.pid)
            # Who asks next, for the list, by `kill -0` or for a port, shall find none of them any more.
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(_gone(killed), DEATH_WAIT_S)
        else:
            os.killpg(process.pid, number)
        return {}

    def _limit(self, process: Process, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + timeout_s
        process.deadline = loop.call_at(due, self._time_out, process, due, timeout_s)

    def _time_out(self, process: Process, due: float, timeout_s: float) -> None:
        if asyncio.get_running_loop().time() - due > STOOD_STILL_S:
            # The sandbox was paused meanwhile, nobody knows when: the process gets its time again.
            self._limit(process, timeout_s)
            return
        process.timed_out = process.killed = True
        kill_tree(process.pid)

    def _select(self, message: Message, *tables: dict[int, Process]) -> Process:
        selector = message.get("process") or {}
        for table in tables:
            for process in reversed(list(table.values())):
                if ("pid" in selector and process.pid == selector["pid"]) or (
                    "tag" in selector and process.tag == selector["tag"]
                ):
                    return process
        raise RpcError("not_found", f"process with {selector or 'no selector'} not found")

    def _spawn(self, message: Message, user: str) -> Process:
        config, arguments = _config(message)
        arguments = self._account.arguments(arguments, user)
        environment = self._account.environment(config.get("envs") or {}, user)
        cwd = self._account.path(str(config.get("cwd") or self._account.workdir), user)
        if not os.path.isdir(cwd):
            raise RpcError("invalid_argument", f"cwd '{cwd}' does not exist")
        pty = message.get("pty")
        tag = str(message["tag"]) if message.get("tag") is not None else None
        try:
            if pty is not None:
                process = _spawn_on_terminal(arguments, cwd, environment, config, tag, _terminal_size(pty))
            else:
                process = _spawn_on_pipes(
                    arguments, cwd, environment, config, tag, message.get("stdin", True)
                )
        except OSError as error:
            code = "resource_exhausted" if isinstance(error, BlockingIOError) else "invalid_argument"
            raise RpcError(code, f"error starting process '{arguments[0]}': {error.strerror}") from error
        self._ended.pop(process.pid, None)
        self._running[process.pid] = process
        _prefer_as_oom_victim(process.pid)
        return process


def _config(message: Message) -> tuple[Message, list[str]]:
    config = message.get("process")
    if not isinstance(config, dict) or not config.get("cmd"):
        raise RpcError("invalid_argument", "process.cmd is missing")
    arguments = [str(argument) for argument in [config["cmd"], *(config.get("args") or [])]]
    if any("\0" in argument for argument in arguments):
        raise RpcError("invalid_argument", "an argument cannot contain a NUL character")
    return config, arguments


def _spawn_on_pipes(
    arguments: list[str],
    cwd: str,
    environment: dict[str, str],
    config: Message,
    tag: str | None,
    stdin: bool,
) -> Process:
    popen = subprocess.Popen(
        arguments,
        cwd=cwd,
        env=environment,
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
    )
    process = Process(popen, config, tag)
    if popen.stdin is not None:
        process.stdin = _own(popen.stdin)
        os.set_blocking(process.stdin, False)
    process.read_from(_own(popen.stdout), "stdout")
    process.read_from(_own(popen.stderr), "stderr")
    return process


def _spawn_on_terminal(
    arguments: list[str],
    cwd: str,
    environment: dict[str, str],
    config: Message,
    tag: str | None,
    size: bytes | None,
) -> Process:
    terminal, other_side = os.openpty()
    try:
        if size is not None:
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)
        popen = subprocess.Popen(
            arguments,
            cwd=cwd,
            env=environment,
            stdin=other_side,
            stdout=other_side,
            stderr=other_side,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
    except OSError:
        os.close(terminal)
        raise
    finally:
        os.close(other_side)
    process = Process(popen, config, tag)
    process.terminal = terminal
    process.read_from(terminal, "pty")
    return process


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _own(file: Any) -> int:
    """A descriptor of our own for a pipe that Popen opened."""
    fd = os.dup(file.fileno())
    file.close()
    return fd


def _prefer_as_oom_victim(pid: int) -> None:
    """When memory runs out, the kernel must end a command, not the daemon that would tell of it."""
    try:
        with open(f"/proc/{pid}/oom_score_adj", "wb", buffering=0) as file:
            file.write(_OOM_SCORE_ADJ)
    except OSError:
        pass  # the process has ended, or the kernel does not let us choose


def _terminal_size(pty: Message | None) -> bytes | None:
    size = (pty or {}).get("size")
    if not size:
        return None
    try:
        return struct.pack("HHHH", int(size.get("rows", 0)), int(size.get("cols", 0)), 0, 0)
    except (struct.error, ValueError, AttributeError) as error:
        raise RpcError("invalid_argument", "the terminal's size is malformed") from error


def _input(message: Message | None) -> bytes:
    message = message or {}
    return to_bytes(message.get("stdin") or message.get("pty"))


async def _events(process: Process, call: Call) -> AsyncGenerator[Message, None]:
    """A process's life as StartResponse and ConnectResponse messages."""
    deadline = time.monotonic() + call.timeout_s if call.timeout_s is not None else None
    subscriber = process.output.subscribe()
    try:
        yield _event("start", {"pid": process.pid})
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise RpcError("deadline_exceeded", "the stream reached its timeout")
            try:
                piece = await subscriber.next(
                    call.keepalive_s if left is None else min(left, call.keepalive_s)
                )
            except asyncio.TimeoutError:
                yield _event("keepalive", {})
                continue
            if piece is None:
                break
            yield _event("data", {piece[0]: base64.b64encode(piece[1]).decode("ascii")})
        if process.timed_out and deadline is not None:
            raise RpcError("deadline_exceeded", "the process reached its timeout and was ended")
        yield _event("end", process.end or {})
    finally:
        subscriber.close()


def _event(kind: str, value: Message) -> Message:
    return {"event": {kind: value}}
