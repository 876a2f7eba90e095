"""The way out of one sandbox: the host resolves names, keeps the rules, and connects to the address that it has checked.

The listeners live in the sandbox's network namespace. Programs come by the proxy (`proxy`), or are led here without
knowing it (`redirected`); the names that these look up are answered by `nameserver`.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from . import nameserver, proxy, redirected
from .addresses import Address, address_of
from .gateway import Gateway
from .listeners import PROXY_PORT, Listeners
from .names import RANGE, Names
from .nodes import Streams
from .packets import RefusedPackets
from .refusals import Refusals
from .rules import Refused, Rules, Unreachable, canonical

MAX_CONNECTIONS = 512
_CONNECT_TIMEOUT_S = 15.0
LOOKUP_TIMEOUT_S = 10.0

_Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
_NO_SUCH_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


def proxy_variables() -> dict[str, str]:
    """What makes programs in a sandbox use the proxy."""
    url = f"http://127.0.0.1:{PROXY_PORT}"
    names = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
    none = "localhost,127.0.0.1"
    return {**dict.fromkeys(names, url), "NO_PROXY": none, "no_proxy": none}


@dataclass(frozen=True)
class Destination:
    """Where a connection goes; `name` is empty where an address was asked for."""

    name: str
    address: Address
    port: int

    def __str__(self) -> str:
        return f"{self.name or self.address}:{self.port}"


class Egress:
    """All that leads out of one sandbox. `folder` holds the refusals and the names that were looked up."""

    def __init__(self, sandbox_id: str, gateway: Gateway, rules: Rules, folder: Path) -> None:
        self._sandbox_id = sandbox_id
        self._gateway = gateway
        self._rules = rules
        self.refusals = Refusals(sandbox_id, folder, gateway.refusals)
        self.names = Names(folder / "names.txt")
        self._servers: list[asyncio.Server] = []
        self._datagrams: asyncio.DatagramTransport | None = None
        self._packets: RefusedPackets | None = None
        self._connections: dict[asyncio.Task[None], Destination | None] = {}

    async def serve(self, listeners: Listeners, refused: socket.socket | None = None) -> None:
        """`refused` tells of packets that the kernel has refused, see `netfilter.listen`. Both are closed with this."""
        if refused is not None:
            self._packets = RefusedPackets(refused, self.refusals)
        ways: list[tuple[socket.socket | None, _Serve]] = [
            (listeners.proxy, proxy.Proxy(self).serve),
            (listeners.redirected, redirected.Redirected(self).serve),
            (listeners.names, nameserver.NameServer(self).serve),
        ]
        for listener, serve in ways:
            if listener is not None:
                self._servers.append(await asyncio.start_server(self._bounded(serve), sock=listener))
        if listeners.names_udp is not None:
            self._datagrams, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: nameserver.Datagrams(nameserver.NameServer(self)), sock=listeners.names_udp
            )

    async def close(self) -> None:
        if self._packets is not None:
            self._packets.close()
        self.refusals.sum_up()
        for server in self._servers:
            server.close()
        if self._datagrams is not None:
            self._datagrams.abort()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def update(self, rules: Rules) -> None:
        """Keep to other rules from now on; connections that they do not allow are cut."""
        self._rules = rules
        for task, destination in list(self._connections.items()):
            if destination is not None:
                try:
                    rules.check(destination.name, destination.address, destination.port)
                except Refused as refusal:
                    self.refusals.record("CUT", str(destination), refusal)
                    task.cancel()

    def _bounded(self, serve: _Serve) -> _Serve:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            if task is None or len(self._connections) >= MAX_CONNECTIONS:
                writer.transport.abort()
                limit = Refused(f"this sandbox has {MAX_CONNECTIONS} connections already", kind="limit")
                self.refusals.record("TCP", "unknown", limit)
                return
            self._connections[task] = None
            task.add_done_callback(self._connections.pop)
            with contextlib.suppress(asyncio.CancelledError):
                await serve(reader, writer)

        return accept

    async def open(self, host: str, port: int) -> Streams:
        """A connection to a host by its name or address, where the rules allow it. The address that is connected to is
        the one that was checked, so a name cannot change in between. Raises Refused."""
        name, addresses = "", []
        host = self.behind(host)
        try:
            addresses = [address_of(host)]
        except ValueError:
            name = _canonical(host)
        upstream = self._rules.upstream(name, port)
        if upstream is not None:
            return await self._gateway.nodes.open(upstream)
        if name:
            self._rules.check_name(name, port)
            addresses = await self._look_up(name)
        return await self._connect(name, self._allowed(name, addresses, port), port)

    def behind(self, host: str) -> str:
        """The name that an address of ours stands for; anything else as it is. Raises Refused for an address of ours that
        stands for nothing."""
        try:
            address = address_of(host)
        except ValueError:
            return host
        if not isinstance(address, IPv4Address) or address not in RANGE:
            return host
        name = self.names.name_at(address)
        if name is None:
            raise Refused(f"no name that was looked up stands behind {address}", kind="address")
        return name

    async def check_lookup(self, host: str) -> str:
        """The canonical form of a name that exists, and that the sandbox may look up. Raises Refused."""
        name = _canonical(host)
        if not self._rules.is_reserved(name):
            self._rules.check_name(name, None)
            self._rules.check_found(await self._look_up(name))
        return name

    def check_name(self, host: str) -> None:
        """Whether the sandbox may know of a name. Raises Refused."""
        name = _canonical(host)
        if not self._rules.is_reserved(name):
            self._rules.check_name(name, None)

    async def _look_up(self, name: str) -> list[Address]:
        try:
            found = self._gateway.lookups.find(self._sandbox_id, name)
            texts = await asyncio.wait_for(found, LOOKUP_TIMEOUT_S)
        except socket.gaierror as error:
            raise Unreachable(f"cannot resolve {name}: {error}", error.errno in _NO_SUCH_NAME) from error
        except (OSError, UnicodeError) as error:
            raise Unreachable(f"cannot resolve {name}: {error or 'no name server answers'}") from error
        return [address_of(text) for text in texts]

    def _allowed(self, name: str, addresses: list[Address], port: int) -> list[Address]:
        """Those that the rules of this moment allow; Refused where they allow none."""
        allowed, refusals = [], []
        for address in addresses:
            try:
                self._rules.check(name, address, port)
                allowed.append(address)
            except Refused as refusal:
                refusals.append(refusal)
        if refusals and not allowed:
            raise refusals[0]
        return allowed

    async def _connect(self, name: str, addresses: list[Address], port: int) -> Streams:
        failure = "no address"
        task = asyncio.current_task()
        for address in addresses:
            self._rules.check(
                name, address, port
            )  # again: they may have changed while another address was tried
            if task in self._connections:
                self._connections[task] = Destination(name, address, port)
            try:
                return await asyncio.wait_for(asyncio.open_connection(str(address), port), _CONNECT_TIMEOUT_S)
            except (OSError, TimeoutError) as error:
                failure = str(error) or "it does not answer"
        shown = name or (addresses[0] if addresses else "")
        raise Unreachable(f"cannot connect to {shown}:{port}: {failure}")


def _canonical(host: str) -> str:
    try:
        return canonical(host)
    except ValueError as error:
        raise Refused(str(error), 400, "request") from error
