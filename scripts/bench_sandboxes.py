"""Measures the sandbox host by E2B's official SDK, each thing beside its floor: the same by a plain subprocess or a plain copy.

Each section starts a host of its own on an empty folder, so that none measures what another has left behind. Client and host share the
machine: the SDK's own time is in every figure.
"""

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench_figures import Figure
from e2b import AsyncSandbox, Sandbox

from ship_sandboxd.lifecycle.records import last_version

API_KEY = "e2b_" + "b" * 40
ENVD_PORT = "49983"
BLOCK = 1 << 20
WARM = 4
SHELL = ("/bin/bash", "-l", "-c", "true")
"""What the SDK makes of a command `true`."""
PLAIN_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
"""A login shell reads what stands in its home: nothing here, as in a new sandbox."""
WAIT_S = 60.0
AT_ONCE = 8
"""Sandboxes that are made or ended at the same time."""


@dataclass(frozen=True)
class Plan:
    """How much is measured; ``rounds`` 0 leaves it to the section."""

    rounds: int
    count: int
    size_mb: int
    backend: str = ""


class Host:
    """A host on an empty folder, and what the SDK must know to reach it."""

    def __init__(self, url: str, pid: int, data: Path) -> None:
        self.url = url
        self.pid = pid
        self.data = data
        self.options: dict[str, Any] = {"api_key": API_KEY, "api_url": url, "sandbox_url": url}

    def create(self) -> Sandbox:
        """A sandbox of the template ``base``."""
        return Sandbox.create(timeout=3600, **self.options)


@contextlib.contextmanager
def host(plan: Plan, *options: str) -> Iterator[Host]:
    """Starts one; ends it and its sandboxes afterwards."""
    if plan.backend:
        options = (*options, "--backend", plan.backend)
    with tempfile.TemporaryDirectory(prefix="ship-bench-", ignore_cleanup_errors=True) as name:
        data = Path(name) / "data"
        command = [sys.executable, "-m", "ship_sandboxd", "--data", str(data)]
        environment = {**os.environ, "SHIP_SANDBOXD_API_KEY": API_KEY}
        with (Path(name) / "host.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "--listen", "127.0.0.1:0", *options],
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                sys.exit(f"the sandbox host did not start: {(Path(name) / 'host.log').read_text()[-2000:]}")
            yield Host(json.loads(line)["url"], process.pid, data)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(WAIT_S)
            process.stdout.close()
            subprocess.run([*command, "--stop-all"], check=True, capture_output=True, env=environment)


def took_ms(action: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1000


def plain_command() -> None:
    """The floor of a command."""
    subprocess.run(SHELL, check=True, capture_output=True, env=PLAIN_ENVIRONMENT)


# Sections


def start(plan: Plan) -> list[Figure]:
    """From the first request to the first command's result: with a process that waits for what it becomes, and without."""
    samples, rounds = [], plan.rounds or 20
    with host(plan) as there:
        for _ in range(rounds):
            _until(lambda: _warm_sandboxes(there) > 0, "a process waits")
            samples.append(_start(there))
    with host(plan, "--spares", "0") as there:
        there.create().kill()
        alone = [_start(there) for _ in range(rounds)]
    return [*_starts("cold", samples, 100), *_starts("cold, nothing waits", alone)]


def warm(plan: Plan) -> list[Figure]:
    """The same from the pool of warm sandboxes, while it is full."""
    samples = []
    with host(plan, "--warm", f"base={WARM}", "--spares", "0") as there:
        for _ in range(plan.rounds or 20):
            _until(lambda: _warm_sandboxes(there) >= WARM, "the pool is full")
            samples.append(_start(there))
    return _starts("warm", samples, 25)


def _start(host: Host) -> tuple[float, float, float]:
    """(create, first command, kill) in ms."""
    began = time.perf_counter()
    made = host.create()
    created = time.perf_counter()
    made.commands.run("true")
    ran = time.perf_counter()
    return (created - began) * 1000, (ran - created) * 1000, took_ms(made.kill)


def _starts(
    kind: str, samples: Sequence[tuple[float, float, float]], goal: float | None = None
) -> list[Figure]:
    floor = tuple(took_ms(plain_command) for _ in samples)
    create, command, kill = (tuple(column) for column in zip(*samples, strict=True))
    both = tuple(a + b for a, b in zip(create, command, strict=True))
    return [
        Figure(f"{kind}: create to first result", "ms", both, floor, goal),
        Figure(f"{kind}: create", "ms", create),
        Figure(f"{kind}: first command", "ms", command, floor),
        Figure(f"{kind}: kill", "ms", kill),
    ]


def _warm_sandboxes(host: Host) -> int:
    """Records of sandboxes that wait in the pool, as the host writes them down."""
    states = []
    for record in host.data.glob("sandboxes/*/sandbox.json"):
        with contextlib.suppress(OSError, ValueError):
            states.append(last_version(record.read_bytes())["state"])
    return states.count("warm")


def commands(plan: Plan) -> list[Figure]:
    """One command after the other, and many at once."""
    rounds = plan.rounds or 200
    with host(plan) as there:
        made = there.create()
        made.commands.run("true")
        one = tuple(took_ms(lambda: made.commands.run("true")) for _ in range(rounds))
        many, plain = asyncio.run(_concurrent(there, made.sandbox_id, plan.count))
        made.kill()
    floor = tuple(took_ms(plain_command) for _ in range(rounds))
    return [
        Figure('commands.run("true")', "ms", one, floor, 6),
        Figure(f"{plan.count} commands at once", "s", many, plain, 1),
    ]


async def _concurrent(host: Host, sandbox_id: str, count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    made = await AsyncSandbox.connect(sandbox_id, **host.options)
    await made.commands.run("true")

    async def all_of(one: Callable[[], Any]) -> float:
        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(count)))
        return time.perf_counter() - began

    async def plain() -> None:
        process = await asyncio.create_subprocess_exec(
            *SHELL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=PLAIN_ENVIRONMENT
        )
        await process.communicate()

    samples = [await all_of(lambda: made.commands.run("true")) for _ in range(3)]
    floor = [await all_of(plain) for _ in range(3)]
    return tuple(samples), tuple(floor)


def pause(plan: Plan) -> list[Figure]:
    """Freezing and thawing; the floor stops and continues a plain process."""
    rounds = plan.rounds or 50
    paused, resumed, answered, stopped, continued = [], [], [], [], []
    plain = subprocess.Popen(["sleep", "3600"])
    with host(plan) as there:
        made = there.create()
        made.commands.run("true")
        for _ in range(rounds):
            paused.append(took_ms(made.pause))
            began = time.perf_counter()
            made.connect()
            resumed.append((time.perf_counter() - began) * 1000)
            made.commands.run("true")
            answered.append((time.perf_counter() - began) * 1000)
            stopped.append(took_ms(lambda: _signal(plain.pid, signal.SIGSTOP, os.WUNTRACED)))
            continued.append(took_ms(lambda: _signal(plain.pid, signal.SIGCONT, os.WCONTINUED)))
        made.kill()
    plain.kill()
    plain.wait()
    return [
        Figure("pause", "ms", tuple(paused), tuple(stopped), 5),
        Figure("resume", "ms", tuple(resumed), tuple(continued), 5),
        Figure("resume to first result", "ms", tuple(answered)),
    ]


def _signal(pid: int, number: signal.Signals, until: int) -> None:
    os.kill(pid, number)
    os.waitpid(pid, until)


def many(plan: Plan) -> list[Figure]:
    """Many sandboxes at once: what each costs. The floor is a plain Python process that listens on a socket."""
    with host(plan) as there:
        before = _available_mb()
        created, total_s, ids = asyncio.run(_create_all(there, plan.count))
        memory = _memory_mb(ids)
        machine = (before - _available_mb()) / len(ids)
        size = _memory_mb_of([there.pid])
        killed = asyncio.run(_kill_all(there, ids))
    return [
        Figure(f"create, {AT_ONCE} at once", "ms", tuple(created)),
        Figure(f"create all {len(ids)}", "s", (total_s,)),
        Figure("kill", "ms", tuple(killed)),
        Figure("memory of a sandbox's processes", "MB", tuple(memory), (_plain_memory_mb(),), 12),
        Figure("memory gone from the machine, each", "MB", (machine,)),
        Figure("memory of the host itself", "MB", (size,)),
    ]


async def _create_all(host: Host, count: int) -> tuple[list[float], float, list[str]]:
    turns = asyncio.Semaphore(AT_ONCE)
    samples: list[float] = []

    async def one() -> str:
        async with turns:
            began = time.perf_counter()
            made = await AsyncSandbox.create(timeout=3600, **host.options)
            await made.commands.run("true")
            samples.append((time.perf_counter() - began) * 1000)
            return made.sandbox_id

    began = time.perf_counter()
    ids = await asyncio.gather(*(one() for _ in range(count)))
    return samples, time.perf_counter() - began, ids


async def _kill_all(host: Host, ids: Sequence[str]) -> list[float]:
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(sandbox_id: str) -> float:
        async with turns:
            began = time.perf_counter()
            await AsyncSandbox.kill(sandbox_id, **host.options)
            return (time.perf_counter() - began) * 1000

    return await asyncio.gather(*(one(sandbox_id) for sandbox_id in ids))


def _memory_mb(ids: Sequence[str]) -> list[float]:
    """For each sandbox the proportional share of memory of all processes in its cgroup."""
    members: dict[str, list[int]] = {sandbox_id: [] for sandbox_id in ids}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            groups = (folder / "cgroup").read_text()
            for sandbox_id in {line.rpartition("/")[2] for line in groups.splitlines()} & members.keys():
                members[sandbox_id].append(int(folder.name))
    return [_memory_mb_of(pids) for pids in members.values()]


def _memory_mb_of(pids: Sequence[int]) -> float:
    kib = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            kib += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return kib / 1024


def _plain_memory_mb() -> float:
    program = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(1, flush=True); s.accept()"
    process = subprocess.Popen(["/usr/bin/python3", "-I", "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    size = _memory_mb_of([process.pid])
    process.kill()
    process.communicate()
    return size


def _available_mb() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable:"))


def files(plan: Plan) -> list[Figure]:
    """A large file in and out, by the SDK and by plain HTTP; the floor copies it from one file to another."""
    rounds = plan.rounds or 2
    with tempfile.TemporaryDirectory(prefix="ship-bench-") as name, host(plan) as there:
        source, copy = Path(name) / "source", Path(name) / "copy"
        _fill(source, plan.size_mb)
        made = there.create()
        made.commands.run("true")
        rates: dict[str, list[float]] = {}
        for _ in range(rounds):
            for kind, action in (
                ("plain copy", lambda: _copy(source, copy)),
                ("in, by the SDK", lambda: _write(made, source)),
                ("out, by the SDK", lambda: _read(made, plan.size_mb)),
                ("in, by plain HTTP", lambda: _upload(there, made, source)),
                ("out, by plain HTTP", lambda: _download(there, made, plan.size_mb)),
            ):
                rates.setdefault(kind, []).append(plan.size_mb / (took_ms(action) / 1000))
        peak = _peak_mb(made)
        made.kill()
    floor = tuple(rates.pop("plain copy"))
    figures = [
        Figure(f"{plan.size_mb} MiB {kind}", "MB/s", tuple(values), floor, 300)
        for kind, values in rates.items()
    ]
    return [*figures, Figure("most memory of its daemon", "MB", (peak,))]


def _fill(file: Path, size_mb: int) -> None:
    block = os.urandom(BLOCK)
    with file.open("wb") as out:
        for _ in range(size_mb):
            out.write(block)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as opened, target.open("wb") as out:
        shutil.copyfileobj(opened, out, BLOCK)
    target.unlink()


def _write(made: Sandbox, source: Path) -> None:
    with source.open("rb") as content:
        made.files.write("/home/user/large", content, request_timeout=600)


def _read(made: Sandbox, size_mb: int) -> None:
    read = sum(
        len(piece) for piece in made.files.read("/home/user/large", format="stream", request_timeout=600)
    )
    assert read == size_mb * BLOCK, read


def _upload(host: Host, made: Sandbox, source: Path) -> None:
    fields = {"Content-Type": "application/octet-stream", "Content-Length": str(source.stat().st_size)}
    with (
        source.open("rb") as content,
        _exchange(host, made, "POST", made.upload_url("/home/user/large"), fields, content) as got,
    ):
        got.read()


def _download(host: Host, made: Sandbox, size_mb: int) -> None:
    buffer, read = bytearray(BLOCK), 0
    with _exchange(host, made, "GET", made.download_url("/home/user/large"), {}) as got:
        while count := got.readinto(buffer):
            read += count
    assert read == size_mb * BLOCK, read


@contextlib.contextmanager
def _exchange(
    host: Host, made: Sandbox, method: str, signed: str, fields: dict[str, str], content: Any = None
) -> Iterator[http.client.HTTPResponse]:
    url = urlsplit(signed)
    routed = {"E2b-Sandbox-Id": made.sandbox_id, "E2b-Sandbox-Port": ENVD_PORT, **fields}
    connection = http.client.HTTPConnection(urlsplit(host.url).netloc, timeout=600, blocksize=BLOCK)
    try:
        connection.request(method, f"{url.path}?{url.query}", content, routed)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        yield answer
    finally:
        connection.close()


def _peak_mb(made: Sandbox) -> float:
    said = made.commands.run("grep VmHWM /proc/1/status || grep VmHWM /proc/2/status").stdout
    return int(said.split()[1]) / 1024


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"not in {WAIT_S:.0f} s: {what}")
        time.sleep(0.01)


SECTIONS: dict[str, Callable[[Plan], list[Figure]]] = {
    "start": start,
    "warm": warm,
    "commands": commands,
    "pause": pause,
    "many": many,
    "files": files,
}
