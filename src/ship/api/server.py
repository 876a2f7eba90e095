"""The HTTP server under the routes: uvicorn, on a socket that we open, with signals left to the process."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from ship.api.door import door
from ship.api.services import Services

BACKLOG = 2048
ACCEPTED_A_TURN = 64
"""How many connections one turn of the event loop takes from those that wait; asyncio takes it for the backlog, too."""
WEBSOCKET_MESSAGE_BYTES = 8 * 1024**2
IDLE_S = 75
"""Clients and proxies give up an idle connection before that (httpx after 5 s, nginx after 60): whoever ends one knows that nothing is under way."""


class Server(uvicorn.Server):
    """A server that leaves signals alone: uvicorn would end the process by them before other parts have ended."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve on these sockets, where as many may wait as before."""
        await super().startup(sockets)
        for listening in sockets or ():
            listening.listen(BACKLOG)


def server(app: ASGIApp, services: Services | None = None, *, grace_s: int = 1) -> Server:
    """A server for the application; it ends when ``should_exit`` is set, connections within ``grace_s``. With services, which are the
    API's, it has a door."""
    return Server(
        uvicorn.Config(
            app,
            http=door(services) if services else "httptools",
            ws=cast("type[asyncio.Protocol]", _websocket),
            backlog=ACCEPTED_A_TURN,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=grace_s,
            timeout_keep_alive=IDLE_S,
            ws_max_size=WEBSOCKET_MESSAGE_BYTES,
        )
    )


def _websocket(**connection: Any) -> asyncio.Protocol:
    # The stream, which most come for, has its own; a server that starts need not import this one.
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

    return WebSocketsSansIOProtocol(**connection)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free one. Raises OSError.

    Connections inherit TCP_NODELAY, which asyncio sets only on sockets that name their protocol; without it a small answer waits
    40 ms for the client's delayed acknowledgement.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
