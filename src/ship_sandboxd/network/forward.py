"""One HTTP exchange passed on to another server: how the front reaches sandboxes, and how sandboxes' proxy reaches out."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable

from ..envd.http1 import (
    UNTIL_CLOSE,
    BrokenStreamError,
    Connection,
    Exchange,
    Fields,
    Headers,
    ProtocolError,
    Request,
    framing_fields,
)
from ..envd.relay import relay


def onward(request: Request, target: str, without: Iterable[str] = (), host: str = "") -> Request:
    """The request that a proxy sends in place of this one: for one use of the connection, framed anew, and without the
    fields that concern only the connection that it came by. `host` replaces the Host field."""
    fields = [("Host", host)] if host else []
    fields += request.headers.end_to_end([*without, "host"] if host else without)
    if request.upgrade:
        fields += [("Connection", "Upgrade"), ("Upgrade", request.upgrade)]
    else:
        fields += [*framing_fields(request.framing), ("Connection", "close")]
    return Request(request.method, target, "HTTP/1.1", Headers(fields))


async def forward(
    exchange: Exchange,
    server: Connection,
    request: Request,
    shown: Callable[[Fields], Fields] = list,
) -> None:
    """Send `request` with the exchange's body, and bring the response back; both are streamed, and an upgrade ties the
    two connections together. `shown` makes of the response's header fields those that come back.

    Raises ProtocolError when the exchange's body breaks the rules; BrokenStreamError or OSError when the server's answer
    does, or either side fails or goes away.
    """
    await server.send(request.encode())
    sent = asyncio.Event()
    asking = asyncio.ensure_future(_send_body(exchange, server, sent))
    answering = asyncio.ensure_future(_bring_back(exchange, server, sent, shown))
    try:
        await asyncio.wait([asking, answering], return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            await asking
        try:
            await answering
        except ProtocolError as error:
            raise BrokenStreamError(str(error)) from error
    finally:
        asking.cancel()
        answering.cancel()
        await asyncio.gather(asking, answering, return_exceptions=True)


async def _send_body(exchange: Exchange, server: Connection, sent: asyncio.Event) -> None:
    """Send the request's body; ends only by an error. A server that stops reading may still answer."""
    if exchange.request.upgrade:
        await asyncio.get_running_loop().create_future()
    with contextlib.suppress(ConnectionError):
        await exchange.pass_body(server)
        sent.set()
    await exchange.connection.peer_closed()
    raise BrokenStreamError("the client went away")


async def _bring_back(
    exchange: Exchange, server: Connection, sent: asyncio.Event, shown: Callable[[Fields], Fields]
) -> None:
    response = await server.read_response()
    while response.status < 200 and response.status != 101:
        response = await server.read_response()
    fields = shown(response.headers.end_to_end())
    if response.status == 101:
        if not exchange.request.upgrade:
            raise ProtocolError("the server changed to a protocol that nobody asked for", 502)
        exchange.responded, exchange.reusable = True, False
        response.headers = Headers(
            [*fields, ("Connection", "Upgrade"), ("Upgrade", response.headers.get("upgrade"))]
        )
        await exchange.connection.send(response.encode())
        await relay(exchange.connection, server)
        return
    framing = response.framing(exchange.request.method)
    fields += framing_fields(framing)
    if exchange.request.method == "HEAD":
        fields += [("Content-Length", length) for length in response.headers.all("content-length")]
    if not sent.is_set() or framing[0] == UNTIL_CLOSE:
        exchange.reusable = False
    await exchange.send_head(response.status, fields, response.reason)
    await server.pass_on(framing, exchange.connection)
