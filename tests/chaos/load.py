"""Who uses the nodes while they die: clients that append and keep a ledger, clients that watch and keep what they saw."""

import asyncio
import contextlib
import itertools
import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
import websockets

ANSWER_S = 4.0
"""How long a client waits before it asks another node with the same key."""
PATIENCE_S = 90.0
SILENCE_S = 25.0
AGAIN_S = 0.05


class Server(Protocol):
    """A node, as far as its clients know it."""

    @property
    def url(self) -> str:
        """Where it listens."""
        ...

    @property
    def token(self) -> str:
        """What it lets in."""
        ...


@dataclass
class Ledger:
    """What was acknowledged: notes by their text and tasks by their id, each as (session, seq). Times are monotonic seconds."""

    notes: dict[str, tuple[str, int]] = field(default_factory=dict)
    tasks: dict[str, tuple[str, int]] = field(default_factory=dict)
    waits: list[tuple[str, float, float]] = field(default_factory=list)
    """(writer, asked, acknowledged) of each command."""


class Asker:
    """A client that knows all nodes and asks the next one when one does not answer."""

    def __init__(self, nodes: Sequence[Server], first: int = 0) -> None:
        self._nodes = itertools.cycle([*nodes[first % len(nodes) :], *nodes[: first % len(nodes)]])
        self._node = next(self._nodes)
        self._http = httpx.AsyncClient(timeout=ANSWER_S, trust_env=False)

    async def __aenter__(self) -> "Asker":
        return self

    async def __aexit__(self, *ending: object) -> None:
        await self._http.aclose()

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a command, sent with one key until somebody has answered."""
        return await self._ask("POST", path, json=body, headers={"Idempotency-Key": uuid.uuid4().hex})

    async def get(self, path: str, **params: Any) -> dict[str, Any]:
        """The answer to a question."""
        return await self._ask("GET", path, params=params)

    async def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        request["headers"] = {**request.get("headers", {}), "Authorization": f"Bearer {self._node.token}"}
        deadline = time.monotonic() + PATIENCE_S
        why = ""
        while time.monotonic() < deadline:
            try:
                answer = await self._http.request(method, f"{self._node.url}/api/v1{path}", **request)
            except httpx.TransportError as error:
                why = repr(error)
            else:
                if answer.is_success:
                    found: dict[str, Any] = answer.json()
                    return found
                why = f"{answer.status_code} {answer.text}"
                assert answer.status_code >= 500 or "session_busy" in why, why
            self._node = next(self._nodes)
            await asyncio.sleep(AGAIN_S)
        raise AssertionError(f"nobody answered {method} {path} for {PATIENCE_S} s: {why}")


class Writer:
    """Leaves notes in the sessions in turn, and a task now and then, until it is told to stop."""

    def __init__(self, name: str, nodes: Sequence[Server], number: int, ledger: Ledger) -> None:
        self.name = name
        self._nodes = nodes
        self._number = number
        self._ledger = ledger

    async def run(self, sessions: Sequence[str], stopped: asyncio.Event, *, tasks_every: int = 10) -> None:
        """Write until ``stopped``; what was asked is asked until it is acknowledged."""
        async with Asker(self._nodes, self._number) as asker:
            for count in itertools.count():
                if stopped.is_set():
                    return
                session_id = sessions[(count + self._number) % len(sessions)]
                asked = time.monotonic()
                if tasks_every and count % tasks_every == tasks_every - 1:
                    answer = await asker.post(
                        f"/sessions/{session_id}/tasks", {"prompt": f"{self.name} {count}"}
                    )
                    self._ledger.tasks[answer["task_id"]] = (session_id, answer["seq"])
                else:
                    text = f"{self.name} {count}"
                    answer = await asker.post(f"/sessions/{session_id}/messages", {"text": text})
                    self._ledger.notes[text] = (session_id, answer["seq"])
                self._ledger.waits.append((self.name, asked, time.monotonic()))
                await asyncio.sleep(0.01)


class Watcher:
    """Follows one session on one node after the other, with ``after`` as the protocol says; ``records`` is all that it was sent."""

    def __init__(
        self, nodes: Sequence[Server], first: int, session_id: str, *, server_sent: bool = False
    ) -> None:
        self._nodes = itertools.cycle([*nodes[first % len(nodes) :], *nodes[: first % len(nodes)]])
        self._connect = self._server_sent if server_sent else self._socket
        self.session_id = session_id
        self.records: list[dict[str, Any]] = []
        self.live_at: list[float] = []
        self.lost_at: list[float] = []
        self.wrong: list[str] = []

    async def run(self) -> None:
        """Follow until cancelled."""
        for node in self._nodes:
            with contextlib.suppress(
                OSError, TimeoutError, httpx.TransportError, websockets.WebSocketException
            ):
                await self._connect(node)
            self.lost_at.append(time.monotonic())
            await asyncio.sleep(AGAIN_S)

    async def seen(self, count: int) -> None:
        """Wait until it was sent so many events."""
        await until(
            lambda: len(self.records) >= count, lambda: f"a watcher saw {len(self.records)} of {count} events"
        )

    def hear(self, message: dict[str, Any]) -> None:
        """Take one message of the stream."""
        if message.get("t") == "live":
            self.live_at.append(time.monotonic())
        if "t" in message:
            return
        if message["seq"] != len(self.records) + 1:
            self.wrong.append(f"seq {message['seq']} came after {len(self.records)}")
        self.records.append(message)

    async def _socket(self, node: Server) -> None:
        url = f"{node.url.replace('http', 'ws', 1)}/api/v1/sessions/{self.session_id}/events/ws?after={len(self.records)}"
        headers = {"Authorization": f"Bearer {node.token}"}
        async with websockets.connect(
            url,
            additional_headers=headers,
            proxy=None,
            open_timeout=ANSWER_S,
            close_timeout=0.1,
            max_size=None,
        ) as socket:
            while True:
                async with asyncio.timeout(SILENCE_S):
                    self.hear(json.loads(await socket.recv()))

    async def _server_sent(self, node: Server) -> None:
        url = f"{node.url}/api/v1/sessions/{self.session_id}/events/stream"
        headers = {"Authorization": f"Bearer {node.token}", "Last-Event-ID": str(len(self.records))}
        timeout = httpx.Timeout(ANSWER_S, read=SILENCE_S)
        async with (
            httpx.AsyncClient(timeout=timeout, trust_env=False) as http,
            http.stream("GET", url, headers=headers) as answer,
        ):
            async for line in answer.aiter_lines():
                if line.startswith("data:") and answer.is_success:
                    self.hear(json.loads(line.removeprefix("data:")))


async def until(
    true: Callable[[], object], what: Callable[[], object], timeout_s: float = PATIENCE_S
) -> None:
    """Wait for the condition; ``what`` says how it stands when it does not come."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, what()
        await asyncio.sleep(0.02)
