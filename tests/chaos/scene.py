"""Nodes under load: sessions, and writers, watchers and runners around them; and what must hold whatever happened to the nodes."""

import asyncio
import collections
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.chaos import points
from tests.chaos.load import PATIENCE_S, Asker, Ledger, Watcher, Writer, until
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


@dataclass(frozen=True)
class Recovery:
    """How a fault was felt, in seconds from its beginning: until the next command was acknowledged, until every stream that it cut
    was live again; and the longest that any one command took."""

    acknowledged_s: float
    live_s: float
    longest_s: float


class Scene:
    """``count`` nodes on one store, in a folder. Armed points are taken by whichever node comes there first."""

    def __init__(self, folder: Path, count: int, environment: Mapping[str, str], store: StoreView) -> None:
        self._faults, sandboxes = folder / "faults", folder / "sandboxes"
        self._faults.mkdir()
        sandboxes.mkdir()
        self.host = FolderSandboxHost(sandboxes)
        self.nodes = [
            Node(folder / f"node{number}", self._faults, sandboxes, environment) for number in range(count)
        ]
        self.ledger = Ledger()
        self.events = 0
        """How many the last check has held against each other."""
        self.sessions: list[str] = []
        self.watchers: list[Watcher] = []
        self._store = store
        self.runners = Runners(self.nodes, self.host)
        self._background: list[asyncio.Task[None]] = []
        self._writers = 0
        self._writing: set[str] = set()

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
                self._writing.add(writer.name)
                group.create_task(writer.run(self.sessions, stopped, tasks_every=tasks_every))
            yield
            stopped.set()
        self._writing.clear()

    def arm(self, point: str, how: signal.Signals) -> None:
        """Let the next node that comes to this point get that signal."""
        points.arm(self._faults, point, how)

    def disarm(self) -> None:
        """Take back what was not reached."""
        points.disarm(self._faults)

    async def struck(self, point: str, timeout_s: float = PATIENCE_S) -> Node:
        """Wait for the node that came to the armed point, and is dead or halted there."""

        def found() -> Node | None:
            if not points.reached(self._faults, point):
                return None
            return next((node for node in self.nodes if node.halted or not node.alive), None)

        await until(found, lambda: f"no node came to {point}: {self.nodes[0].log}", timeout_s)
        node = found()
        assert node
        return node

    def struck_at(self, point: str) -> float:
        """When that was, in monotonic seconds: those who watched that node know it before ``struck`` does."""
        return points.taken_at(self._faults, point)

    async def acknowledged(self, count: int) -> None:
        """Wait until so many more commands are acknowledged."""
        wanted = len(self.ledger.waits) + count
        await until(
            lambda: len(self.ledger.waits) >= wanted,
            lambda: f"{len(self.ledger.waits)} acknowledged, not {wanted}: {self.nodes[0].log}",
        )

    async def recovery(self, since: float) -> Recovery:
        """Wait until everybody is served as before that moment (monotonic): whoever writes was acknowledged, and every stream that
        was cut is live."""
        lost = [one for one in self.watchers if one.lost_at and one.lost_at[-1] >= since]

        def over() -> bool:
            lost[:] = [one for one in self.watchers if one.lost_at and one.lost_at[-1] >= since]
            served = {name for name, asked, _ in self.ledger.waits if asked >= since}
            return served >= self._writing and all(
                one.live_at and one.live_at[-1] > one.lost_at[-1] for one in lost
            )

        await until(over, lambda: f"it does not recover: {self.nodes[0].log}")
        after = [(told - since, told - asked) for _, asked, told in self.ledger.waits if told > since]
        return Recovery(
            min(told for told, _ in after),
            max((one.live_at[-1] - since for one in lost), default=0.0),
            max(took for _, took in after),
        )

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
        self.events = sum(len(log) for log in logs.values())
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
