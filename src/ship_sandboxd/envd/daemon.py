"""The daemon's entry: the routes of envd on the socket that the host has bound for it.

The host starts it with the number of a descriptor. Where that is a socket, the daemon says `here` and waits, its root
being laid meanwhile, for two descriptors: its configuration, and the bound Unix socket to listen on. It answers `ready`
once it listens, together with the listeners that lead out. Any other descriptor is the configuration itself.

That is a JSON object: `listeners` (those: pairs of "tcp" or "udp" and a port of loopback), `token` (what X-Access-Token
must hold), `envs`, `memory_mb`, `cpu_count`, `max_processes` (a number where no cgroup counts them, else null); and if
they are given, `file_bytes`, the most that a file may hold; `user` and `workdir`: who runs commands, and where, when a
caller names neither. Where descriptors cannot be handed over, `link` stands in place of the listeners, see `link.py`.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import resource
import socket
import stat
import sys
from _operator import _compare_digest
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from . import rpc
from .account import Account
from .filesystem import Filesystem
from .http1 import BACKLOG, CHUNK_BYTES, Connection, Exchange, ProtocolError, serve_connection
from .link import Link
from .processes import Processes
from .relay import relay
from .signature import has_expired, is_signed
from .transfer import Transfer, TransferError
from .usage import Usage
from .watchers import Watchers

Route = Callable[[Exchange], Awaitable[None]]
OPEN_FILES = 65536
THREADS = 4
LISTENER_PATH = "/egress-listener"
HANG_UP_PATH = "/hang-up"
HOST_PATHS = frozenset(
    {"/init", "/out-of-memory", LISTENER_PATH, HANG_UP_PATH}
)  # what no request from outside may reach
_CONNECT_TIMEOUT_S = 10.0
_PR_SET_DUMPABLE = 4
_log = logging.getLogger("envd")


class Daemon:
    """The routes; everything but `/health` wants the sandbox's token."""

    def __init__(self, config: dict[str, Any], listeners: list[socket.socket]) -> None:
        self._token = str(config["token"])
        self._account = Account(
            envs=dict(config["envs"]),
            default=str(config.get("user") or "user"),
            workdir=str(config.get("workdir") or ""),
        )
        self._listeners = listeners
        self.link: Link | None = None
        self._usage = Usage(config["cpu_count"], config["memory_mb"], self._account.home)
        self._transfer = Transfer(self._account)
        self.processes = Processes(self._account)
        self._routes = self._make_routes()

    def _make_routes(self) -> dict[tuple[str, str], Route]:
        routes: dict[tuple[str, str], Route] = {
            ("GET", "/metrics"): self._metrics,
            ("GET", "/envs"): self._envs,
            ("GET", LISTENER_PATH): self._hand_over_listeners,
            ("POST", "/init"): self._init,
            ("POST", "/out-of-memory"): self._out_of_memory,
            ("POST", "/files/compose"): self._transfer.compose,
            ("POST", HANG_UP_PATH): self._hang_up,
        }
        processes, files, watchers = self.processes, Filesystem(self._account), Watchers(self._account)
        unary: dict[str, rpc.Unary] = {
            "/process.Process/List": processes.list,
            "/process.Process/Update": processes.update,
            "/process.Process/SendInput": processes.send_input,
            "/process.Process/SendSignal": processes.send_signal,
            "/process.Process/CloseStdin": processes.close_stdin,
            "/filesystem.Filesystem/Stat": files.stat,
            "/filesystem.Filesystem/MakeDir": files.make_dir,
            "/filesystem.Filesystem/Move": files.move,
            "/filesystem.Filesystem/ListDir": files.list_dir,
            "/filesystem.Filesystem/Remove": files.remove,
            "/filesystem.Filesystem/CreateWatcher": watchers.create,
            "/filesystem.Filesystem/GetWatcherEvents": watchers.take,
            "/filesystem.Filesystem/RemoveWatcher": watchers.remove,
        }
        streams: dict[str, rpc.ServerStream] = {
            "/process.Process/Start": processes.start,
            "/process.Process/Connect": processes.connect,
            "/filesystem.Filesystem/WatchDir": watchers.watch,
        }
        for path, method in unary.items():
            routes["POST", path] = _bind(rpc.serve_unary, method)
        for path, stream in streams.items():
            routes["POST", path] = _bind(rpc.serve_server_stream, stream)
        routes["POST", "/process.Process/StreamInput"] = _bind(
            rpc.serve_client_stream, processes.stream_input
        )
        return routes

    async def handle(self, exchange: Exchange) -> None:
        try:
            await self._dispatch(exchange)
        except TransferError as error:
            await _respond_error(exchange, error.status, str(error))
        except rpc.RpcError as error:
            await rpc.respond_error(exchange, error)
        except (ProtocolError, OSError):
            raise
        except Exception:
            _log.exception("%s %s failed", exchange.request.method, exchange.request.target)
            await _respond_error(exchange, 500, "internal error of envd")

    async def _dispatch(self, exchange: Exchange) -> None:
        request = exchange.request
        if request.method == "CONNECT":
            await self._tunnel(exchange)
            return
        path, query = parse_target(request.target)
        if (request.method, path) == ("GET", "/health"):
            await exchange.respond(204)
        elif path == "/files" and request.method in ("GET", "HEAD", "POST"):
            await self._files(exchange, query)
        elif not self._is_authorized(request.headers.get("x-access-token")):
            await _respond_error(exchange, 401, "unauthorized access, please provide a valid access token")
        elif (request.method, path) in self._routes:
            await self._routes[request.method, path](exchange)
        elif path.startswith(("/process.Process/", "/filesystem.Filesystem/")):
            await rpc.respond_error(
                exchange, rpc.RpcError("unimplemented", f"{path} is not supported by this host")
            )
        else:
            await _respond_error(exchange, 404, f"{request.method} {path} does not exist")

    def _is_authorized(self, token: str) -> bool:
        return _equal(token, self._token)

    async def _files(self, exchange: Exchange, query: dict[str, str]) -> None:
        method = exchange.request.method
        if not self._is_authorized(exchange.request.headers.get("x-access-token")):
            self._check_signature(query, method)
        await (self._transfer.upload if method == "POST" else self._transfer.download)(exchange, query)

    def _check_signature(self, query: dict[str, str], method: str) -> None:
        if not is_signed(query, method, self._token):
            raise TransferError(401, "unauthorized access, please provide a valid access token or signature")
        if has_expired(query):
            raise TransferError(401, "signature is already expired")

    async def _metrics(self, exchange: Exchange) -> None:
        await exchange.respond(200, rpc.encode(dict(self._usage.read())), "application/json")

    async def _envs(self, exchange: Exchange) -> None:
        await exchange.respond(200, rpc.encode(dict(self._account.envs)), "application/json")

    async def _init(self, exchange: Exchange) -> None:
        """From the host: what the sandbox learns when it is handed out. `envVars` are laid over what there is;
        `accessToken`, `defaultUser` and `defaultWorkdir` replace it."""
        wanted = rpc.decode(await exchange.read_all(rpc.MAX_MESSAGE_BYTES))
        self._account.envs |= self._account.environment(wanted.get("envVars") or {})
        self._account.default = self._account.require(str(wanted.get("defaultUser") or ""))
        self._account.workdir = str(wanted.get("defaultWorkdir") or self._account.workdir)
        self._token = str(wanted.get("accessToken") or self._token)
        await exchange.respond(204)

    async def _out_of_memory(self, exchange: Exchange) -> None:
        """From the host: the kernel has killed something in here for want of memory."""
        self.processes.tell_out_of_memory()
        await exchange.respond(204)

    async def _tunnel(self, exchange: Exchange) -> None:
        """CONNECT host:port, from the host, to a server on the sandbox's loopback."""
        if not self._is_authorized(exchange.request.headers.get("x-access-token")):
            await _respond_error(exchange, 401, "unauthorized access, please provide a valid access token")
            return
        port = exchange.request.target.rpartition(":")[2]
        exchange.reusable = False
        try:
            opened = await asyncio.wait_for(_open_loopback(int(port)), _CONNECT_TIMEOUT_S)
        except (OSError, ValueError, asyncio.TimeoutError):
            await _respond_error(exchange, 502, f"The sandbox is running but port is not open: {port}")
            return
        server = Connection(*opened)
        try:
            await exchange.connection.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
            exchange.responded = True
            await relay(exchange.connection, server)
        finally:
            await server.close()

    async def _hand_over_listeners(self, exchange: Exchange) -> None:
        """Give a host that was started anew the sockets by which the sandbox's programs find their way out."""
        duplicate = os.dup(exchange.connection.fileno())
        exchange.responded, exchange.reusable = True, False
        with socket.socket(fileno=duplicate) as raw:
            send_sockets(raw, b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", self._listeners)

    async def _hang_up(self, exchange: Exchange) -> None:
        """End every connection with the host, this one last."""
        if self.link is not None:
            await self.link.hang_up()
        exchange.reusable = False
        await exchange.respond(204)


def parse_target(target: str) -> tuple[str, dict[str, str]]:
    """The path and the query of a request's target. Raises ProtocolError when it is malformed."""
    try:
        url = urlsplit(target)
        return unquote(url.path), dict(parse_qsl(url.query, keep_blank_values=True, max_num_fields=100))
    except ValueError as error:
        raise ProtocolError("the request's target is malformed") from error


def is_for_host(target: str) -> bool:
    """Whether a request's target is one that only the host itself may use."""
    return parse_target(target)[0] in HOST_PATHS


def send_sockets(target: socket.socket, data: bytes, sockets: list[socket.socket]) -> None:
    socket.send_fds(target, [data], [item.fileno() for item in sockets])


async def _open_loopback(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        return await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return await asyncio.open_connection("::1", port)


def _bind(serve: Callable[[Exchange, Any], Awaitable[None]], method: Any) -> Route:
    return lambda exchange: serve(exchange, method)


def _equal(given: str, expected: str) -> bool:
    """In constant time. It is what `hmac.compare_digest` is where there is no OpenSSL, which takes 10 ms to load."""
    return _compare_digest(given.encode(), expected.encode())


def error_body(status: int, message: str) -> tuple[bytes, str]:
    return rpc.encode({"code": status, "message": message}), "application/json"


async def _respond_error(exchange: Exchange, status: int, message: str) -> None:
    if not exchange.responded:
        body, content_type = error_body(status, message)
        await exchange.respond(status, body, content_type)
    else:
        exchange.connection.abort()
        exchange.reusable = False


def _hide() -> None:
    """Keep this process's memory, descriptors and environment from the sandbox's programs, which have the same uid."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")


def _limit(config: dict[str, Any]) -> None:
    """What every process of the sandbox inherits, and cannot raise again."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, OPEN_FILES), hard))
    for limit, name in ((resource.RLIMIT_NPROC, "max_processes"), (resource.RLIMIT_FSIZE, "file_bytes")):
        if (value := config.get(name)) is not None:
            resource.setrlimit(limit, (value, value))


def _start_threads() -> None:
    """Start the loop's threads before there is need of them: where processes have used up all that the sandbox may
    have, no thread can be started, and files must be read and removed even then."""
    executor, started = ThreadPoolExecutor(THREADS), Barrier(THREADS + 1)
    for _ in range(THREADS):
        executor.submit(started.wait)
    started.wait()
    asyncio.get_running_loop().set_default_executor(executor)


async def _run_linked(config: dict[str, Any]) -> None:
    _start_threads()
    daemon = Daemon(config, [])
    daemon.processes.watch_children()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve_connection(reader, writer, daemon.handle, error_body)

    daemon.link = Link(config["link"], serve)
    await daemon.link.run()


async def _run_handed_over(host: socket.socket) -> None:
    _start_threads()
    inspect.iscoroutinefunction(main)  # loads, while there may be time for it, what watching children needs
    host.send(b"here")
    # Nobody else is served yet. The root changes before this comes, where it was not ours yet.
    word, descriptors, _, _ = socket.recv_fds(host, 16, 2)
    if not word:
        return  # the host has ended, or has no use for us
    config = _configuration(descriptors[0])
    os.chdir(Account.home)
    _limit(config)
    listeners = [_listener(kind, port) for kind, port in config["listeners"]]
    daemon = Daemon(config, listeners)
    daemon.processes.watch_children()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve_connection(reader, writer, daemon.handle, error_body)

    server = await asyncio.start_unix_server(
        serve, sock=socket.socket(fileno=descriptors[1]), limit=CHUNK_BYTES, backlog=BACKLOG
    )
    with host:
        send_sockets(host, b"ready", listeners)
    await server.serve_forever()


def _listener(kind: str, port: int) -> socket.socket:
    """A socket on loopback that the host will serve; what comes before it does waits in it."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    if kind == "tcp":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    if kind == "tcp":
        listener.listen(128)
    return listener


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    os.umask(0o022)
    _hide()
    given = int(sys.argv[1])
    if stat.S_ISSOCK(os.fstat(given).st_mode):
        asyncio.run(_run_handed_over(socket.socket(fileno=given)))
    else:
        config = _configuration(given)
        os.open(os.devnull, os.O_RDWR)  # in place of the standard input, which is closed
        _limit(config)
        asyncio.run(_run_linked(config))


def _configuration(descriptor: int) -> dict[str, Any]:
    with open(descriptor, "rb") as file:
        config: dict[str, Any] = json.load(file)
    return config
