"""The HTTP proxy of a sandbox: CONNECT, and requests that name a whole http:// address."""

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..envd.http1 import BrokenStreamError, Connection, Exchange, ProtocolError, Request, serve_connection
from ..envd.relay import relay
from .forward import forward, onward
from .rules import Refused

if TYPE_CHECKING:
    from .egress import Egress


class Proxy:
    def __init__(self, egress: "Egress") -> None:
        self._egress = egress

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve_connection(reader, writer, self._handle, self._broken_rules)

    def _broken_rules(self, status: int, message: str) -> tuple[bytes, str]:
        self._egress.refusals.record("HTTP", "unknown", Refused(message, status, "request"))
        return _error_body(status, message)

    async def _handle(self, exchange: Exchange) -> None:
        """Raises ProtocolError for a request whose body has no clear end, before anything is opened for it."""
        request = exchange.request
        exchange.reusable = False
        _ = request.framing
        try:
            authority, host, port, path = _destination(request)
            opened = await self._egress.open(host, port)
        except Refused as refusal:
            self._egress.refusals.record(request.method, request.target, refusal)
            body, content_type = _error_body(refusal.status, str(refusal))
            await exchange.respond(refusal.status, body, content_type)
            return
        server = Connection(*opened)
        try:
            if request.method == "CONNECT":
                exchange.responded = True
                await exchange.connection.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await relay(exchange.connection, server)
            else:
                await forward(exchange, server, onward(request, path, host=authority))
        except ProtocolError as error:
            self._egress.refusals.record(request.method, request.target, Refused(str(error), kind="request"))
            exchange.connection.abort()
        except (OSError, BrokenStreamError):
            exchange.connection.abort()
        finally:
            await server.close()


def _destination(request: Request) -> tuple[str, str, int, str]:
    """The (authority, host, port, path) that a proxy request asks for."""
    try:
        if request.method == "CONNECT":
            url = urlsplit(f"//{request.target}")
            default_port = 443
        else:
            url = urlsplit(request.target)
            default_port = 80
            if url.scheme.lower() != "http":
                raise Refused(
                    "a proxy request names a whole http:// address, or uses CONNECT", 400, "request"
                )
        host, port = url.hostname or "", url.port or default_port
    except ValueError as error:
        raise Refused(f"the address {request.target[:200]!r} is malformed", 400, "request") from error
    if not host:
        raise Refused("the request names no host", 400, "request")
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    return url.netloc.rpartition("@")[2], host, port, path


def _error_body(status: int, message: str) -> tuple[bytes, str]:
    return f"{message}\n".encode(), "text/plain; charset=utf-8"
