"""The process ``opencode serve``: started in a session of its own, so that it outlives the runner, and found again.

It may be started before there is a runner, and wait for one.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

import httpx

from ship_runner.failures import RunnerFailure
from ship_runner.opencode.terms import Terms, TermsFolder, close_configuration_folder
from ship_runner.tls import authorities

log = logging.getLogger(__name__)

START_TIMEOUT_S = 90
_LOOK_S = 0.03
UNWANTED_S = 1.0
"""An agent that no runner has taken on for so long has time for more."""
_LISTENING = b"listening on http"
"""OpenCode takes connections before it says this, and never answers those."""
FIRST_LOOK = ("/config/providers", "/agent", "/mcp")
"""What makes OpenCode load all that it needs in a folder before it can work there."""
_MARK = "SHIP_AGENT"
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class _Record:
    """What stands in the state file. ``started`` tells a process from a later one with the same number; ``mark`` stands in
    the environment of everything that the process starts. ``folder`` is where its terms are; ``terms`` is their digest, empty while
    it waits for them; ``environment`` is the digest of its environment."""

    pid: int
    started: int
    port: int
    password: str
    mark: str
    folder: str
    environment: str
    terms: str = ""


class AgentProcess:
    """At most one ``opencode serve``. ``http`` talks to it; ``dead`` is set when it has ended."""

    def __init__(self, program: str, state: Path, home: Path) -> None:
        self._program = program
        self._file = state / "agent.json"
        self._log = state / "agent.log"
        self._lock: TextIO | None = None
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
        """Take over the process that an earlier runner left, or that waits for the first one; whether there is one.

        One that is just being started is waited for; one that does not answer is ended.
        """
        await self._be_the_only_one(kill=False)
        record = self._recorded()
        if record is None:
            return False
        if _started(record.pid) != record.started:
            _clear(record)
            return False
        self._watch(record)
        if not await self._healthy():
            await self.end()
        return self.running

    async def find_and_end(self) -> None:
        """End the process if there is one, also one that is just being started."""
        await self._be_the_only_one(kill=True)
        await self.find()
        await self.end()

    async def _be_the_only_one(self, *, kill: bool) -> None:
        """Wait until nobody else starts an agent here; ``kill`` says not to wait until that one has started."""
        while not self._hold():
            if kill and (record := self._recorded()):
                _kill_all(record)
            await asyncio.sleep(_LOOK_S)

    def _recorded(self) -> _Record | None:
        try:
            return _Record(**json.loads(self._file.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def agree(self, environment: Mapping[str, str], terms: Terms) -> bool:
        """Whether the running process has this environment and these terms; one that waits for its terms gets them, if it can."""
        record = self._record
        if record is None or record.environment != _digest(environment):
            return False
        if not record.terms:
            try:
                TermsFolder(Path(record.folder)).write(terms)
                record = self._record = replace(record, terms=terms.digest())
                self._save(record)
            except OSError as error:
                log.warning("an agent that waits cannot be told its work: %s", error)
                return False
        return record.terms == terms.digest()

    async def start(self, environment: Mapping[str, str], terms: Terms | None = None) -> None:
        """Start it and wait until it answers; without terms it is to wait for them. Raises RunnerFailure ``agent_start_failed``."""
        await self.end()
        try:
            self._spawn(environment, terms)
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
                async with asyncio.timeout(_LOOK_S):
                    await self.dead.wait()

    async def stand_by(self, environment: Mapping[str, str]) -> None:
        """Start one that waits for its terms, unless one runs or a runner is here. Raises RunnerFailure ``agent_start_failed``."""
        if not self._hold():
            return
        if not await self.find():
            await self.start(environment)
            self._release()
            await asyncio.sleep(UNWANTED_S)
            if self._hold():  # else a runner has taken it on, and what follows would only hold that up
                await self._rehearse()
        await self.let_go()

    async def _rehearse(self) -> None:
        """Have it look into an empty folder: what it loads at the first look into any, it need not load at the next."""
        assert self.http is not None
        with tempfile.TemporaryDirectory(dir=self._file.parent) as empty:
            headers = {"x-opencode-directory": quote(empty)}
            for method, path in (*(("GET", path) for path in FIRST_LOOK), ("POST", "/instance/dispose")):
                with contextlib.suppress(httpx.HTTPError):
                    await self.http.request(method, path, headers=headers)

    async def end(self) -> None:
        """Kill it and everything that it started."""
        record, self._record = self._record, None
        if record is not None:
            _clear(record)
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

    def _spawn(self, environment: Mapping[str, str], terms: Terms | None) -> None:
        folder = TermsFolder.make(self._file.parent)
        try:
            self._spawn_in(folder, environment, terms)
        except OSError:
            folder.remove()
            raise

    def _spawn_in(self, folder: TermsFolder, environment: Mapping[str, str], terms: Terms | None) -> None:
        if terms is not None:
            folder.write(terms)
        port, password, mark = _free_port(), secrets.token_urlsafe(24), secrets.token_hex(8)
        variables = {
            **environment,
            **folder.environment,
            "OPENCODE_SERVER_PASSWORD": password,
            _MARK: mark,
        }
        self._close_own_folder()
        with self._log.open("wb") as output:
            self._log.chmod(0o600)
            self._child = subprocess.Popen(
                [self._program, "serve", "--hostname", "127.0.0.1", "--port", str(port)],
                cwd=self._file.parent,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        pid = self._child.pid
        known = terms.digest() if terms is not None else ""
        record = _Record(
            pid, _started(pid), port, password, mark, str(folder.path), _digest(environment), known
        )
        self._save(record)
        self._watch(record)

    def _save(self, record: _Record) -> None:
        partial = self._file.with_suffix(".new")
        partial.touch(0o600)
        partial.write_text(json.dumps(asdict(record)))
        partial.replace(self._file)

    def _hold(self) -> bool:
        """Be the only one who may start an agent here, from now on; False while somebody else is."""
        if self._lock is None:
            self._lock = self._file.with_suffix(".lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _release(self) -> None:
        assert self._lock is not None
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _close_own_folder(self) -> None:
        folder = self._home / ".config" / "opencode"
        if not folder.exists():
            close_configuration_folder(folder)
            folder.chmod(0o555)

    def _watch(self, record: _Record) -> None:
        self._unwatch()
        self._record = record
        address = f"http://127.0.0.1:{record.port}"
        self.http = httpx.AsyncClient(
            base_url=address,
            verify=authorities(address),
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


def _clear(record: _Record) -> None:
    """Leave nothing of it."""
    _kill_all(record)
    TermsFolder(Path(record.folder)).remove()


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


def _digest(environment: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(environment), sort_keys=True).encode()).hexdigest()
