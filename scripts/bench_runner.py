"""Measures the runner against what it drives.

- *agent start*: from ``POST /sessions`` to a ready agent on a real server, held against OpenCode started alone with the same
  configuration until it has a conversation;
- *first token*: of a follow-up, from its ``POST`` to the first piece of text on the stream, held against OpenCode alone, from its prompt
  to its first piece of text, with the same scripted model;
- *checkpoint*, *restore*: of a workspace of 200 MB in 5,000 files that git does not know yet, half of it noise; and of one small
  change after it. There is no client: the runner's own functions are called.
"""

import asyncio
import json
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import bench_sessions
import httpx
from bench_figures import NO_CLIENT, Figure, Share

from ship.config import load
from ship.sandboxes.template import lay_out_tree
from ship.testing import sample_repository
from ship.testing.scripted_model import ScriptedModel, serve
from ship_runner.control import Bootstrap, Model, Provider
from ship_runner.opencode.configuration import configuration, environment
from ship_runner.opencode.process import AgentProcess
from ship_runner.opencode.terms import Terms
from ship_runner.workspace import Workspace

FILES, FILE_BYTES = 5_000, 40 << 10
_NO_LIMIT = 20 << 20


def measure(rounds: int) -> list[Figure]:
    """``rounds`` of each."""
    return asyncio.run(_measure(rounds))


async def _measure(rounds: int) -> list[Figure]:
    kinds = (bench_sessions.READY, bench_sessions.NEW, "first token", "task done")
    samples: bench_sessions.Samples = {kind: [] for kind in kinds}
    alone: bench_sessions.Samples = {"start": [], "first token": []}
    share = Share()
    with tempfile.TemporaryDirectory(prefix="ship-bench-") as name:
        folder = Path(name)
        sample_repository.create(folder / "repository")
        async with bench_sessions.server(folder) as address, address.client() as client:
            with share.counted():
                sessions = [
                    await bench_sessions.session(client, folder / "repository", samples)
                    for _ in range(rounds)
                ]
                for number in range(rounds):
                    await bench_sessions.follow_up(client, sessions[number], f"say {number}", samples)
        tree = lay_out_tree(load(None, os.environ).cache_path, report=print)
        for number in range(rounds):
            await _agent_alone(tree, folder / f"alone-{number}", folder / "repository", alone)
        large = await _large_workspace(folder / "large", folder / "repository")
    started, spoken = tuple(samples[bench_sessions.READY]), tuple(samples["first token"])
    client_share = share.of_a_core
    return [
        Figure("agent start", "ms", started, floor=tuple(alone["start"]), client=client_share),
        Figure("first token", "ms", spoken, floor=tuple(alone["first token"]), client=client_share),
        *(Figure(name, "ms", (value,), client=NO_CLIENT) for name, value in large.items()),
    ]


async def _agent_alone(tree: Path, folder: Path, repository: Path, samples: bench_sessions.Samples) -> None:
    """OpenCode with nothing of ours around it."""
    home = folder / "home"
    home.mkdir(parents=True)
    async with serve(ScriptedModel()) as model, _started(tree, home, model, samples) as http:
        headers = {"x-opencode-directory": str(repository)}
        began = time.perf_counter()
        conversation = (await http.post("/session", json={"title": "x"}, headers=headers)).json()["id"]
        samples["start"][-1] += (time.perf_counter() - began) * 1000
        for text in ("warm up", "say it"):
            took_ms = await _first_token(http, conversation, text, headers)
        samples["first token"].append(took_ms)


@asynccontextmanager
async def _started(
    tree: Path, home: Path, model: str, samples: bench_sessions.Samples
) -> AsyncIterator[httpx.AsyncClient]:
    provider = Provider("scripted", "openai", model, (Model("echo", 200_000, 32_000),))
    process = AgentProcess(str(tree / "bin" / "opencode"), home, home)
    variables = environment({"PATH": f"{tree}/bin:/usr/bin:/bin", "HOME": str(home)})
    began = time.perf_counter()
    await process.start(variables, Terms(configuration((provider,), "scripted/echo", "auto"), "x", ""))
    samples["start"].append((time.perf_counter() - began) * 1000)
    assert process.http is not None
    try:
        yield process.http
    finally:
        await process.end()


async def _first_token(
    http: httpx.AsyncClient, conversation: str, text: str, headers: dict[str, str]
) -> float:
    """Milliseconds until the first text, waiting for the end of the run."""
    body = {
        "agent": "build",
        "parts": [{"type": "text", "text": text}],
        "model": {"providerID": "scripted", "modelID": "echo"},
    }
    took_ms = 0.0
    async with http.stream("GET", "/global/event", timeout=60) as stream:
        lines = stream.aiter_lines()
        await anext(lines)
        began = time.perf_counter()
        await http.post(f"/session/{conversation}/prompt_async", json=body, headers=headers)
        async for line in lines:
            payload = json.loads(line[5:])["payload"] if line.startswith("data:") else {}
            if payload.get("type") == "message.part.delta" and not took_ms:
                took_ms = (time.perf_counter() - began) * 1000
            if payload.get("type") == "session.idle":
                break
    return took_ms


async def _large_workspace(folder: Path, repository: Path) -> dict[str, float]:
    """Milliseconds of each step, by name."""
    first, second = _workspace(folder / "first"), _workspace(folder / "second")
    plan = Bootstrap("ses", 1, "t", str(repository), "", "ship/x", None, "auto", "", ())
    await first.prepare(plan, "")
    noise = random.Random(1)  # noqa: S311 (the same noise each time)
    for number in range(FILES):
        path = first.folder / "data" / f"{number % 50}" / f"{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        half = FILE_BYTES // 2
        path.write_bytes(noise.randbytes(half) + b"the same line again and again\n" * (half // 30))
    began = time.perf_counter()
    whole = await first.checkpoint(_NO_LIMIT, "ckp_whole")
    kept = time.perf_counter()
    (first.folder / "data" / "0" / "0.bin").write_bytes(b"changed")
    small = time.perf_counter()
    change = await first.checkpoint(_NO_LIMIT, "ckp_change", whole.id)
    changed = time.perf_counter()

    async def bundles() -> list[Path]:
        return [whole.bundle, change.bundle]

    await second.prepare(plan, "", bundles())
    restored = time.perf_counter()
    return {
        "checkpoint of 200 MB": (kept - began) * 1000,
        "checkpoint of a change": (changed - small) * 1000,
        "restore of 200 MB": (restored - changed) * 1000,
    }


def _workspace(folder: Path) -> Workspace:
    folder.mkdir(parents=True)
    return Workspace(folder / "repo", folder)
