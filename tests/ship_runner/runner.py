"""The real runner as a process of its own, outside any sandbox, with folders of the test's."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from urllib.parse import quote

import httpx
from tests.ship_runner.control_plane import TOKEN, FakeControlPlane

from ship_runner.opencode.terms import TermsFolder


class Runner:
    """Starts ``python -m ship_runner`` against a control plane; ``workspace`` and ``state`` are its folders."""

    def __init__(self, plane: FakeControlPlane, folder: Path, tree: Path, **variables: str) -> None:
        self.plane = plane
        self.workspace = folder / "workspace" / "repo"
        self.state = folder / "state"
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        self.log = folder / "runner.log"
        self.environment = {
            "PATH": f"{tree}/bin:/usr/bin:/bin",
            "HOME": str(self.home),
            "SHIP_URL": plane.url,
            "SHIP_TOKEN": TOKEN,
            "SHIP_STATE": str(self.state),
            "SHIP_WORKSPACE": str(self.workspace),
            **variables,
        }
        self._process: asyncio.subprocess.Process | None = None
        self._command: asyncio.subprocess.Process | None = None
        self._waiting: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "ship_runner", env=self.environment, stdout=log, stderr=log
            )

    async def stand_by(self) -> None:
        """Start an agent that waits for the runner."""
        await self._run("stand-by")

    async def wait(self) -> asyncio.subprocess.Process:
        """Start a runner that waits for the one that is started, and knows nothing of its work; it listens then, or has ended."""
        environment = {"PATH": self.environment["PATH"], "SHIP_STATE": str(self.state)}
        self._waiting = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "ship_runner", "wait", env=environment
        )
        async with asyncio.timeout(20):
            while self._waiting.returncode is None and not self.listens():
                await asyncio.sleep(0.01)
        return self._waiting

    def listens(self) -> bool:
        """Whether a runner waits here."""
        sockets = Path("/proc/net/unix").read_text().splitlines()
        return any(" 00010000 " in line and line.endswith(f" {self.state}/waiting.sock") for line in sockets)

    def kill_what_stands_by(self) -> None:
        """The process that starts it, not the agent."""
        assert self._command is not None
        self._command.kill()

    async def ready(self) -> None:
        await self.start()
        await self.plane.until(lambda: self.plane.of("sandbox.ready"))

    def child(self) -> int:
        """The process that does the work, below its keeper."""
        return int((self.state / "runner.lock").read_text())

    def agent(self) -> int:
        return int(json.loads((self.state / "agent.json").read_text())["pid"])

    def agents(self) -> list[int]:
        """All agents that run with this runner's home. A process that one has just forked looks like itself until it is another program."""
        home, found = f"HOME={self.home}".encode(), {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (process / "cmdline").read_bytes().split(b"\0")
                if command[1:2] == [b"serve"] and home in (process / "environ").read_bytes().split(b"\0"):
                    found[int(process.name)] = _parent(process)
        return [pid for pid, parent in found.items() if parent not in found]

    def terms(self) -> Path:
        """The folder of what the agent was told."""
        return Path(json.loads((self.state / "agent.json").read_text())["folder"])

    def processes(self) -> list[int]:
        """All that runs in this sandbox: keeper, runner, agent, and what they started."""
        assert self._process is not None
        found = [self._process.pid, self.agent()]
        parents = {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parents[int(process.name)] = _parent(process)
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid and child not in found]
        return found

    def kill_the_keeper(self) -> None:
        """What was started, not what works."""
        assert self._process is not None
        self._process.kill()

    async def ended(self, timeout_s: float = 20) -> int:
        assert self._process is not None
        return await asyncio.wait_for(self._process.wait(), timeout_s)

    async def diff(self) -> str:
        return await self._run("diff")

    async def _run(self, command: str) -> str:
        process = self._command = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "ship_runner",
            command,
            env=self.environment,
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0
        return output.decode()

    async def stop_the_agents_work(self) -> None:
        """As the runner asks it to, but without the runner's knowledge."""
        record = json.loads((self.state / "agent.json").read_text())
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{record['port']}",
            auth=("opencode", record["password"]),
            headers={"x-opencode-directory": quote(str(self.workspace))},
            trust_env=False,
        ) as agent:
            for conversation in (await agent.get("/session/status")).raise_for_status().json():
                (await agent.post(f"/session/{conversation}/abort")).raise_for_status()

    async def lose(self) -> None:
        """The whole sandbox is gone, with all that ran in it and all that it held."""
        await self.stop()
        for folder in (self.workspace, self.state, self.home):
            shutil.rmtree(folder)
        self.home.mkdir()

    async def stop(self) -> None:
        for process in (self._process, self._waiting):
            if process is not None and process.returncode is None:
                process.terminate()
                await process.wait()
        if (self.state / "agent.json").exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.agent(), signal.SIGKILL)
            TermsFolder(self.terms()).remove()


def _parent(process: Path) -> int:
    return int((process / "stat").read_text().rpartition(")")[2].split()[1])
