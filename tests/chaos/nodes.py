"""Nodes that can be killed, halted and started again, and the folder that they live in."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

START_S = 60.0
END_S = 30.0
MODEL = "openai/pretend"


class Node:
    """One server process in ``folder``, with the faults and the sandboxes that all nodes of a scene share."""

    def __init__(self, folder: Path, faults: Path, sandboxes: Path, environment: Mapping[str, str]) -> None:
        folder.mkdir()
        self.data = folder / "data"
        self._log = folder / "log"
        self._faults = faults
        self._sandboxes = sandboxes
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self.address = "127.0.0.1"
        self.prefix: Sequence[str] = ()
        """What its command begins with: a network namespace to run in, where it has that address."""

    @property
    def url(self) -> str:
        """Where it listens; the same after every start."""
        return f"http://{self.address}:{self._port}"

    @property
    def token(self) -> str:
        """Its local token, which all nodes of one store know."""
        return str(json.loads((self.data / "cli.json").read_text())["token"])

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process
        return self._process.pid

    @property
    def log(self) -> str:
        """The end of what it has written."""
        return self._log.read_text(errors="replace")[-4000:]

    @property
    def alive(self) -> bool:
        """Whether its process runs, be it halted."""
        return self._process is not None and self._process.poll() is None

    @property
    def halted(self) -> bool:
        """Whether it stands still after SIGSTOP."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        return state == "T"

    @property
    def memory_mb(self) -> float:
        """What it holds in memory of its own."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise AssertionError("it is not there")

    def spawn(self) -> None:
        """Start its process; see ``ready``."""
        environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("SHIP_", "OPENAI_", "ANTHROPIC_"))
            },
            "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
            "OPENAI_API_KEY": "sk-pretend",
            "OPENAI_MODELS": MODEL.partition("/")[2],
            "SHIP_DATA": str(self.data),
            "SHIP_LISTEN": f"{self.address}:{self._port}",
            **self._environment,
        }
        command = [
            *self.prefix,
            sys.executable,
            "-m",
            "tests.chaos.node",
            str(self._faults),
            str(self._sandboxes),
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=Path(__file__).parents[2],
            )

    async def ready(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + START_S
        while self._written_by() != self.pid:
            assert self.alive, self.log
            assert time.monotonic() < deadline, self.log
            await asyncio.sleep(0.01)
        self._port = int(json.loads((self.data / "cli.json").read_text())["url"].rpartition(":")[2])

    async def start(self) -> None:
        """Start it and wait until it answers."""
        self.spawn()
        await self.ready()

    def signal(self, number: signal.Signals) -> None:
        """Send it that signal."""
        os.kill(self.pid, number)

    def reap(self) -> int:
        """Wait for its end; returns how it ended."""
        assert self._process
        return self._process.wait(END_S)

    def kill(self) -> None:
        """As a crash does it."""
        if self.alive:
            self.signal(signal.SIGKILL)
        self.reap()

    def _written_by(self) -> int:
        try:
            return int(json.loads((self.data / "cli.json").read_text())["pid"])
        except FileNotFoundError:
            return 0
