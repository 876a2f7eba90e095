"""The way out of a sandbox: an HTTP proxy on its loopback, served by the host, which resolves names and keeps the rules.

The listener lives in the sandbox's network namespace; its daemon has handed it over, so connections come straight to
the host, wait in the listener's backlog while the host is restarted, and break as TCP connections break.
"""

import asyncio
import ipaddress
import json
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from .envd.http1 import BrokenStreamError, Connection, Exchange, ProtocolError, Request, serve_connection
from .envd.relay import relay
from .forward import forward, onward
from .settings import Upstream

PORT = 3128
UPSTREAM_PATIENCE_S = 30.0
MAX_CONNECTIONS = 512
_CONNECT_TIMEOUT_S = 15.0
_LOOKUP_TIMEOUT_S = 10.0
_RETRY_S = 0.1
_REFUSALS_FILE_BYTES = 1024 * 1024
_log = logging.getLogger("ship_sandboxd.egress")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Resolve = Callable[[str, int], Awaitable[list[str]]]
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class Refused(Exception):
    """The rules do not let this through; `status` is what the proxy answers."""

    def __init__(self, message: str, status: int = 403) -> None:
        super().__init__(message)
        self.status = status


def proxy_variables() -> dict[str, str]:
    """What makes programs in a sandbox use the proxy."""
    url = f"http://127.0.0.1:{PORT}"
    names = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
    none = "localhost,127.0.0.1"
    return {**dict.fromkeys(names, url), "NO_PROXY": none, "no_proxy": none}


def is_public(address: Address) -> bool:
    """Whether an address belongs to the internet: not this machine, not a private or special network, and not such an
    address wrapped into IPv6."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast and not address.is_reserved


def is_own(address: Address) -> bool:
    """Whether a public address is one of this machine's: then its services would be as near as on loopback."""
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            # Sends nothing: it only looks up the way, which for an own address begins at that address.
            probe.connect((str(address), 9))
        except OSError:
            return False
        return bool(probe.getsockname()[0] == str(address))


async def resolve(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


@dataclass(frozen=True)
class Rules:
    """What one sandbox may reach: the reserved names always, the public internet if it is allowed."""

    upstreams: tuple[Upstream, ...]
    allow_internet: bool

    def upstream(self, host: str, port: int) -> Upstream | None:
        for upstream in self.upstreams:
            if (upstream.name, upstream.port) == (host, port):
                return upstream
        return None

    def check_name(self, host: str) -> None:
        if any(upstream.name == host for upstream in self.upstreams):
            raise Refused(f"{host} is a reserved name, and this port of it is not offered")
        if not self.allow_internet:
            raise Refused("this sandbox has no access to the internet")

    def check_address(self, address: Address) -> None:
        if not is_public(address) or is_own(address):
            raise Refused(f"{address} is not an address of the public internet")


class Egress:
    """The proxy of one sandbox."""

    def __init__(self, sandbox_id: str, rules: Rules, folder: Path, lookup: Resolve = resolve) -> None:
        self._sandbox_id = sandbox_id
        self._rules = rules
        self._refusals = folder / "egress.jsonl"
        self._lookup = lookup
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def serve(self, listener: socket.socket) -> None:
        self._server = await asyncio.start_server(self._serve_connection, sock=listener)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._connections) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        await serve_connection(reader, writer, self._handle, _error_body)

    async def _handle(self, exchange: Exchange) -> None:
        request = exchange.request
        exchange.reusable = False
        try:
            authority, host, port, path = _destination(request)
            opened = await self._open(host, port)
        except Refused as refusal:
            self._record(request, refusal)
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
        except (OSError, BrokenStreamError, ProtocolError):
            exchange.connection.abort()
        finally:
            await server.close()

    async def _open(self, host: str, port: int) -> Streams:
        upstream = self._rules.upstream(host, port)
        if upstream is not None:
            return await _open_upstream(upstream)
        self._rules.check_name(host)
        addresses = await self._addresses(host, port)
        failure = "no address"
        for address in addresses:
            try:
                return await asyncio.wait_for(asyncio.open_connection(address, port), _CONNECT_TIMEOUT_S)
            except (OSError, TimeoutError) as error:
                failure = str(error) or "it does not answer"
        raise Refused(f"cannot connect to {host}:{port}: {failure}", 502)

    async def _addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a name, all of them allowed. They are what is connected to, so a name cannot change
        between the check and the use."""
        try:
            texts = [str(ipaddress.ip_address(host))]
        except ValueError:
            try:
                texts = await asyncio.wait_for(self._lookup(host, port), _LOOKUP_TIMEOUT_S)
            except (OSError, UnicodeError) as error:
                raise Refused(f"cannot resolve {host}: {error or 'no name server answers'}", 502) from error
        for text in texts:
            self._rules.check_address(ipaddress.ip_address(text.partition("%")[0]))
        return texts

    def _record(self, request: Request, refusal: Refused) -> None:
        """Log a refusal, and keep it with the sandbox, up to a bound."""
        target = request.target[:512]
        facts = {
            "sandbox": self._sandbox_id,
            "method": request.method,
            "target": target,
            "reason": str(refusal),
        }
        _log.warning("egress refused", extra=facts)
        if not self._refusals.exists() or self._refusals.stat().st_size < _REFUSALS_FILE_BYTES:
            with self._refusals.open("a") as file:
                file.write(json.dumps({"time": time.time(), **facts}) + "\n")


async def _open_upstream(upstream: Upstream) -> Streams:
    """Connect to a reserved name. While nobody listens there the control plane may be restarting: wait for it."""
    deadline = time.monotonic() + UPSTREAM_PATIENCE_S
    while True:
        try:
            return await asyncio.open_connection(upstream.host, upstream.host_port)
        except ConnectionRefusedError as error:
            if time.monotonic() > deadline:
                raise Refused(f"{upstream.name} does not listen", 502) from error
            await asyncio.sleep(_RETRY_S)
        except OSError as error:
            raise Refused(f"cannot connect to {upstream.name}: {error}", 502) from error


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
                raise Refused("a proxy request names a whole http:// address, or uses CONNECT", 400)
        host, port = (url.hostname or "").rstrip("."), url.port or default_port
    except ValueError as error:
        raise Refused(f"the address {request.target[:200]!r} is malformed", 400) from error
    if not host:
        raise Refused("the request names no host", 400)
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    return url.netloc.rpartition("@")[2], host.lower(), port, path


def _error_body(status: int, message: str) -> tuple[bytes, str]:
    return f"{message}\n".encode(), "text/plain; charset=utf-8"
