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
import sqlite3
import statistics
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
from bench_servers import CLIENT_CORES, CREATE, Contest, Start, resident_mb

from ship.app.tokens import SERVER_FILE

SPAWN = multiprocessing.get_context("spawn")
SECONDS = 4.0
RATE = 40.0
ON_THREE_NODES = 1.5
"""How many times the baseline's appends three nodes shall reach that share the machine with their database."""


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


def create(contest: Contest) -> list[Figure]:
    """S1."""

    def creating(start: Start, clients: int) -> list[Load]:
        with start() as there:
            apart(_creates, there.target, clients, 0.5)
            return [apart(_creates, there.target, clients, SECONDS) for _ in range(contest.rounds)]

    figures = []
    for clients, published in ((1, 131), (16, 158), (64, 136)):
        baseline = _rate(creating(contest.held, clients)) if contest.held else published
        goal = 20 * baseline if clients == 64 else None
        name = f"S1 sessions created, {clients} clients"
        figures.append(rate_figure(name, creating(contest.ours, clients), baseline, goal))
    return figures


def append(contest: Contest) -> list[Figure]:
    """S2."""

    def appending(start: Start, clients: int, sessions: int) -> list[Load]:
        with start() as there:
            ids = [there.create() for _ in range(sessions)]
            apart(_appends, there.target, ids, clients, 0.5)
            return [apart(_appends, there.target, ids, clients, SECONDS) for _ in range(contest.rounds)]

    figures = []
    plans = ((1, 1, 789, 3, 1.8), (16, 1, 1122, 6, 34), (64, 1, 1211, 6, 99), (64, 64, 1266, 5, None))
    for clients, sessions, rate, factor, p99 in plans:
        beside = appending(contest.held, clients, sessions) if contest.held else None
        baseline = _rate(beside) if beside else rate
        loads = appending(contest.ours, clients, sessions)
        name = f"S2 appends, {clients} clients on {sessions}"
        goal = baseline * (factor if contest.nodes == 1 else ON_THREE_NODES)
        figures.append(rate_figure(name, loads, baseline, goal))
        if p99 is not None:
            slowest = statistics.median(_p99(beside)) if beside else p99
            figures.append(Figure(f"{name}, p99", "ms", _p99(loads), goal=0.3 * slowest, baseline=slowest))
    return [*figures, Figure("the disk: a commit of SQLite alone", "ms", plain_commits(300))]


def _rate(loads: Sequence[Load]) -> float:
    return statistics.median(load.rate for load in loads)


def _p99(loads: Sequence[Load]) -> tuple[float, ...]:
    return tuple(summary(load.latencies_ms)["p99"] for load in loads)


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


class _Heard(NamedTuple):
    """What listeners heard in each round: ``rates`` in events a second where it went as fast as it went, in messages a second otherwise."""

    rates: tuple[float, ...]
    p50_ms: tuple[float, ...]
    p99_ms: tuple[float, ...]
    lost: int
    client: float


def _flat_out(start: Start, rounds: int) -> _Heard:
    rates, lost, client = [], 0, 0.0
    with start() as there:
        for _ in range(rounds):
            session_id = there.create()
            watch = Watch(there.target, [session_id] * 1000, there.head(session_id), count=True)
            began = time.perf_counter()
            load = apart(_appends, there.target, [session_id], 16, SECONDS)
            seen = watch.end(len(load.latencies_ms))
            rates.append(seen.posted / (time.perf_counter() - began))
            lost += seen.missed + seen.repeated
            client = max(client, seen.cpu_share)
    return _Heard(tuple(rates), (), (), lost, client)


def _steadily(start: Start, listeners: int, rounds: int) -> _Heard:
    rates, p50, p99, lost, client = [], [], [], 0, 0.0
    with start() as there:
        for _ in range(rounds):
            session_id = there.create()
            watch = Watch(there.target, [session_id] * listeners, there.head(session_id))
            load, _last = apart(at_rate, there.target, session_id, RATE, SECONDS * 2, "rate")
            seen = watch.end(len(load.latencies_ms))
            ages = summary(seen.ages_ms)
            p50.append(ages["p50"])
            p99.append(ages["p99"])
            rates.append(len(load.latencies_ms) / load.took_s)
            lost += seen.missed + seen.repeated
            client = max(client, seen.cpu_share + load.cpu_share)
    return _Heard(tuple(rates), tuple(p50), tuple(p99), lost, client)


def fan_out(contest: Contest) -> list[Figure]:
    """S3."""
    ours, held, rounds = contest.ours, contest.held, contest.rounds
    baseline = statistics.median(_flat_out(held, rounds).rates) if held else 25_900
    heard = _flat_out(ours, rounds)
    lost = heard.lost
    name = "S3 events, 1000 listeners, flat out"
    figures = [
        Figure(name, "events/s", heard.rates, goal=8 * baseline, baseline=baseline, client=heard.client)
    ]
    for listeners, kept, p99_ms, factor, bound_ms in ((1000, 26, 181, 0.25, 40), (100, 40, 16, 0.3, None)):
        if held:
            beside = _steadily(held, listeners, rounds)
            kept, p99_ms = statistics.median(beside.rates), statistics.median(beside.p99_ms)
        goal = min(factor * p99_ms, bound_ms or p99_ms)
        heard = _steadily(ours, listeners, rounds)
        lost += heard.lost
        name = f"S3 {listeners} listeners at {RATE:.0f}/s"
        figures += [
            Figure(f"{name}, kept", "messages/s", heard.rates, goal=RATE - 0.5, baseline=kept),
            Figure(f"{name}, p50", "ms", heard.p50_ms),
            Figure(f"{name}, p99", "ms", heard.p99_ms, goal=goal, baseline=p99_ms, client=heard.client),
        ]
    return [*figures, Figure("S3 missed or repeated", "events", (lost,), goal=0)]


def idle(contest: Contest) -> list[Figure]:
    """S4."""
    with contest.ours() as there:
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


def crash(contest: Contest) -> list[Figure]:
    """S5."""
    recovered, missing, twice = [], 0, 0
    with contest.ours() as there:
        session_id = there.create()
        said: list[str] = []
        for number in range(max(contest.rounds, 3)):
            with ProcessPoolExecutor(1, SPAWN, pin, (CLIENT_CORES,)) as pool:
                dying = pool.submit(_appends_until_death, there.target, session_id, 16, f"k{number}")
                time.sleep(1.0)
                there.kill()
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


def messages(contest: Contest) -> list[Figure]:
    """S6."""
    plans = ((1, 1011), (16, 1358))

    def reading(start: Start) -> tuple[list[list[Load]], list[Load]]:
        with start() as there:
            session_id = there.create()
            apart(_append_many, there.target, session_id, 10_000)
            pages = []
            for clients, _ in plans:
                apart(_pages, there.target, session_id, clients, 0.5)
                pages.append(
                    [apart(_pages, there.target, session_id, clients, SECONDS) for _ in range(contest.rounds)]
                )
            return pages, [
                apart(_appends, there.target, [session_id], 64, SECONDS) for _ in range(contest.rounds)
            ]

    figures = []
    beside = reading(contest.held)[0] if contest.held else None
    pages, appended = reading(contest.ours)
    for number, (clients, published) in enumerate(plans):
        baseline = _rate(beside[number]) if beside else published
        name = f"S6 last 50 of 10,000 messages, {clients} clients"
        figures.append(rate_figure(name, pages[number], baseline, 5 * baseline))
    return [*figures, rate_figure("S2 appends, 64 clients on 1 of 10,000 messages", appended, None, None)]


def reconnect(contest: Contest) -> list[Figure]:
    """S7."""

    def returning(start: Start) -> tuple[tuple[float, ...], int, int]:
        back, missed, repeated = [], 0, 0
        with start() as there:
            for _ in range(contest.rounds):
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
        return tuple(back), missed, repeated

    baseline, lost = 1.12, 28_000
    if contest.held:
        beside, lost, _ = returning(contest.held)
        baseline, lost = statistics.median(beside), lost // contest.rounds
    back, missed, repeated = returning(contest.ours)
    return [
        Figure("S7 1,000 clients drop and are back", "s", back, goal=0.8, baseline=baseline),
        Figure("S7 missed", "events", (missed,), goal=0, baseline=lost),
        Figure("S7 repeated", "events", (repeated,), goal=0),
    ]


def replay(contest: Contest) -> list[Figure]:
    """A new subscriber of a long log."""
    count = 100_000
    rates, most = [], 0.0
    with contest.ours() as there:
        session_id = there.create()
        apart(_append_many, there.target, session_id, count)
        for _ in range(contest.rounds):
            base = there.memory_mb()
            seen = Watch(there.target, [session_id], 0, count=True).end(count)
            rates.append(count / seen.connect_s[0])
            most = max(most, there.memory_mb() - base)
    return [
        Figure(f"replay of {count:,} events to a new subscriber", "events/s", tuple(rates), goal=200_000),
        Figure("the server's memory over base after it", "MB", (most,), goal=64),
    ]


def memory(contest: Contest) -> list[Figure]:
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


Section = Callable[[Contest], list[Figure]]
SECTIONS: dict[str, Section] = {
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
"""On one node."""
CLUSTER: dict[str, Section] = {
    "append": append,
    "fan_out": fan_out,
    "crash": crash,
    "reconnect": reconnect,
}
"""On three."""
