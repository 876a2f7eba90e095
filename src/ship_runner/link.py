"""The WebSocket to the control plane: reports until they are acknowledged, growing text, instructions."""

import asyncio
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from ship_runner import __version__
from ship_runner.bounds import pieces
from ship_runner.facts import Delta, wire
from ship_runner.instructions import (
    Ack,
    Instruction,
    MalformedInstruction,
    Refused,
    Welcome,
    decode,
)
from ship_runner.spool import Spool

log = logging.getLogger(__name__)

PROTOCOL = 1
FIRST_RETRY_S = 0.05
SLOWEST_RETRY_S = 5.0
PING_S = 10.0
"""How often the other end is asked whether it lives, and how long it may take to answer: a node that stands still keeps its
connections open."""
COALESCE_S = 0.03
DELTA_LIMIT = 1 << 20
"""Characters of growing text that wait for a slow link; what is beyond is dropped, the finished part brings it."""


class Link:
    """Keeps one connection open for ever.

    ``run`` returns when the control plane refuses this runner. ``connected`` is called after each welcome, ``instructed``
    for each instruction, in order; both must return soon.
    """

    def __init__(
        self,
        url: str,
        token: str,
        generation: int,
        spool: Spool,
        *,
        connected: Callable[[], None],
        instructed: Callable[[Instruction], Awaitable[None]],
    ) -> None:
        scheme, _, rest = url.partition("://")
        self._address = f"{'wss' if scheme == 'https' else 'ws'}://{rest.rstrip('/')}/runner/v1/link"
        self._headers = {"Authorization": f"Bearer {token}"}
        self._generation = generation
        self._spool = spool
        self._connected = connected
        self._instructed = instructed
        self._up = False
        self._failures = 0
        self._deltas: dict[str, Delta] = {}
        self._waiting = 0

    def grow(self, delta: Delta) -> None:
        """Pass on text that grows; dropped while the link is down."""
        if not self._up or self._waiting > DELTA_LIMIT:
            return
        waiting = self._deltas.get(delta["part_id"])
        self._waiting += len(delta["text"])
        if waiting and waiting["offset"] + len(waiting["text"]) == delta["offset"]:
            waiting["text"] += delta["text"]
        else:
            self._deltas[delta["part_id"]] = dict(delta)
        self._spool.changed.set()

    async def run(self) -> Refused:
        """Connect, and again whenever the connection ends, until refused."""
        while True:
            try:
                async with connect(
                    self._address,
                    additional_headers=self._headers,
                    compression=None,
                    max_size=4 << 20,
                    open_timeout=30,
                    close_timeout=1,
                    ping_interval=PING_S,
                    ping_timeout=PING_S,
                ) as socket:
                    welcome = await self._greet(socket)
                    refused = (
                        welcome if isinstance(welcome, Refused) else await self._converse(socket, welcome)
                    )
                    if refused:
                        return refused
            except (OSError, WebSocketException, TimeoutError, MalformedInstruction) as error:
                log.info("the link is down: %s", error)
            delay = min(SLOWEST_RETRY_S, FIRST_RETRY_S * 2**self._failures)
            self._failures = min(self._failures + 1, 16)
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 (spreads load, hides nothing)

    async def _greet(self, socket: ClientConnection) -> Welcome | Refused:
        hello = {
            "t": "hello",
            "protocol": PROTOCOL,
            "generation": self._generation,
            "spooled": self._spool.last,
            "version": __version__,
        }
        await socket.send(json.dumps(hello))
        async with asyncio.timeout(30):
            first = decode(await socket.recv())
        if not isinstance(first, Welcome | Refused):
            raise MalformedInstruction(f"expected a welcome, not {type(first).__name__}")
        return first

    async def _converse(self, socket: ClientConnection, welcome: Welcome) -> Refused | None:
        self._spool.acknowledge(welcome.acked)
        self._up = True
        sender = asyncio.create_task(self._send(socket, welcome.acked))
        try:
            self._connected()
            async for text in socket:
                message = decode(text)
                match message:
                    case Ack():
                        # A welcome alone proves nothing: what we send next may be what ends the connection.
                        self._failures = 0
                        self._spool.acknowledge(message.n)
                    case Refused():
                        return message
                    case Welcome():
                        raise MalformedInstruction("a second welcome")
                    case _:
                        await self._instructed(message)
            return None
        finally:
            self._up = False
            self._deltas.clear()
            self._waiting = 0
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    async def _send(self, socket: ClientConnection, sent: int) -> None:
        """Everything after ``sent``, and what comes. The first of a text goes at once, what follows is gathered for a moment."""
        gathered_at = 0.0
        while True:
            self._spool.changed.clear()
            deltas, self._deltas, self._waiting = self._deltas, {}, 0
            if deltas:
                gathered_at = time.monotonic()
            for delta in deltas.values():
                for piece in pieces(delta):
                    await socket.send(wire({"t": "delta", **piece}))
            for frame in self._spool.pending(sent):
                await socket.send(frame.text)
                sent = frame.n
            await self._spool.changed.wait()
            if not self._spool.pending(sent):
                await asyncio.sleep(max(0.0, gathered_at + COALESCE_S - time.monotonic()))
