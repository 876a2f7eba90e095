"""The way to what stands behind a reserved name: nodes of the control plane, of which any that lives will do."""

import asyncio
import time

from .rules import Unreachable, Upstream

PATIENCE_S = 30.0
"""How long a connection waits while no address takes it: a service there may be restarting."""
CONNECT_TIMEOUT_S = 2.0
MISTRUST_S = 10.0
"""How long an address that has failed is tried after the others."""
_RETRY_S = 0.1

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Node = tuple[str, int]


class Nodes:
    """Connects to upstreams, and remembers for all sandboxes of the host which addresses have failed of late."""

    def __init__(self) -> None:
        self._failed: dict[Node, float] = {}

    async def open(self, upstream: Upstream) -> Streams:
        """A connection to the first address that takes one. Raises Unreachable."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            for node in self.in_turn(upstream):
                try:
                    return await self._connect(node)
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

    async def _connect(self, node: Node) -> Streams:
        try:
            streams = await asyncio.wait_for(asyncio.open_connection(*node), CONNECT_TIMEOUT_S)
        except OSError:
            self._failed[node] = time.monotonic()
            raise
        self._failed.pop(node, None)
        return streams
