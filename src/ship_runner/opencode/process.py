"""The process ``opencode serve``: started in a session of its own, so that it outlives the runner, and found again."""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from ship_runner.failures import RunnerFailure
from ship_runner.opencode.configuration import CATALOGUE_VARIABLE

log = logging.getLogger(__name__)

START_TIMEOUT_S = 90
_LISTENING = b"listening on http"
"""OpenCode takes connections before it says this, and never answers those."""
_MARK = "SHIP_AGENT"
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class _Record:
    """What stands in the state file. ``started`` tells a process from a later one with the same number; ``mark`` stands in
    the environment of everything that the process starts."""

    pid: int
    started: int
    port: int
    password: str
    mark: str
    digest: str


class AgentProcess:
    """At most one ``opencode serve``. ``http`` talks to it; ``dead`` is set when it has ended."""

    def __init__(self, program: str, state: Path, home: Path) -> None:
        self._program = program
        self._file = state / "agent.json"
        self._log = state / "agent.log"
        self._home = home
        self._record: _Record | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self.http: httpx.AsyncClient | None = None
        self.dead = asyncio.Event()
        self.dead.set()

    @property
    def running(self) -> bool:
        return not self.dead.is_set()

    @property
    def pid(self) -> int:
        return self._record.pid if self._record else 0

    async def find(self) -> bool:
        """Take over the process that an earlier runner left; whether there is one."""
        try:
            record = _Record(**json.loads(self._file.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return False
        if _started(record.pid) != record.started:
            _kill_all(record)  # commands that it left behind
            return False
        self._watch(record)
        return await self._healthy()

    def same(self, configuration: Mapping[str, Any], environment: Mapping[str, str]) -> bool:
        """Whether the running process has this configuration."""
        return self._record is not None and self._record.digest == _digest(configuration, environment)

    async def start(
        self, configuration: Mapping[str, Any], environment: Mapping[str, str], folder: Path
    ) -> None:
        """Start it and wait until it answers. Raises RunnerFailure ``agent_start_failed``."""
        await self.end()
        try:
            self._spawn(configuration, environment, folder)
        except OSError as error:
            raise RunnerFailure(
                "agent_start_failed",
                f"The agent {self._program!r} cannot be started: {error.strerror}",
                "The sandbox template is incomplete; build it again with `ship doctor`.",
            ) from error
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (_LISTENING in self._log.read_bytes() and await self._healthy()):
            if not self.running or time.monotonic() > deadline:
                what = "ended at once" if not self.running else f"did not answer in {START_TIMEOUT_S} s"
                tail = self._log.read_bytes()[-1500:].decode("utf-8", "replace").strip()
                await self.end()
                raise RunnerFailure(
                    "agent_start_failed",
                    f"The agent {what}: {tail}",
                    "See the agent's output above; then retry.",
                )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.03):
                    await self.dead.wait()

    async def end(self) -> None:
        """Kill it and everything that it started."""
        record, self._record = self._record, None
        if record is not None:
            _kill_all(record)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(10):
                    await self.dead.wait()
        self._file.unlink(missing_ok=True)
        await self._close()

    def kill(self) -> None:
        """Kill it and everything that it started; ``dead`` is set soon after."""
        if self._record is not None:
            _kill_all(self._record)

    async def let_go(self) -> None:
        """Close what we hold of it and leave it running."""
        await self._close()

    def memory_bytes(self) -> int:
        """Resident memory, 0 when it is gone."""
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE
        except (OSError, IndexError):
            return 0

    def cpu_s(self) -> float:
        """CPU seconds used so far, 0 when it is gone."""
        fields = _stat(self.pid)
        return (int(fields[11]) + int(fields[12])) / _TICK if fields else 0.0

    def _spawn(self, configuration: Mapping[str, Any], environment: Mapping[str, str], folder: Path) -> None:
        port, password, mark = _free_port(), secrets.token_urlsafe(24), secrets.token_hex(8)
        variables = {
            **environment,
            "OPENCODE_CONFIG_CONTENT": json.dumps(configuration),
            "OPENCODE_SERVER_PASSWORD": password,
            CATALOGUE_VARIABLE: str(self._empty_catalogue()),
            _MARK: mark,
        }
        self._close_configuration_folder()
        with self._log.open("wb") as output:
            self._log.chmod(0o600)
            self._child = subprocess.Popen(
                [self._program, "serve", "--hostname", "127.0.0.1", "--port", str(port)],
                cwd=folder,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        pid = self._child.pid
        record = _Record(pid, _started(pid), port, password, mark, _digest(configuration, environment))
        partial = self._file.with_suffix(".new")
        partial.touch(0o600)
        partial.write_text(json.dumps(asdict(record)))
        partial.replace(self._file)
        self._watch(record)

    def _empty_catalogue(self) -> Path:
        """The configuration names all models. Reading thousands of others takes OpenCode 4 s of processor time in each workspace."""
        path = self._home / ".config" / "ship-models.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        return path

    def _close_configuration_folder(self) -> None:
        """OpenCode installs a package from the network into a configuration folder, unless it looks as if it were there."""
        folder = self._home / ".config" / "opencode"
        if not folder.exists():
            (folder / "node_modules").mkdir(parents=True)
            lock = {"packages": {"": {"dependencies": {"@opencode-ai/plugin": "*"}}}}
            (folder / "package-lock.json").write_text(json.dumps(lock))
            (folder / ".gitignore").write_text("*\n")
            folder.chmod(0o555)

    def _watch(self, record: _Record) -> None:
        self._record = record
        self.http = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{record.port}",
            auth=("opencode", record.password),
            timeout=httpx.Timeout(30, read=60),
            trust_env=False,
        )
        self.dead.clear()
        try:
            self._pidfd = os.pidfd_open(record.pid)
        except ProcessLookupError:
            self.dead.set()
            return
        asyncio.get_running_loop().add_reader(self._pidfd, self._ended)

    def _ended(self) -> None:
        self._unwatch()
        if self._child is not None:
            log.warning("the agent's process ended with status %s", self._child.wait())
            self._child = None
        if self._record is not None:
            _kill_all(self._record)
        self.dead.set()

    def _unwatch(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    async def _close(self) -> None:
        self._unwatch()
        self.dead.set()
        if self.http is not None:
            await self.http.aclose()
            self.http = None

    async def _healthy(self) -> bool:
        if self.http is None:
            return False
        try:
            answer = await self.http.get("/global/health", timeout=10)
        except httpx.HTTPError:
            return False
        return answer.status_code == 200


def _kill_all(record: _Record) -> None:
    """The process and all that it started, also what has left its process group."""
    if _started(record.pid) == record.started:
        os.kill(record.pid, signal.SIGKILL)
    mark = f"{_MARK}={record.mark}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _stat(pid: int) -> list[str]:
    """The fields of ``/proc/<pid>/stat`` from the third on; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _started(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 when it is gone or a zombie."""
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] != "Z" else 0


def _digest(configuration: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps([configuration, environment], sort_keys=True).encode()).hexdigest()
