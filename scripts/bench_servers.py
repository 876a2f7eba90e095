"""The servers that bear the load: Ship's control plane, and the design on the Workers runtime that it is held against."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from bench_clients import Target, ask

from ship.testing.nats_server import NatsServer
from ship.testing.postgres_server import postgres_server

SCRIPTS = Path(__file__).parent
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, CLIENT_CORES = (CORES[0], CORES[1:]) if len(CORES) > 1 else (-1, CORES)
START_S = 60.0
NODES = 3
CREATE = b'{"repository":{"source":"https://example.org/repository.git"},"title":"measured"}'
WORKERD = "workerd@1.20261117.1"
"""The runtime as npm has it: 160 MB, and a new one each week."""


class Server:
    """A server on a folder that outlives it, alone on the first core."""

    options: tuple[str, ...] = ("--core", str(SERVER_CORE))

    def __init__(self, data: Path) -> None:
        self._data = data
        self._process: subprocess.Popen[bytes] | None = None
        self.target = Target((0,), "")
        self.pid = 0

    def start(self) -> None:
        """Start it, on the port that it had before."""
        command = [sys.executable, str(SCRIPTS / "bench_server.py"), "--data", str(self._data)]
        command += ["--port", str(self.target.ports[0]), *self.options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        with self._process.stdout as told:
            line = told.readline()
        if not line:
            sys.exit("the server did not start")
        said = json.loads(line)
        self.pid = said["pid"]
        self.target = Target((int(said["url"].rpartition(":")[2]),), said["token"])

    def kill(self) -> None:
        """End it at once."""
        self._end(signal.SIGKILL)

    def end(self) -> None:
        """End it in order."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(START_S)

    def memory_mb(self) -> float:
        """What it holds of the machine's memory now."""
        return resident_mb(self.pid)

    def create(self) -> str:
        """A session."""
        status, body = ask(self.target, self.target.request("POST", "/api/v1/sessions", CREATE))
        assert status == 201, body
        session_id: str = json.loads(body)["id"]
        return session_id

    def head(self, session_id: str) -> int:
        """The session's last seq."""
        _, body = ask(self.target, self.target.request("GET", f"/api/v1/sessions/{session_id}"))
        return int(json.loads(body)["head_seq"])


class Cluster(Server):
    """Three equal nodes on PostgreSQL and NATS, on all cores; who comes is sent to them in turn. The one that is killed is the first."""

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        self._stack = contextlib.ExitStack()
        self._nodes: list[Server] = []

    def start(self) -> None:
        """Start what does not run."""
        if not self._nodes:
            self._nodes = self._joined()
        for node in self._nodes:
            if node.pid == 0:
                node.start()
        self.target = Target(
            tuple(port for node in self._nodes for port in node.target.ports), self._nodes[0].target.token
        )

    def kill(self) -> None:
        """End one node at once."""
        self._nodes[0].kill()
        self._nodes[0].pid = 0

    def end(self) -> None:
        """End all of it."""
        for node in self._nodes:
            node.end()
        self._stack.close()

    def _joined(self) -> list[Server]:
        postgres = self._stack.enter_context(postgres_server())
        nats = NatsServer(self._data)
        nats.start()
        self._stack.callback(nats.kill)
        nodes = [Server(self._data / f"node{number}") for number in range(NODES)]
        for node in nodes:
            node.options = ("--database", postgres.url("postgres"), "--bus", nats.url)
        return nodes


class Workerd(Server):
    """The baseline: ``baseline/worker.js`` on workerd, with its storage on disk."""

    def start(self) -> None:
        """Start it on a free port. Installs the runtime where it is not there."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.target = Target((free.getsockname()[1],), "unused")
        command = [str(_installed()), "serve", str(SCRIPTS / "baseline/workerd.capnp")]
        command += [f"--socket-addr=http=127.0.0.1:{self.target.ports[0]}"]
        command += [f"--directory-path=data={self._data}"]
        if SERVER_CORE >= 0:
            command = ["taskset", "--cpu-list", str(SERVER_CORE), *command]
        self._process = subprocess.Popen(command)
        self.pid = self._process.pid
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError):
                self.create()
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                sys.exit("workerd did not start")
            time.sleep(0.05)


Start = Callable[[], AbstractContextManager[Server]]


class Contest(NamedTuple):
    """What is measured in one section, how often, and against what in the same run: None means what was published of the baseline."""

    rounds: int
    ours: Start
    held: Start | None = None
    nodes: int = 1


def _serving(kind: type[Server]) -> Start:
    @contextlib.contextmanager
    def serving() -> Iterator[Server]:
        with tempfile.TemporaryDirectory(prefix="ship-bench-") as name:
            made = kind(Path(name))
            made.start()
            try:
                yield made
            finally:
                made.end()

    return serving


def contest(rounds: int, *, nodes: int = 1, beside_workerd: bool = False) -> Contest:
    """Ship on one node with SQLite, or on three with PostgreSQL and NATS, always on an empty folder."""
    held = _serving(Workerd) if beside_workerd else None
    return Contest(rounds, _serving(Server if nodes == 1 else Cluster), held, nodes)


def resident_mb(pid: int) -> float:
    """A process's resident memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _installed() -> Path:
    folder = SCRIPTS.parent / ".tools" / "workerd"
    programs = "node_modules/@cloudflare/workerd-*/bin/workerd"
    if not any(folder.glob(programs)):
        sys.stderr.write(f"Installing {WORKERD}\n")
        install = ["npm", "install", "--prefix", str(folder), "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(
            [SCRIPTS / "with-node.sh", *install, "--loglevel=error", WORKERD],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return next(folder.glob(programs))
