"""Measures sessions on a real server.

It starts ``ship up`` on a folder of its own with the scripted model, so that no model's speed is in the figures:

- *session ready*: from ``POST /sessions`` to a sandbox whose agent waits for work;
- *a new session's first token*: from the same ``POST``, with a prompt, to the first piece of what the agent says;
- both once more with ``warm``: where a sandbox waits, with an agent that has started;
- *first token*: from a follow-up's ``POST`` to the first piece of text on the stream, through runner, agent, gateway and model;
- *task done*: from the follow-up's ``POST`` to the task's end, its checkpoint included;
- *append*: notes posted over HTTP by concurrent clients, spread over the sessions, each acknowledged after its fsync. They are coroutines of
  this process, with the library that anybody would use: their share of a core says how much of the figure is theirs.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from bench_figures import Figure, Share

from ship.app.down import down
from ship.cli.connection import Address, recall
from ship.client import Client
from ship.events import Record, facts
from ship.events.frames import Delta
from ship.sandboxes.template import TEMPLATE
from ship.testing import sample_repository
from ship_sandboxd.lifecycle.records import last_version

START_TIMEOUT_S = 600
STOP_TIMEOUT_S = 30
MODEL = "scripted/echo"
Samples = dict[str, list[float]]
READY, NEW = "session ready", "a new session's first token"
WARM = "{}, warm"


def measure(rounds: int, clients: int = 16, appends: int = 1600) -> list[Figure]:
    """``rounds`` sessions with as many follow-ups each; ``appends`` notes in all by ``clients`` at once."""
    return asyncio.run(_measure(rounds, clients, appends))


async def _measure(rounds: int, clients: int, appends: int) -> list[Figure]:
    kinds = (READY, NEW, WARM.format(READY), WARM.format(NEW), "first token", "task done", "append")
    samples: Samples = {kind: [] for kind in kinds}
    shares = {kind: Share() for kind in ("{}", WARM, "append")}
    with tempfile.TemporaryDirectory(prefix="ship-bench-") as name:
        folder = Path(name)
        sample_repository.create(folder / "repository")
        async with server(folder) as address, address.client() as client:
            with shares["{}"].counted():
                sessions = [await session(client, folder / "repository", samples) for _ in range(rounds)]
                for session_id in sessions:
                    for number in range(rounds):
                        await follow_up(client, session_id, f"say {number}", samples)
            with shares["append"].counted():
                rate = await append(client, sessions, clients, appends, samples)
        async with server(folder / "warm", warm=1) as address, address.client() as client:
            for _ in range(rounds):
                await _until_waiting(folder / "warm")
                with shares[WARM].counted():
                    await session(client, folder / "repository", samples, WARM)
    of_client = dict.fromkeys(kinds, shares["{}"].of_a_core)
    of_client |= {WARM.format(kind): shares[WARM].of_a_core for kind in (READY, NEW)}
    of_client["append"] = shares["append"].of_a_core
    figures = [Figure(name, "ms", tuple(values), client=of_client[name]) for name, values in samples.items()]
    return [*figures, Figure("appends", "/s", (rate,), client=of_client["append"])]


@contextlib.asynccontextmanager
async def server(folder: Path, warm: int = 0) -> AsyncIterator[Address]:
    """``ship up`` on a free port, with so many sandboxes that wait."""
    process, address = await started(folder, warm=warm)
    try:
        yield address
    finally:
        await ended(process, folder)


async def started(
    folder: Path, *, warm: int = 0, listen: str = "127.0.0.1:0"
) -> tuple[asyncio.subprocess.Process, Address]:
    """The process of a server that takes sessions, and where it is."""
    data = folder / "data"
    environment = {
        **os.environ,
        "SHIP_SCRIPTED_MODEL": "true",
        "SHIP_LOCAL_ROOTS": tempfile.gettempdir(),
        "SHIP_SANDBOX_WARM": str(warm),
    }
    command = [sys.executable, "-m", "ship.cli", "up", "--listen", listen, "--data", str(data)]
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        # The sign-in link is the first thing on standard output, written once the server takes sessions.
        ready = await asyncio.wait_for(process.stdout.readline(), START_TIMEOUT_S)
        address = recall(data) if ready else None
        if address is None:
            sys.exit("the server did not start")
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    return process, address


async def ended(process: asyncio.subprocess.Process, folder: Path) -> None:
    """End it, and its sandboxes."""
    if process.returncode is None:
        process.terminate()
        await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
    await asyncio.to_thread(down, folder / "data")


async def _until_waiting(folder: Path) -> None:
    """Until a sandbox waits with an agent that has nothing left to do."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _waits(folder / "data" / "sandboxes" / "sandboxes") or not _runner_waits():
        if time.monotonic() > deadline:
            sys.exit("no sandbox waits")
        await asyncio.sleep(0.1)


def _waits(sandboxes: Path) -> bool:
    records = (last_version(path.read_bytes()) for path in sandboxes.glob("*/sandbox.json"))
    return any((record["state"], record["template"]) == ("warm", TEMPLATE) for record in records)


def _runner_waits() -> bool:
    """Whether a runner listens in some sandbox for one that is started; its agent stands then, too."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"wait" in path.read_bytes().split(b"\0"):
                sockets = (path.parent / "net/unix").read_text().splitlines()
                if any(" 00010000 " in line and line.endswith("waiting.sock") for line in sockets):
                    return True
    return False


async def session(client: Client, repository: Path, samples: Samples, kind: str = "{}") -> str:
    """One session until its sandbox is ready, and its first task until it has ended."""
    began = time.perf_counter()
    made = await client.create_session(str(repository), prompt="say hello", model=MODEL)
    spoken = False
    async for item in client.events(made.id):
        if not spoken and _speaks(item):
            samples[kind.format(NEW)].append((time.perf_counter() - began) * 1000)
            spoken = True
        if isinstance(item, Record):
            if isinstance(item.fact, facts.SandboxReady):
                samples[kind.format(READY)].append((time.perf_counter() - began) * 1000)
            if _ended(item):
                break
    return made.id


async def follow_up(client: Client, session_id: str, prompt: str, samples: Samples) -> None:
    """One task on a ready session."""
    after = (await client.session(session_id)).head_seq
    began = time.perf_counter()
    accepted = await client.add_task(session_id, prompt, model=MODEL)
    first = True
    async for item in client.events(session_id, after=after):
        if first and _speaks(item):
            samples["first token"].append((time.perf_counter() - began) * 1000)
            first = False
        if isinstance(item, Record) and _ended(item, accepted.task_id):
            samples["task done"].append((time.perf_counter() - began) * 1000)
            return


def _speaks(item: Record | Delta) -> bool:
    return isinstance(item, Delta) or isinstance(item.fact, facts.TextFinished | facts.ReasoningFinished)


def _ended(record: Record, task_id: str = "") -> bool:
    fact = record.fact
    if isinstance(fact, facts.TaskFailed | facts.TaskCancelled | facts.SessionFailed):
        sys.exit(f"the scripted task did not complete: {fact}")
    return isinstance(fact, facts.TaskCompleted) and task_id in ("", fact.task_id)


async def append(
    client: Client, sessions: Sequence[str], clients: int, appends: int, samples: Samples
) -> float:
    """Appends a second by concurrent clients, spread over the sessions."""

    async def post(session_id: str) -> None:
        for number in range(appends // clients):
            began = time.perf_counter()
            await client.post_message(session_id, f"note {number}")
            samples["append"].append((time.perf_counter() - began) * 1000)

    began = time.perf_counter()
    await asyncio.gather(*(post(sessions[number % len(sessions)]) for number in range(clients)))
    return len(samples["append"]) / (time.perf_counter() - began)
