"""Runners without agents: they speak the link as the real one does, resend what is not acknowledged, and end every task at once."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import Sequence
from typing import Any

import websockets
from tests.chaos.load import until
from tests.chaos.nodes import Node
from tests.chaos.sandboxes import FolderSandboxHost

LOOK_S = 0.05
GREETING_S = 4.0
SILENCE_S = 20.0


class Runners:
    """One runner for each sandbox in which one was started; they outlive every node."""

    def __init__(self, nodes: Sequence[Node], host: FolderSandboxHost) -> None:
        self.address = ""
        """Where their sandboxes are in the network; empty means here."""
        self._nodes = nodes
        self._host = host
        self.running: dict[str, Runner] = {}

    async def drop_links(self) -> None:
        """Break every link as a network does it, once there are any; they come back by themselves."""
        await until(
            lambda: self.running and all(runner.is_linked for runner in self.running.values()),
            lambda: "a runner has no link",
        )
        for runner in self.running.values():
            runner.drop()

    async def run(self) -> None:
        """Look after them until cancelled."""
        async with asyncio.TaskGroup() as group:
            lives: dict[str, asyncio.Task[None]] = {}
            while True:
                alive = self._host.all()
                for sandbox_id, sandbox in alive.items():
                    if sandbox["runner"] and sandbox_id not in lives:
                        runner = Runner(
                            self._nodes,
                            len(lives),
                            sandbox["metadata"],
                            sandbox["runner"]["SHIP_TOKEN"],
                            self.address,
                        )
                        self.running[sandbox_id] = runner
                        lives[sandbox_id] = group.create_task(runner.run())
                for sandbox_id in lives.keys() - alive.keys():
                    lives[sandbox_id].cancel()
                await asyncio.sleep(LOOK_S)


class Runner:
    """One life in one sandbox."""

    def __init__(
        self, nodes: Sequence[Node], number: int, metadata: dict[str, str], token: str, address: str
    ) -> None:
        self._local = (address, 0) if address else None
        self._nodes = itertools.cycle([*nodes[number % len(nodes) :], *nodes[: number % len(nodes)]])
        self._token = token
        self._generation = int(metadata["ship.generation"])
        self._spool: list[tuple[int, str]] = []
        self._known: set[str] = set()
        self._n = 0
        self._socket: websockets.ClientConnection | None = None
        self.is_linked = False
        self._report(
            "sandbox.ready", generation=self._generation, base_commit="0" * 40, work_branch="ship/work"
        )

    async def run(self) -> None:
        """Keep a link until the control plane refuses this runner."""
        for node in self._nodes:
            with contextlib.suppress(OSError, TimeoutError, websockets.WebSocketException):
                if await self._link(node):
                    return
            self.is_linked = False
            await asyncio.sleep(LOOK_S)

    def drop(self) -> None:
        """Break the link."""
        if self._socket is not None:
            self._socket.transport.abort()

    async def _link(self, node: Node) -> bool:
        url = f"{node.url.replace('http', 'ws', 1)}/runner/v1/link"
        headers = {"Authorization": f"Bearer {self._token}"}
        async with websockets.connect(
            url,
            additional_headers=headers,
            proxy=None,
            open_timeout=GREETING_S,
            close_timeout=0.1,
            local_addr=self._local,
        ) as socket:
            self._socket = socket
            hello = {
                "t": "hello",
                "protocol": 1,
                "generation": self._generation,
                "spooled": self._n,
                "version": "0",
            }
            await socket.send(json.dumps(hello))
            sent = 0
            while True:
                async with asyncio.timeout(SILENCE_S if sent else GREETING_S):
                    frame = json.loads(await socket.recv())
                match frame["t"]:
                    case "welcome":
                        sent, self.is_linked = frame["acked"], True
                        self._acknowledge(sent)
                    case "ack":
                        self._acknowledge(frame["n"])
                    case "prompt" if frame["task_id"] not in self._known:
                        self._work(frame["task_id"], frame["text"])
                    case "refused":
                        return True
                for n, text in self._spool:
                    if n > sent:
                        await socket.send(text)
                        sent = n

    def _work(self, task_id: str, prompt: str) -> None:
        self._known.add(task_id)
        part = {"task_id": task_id, "message_id": f"m-{task_id}", "part_id": f"p-{task_id}"}
        self._report("text.finished", **part, text=prompt)
        self._report("task.completed", task_id=task_id)

    def _report(self, type_name: str, **data: Any) -> None:
        self._n += 1
        frame = {"t": "event", "n": self._n, "at_ms": 1, "type": type_name, "v": 1, "data": data}
        self._spool.append((self._n, json.dumps(frame)))

    def _acknowledge(self, n: int) -> None:
        self._spool = [frame for frame in self._spool if frame[0] > n]
