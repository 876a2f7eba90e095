"""The way to what stands behind a reserved name: nodes of the control plane, of which any that lives will do.

The kernel takes connections for a process that stands still, and keeps those that it has. So where there is a choice, a node is asked a
question over HTTP before it gets a connection, and from time to time as long as it has any; when it has no answer, its connections
are broken, and whoever had them comes back and is led to another one.
"""

import asyncio
import contextlib
import time
from weakref import WeakSet

from .rules import Unreachable, Upstream

PATIENCE_S = 30.0
"""How long a connection waits while no address takes it: a service there may be restarting."""
CONNECT_TIMEOUT_S = 2.0
MISTRUST_S = 10.0
"""How long an address that has failed is tried after the others."""
BELIEF_S = 2.0
"""How long an answer counts."""
WATCH_S = 5.0
"""How often a node that has connections is asked."""
WATCH_TIMEOUT_S = 10.0
"""How long it may take then: what is under way there is not given up for a moment's pause."""
_RETRY_S = 0.1
_QUESTION = b"HEAD / HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Node = tuple[str, int]


class Nodes:
    """Connects to upstreams, and remembers for all sandboxes of the host which addresses have failed of late."""

    def __init__(self) -> None:
        self._failed: dict[Node, float] = {}
        self._answered: dict[Node, float] = {}
        self._visits: dict[Node, WeakSet[asyncio.StreamWriter]] = {}
        self._watches: dict[Node, asyncio.Task[None]] = {}

    async def open(self, upstream: Upstream) -> Streams:
        """A connection to the first address that takes one and, where there are several, answers. Raises Unreachable."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            for node in self.in_turn(upstream):
                try:
                    return await self._connect(node, ask=len(upstream.nodes) > 1)
                except OSError as error:
                    failure = error
            if time.monotonic() > deadline:
                reason = str(failure) or "it does not answer"
                raise Unreachable(f"cannot connect to {upstream.name}: {reason}") from failure
            await asyncio.sleep(_RETRY_S)

    def in_turn(self, upstream: Upstream) -> list[Node]:
        """The addresses in the operator's order, those that failed of late last."""
        since = time.monotonic() - MISTRUST_S
        return sorted(upstream.nodes, key=lambda node: self._failed.get(node, since) > since)

    async def _connect(self, node: Node, *, ask: bool) -> Streams:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                if ask and time.monotonic() - self._answered.get(node, -BELIEF_S) >= BELIEF_S:
                    await self._ask(node)
                streams = await asyncio.open_connection(*node)
        except OSError:
            self._failed[node] = time.monotonic()
            raise
        self._failed.pop(node, None)
        if ask:
            self._attend(node, streams[1])
        return streams

    async def _ask(self, node: Node) -> None:
        reader, writer = await asyncio.open_connection(*node)
        with contextlib.closing(writer):
            writer.write(_QUESTION % node[0].encode())
            if not await reader.read(1):
                raise ConnectionResetError("it closes connections without an answer")
        self._answered[node] = time.monotonic()

    def _attend(self, node: Node, visit: asyncio.StreamWriter) -> None:
        self._visits.setdefault(node, WeakSet()).add(visit)
        if node not in self._watches:
            self._watches[node] = asyncio.create_task(self._watch(node))

    async def _watch(self, node: Node) -> None:
        """Break what leads to a node that answers nothing; ends with its last connection."""
        while visits := [visit for visit in self._visits.get(node, ()) if not visit.is_closing()]:
            try:
                async with asyncio.timeout(WATCH_TIMEOUT_S):
                    await self._ask(node)
            except OSError:
                self._failed[node] = time.monotonic()
                for visit in visits:
                    visit.transport.abort()
            await asyncio.sleep(WATCH_S)
        del self._watches[node]
