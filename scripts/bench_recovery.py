"""Measures how long the sudden end of a part is felt.

A real server with a real agent that talks steadily, and a client that follows it. One part is killed with SIGKILL. What is measured is the
time from there until the client hears the agent again, or, of the sandbox host, until it answers again: of that the client hears
nothing. The measurement starts the server again, at once; all else Ship starts itself.

Then three nodes under load, as `make chaos` has them: a node, the broker or the database dies, and what is measured is the time until the
next command is acknowledged, and until every stream that was cut is live again, 0 where none was. They are started again by the
measurement, too: the node when the others have gone on, the broker and the database at once, and of the database the time counts from there.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import bench_sessions
from bench_figures import Figure, Share

from ship.app.sandbox_host import FILE
from ship.client import Client
from ship.errors import ShipError
from ship.events.frames import Delta
from ship.testing import sample_repository
from ship.testing.postgres_server import postgres_server
from ship.testing.s3_servers import moto_server
from ship.testing.sandbox_processes import processes_in
from ship_runner.opencode.turn import GAP

ROOT = Path(__file__).parents[1]
MODEL, PROMPT = "scripted/long", "talk for 300 seconds"
SPEAKS = 10
"""After so many pieces of text the agent is in the middle of it."""
PATIENCE_S = 60.0
PARTS = ("runner", "agent", "sandbox", "sandbox host", "server")


class _Followed:
    """A session, and when a client of it heard its agent."""

    def __init__(self, client: Client, session_id: str) -> None:
        self.client = client
        self.id = session_id
        self._begun: list[float] = []
        self._heard = 0

    async def follow(self) -> None:
        """Listen until cancelled. What stands for words that nobody heard is not one."""
        joined = ""
        async for item in self.client.events(self.id):
            if isinstance(item, Delta):
                self._heard += 1
                if item.text == GAP:
                    joined = item.part_id
                elif item.offset == 0 or item.part_id == joined:
                    self._begun.append(time.perf_counter())
                    joined = ""

    async def speaks(self) -> None:
        """Wait until the agent talks."""
        await _until(lambda: self._heard > SPEAKS)

    async def speaks_again(self, killed_at: float) -> float:
        """Seconds from there to the first words: who comes back begins with what is known, or with a new text."""
        await _until(lambda: self._begun[-1] > killed_at)
        return next(moment for moment in self._begun if moment > killed_at) - killed_at

    async def answers(self, killed_at: float) -> float:
        """Seconds from there to the first answer of the sandbox host."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(ShipError):
                    await self.client.files(self.id)
                    return time.perf_counter() - killed_at

    async def sandbox_id(self) -> str:
        """Where it works now."""
        return (await self.client.session(self.id)).sandbox.sandbox_id or ""


def measure(rounds: int) -> list[Figure]:
    """Each part killed so often."""
    return asyncio.run(_measure(rounds))


async def _measure(rounds: int) -> list[Figure]:
    samples: dict[str, list[float]] = {part: [] for part in PARTS}
    share = Share()
    with tempfile.TemporaryDirectory(prefix="ship-bench-") as name:
        folder = Path(name)
        sample_repository.create(folder / "repository")
        process, address = await bench_sessions.started(folder)
        try:
            async with address.client() as client:
                for part in [part for part in PARTS for _ in range(rounds)]:
                    async with _following(client, folder / "repository") as followed:
                        with share.counted():
                            if part == "server":
                                process, took_s = await _restarted(process, folder, address.url, followed)
                            elif part == "sandbox host":
                                took_s = await followed.answers(_kill(_host(folder)))
                            else:
                                killed_at = _kill(processes_in(await followed.sandbox_id())[part])
                                took_s = await followed.speaks_again(killed_at)
                    samples[part].append(took_s * 1000)
        finally:
            await bench_sessions.ended(process, folder)
    return [
        *(
            Figure(f"{part} killed", "ms", tuple(values), client=share.of_a_core)
            for part, values in samples.items()
        ),
        *await _of_three_nodes(rounds),
    ]


async def _of_three_nodes(rounds: int) -> list[Figure]:
    sys.path.append(str(ROOT))  # a script's path begins at its own folder
    from tests.chaos import faults
    from tests.chaos.cluster import cluster

    samples: dict[str, list[float]] = {}
    share = Share()
    with postgres_server() as postgres, moto_server() as bucket, tempfile.TemporaryDirectory() as name:
        async with cluster(Path(name), postgres, bucket) as three:
            parts = {
                "one": lambda: faults.killed(three.scene, "after_commit"),
                "NATS": lambda: faults.broker_killed(three.scene, three.nats, 0.0),
                "PostgreSQL": lambda: faults.database_stopped(three.scene, postgres, 0.0),
            }
            await three.scene.begin(sessions=3, watchers=3)
            async with three.scene.load(writers=3):
                for part in [part for part in parts for _ in range(rounds)]:
                    with share.counted():
                        felt = await parts[part]()
                    for what, took_s in (("acknowledged", felt.acknowledged_s), ("live", felt.live_s)):
                        samples.setdefault(f"three nodes, {part} killed: {what}", []).append(took_s * 1000)
            await three.scene.check()
    return [Figure(name, "ms", tuple(values), client=share.of_a_core) for name, values in samples.items()]


@contextlib.asynccontextmanager
async def _following(client: Client, repository: Path) -> AsyncIterator[_Followed]:
    """A session whose agent talks; it is archived afterwards."""
    made = await client.create_session(str(repository), prompt=PROMPT, model=MODEL)
    followed = _Followed(client, made.id)
    following = asyncio.create_task(followed.follow())
    await followed.speaks()
    try:
        yield followed
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await client.archive(made.id)


async def _restarted(
    process: asyncio.subprocess.Process, folder: Path, url: str, followed: _Followed
) -> tuple[asyncio.subprocess.Process, float]:
    killed_at = time.perf_counter()
    process.kill()
    await process.wait()
    process, _ = await bench_sessions.started(folder, listen=url.removeprefix("http://"))
    return process, await followed.speaks_again(killed_at)


def _host(folder: Path) -> int:
    return int(json.loads((folder / "data" / FILE).read_text())["pid"])


def _kill(pid: int) -> float:
    """End it; when that was."""
    os.kill(pid, signal.SIGKILL)
    return time.perf_counter()


async def _until(holds: Callable[[], bool]) -> None:
    deadline = time.perf_counter() + PATIENCE_S
    while not holds():
        if time.perf_counter() > deadline:
            sys.exit("the agent was not heard again")
        await asyncio.sleep(0.02)
