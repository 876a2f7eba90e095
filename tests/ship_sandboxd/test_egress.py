"""The way out of a sandbox."""

import asyncio
import errno
import http.server
import ipaddress
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import websockets
from conftest import Host, eventually
from e2b import CommandExitException, Sandbox
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from ship_sandboxd.network import lookups, nodes
from ship_sandboxd.network.addresses import is_public
from ship_sandboxd.network.egress import Egress
from ship_sandboxd.network.gateway import Gateway
from ship_sandboxd.network.lookups import Lookups
from ship_sandboxd.network.rules import Refused, Rules, Unreachable, Upstream


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1",
        "2002:7f00:1::", "ff02::1", "198.18.0.1", "168.63.129.16", "::ffff:168.63.129.16",
    ],
)  # fmt: skip
def test_addresses_that_are_not_of_the_internet(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    with pytest.raises(Refused):
        Rules().check_address(ipaddress.ip_address(address), 80)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "140.82.121.3", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
)
def test_addresses_of_the_internet(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


async def test_on_a_machine_without_ipv6_an_address_of_it_is_unreachable_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(*_: object, **__: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr("ship_sandboxd.network.addresses.socket.socket", make)
    with pytest.raises(Unreachable):
        await Egress("s1", Gateway(), Rules(), tmp_path).open("2606:4700::1111", 443)


def test_a_reserved_name_is_offered_on_its_port_only() -> None:
    rules = Rules((Upstream("ship.internal", 80, (("127.0.0.1", 8700),)),))
    assert rules.upstream("ship.internal", 80) is not None
    assert rules.upstream("ship.internal", 22) is None
    with pytest.raises(Refused, match="reserved"):
        rules.check_name("ship.internal", 22)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_sandboxes_with_slow_names_leave_places_for_the_lookups_of_others() -> None:
    started: Counter[str] = Counter()
    slow: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()

    async def resolve(host: str) -> list[str]:
        started[host] += 1
        return await slow if host.startswith("slow") else ["192.0.2.1"]

    found = Lookups(resolve)
    held = [asyncio.create_task(found.find("only", "slow")) for _ in range(20)]
    await settle()
    assert started["slow"] == lookups.OF_ONE_SANDBOX
    for number in range(60):
        held += [asyncio.create_task(found.find(f"s{number}", f"slow-{number}")) for _ in range(20)]
    await settle()
    assert await asyncio.wait_for(found.find("other", "quick"), 5) == ["192.0.2.1"]
    for task in held[:30]:
        task.cancel()
    await settle()
    assert started["slow"] == lookups.OF_ONE_SANDBOX, "nobody waits for them, but their threads go on"
    assert started["slow-59"] == 1
    slow.set_result([])
    await asyncio.wait_for(asyncio.gather(*held, return_exceptions=True), 5)
    assert await asyncio.gather(*(found.find("only", "quick") for _ in range(20))) == [["192.0.2.1"]] * 20


class CountedId(str):
    """Counts how often anybody looks it up."""

    looked_up = 0
    __slots__ = ()

    def __hash__(self) -> int:
        CountedId.looked_up += 1
        return super().__hash__()


async def test_a_lookup_costs_the_same_however_many_wait() -> None:
    never: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
    found = Lookups(lambda host: never)
    ids = [CountedId(f"s{number}") for number in range(5)]
    held = [asyncio.create_task(found.find(each, "slow")) for _ in range(200) for each in ids]
    await settle()
    assert CountedId.looked_up < 20 * len(held)
    for task in held:
        task.cancel()
    await asyncio.wait(held)
    assert CountedId.looked_up < 40 * len(held)
    never.cancel()


class Echo(http.server.BaseHTTPRequestHandler):
    """Tells what was asked; `/cut` breaks off in the middle of its answer, `/stream` sends pieces over time."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half")
            self.close_connection = True
            return
        if self.path == "/reset":
            self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\nhalf")
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()
            self.close_connection = True
            return
        self.answer(
            {"path": self.path, "host": self.headers["Host"], "proxy": self.headers.get("Proxy-Connection")}
        )

    def do_POST(self) -> None:
        size = 0
        while (length := int(self.rfile.readline(), 16)) > 0:
            size += len(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        self.answer({"received": size})

    def answer(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        pass


class EchoServer:
    def __init__(self, port: int = 0) -> None:
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Echo)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def unanswered() -> Iterator[int]:
    """A port at which nobody listens, and that nobody else gets; an EchoServer may."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.fixture(scope="module")
def echo() -> Iterator[EchoServer]:
    server = EchoServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def inside(echo: EchoServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Sandbox]]:
    """A sandbox whose host offers the echo server as ship.internal."""
    host = Host(
        tmp_path_factory.mktemp("egress") / "data", ("--upstream", f"ship.internal:80=127.0.0.1:{echo.port}")
    )
    sandbox = host.create(timeout=600)
    yield host, sandbox
    host.close()


@pytest.mark.system
def test_a_reserved_name_is_reached_by_plain_http_and_by_a_tunnel(inside: tuple[Host, Sandbox]) -> None:
    _, sandbox = inside
    plain = json.loads(sandbox.commands.run("curl -s http://ship.internal/a?b=c").stdout)
    assert plain == {"path": "/a?b=c", "host": "ship.internal", "proxy": None}
    tunnel = json.loads(sandbox.commands.run("curl -s --proxytunnel http://ship.internal/d").stdout)
    assert tunnel["path"] == "/d"


@pytest.mark.system
def test_a_chunked_upload_passes(inside: tuple[Host, Sandbox]) -> None:
    _, sandbox = inside
    command = "head -c 30000000 /dev/zero | curl -s -T - -X POST -H 'Transfer-Encoding: chunked' http://ship.internal/"
    assert json.loads(sandbox.commands.run(command).stdout) == {"received": 30_000_000}


@pytest.mark.system
@pytest.mark.parametrize("path", ["cut", "reset"])
def test_an_answer_that_breaks_off_is_not_taken_for_whole(inside: tuple[Host, Sandbox], path: str) -> None:
    _, sandbox = inside
    for option in ("", "--proxytunnel"):
        with pytest.raises(CommandExitException) as raised:
            sandbox.commands.run(f"curl -s {option} http://ship.internal/{path}")
        assert raised.value.exit_code in {18, 56}


@pytest.mark.system
@pytest.mark.parametrize(
    "url",
    ["http://ship.internal:22/", "http://169.254.169.254/latest", "http://10.0.0.1/", "http://localhost/"],
)
def test_what_is_refused_is_told_and_logged(inside: tuple[Host, Sandbox], url: str) -> None:
    host, sandbox = inside
    answer = sandbox.commands.run(f"curl -s --noproxy '' -w '%{{http_code}}' {url}").stdout
    assert answer.endswith("403")
    kept = (host.data / "sandboxes" / sandbox.sandbox_id / "egress.jsonl").read_text()
    assert any(json.loads(line)["target"] == url for line in kept.splitlines())
    assert any(
        json.loads(line).get("target") == url for line in host.log().splitlines() if line.startswith("{")
    )


@pytest.mark.system
def test_a_sandbox_without_internet_reaches_reserved_names_only(inside: tuple[Host, Sandbox]) -> None:
    host, _ = inside
    sandbox = host.create(allow_internet_access=False)
    assert "no access to the internet" in sandbox.commands.run("curl -s http://example.org/").stdout
    assert json.loads(sandbox.commands.run("curl -s http://ship.internal/ok").stdout)["path"] == "/ok"
    sandbox.kill()


@pytest.mark.system
def test_an_upstream_that_restarts_is_waited_for(own_host: Callable[..., Host], unanswered: int) -> None:
    host = own_host("--upstream", f"ship.internal:80=127.0.0.1:{unanswered}")
    sandbox = host.create()
    handle = sandbox.commands.run("curl -s http://ship.internal/waited", background=True)
    time.sleep(0.5)  # while which it is refused some times, and does not give up
    server = EchoServer(unanswered)
    assert json.loads(handle.wait().stdout)["path"] == "/waited"
    server.close()


@pytest.mark.system
async def test_a_node_that_is_dead_is_passed_over_by_requests_and_websockets(
    own_host: Callable[..., Host], echo: EchoServer, unanswered: int
) -> None:
    """The first node is gone, the second lives; then the second goes and the first comes back."""

    async def repeat(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async with serve(repeat, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        host = await asyncio.to_thread(
            own_host,
            *("--upstream", f"ship.internal:80=127.0.0.1:{unanswered},127.0.0.1:{echo.port}"),
            *("--upstream", f"ws.internal:80=127.0.0.1:{unanswered},127.0.0.1:{port}"),
        )
        sandbox = await asyncio.to_thread(host.create)

        async def run(command: str) -> str:
            return (await asyncio.to_thread(sandbox.commands.run, command)).stdout

        for option in ("", "--proxytunnel"):
            assert json.loads(await run(f"curl -s {option} http://ship.internal/there"))["path"] == "/there"
        upgrade = (
            "import socket; s = socket.create_connection(('127.0.0.1', 3128)); s.sendall("
            "b'GET http://ws.internal/ HTTP/1.1\\r\\nHost: ws.internal\\r\\nConnection: Upgrade\\r\\n"
            "Upgrade: websocket\\r\\nSec-WebSocket-Version: 13\\r\\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\n\\r\\n'); f = s.makefile('rb'); "
            "print(f.readline().split()[1].decode()); [None for line in iter(f.readline, b'\\r\\n')]; "
            "s.sendall(bytes([0x81, 0x82, 0, 0, 0, 0]) + b'hi'); print(f.read(4)[2:].decode())"
        )
        assert await run(f'python3 -c "{upgrade}"') == "101\nhi\n"
    restarted = EchoServer(unanswered)
    assert json.loads(await run("curl -s http://ws.internal/back"))["path"] == "/back"
    restarted.close()


def test_nodes_are_tried_in_their_order_and_those_that_failed_last(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail_at(node: nodes.Node) -> None:
        with pytest.raises(ConnectionRefusedError):
            await kept._connect(node, ask=False)

    with socket.create_server(("127.0.0.1", 0)) as gone:
        first = gone.getsockname()
    with socket.create_server(("127.0.0.1", 0)) as living:
        second = living.getsockname()
        upstream, kept = Upstream("ship.internal", 80, (first, second)), nodes.Nodes()
        assert kept.in_turn(upstream) == [first, second]
        asyncio.run(fail_at(first))
        assert kept.in_turn(upstream) == [second, first]
        monkeypatch.setattr(nodes, "MISTRUST_S", -1.0)
        assert kept.in_turn(upstream) == [first, second]


def test_a_node_that_stands_still_is_passed_over(monkeypatch: pytest.MonkeyPatch, echo: EchoServer) -> None:
    async def reached(upstream: Upstream) -> int:
        _, writer = await nodes.Nodes().open(upstream)
        port: int = writer.get_extra_info("peername")[1]
        writer.close()
        return port

    monkeypatch.setattr(nodes, "CONNECT_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as halted:  # the kernel takes connections, nobody answers
        both = halted.getsockname(), ("127.0.0.1", echo.port)
        assert asyncio.run(reached(Upstream("ship.internal", 80, both))) == echo.port
        alone = halted.getsockname()[1]
        assert asyncio.run(reached(Upstream("ship.internal", 80, both[:1]))) == alone


async def test_connections_to_a_node_that_comes_to_a_standstill_are_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        if lives:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await reader.read()
        writer.close()

    lives = True
    monkeypatch.setattr(nodes, "WATCH_S", 0.05)
    monkeypatch.setattr(nodes, "WATCH_TIMEOUT_S", 0.2)
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server, asyncio.timeout(10):
        node = server.sockets[0].getsockname()
        known = nodes.Nodes()
        (reader, writer), (_, second) = [
            await known.open(Upstream("ship.internal", 80, (node, node))) for _ in range(2)
        ]
        second.close()
        writer.write(b"GET / HTTP/1.1\r\n")
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        lives = False
        assert await reader.read() == b"\r\n"
        while known._watches:
            await asyncio.sleep(0.01)


@pytest.mark.system
def test_requests_wait_while_the_host_is_restarted(own_host: Callable[..., Host], echo: EchoServer) -> None:
    host = own_host("--upstream", f"ship.internal:80=127.0.0.1:{echo.port}")
    sandbox = host.create()
    handle = sandbox.commands.run(
        "until test -e /tmp/away; do sleep 0.05; done; curl -s -m 20 http://ship.internal/patient",
        background=True,
        timeout=0,
    )
    sandbox.commands.run("(sleep 0.3; touch /tmp/away) > /dev/null 2>&1 &")
    host.stop(kill=True)
    time.sleep(0.6)
    host.start()
    assert json.loads(sandbox.commands.connect(handle.pid).wait().stdout)["path"] == "/patient"
    eventually(lambda: sandbox.commands.run("curl -s http://ship.internal/again").exit_code == 0)


@pytest.mark.system
def test_a_tunnel_passes_each_half_of_its_end_on(inside: tuple[Host, Sandbox]) -> None:
    """The far side reads to the end, and answers only then."""
    host, _ = inside
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_answer_after_the_end, args=(listener,), daemon=True).start()
        port = listener.getsockname()[1]
        other = Host(host.data.parent / "half" / "data", ("--upstream", f"far.internal:9=127.0.0.1:{port}"))
        sandbox = other.create()
        code = (
            "import socket; s = socket.create_connection(('127.0.0.1', 3128)); "
            "s.sendall(b'CONNECT far.internal:9 HTTP/1.1\\r\\nHost: far.internal:9\\r\\n\\r\\n'); "
            "head = s.recv(1000); s.sendall(b'x' * 1000000); s.shutdown(socket.SHUT_WR); print(s.makefile().read())"
        )
        result = sandbox.commands.run(f'python3 -c "{code}"')
        other.close()
    assert result.stdout == "received 1000000\n\n"


def _answer_after_the_end(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as stream:
        connection.sendall(b"received %d\n" % len(stream.read()))


@pytest.mark.system
async def test_a_websocket_passes_both_ways_out_and_in(inside: tuple[Host, Sandbox]) -> None:
    """Out: a client in the sandbox speaks through the proxy. In: a client outside speaks to a server in the sandbox."""
    host, _ = inside

    async def repeat(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(f"you said {message!r:.20}, {len(message)} long")

    async with serve(repeat, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        other = Host(host.data.parent / "ws" / "data", ("--upstream", f"ws.internal:80=127.0.0.1:{port}"))
        template = other.data / "templates" / "websockets"
        template.mkdir()
        mounts = [{"source": str(Path(websockets.__file__).parent), "target": "/opt/packages/websockets"}]
        (template / "template.json").write_text(
            json.dumps({"mounts": mounts, "env": {"PYTHONPATH": "/opt/packages"}})
        )
        sandbox = await asyncio.to_thread(other.create, template="websockets")
        client = (
            "from websockets.sync.client import connect; c = connect('ws://ws.internal/', proxy='http://127.0.0.1:3128'); "
            "c.send('x' * 500000); print(c.recv()); c.close()"
        )
        out = await asyncio.to_thread(sandbox.commands.run, f'python3 -c "{client}"')
        assert out.stdout.endswith(", 500000 long\n")
        inner = (
            "from websockets.sync.server import serve; "
            "serve(lambda c: [c.send(m[::-1]) for m in c], '127.0.0.1', 5000).serve_forever()"
        )
        handle = await asyncio.to_thread(
            sandbox.commands.run, f'python3 -c "{inner}"', background=True, timeout=0
        )
        await asyncio.to_thread(
            eventually, lambda: ":1388" in sandbox.commands.run("cat /proc/net/tcp").stdout
        )
        headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "5000"}
        async with connect(
            other.url.replace("http", "ws"), additional_headers=headers, proxy=None
        ) as connection:
            await connection.send("abc")
            assert await connection.recv() == "cba"
            await connection.send("y" * 900_000)
            assert await connection.recv() == "y" * 900_000
        await asyncio.to_thread(handle.kill)
        await asyncio.to_thread(other.close)
