"""Measures what one control plane bears: the seven scenarios of ``docs/performance.md``, and what belongs to them.

The server is the real one without sandboxes (``bench_server.py``), alone on the first core; the clients share the others. Every
request is authenticated and validated, every append carries an idempotency key, becomes a typed event and is on disk before it is
answered.
"""

import asyncio
import collections
import contextlib
import itertools
import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import bench_sessions
from bench_clients import Listeners, Load, Target, ask, at_rate, closed_loop, pin
from bench_figures import Figure, summary

from ship.app.tokens import SERVER_FILE

SPAWN = multiprocessing.get_context("spawn")
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, CLIENT_CORES = (CORES[0], CORES[1:]) if len(CORES) > 1 else (-1, CORES)
SECONDS = 4.0
START_S = 60.0
RATE = 40.0
CREATE = b'{"repository":{"source":"https://example.org/repository.git"},"title":"measured"}'


class Server:
    """A server on a folder that outlives it."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._process: subprocess.Popen[bytes] | None = None
        self.target = Target(0, "")
        self.pid = 0

    def start(self) -> None:
        """Start it, on the port that it had before."""
        script = Path(__file__).with_name("bench_server.py")
        command = [sys.executable, str(script), "--data", str(self._data)]
        command += ["--port", str(self.target.port), "--core", str(SERVER_CORE)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit("the server did not start")
        said = json.loads(line)
        self.pid = said["pid"]
        self.target = Target(int(said["url"].rpartition(":")[2]), said["token"])

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it by that signal."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(START_S)
        assert self._process.stdout is not None
        self._process.stdout.close()

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


def resident_mb(pid: int) -> float:
    """A process's resident memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """A server on an empty folder."""
    with tempfile.TemporaryDirectory(prefix="ship-bench-") as name:
        made = Server(Path(name))
        made.start()
        try:
            yield made
        finally:
            made.end()


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls it in a process of its own on the clients' cores."""
    with ProcessPoolExecutor(1, SPAWN, pin, (CLIENT_CORES,)) as pool:
        return pool.submit(function, *arguments).result()


class Watched(NamedTuple):
    """What listeners saw: ``connect_s`` until all were live, at first and after they were dropped."""

    connect_s: list[float]
    posted: int
    missed: int
    repeated: int
    ages_ms: list[float]
    cpu_share: float


class Watch:
    """Listeners in a process of their own."""

    def __init__(self, target: Target, session_ids: list[str], after: int, *, count: bool = False) -> None:
        self._pipe, other = SPAWN.Pipe()
        self._process = SPAWN.Process(target=_watch, args=(target, session_ids, after, count, other))
        self._process.start()
        assert self._pipe.recv() == "live"

    def drop(self) -> None:
        """All connections drop and come back; returns when each is live again."""
        self._pipe.send("drop")
        assert self._pipe.recv() == "live"

    def end(self, posted: int) -> Watched:
        """When each one has seen so many notes."""
        self._pipe.send(posted)
        seen: Watched = self._pipe.recv()
        self._process.join()
        return seen


def _watch(target: Target, session_ids: list[str], after: int, count: bool, pipe: Connection) -> None:
    pin(CLIENT_CORES)
    listeners, load = Listeners(target, session_ids, after, count=count), Load()
    times = [listeners.connect()]
    pipe.send("live")
    began, used = time.perf_counter(), time.process_time()
    while True:
        listeners.until(lambda: False, pipe)
        said = pipe.recv()
        if said != "drop":
            break
        listeners.drop()
        times.append(listeners.connect())
        pipe.send("live")
    with contextlib.suppress(AssertionError):
        listeners.until(lambda: all(socket.posted >= said for socket in listeners.sockets))
    load.cpu_share = (time.process_time() - used) / (time.perf_counter() - began)
    sockets = listeners.sockets
    pipe.send(
        Watched(
            times,
            sum(socket.posted for socket in sockets),
            sum(socket.missed + max(0, said - socket.posted) for socket in sockets),
            sum(socket.repeated + max(0, socket.posted - said) for socket in sockets),
            listeners.ages_ms,
            load.cpu_share,
        )
    )
    listeners.drop()


# Loads, each in a process of its own


def _creates(target: Target, clients: int, seconds: float) -> Load:
    numbers = itertools.count()

    def plan() -> Iterator[bytes]:
        while True:
            yield target.request("POST", "/api/v1/sessions", CREATE, f"{os.getpid()}-{next(numbers)}")

    return closed_loop(target, [plan() for _ in range(clients)], seconds)


def _create_many(target: Target, count: int) -> list[str]:
    shared = itertools.repeat(target.request("POST", "/api/v1/sessions", CREATE), count)
    closed_loop(target, [shared] * 16)
    ids: list[str] = []
    cursor = ""
    while len(ids) < count:
        query = f"?limit=500&cursor={cursor}" if cursor else "?limit=500"
        page = json.loads(ask(target, target.request("GET", f"/api/v1/sessions{query}"))[1])
        ids += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
    return ids[:count]


def _appends(target: Target, session_ids: list[str], clients: int, seconds: float) -> Load:
    numbers = itertools.count()

    def plan(session_id: str) -> Iterator[bytes]:
        while True:
            number = next(numbers)
            yield target.note(session_id, f"note number {number}", f"{os.getpid()}-{number}")

    chosen = [session_ids[client % len(session_ids)] for client in range(clients)]
    return closed_loop(target, [plan(session_id) for session_id in chosen], seconds)


def _append_many(target: Target, session_id: str, count: int) -> Load:
    shared = (target.note(session_id, f"note number {number}", "") for number in range(count))
    return closed_loop(target, [shared] * 64)


def _pages(target: Target, session_id: str, clients: int, seconds: float) -> Load:
    request = target.request("GET", f"/api/v1/sessions/{session_id}/messages?limit=50")
    return closed_loop(target, [itertools.repeat(request)] * clients, seconds)


class Acknowledged(NamedTuple):
    """``kept`` were answered before the server died; ``open`` were sent and not answered: (key, text)."""

    kept: list[str]
    open: list[tuple[str, str]]


def _appends_until_death(target: Target, session_id: str, clients: int, prefix: str) -> Acknowledged:
    kept: list[str] = []
    asked: list[list[str]] = [[] for _ in range(clients)]

    def plan(client: int) -> Iterator[bytes]:
        mine = asked[client]
        while True:
            text = f"{prefix}-{client}-{len(mine)}"
            mine.append(text)
            yield target.note(session_id, text, text)
            kept.append(text)

    closed_loop(target, [plan(client) for client in range(clients)])
    done = set(kept)
    return Acknowledged(kept, [(text, text) for mine in asked for text in mine if text not in done])


def _texts(target: Target, session_id: str) -> list[str]:
    found, after = [], 0
    while True:
        path = f"/api/v1/sessions/{session_id}/events?limit=1000&after={after}"
        items = json.loads(ask(target, target.request("GET", path))[1])["items"]
        if not items:
            return found
        after = items[-1]["seq"]
        found += [item["data"]["text"] for item in items if item["type"] == "message.posted"]


# Scenarios


def create(rounds: int) -> list[Figure]:
    """S1."""
    figures = []
    for clients, baseline in ((1, 131), (16, 158), (64, 136)):
        with server() as there:
            apart(_creates, there.target, clients, 0.5)
            loads = [apart(_creates, there.target, clients, SECONDS) for _ in range(rounds)]
        goal = 20 * baseline if clients == 64 else None
        figures.append(rate_figure(f"S1 sessions created, {clients} clients", loads, baseline, goal))
    return figures


def append(rounds: int) -> list[Figure]:
    """S2."""
    figures = []
    plans = ((1, 1, 789, 3, 1.8), (16, 1, 1122, 6, 34), (64, 1, 1211, 6, 99), (64, 64, 1266, 5, 0))
    for clients, sessions, baseline, factor, baseline_p99 in plans:
        with server() as there:
            ids = [there.create() for _ in range(sessions)]
            apart(_appends, there.target, ids, clients, 0.5)
            loads = [apart(_appends, there.target, ids, clients, SECONDS) for _ in range(rounds)]
        name = f"S2 appends, {clients} clients on {sessions}"
        figures.append(rate_figure(name, loads, baseline, factor * baseline))
        if baseline_p99:
            p99 = tuple(summary(load.latencies_ms)["p99"] for load in loads)
            goal = 0.3 * baseline_p99
            figures.append(Figure(f"{name}, p99", "ms", p99, goal=goal, baseline=baseline_p99))
    return [*figures, Figure("the disk: a commit of SQLite alone", "ms", plain_commits(300))]


def plain_commits(count: int) -> tuple[float, ...]:
    """How long a commit of one row takes where the servers of this measurement have their data: the floor of an append."""
    took = []
    with (
        tempfile.TemporaryDirectory(prefix="ship-bench-") as name,
        contextlib.closing(sqlite3.connect(Path(name) / "plain.db", isolation_level=None)) as plain,
    ):
        plain.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE rows (body BLOB)"
        )
        for _ in range(count):
            began = time.perf_counter()
            plain.execute("INSERT INTO rows VALUES (zeroblob(200))")
            took.append((time.perf_counter() - began) * 1000)
    return tuple(took)


def fan_out(rounds: int) -> list[Figure]:
    """S3."""
    figures = []
    with server() as there:
        rates, lost, shares = [], 0, []
        for _ in range(rounds):
            session_id = there.create()
            watch = Watch(there.target, [session_id] * 1000, there.head(session_id), count=True)
            began = time.perf_counter()
            load = apart(_appends, there.target, [session_id], 16, SECONDS)
            seen = watch.end(len(load.latencies_ms))
            rates.append(seen.posted / (time.perf_counter() - began))
            lost += seen.missed + seen.repeated
            shares.append(seen.cpu_share)
        figures.append(
            Figure(
                "S3 events, 1000 listeners, flat out",
                "events/s",
                tuple(rates),
                goal=8 * 25_900,
                baseline=25_900,
                client=max(shares),
            )
        )
        for listeners, baseline, goal, kept in ((1000, 181, 40, 26), (100, 16, 0.3 * 16, 40)):
            p50, p99, sent, shares = [], [], [], []
            for _ in range(rounds):
                session_id = there.create()
                watch = Watch(there.target, [session_id] * listeners, there.head(session_id))
                load, _last = apart(at_rate, there.target, session_id, RATE, SECONDS * 2, "rate")
                seen = watch.end(len(load.latencies_ms))
                ages = summary(seen.ages_ms)
                p50.append(ages["p50"])
                p99.append(ages["p99"])
                sent.append(len(load.latencies_ms) / load.took_s)
                lost += seen.missed + seen.repeated
                shares.append(seen.cpu_share + load.cpu_share)
            name = f"S3 {listeners} listeners at {RATE:.0f}/s"
            figures += [
                Figure(f"{name}, kept", "messages/s", tuple(sent), goal=RATE - 0.5, baseline=kept),
                Figure(f"{name}, p50", "ms", tuple(p50)),
                Figure(f"{name}, p99", "ms", tuple(p99), goal=goal, baseline=baseline, client=max(shares)),
            ]
    return [*figures, Figure("S3 missed or repeated", "events", (lost,), goal=0)]


def idle(rounds: int) -> list[Figure]:
    """S4."""
    with server() as there:
        apart(_create_many, there.target, 50)
        base = there.memory_mb()
        ids = apart(_create_many, there.target, 5_000)
        sessions = there.memory_mb() - base
        watch = Watch(there.target, ids[:50], 0)
        watch.end(0)
        base = there.memory_mb()
        watch = Watch(there.target, ids, 0)
        sockets = there.memory_mb() - base
        watch.end(0)
    return [
        Figure("S4 5,000 idle sessions, over base", "MB", (sessions,), goal=10, baseline=763),
        Figure(
            "S4 5,000 idle WebSockets on as many sessions, over base", "MB", (sockets,), goal=60, baseline=447
        ),
    ]


def crash(rounds: int) -> list[Figure]:
    """S5."""
    recovered, missing, twice = [], 0, 0
    with server() as there:
        session_id = there.create()
        said: list[str] = []
        for number in range(max(rounds, 3)):
            with ProcessPoolExecutor(1, SPAWN, pin, (CLIENT_CORES,)) as pool:
                dying = pool.submit(_appends_until_death, there.target, session_id, 16, f"k{number}")
                time.sleep(1.0)
                there.end(signal.SIGKILL)
                acknowledged = dying.result()
            began = time.perf_counter()
            there.start()
            said += acknowledged.kept
            path = f"/api/v1/sessions/{session_id}/messages?limit=1"
            status, body = ask(there.target, there.target.request("GET", path))
            assert status == 200, body
            recovered.append((time.perf_counter() - began) * 1000)
            for key, text in acknowledged.open:
                status, body = ask(there.target, there.target.note(session_id, text, key))
                assert status == 201, body
                said.append(text)
        counts = collections.Counter(_texts(there.target, session_id))
    missing = sum(text not in counts for text in said)
    twice = sum(count > 1 for count in counts.values())
    return [
        Figure("S5 acknowledged and missing", "messages", (missing,), goal=0, baseline=0),
        Figure("S5 kept twice, unanswered ones repeated", "messages", (twice,), goal=0, baseline=0),
        Figure("S5 first answer after the kill, from start", "ms", tuple(recovered), goal=500, baseline=68),
    ]


def messages(rounds: int) -> list[Figure]:
    """S6."""
    figures = []
    with server() as there:
        session_id = there.create()
        apart(_append_many, there.target, session_id, 10_000)
        for clients, baseline in ((1, 1011), (16, 1358)):
            apart(_pages, there.target, session_id, clients, 0.5)
            loads = [apart(_pages, there.target, session_id, clients, SECONDS) for _ in range(rounds)]
            name = f"S6 last 50 of 10,000 messages, {clients} clients"
            figures.append(rate_figure(name, loads, baseline, 5 * baseline))
        loads = [apart(_appends, there.target, [session_id], 64, SECONDS) for _ in range(rounds)]
        figures.append(rate_figure("S2 appends, 64 clients on 1 of 10,000 messages", loads, None, None))
    return figures


def reconnect(rounds: int) -> list[Figure]:
    """S7."""
    back, missed, repeated = [], 0, 0
    with server() as there:
        for _ in range(rounds):
            session_id = there.create()
            watch = Watch(there.target, [session_id] * 1000, there.head(session_id))
            with ProcessPoolExecutor(1, SPAWN, pin, (CLIENT_CORES,)) as pool:
                sending = pool.submit(at_rate, there.target, session_id, RATE, SECONDS, "back")
                time.sleep(SECONDS / 2)
                watch.drop()
                load, _last = sending.result()
            seen = watch.end(len(load.latencies_ms))
            back.append(seen.connect_s[-1])
            missed += seen.missed
            repeated += seen.repeated
    return [
        Figure("S7 1,000 clients drop and are back", "s", tuple(back), goal=0.8, baseline=1.12),
        Figure("S7 missed", "events", (missed,), goal=0, baseline=28_000),
        Figure("S7 repeated", "events", (repeated,), goal=0),
    ]


def replay(rounds: int) -> list[Figure]:
    """A new subscriber of a long log."""
    count = 100_000
    rates, most = [], 0.0
    with server() as there:
        session_id = there.create()
        apart(_append_many, there.target, session_id, count)
        for _ in range(rounds):
            base = there.memory_mb()
            seen = Watch(there.target, [session_id], 0, count=True).end(count)
            rates.append(count / seen.connect_s[0])
            most = max(most, there.memory_mb() - base)
    return [
        Figure(f"replay of {count:,} events to a new subscriber", "events/s", tuple(rates), goal=200_000),
        Figure("the server's memory over base after it", "MB", (most,), goal=64),
    ]


def memory(rounds: int) -> list[Figure]:
    """``ship up`` as it is, with its sandbox host beside it, when nothing happens."""
    return [Figure("an idle `ship up`", "MB", (asyncio.run(_idle_memory()),), goal=120)]


async def _idle_memory() -> float:
    with tempfile.TemporaryDirectory(prefix="ship-bench-") as name:
        async with bench_sessions.server(Path(name)):
            await asyncio.sleep(SECONDS)
            return resident_mb(json.loads((Path(name) / "data" / SERVER_FILE).read_text())["pid"])


def rate_figure(name: str, loads: Sequence[Load], baseline: float | None, goal: float | None) -> Figure:
    """The rates of some loads."""
    share = max(load.cpu_share for load in loads)
    return Figure(name, "/s", tuple(load.rate for load in loads), goal=goal, baseline=baseline, client=share)


SECTIONS: dict[str, Callable[[int], list[Figure]]] = {
    "create": create,
    "append": append,
    "fan_out": fan_out,
    "idle": idle,
    "crash": crash,
    "messages": messages,
    "reconnect": reconnect,
    "replay": replay,
    "memory": memory,
}
