"""A whole Ship on this machine: `ship up` as a process of its own, with a scripted model beside it that outlives it."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ship.app.down import down
from ship.testing import sample_repository
from ship.testing.sandbox_processes import processes_in

START_S = 300
"""The first start on a machine downloads the agent."""
TASK_S = 90


class Ship:
    """One data folder and the server on it; ``kill`` and ``start`` it as often as you like."""

    def __init__(self, folder: Path, model_url: str, *, port: int = 0, **environment: str) -> None:
        self.data = folder / "data"
        self.repository = folder / "repository"
        self._log = folder / "ship.log"
        self._port = port
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SHIP_")},
            "OPENAI_BASE_URL": model_url,
            "OPENAI_API_KEY": "sk-canary-7f3d9b",
            "OPENAI_MODELS": ",".join(MODELS),
            "SHIP_LOCAL_ROOTS": str(folder),
            # Agents that nobody takes on would cost the other tests their processors.
            "SHIP_SANDBOX_WARM": "0",
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def set(self, **environment: str) -> None:
        """Change the environment of later starts and commands."""
        self._environment |= environment

    @property
    def url(self) -> str:
        """Where it listens; the same after every start."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def token(self) -> str:
        """The present local token."""
        return str(json.loads((self.data / "cli.json").read_text())["token"])

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process
        return self._process.pid

    def command(self, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run `ship` with this data folder in its environment."""
        environment = {**self._environment, "SHIP_DATA": str(self.data), "NO_COLOR": "1"}
        return subprocess.run(
            [sys.executable, "-m", "ship.cli", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=TASK_S,
            check=False,
            **options,
        )

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ship.cli", "up"),
                    *("--listen", f"127.0.0.1:{self._port}", "--data", str(self.data)),
                ],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_S
        while self._ready_pid() != self._process.pid:
            assert self._process.poll() is None, self._log.read_text()[-2000:]
            assert time.monotonic() < deadline, self._log.read_text()[-2000:]
            time.sleep(0.05)
        self._port = int(json.loads((self.data / "cli.json").read_text())["url"].rpartition(":")[2])

    def _ready_pid(self) -> int:
        try:
            return int(json.loads((self.data / "cli.json").read_text())["pid"])
        except FileNotFoundError:
            return 0

    def kill(self) -> None:
        """As a crash does it."""
        assert self._process
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """End it with everything that it started."""
        down(self.data)
        if self._process:
            self._process.wait()

    def client(self) -> httpx.AsyncClient:
        """A signed-in client."""
        return httpx.AsyncClient(
            base_url=self.url, headers={"Authorization": f"Bearer {self.token}"}, timeout=30
        )

    def sandboxd_pid(self) -> int:
        """The sandbox host's process."""
        return int(json.loads((self.data / "sandboxd.json").read_text())["pid"])

    async def begin(self, model: str = "demo", prompt: str = sample_repository.PROMPT, **fields: Any) -> str:
        """Start a session with a first task on the sample repository; returns its id."""
        body = {
            "repository": {"source": str(self.repository)},
            "prompt": prompt,
            "model": f"openai/{model}",
            **fields,
        }
        async with self.client() as client:
            answer = await client.post("/api/v1/sessions", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def session(self, session_id: str) -> dict[str, Any]:
        """The session, whole."""
        async with self.client() as client:
            found: dict[str, Any] = (await client.get(f"/api/v1/sessions/{session_id}")).json()
        return found

    async def events(self, session_id: str) -> list[dict[str, Any]]:
        """The whole log."""
        items: list[dict[str, Any]] = []
        async with self.client() as client:
            while True:
                page = await client.get(
                    f"/api/v1/sessions/{session_id}/events", params={"after": len(items), "limit": 1000}
                )
                items += page.json()["items"]
                if len(items) >= page.json()["head_seq"]:
                    return items

    async def until(
        self, session_id: str, true: Callable[[list[dict[str, Any]]], object], timeout_s: float = TASK_S
    ) -> list[dict[str, Any]]:
        """The log as soon as the condition holds of it."""
        deadline = time.monotonic() + timeout_s
        while True:
            items = await self.events(session_id)
            if true(items):
                return items
            assert time.monotonic() < deadline, [f"{item['type']} {item['data']}" for item in items[-12:]]
            await asyncio.sleep(0.1)

    async def processes(self, session_id: str) -> dict[str, int]:
        """The pids, outside, of what works in the session's sandbox: see ``processes_in``."""
        return processes_in((await self.session(session_id))["sandbox"]["sandbox_id"])


@contextlib.contextmanager
def halted(*pids: int) -> Iterator[None]:
    """These processes stand still meanwhile, with their connections open."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


MODELS = ("demo", "echo", "long", "thirty_tools", "permission", "question")


def types(items: list[dict[str, Any]]) -> list[str]:
    """The types of a log."""
    return [item["type"] for item in items]


def ended(items: list[dict[str, Any]]) -> bool:
    """Whether a task has ended."""
    return any(
        name in ("task.completed", "task.failed", "task.cancelled", "session.failed") for name in types(items)
    )


def check_whole(items: list[dict[str, Any]]) -> None:
    """The log has no gap, each frame of the runner once and in order, and each part once."""
    assert [item["seq"] for item in items] == list(range(1, len(items) + 1))
    frames = [(item["frame"]["generation"], item["frame"]["n"]) for item in items if item["frame"]]
    assert frames == sorted(set(frames))
    for kind in ("text.finished", "reasoning.finished", "tool.started", "tool.finished"):
        parts = [item["data"]["part_id"] for item in items if item["type"] == kind]
        assert len(parts) == len(set(parts)), f"{kind} twice"


@pytest.fixture(scope="session")
def model_url() -> Iterator[str]:
    """A scripted model as a process of its own: what a server's end does not end."""
    with subprocess.Popen(
        [sys.executable, "-m", "ship.testing.scripted_model", "--listen", "127.0.0.1:0", "--exit-with-stdin"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdin
        yield process.stdout.readline().strip()
        process.stdin.close()


@contextlib.contextmanager
def running_ship(folders: pytest.TempPathFactory, model_url: str, **environment: str) -> Iterator[Ship]:
    """A running Ship with the sample repository, in a folder of its own."""
    folder = folders.mktemp("ship")
    folder.chmod(0o755)
    running = Ship(folder, model_url, **environment)
    sample_repository.create(running.repository)
    running.start()
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def ship(tmp_path_factory: pytest.TempPathFactory, model_url: str) -> Iterator[Ship]:
    """A running Ship with the sample repository, shared by a module's tests."""
    with running_ship(tmp_path_factory, model_url) as running:
        yield running


@pytest.fixture
async def client(ship: Ship) -> AsyncIterator[httpx.AsyncClient]:
    """A signed-in client of it."""
    async with ship.client() as opened:
        yield opened
