"""Nodes under load: sessions, and writers, watchers and runners around them; and what must hold whatever happened to the nodes."""

import asyncio
import collections
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from tests.chaos.load import Asker, Ledger, Watcher, Writer, until
from tests.chaos.nodes import MODEL, Node
from tests.chaos.runners import Runners
from tests.chaos.sandboxes import FolderSandboxHost

PAGE = 1_000
ENDS = ("task.completed", "task.failed", "task.cancelled")
REPOSITORY = "https://git.invalid/repository.git"

Log = list[dict[str, Any]]


class StoreView(Protocol):
    """A look at the store's tables past the nodes."""

    async def count(self, table: str) -> int:
        """How many rows it has."""
        ...


class Recovery:
    """How long after a fault everything went on. Seconds."""

    def __init__(self, acknowledged_s: float, live_s: float) -> None:
        self.acknowledged_s = acknowledged_s
        self.live_s = live_s


class Scene:
    """Some nodes on one store; see ``open_scene``."""

    def __init__(self, nodes: Sequence[Node], host: FolderSandboxHost, store: StoreView) -> None:
        self.nodes = nodes
        self.host = host
        self.ledger = Ledger()
        self.sessions: list[str] = []
        self.watchers: list[Watcher] = []
        self._store = store
        self.runners = Runners(nodes, host)
        self._background: list[asyncio.Task[None]] = []
        self._writers = 0

    async def start(self) -> None:
        """Start all nodes."""
        for node in self.nodes:
            node.spawn()
        for node in self.nodes:
            await node.ready()
        self._background.append(asyncio.create_task(self.runners.run()))

    async def end(self) -> None:
        """End everything."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for node in self.nodes:
            node.kill()

    async def begin(self, sessions: int, watchers: int) -> None:
        """Make sessions, each with so many watchers: of WebSockets and of Server-Sent Events in turn."""
        async with Asker(self.nodes) as asker:
            body = {"repository": {"source": REPOSITORY}, "model": MODEL}
            made = [str((await asker.post("/sessions", body))["id"]) for _ in range(sessions)]
        self.sessions += made
        for session_id in made:
            for number in range(watchers):
                watcher = Watcher(self.nodes, len(self.watchers), session_id, server_sent=number % 2 == 1)
                self.watchers.append(watcher)
                self._background.append(asyncio.create_task(watcher.run()))

    @contextlib.asynccontextmanager
    async def load(self, writers: int = 4, *, tasks_every: int = 10) -> AsyncIterator[None]:
        """Writers at work while the block runs; at its end everything that they have asked is acknowledged."""
        stopped = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for _ in range(writers):
                self._writers += 1
                writer = Writer(f"writer {self._writers}", self.nodes, self._writers, self.ledger)
                group.create_task(writer.run(self.sessions, stopped, tasks_every=tasks_every))
            yield
            stopped.set()

    async def acknowledged(self, count: int) -> None:
        """Wait until so many more commands are acknowledged."""
        wanted = len(self.ledger.acked_at) + count
        await until(
            lambda: len(self.ledger.acked_at) >= wanted,
            lambda: f"{len(self.ledger.acked_at)} acknowledged, not {wanted}: {self.nodes[0].log}",
        )

    async def recovery(self, since: float) -> Recovery:
        """Wait until a command that was asked after that moment (monotonic) is acknowledged and every watcher that was cut off is
        live again."""

        def acknowledged() -> float | None:
            return next((until for asked, until in reversed(self.ledger.waits) if until > since), None)

        def lost() -> list[Watcher]:
            return [one for one in self.watchers if one.lost_at and one.lost_at[-1] >= since]

        def live() -> bool:
            return all(one.live_at and one.live_at[-1] > one.lost_at[-1] for one in lost())

        await until(lambda: acknowledged() and live(), lambda: "no recovery")
        first = min(until for _, until in self.ledger.waits if until > since)
        return Recovery(first - since, max((one.live_at[-1] - since for one in lost()), default=0.0))

    async def check(self, *, lost_sandboxes: bool = False) -> None:
        """Wait until everything has come to rest, then hold every log against the ledger and against what the watchers saw.

        Raises:
            AssertionError: something is lost, twice, out of order or stuck.
        """
        logs: dict[str, Log] = {}
        async with Asker(self.nodes) as asker:
            for session_id in self.sessions:
                await self._at_rest(asker, session_id)
            for session_id in self.sessions:
                logs[session_id] = await _log(asker, session_id)
        for session_id, log in logs.items():
            check_log(log)
            if not lost_sandboxes:
                check_sandbox(log)
                living = [
                    one for one in self.host.all().values() if one["metadata"]["ship.session"] == session_id
                ]
                assert len(living) == 1, f"{len(living)} sandboxes of {session_id}"
        self._check_ledger(logs)
        await self._check_watchers(logs)
        await _until_empty(self._store)
        for task in self._background:
            if task.done():
                task.result()

    async def _at_rest(self, asker: Asker, session_id: str) -> None:
        deadline = time.monotonic() + 90
        while True:
            session = await asker.get(f"/sessions/{session_id}")
            if session["status"] == "ready" and not any(
                t["status"] in ("queued", "running") for t in session["tasks"]
            ):
                return
            assert time.monotonic() < deadline, f"stuck: {session} {self.nodes[0].log}"
            await asyncio.sleep(0.05)

    def _check_ledger(self, logs: dict[str, Log]) -> None:
        for kind, field, acked in (
            ("message.posted", "text", self.ledger.notes),
            ("task.queued", "task_id", self.ledger.tasks),
        ):
            found = {
                session_id: [
                    (record["data"][field], record["seq"]) for record in log if record["type"] == kind
                ]
                for session_id, log in logs.items()
            }
            names = collections.Counter(name for entries in found.values() for name, _ in entries)
            assert not [name for name, count in names.items() if count > 1], "something is in the log twice"
            assert names.keys() == acked.keys(), (names.keys() - acked.keys(), acked.keys() - names.keys())
            for name, (session_id, seq) in acked.items():
                at = dict(found[session_id]).get(name)
                # A task's answer names the last event that came of it: its start, when it could begin at once.
                assert at == seq or (kind == "task.queued" and at == seq - 1), (
                    f"{name}: {at}, acknowledged as {seq}"
                )

    async def _check_watchers(self, logs: dict[str, Log]) -> None:
        for watcher in self.watchers:
            log = logs[watcher.session_id]
            await watcher.seen(len(log))
            assert not watcher.wrong, watcher.wrong
            assert watcher.records[: len(log)] == log


def check_log(log: Log) -> None:
    """No gap, each frame of a runner once and in order, each task one beginning and one end."""
    assert [record["seq"] for record in log] == list(range(1, len(log) + 1))
    frames = [(record["frame"]["generation"], record["frame"]["n"]) for record in log if record["frame"]]
    assert frames == sorted(set(frames))
    for kinds in (("task.queued",), ("task.started",), ENDS):
        names = [record["data"]["task_id"] for record in log if record["type"] in kinds]
        assert len(names) == len(set(names)), f"{kinds} twice"
    ended = {record["data"]["task_id"] for record in log if record["type"] in ENDS}
    assert ended == {record["data"]["task_id"] for record in log if record["type"] == "task.queued"}


def check_sandbox(log: Log) -> None:
    """The one sandbox that was asked for was made, came up, and this is said once."""
    told = collections.Counter(record["type"] for record in log)
    for kind in ("sandbox.requested", "sandbox.created", "sandbox.ready"):
        assert told[kind] == 1, f"{told[kind]} times {kind}"
    steps = collections.Counter(
        (record["type"], record["data"]["step"])
        for record in log
        if record["type"].startswith("sandbox.step")
    )
    assert steps["sandbox.step_finished", "create"] == 1, steps
    assert not [kind for kind in told if kind.endswith((".failed", ".lost"))], told


async def _log(asker: Asker, session_id: str) -> Log:
    log: Log = []
    while True:
        page = await asker.get(f"/sessions/{session_id}/events", after=len(log), limit=PAGE)
        log += page["items"]
        if len(log) >= page["head_seq"]:
            return log


async def _until_empty(store: StoreView) -> None:
    deadline = time.monotonic() + 30
    while left := await store.count("outbox"):
        assert time.monotonic() < deadline, f"{left} effects are left over"
        await asyncio.sleep(0.1)
