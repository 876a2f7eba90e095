"""The way out for programs that know of no proxy, by names and by addresses, and what it does not let through."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import traces
from conftest import API_KEY, Host, eventually
from e2b import CommandExitException, Sandbox

from ship_sandboxd.network import namespaces
from ship_sandboxd.network.addresses import address_of, is_public
from ship_sandboxd.network.egress import LOOKUP_TIMEOUT_S
from ship_sandboxd.network.names import RANGE
from ship_sandboxd.network.netfilter import MAX_TRACKED, TIMEOUTS_S
from ship_sandboxd.pids import ProcessIdentity

pytestmark = pytest.mark.system

NO_PROXY = "env -u http_proxy -u https_proxy -u HTTP_PROXY -u HTTPS_PROXY"
CONNECT = "python3 -c 'import socket,sys; s=socket.create_connection((sys.argv[1], int(sys.argv[2])), 5); "
ASK = CONNECT + 's.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n"); print(s.makefile().read())\''
ASK_NAME_SERVER = """
import socket, struct, sys
name, kind = sys.argv[1].encode("latin-1").decode("unicode_escape").encode("latin-1"), int(sys.argv[2])
labels = b"".join(bytes([len(label)]) + label for label in name.split(b".") if label)
query = struct.pack("!6H", 7, 256, 1, 0, 0, 0) + labels + b"\\0" + struct.pack("!2H", kind, 1)
server = sys.argv[3] if len(sys.argv) > 3 else "198.18.0.1"
if "tcp" in sys.argv:
    s = socket.create_connection((server, 53), 5)
    s.sendall(struct.pack("!H", len(query)) + query)
    answer = s.recv(4096)[2:]
else:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(5)
    s.sendto(query, (server, 53))
    answer = s.recv(4096)
number, flags, _, answers, _, _ = struct.unpack("!6H", answer[:12])
assert number == 7 and flags & 0x8000
print(flags & 15, socket.inet_ntoa(answer[-4:]) if answers else "-")
"""


class TextServer:
    """Answers each connection with its own name and the first line that came; `/stream` sends on until it is cut."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.listener = socket.create_server((address, 0))
        self.port = self.listener.getsockname()[1]
        self.cut = threading.Event()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self.answer, args=self.listener.accept()[:1], daemon=True).start()

    def answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            line = connection.recv(4096).partition(b"\r\n")[0]
            connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello " + line + b"\n")
            if b"/stream" in line:
                with contextlib.suppress(OSError):
                    while True:
                        connection.sendall(b"more\n")
                        time.sleep(0.02)
                self.cut.set()

    def close(self) -> None:
        self.listener.close()


@pytest.fixture(scope="module")
def far() -> Iterator[TextServer]:
    server = TextServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def hosts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the host takes for its own /etc/hosts."""
    path = tmp_path_factory.mktemp("names") / "hosts"
    path.write_text(
        "127.0.0.1 localhost far.example api.far.example xn--bcher-kva.example changing.example\n"
        "169.254.169.254 metadata.example\n10.0.0.1 inner.example\n::1 six.example\n"
    )
    return path


class Named(Host):
    """A host with names of its own, where far.example:PORT may be reached."""

    def __init__(self, data: Path, hosts_file: Path, far: TextServer, backend: str, *options: str) -> None:
        prefix = ("unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts_file))
        allowed = (f"127.0.0.1/32:{far.port}",)
        upstream = ("--upstream", f"ship.internal:80=127.0.0.1:{far.port}")
        private = tuple(word for text in allowed for word in ("--allow-private", text))
        super().__init__(data, ("--backend", backend, *upstream, *private, *options), prefix)

    def refusals(self, sandbox: Sandbox) -> list[dict[str, Any]]:
        path = self.data / "sandboxes" / sandbox.sandbox_id / "egress.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def was_refused(self, sandbox: Sandbox, method: str, target: str) -> bool:
        return any((line["method"], line["target"]) == (method, target) for line in self.refusals(sandbox))


@pytest.fixture(scope="module")
def named(
    tmp_path_factory: pytest.TempPathFactory, hosts_file: Path, far: TextServer, backend: str
) -> Iterator[Named]:
    if os.geteuid() != 0:
        pytest.skip("connections are redirected only where the host is root")
    host = Named(tmp_path_factory.mktemp("transparent") / "data", hosts_file, far, backend)
    yield host
    host.close()


def in_its_network(host: Host, sandbox: Sandbox, path: str) -> str:
    """What a file of the machine's kernel says of a sandbox's network namespace."""
    init = ProcessIdentity.of(host.record(sandbox.sandbox_id)["init"]["pid"])
    assert init is not None
    return namespaces.within(init, Path(path).read_text)


def remembered_flows(host: Host, sandbox: Sandbox) -> int:
    return int(in_its_network(host, sandbox, "/proc/sys/net/netfilter/nf_conntrack_count"))


@pytest.fixture(scope="module")
def inside(named: Named) -> Iterator[Sandbox]:
    """A sandbox without rules of its own."""
    sandbox = named.create(timeout=600)
    sandbox.files.write("/tmp/ask.py", ASK_NAME_SERVER)
    yield sandbox
    sandbox.kill()


@pytest.fixture(scope="module")
def closed(named: Named, far: TextServer) -> Iterator[Sandbox]:
    """A sandbox that reaches far.example and what is below it, and nothing else."""
    network = {"deny_out": ["0.0.0.0/0"], "allow_out": ["far.example", f"*.far.example:{far.port}"]}
    sandbox = named.create(timeout=600, network=network)
    sandbox.files.write("/tmp/ask.py", ASK_NAME_SERVER)
    yield sandbox
    sandbox.kill()


def failing(sandbox: Sandbox, command: str) -> str:
    with pytest.raises(CommandExitException) as raised:
        sandbox.commands.run(command)
    return raised.value.stdout + raised.value.stderr


def test_the_host_says_that_it_redirects(named: Named) -> None:
    assert httpx.get(f"{named.url}/health").json()["transparent_egress"] is True


@pytest.mark.parametrize(
    "command",
    [
        "curl -s http://far.example:{port}/",
        f"{NO_PROXY} curl -s http://far.example:{{port}}/",
        "curl -s --noproxy '*' http://FAR.example.:{port}/",
        "curl -s --proxytunnel http://api.far.example:{port}/",
        "node -e 'fetch(\"http://far.example:{port}/\").then(r => r.text()).then(console.log)'",
        'node -e \'require("net").connect({port}, "api.far.example", function() {{ this.write("GET / HTTP/1.0\\r\\n\\r\\n") }})'
        ".pipe(process.stdout)'",
        f"{ASK} far.example {{port}}",
        f"{ASK} ship.internal 80",
        f"{NO_PROXY} curl -s http://ship.internal/",
    ],
)
def test_programs_of_every_kind_get_through(closed: Sandbox, far: TextServer, command: str) -> None:
    if command.startswith("node") and shutil.which("node", path="/usr/local/bin:/usr/bin") is None:
        pytest.skip("the machine's /usr has no Node")
    assert "hello GET / HTTP/1." in closed.commands.run(command.format(port=far.port)).stdout


def test_an_address_gets_through_too(hosts_file: Path, tmp_path: Path, backend: str) -> None:
    """The machine's own address stands for one of another machine."""
    own = _own_address()
    if own is None or os.geteuid() != 0 or is_public(address_of(own)):
        pytest.skip("the machine has no private address, or the host is not root")
    server = TextServer(own)
    host = Named(tmp_path / "data", hosts_file, server, backend, "--allow-private", f"{own}/32:{server.port}")
    sandbox = host.create(network={"deny_out": ["0.0.0.0/0"], "allow_out": [f"{own}:{server.port}"]})
    for target in (own, f"::ffff:{own}"):
        assert "hello GET" in sandbox.commands.run(f"{ASK} {target} {server.port}").stdout
    sandbox.update_network({"allow_internet_access": False})
    failing(sandbox, f"{ASK} {own} {server.port}")
    assert host.was_refused(sandbox, "TCP", f"{own}:{server.port}")
    failing(sandbox, f"{ASK} {own} {host.listen.rpartition(':')[2]}")
    host.close()
    server.close()


def _own_address() -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("203.0.113.1", 9))  # sends nothing
        except OSError:
            return None
        return str(probe.getsockname()[0])


@pytest.mark.parametrize(
    "target",
    [
        "169.254.169.254", "10.0.0.1", "192.168.1.1", "172.17.0.1", "100.64.0.1", "::ffff:169.254.169.254",
        "198.18.77.77", "198.18.0.1", "192.0.0.1", "metadata.example", "inner.example", "six.example",
    ],
)  # fmt: skip
def test_nothing_near_is_reached(named: Named, inside: Sandbox, far: TextServer, target: str) -> None:
    assert "hello" not in failing(inside, f"{ASK} {target} {far.port}")
    shown = target.removeprefix("::ffff:")
    assert named.was_refused(inside, "TCP", f"{shown}:{far.port}") or named.was_refused(inside, "DNS", target)


def test_the_loopback_of_the_host_needs_its_port(named: Named, inside: Sandbox, far: TextServer) -> None:
    assert "hello" in inside.commands.run(f"{ASK} far.example {far.port}").stdout
    assert "hello" not in failing(inside, f"{ASK} far.example {named.listen.rpartition(':')[2]}")
    failing(inside, f"{ASK} 127.0.0.1 {far.port}")
    failing(inside, f"{ASK} ::1 {far.port}")


def test_what_is_not_allowed_is_refused_by_name(named: Named, closed: Sandbox, far: TextServer) -> None:
    assert "hello" not in failing(closed, f"{ASK} changing.example {far.port}")
    assert named.was_refused(closed, "DNS", "changing.example")
    answer = closed.commands.run(f"curl -s http://changing.example:{far.port}/").stdout
    assert "not among what this sandbox may reach" in answer
    failing(closed, f"{ASK} api.far.example 81")
    assert named.was_refused(closed, "TCP", "api.far.example:81")


def ask(sandbox: Sandbox, name: str, kind: int = 1, *options: str) -> tuple[int, str]:
    """The (code, address) that the name server answers."""
    words = " ".join(("python3", "/tmp/ask.py", f"'{name}'", str(kind), *options))
    code, address = sandbox.commands.run(words).stdout.split()
    return int(code), address


def test_names_are_answered_if_they_may_be_reached(closed: Sandbox, far: TextServer, backend: str) -> None:
    code, address = ask(closed, "far.example")
    assert code == 0
    assert address_of(address) in RANGE
    assert ask(closed, "FAR.Example.") == (0, address)
    assert ask(closed, "far.example", 1, "8.8.8.8") == (0, address)
    if backend == "bubblewrap":
        assert ask(closed, "far.example", 1, "127.0.0.1") == (0, address)
    assert ask(closed, "far.example", 1, "9.9.9.9", "tcp") == (0, address)
    assert ask(closed, "ship.internal")[0] == 0
    # A program may look a name up by itself, and then go by the proxy.
    assert "hello" in closed.commands.run(f"curl -s --noproxy '' http://{address}:{far.port}/").stdout
    for kind in (28, 65, 15, 16, 255):
        assert ask(closed, "far.example", kind) == (0, "-")
        assert ask(closed, "secret.changing.example", kind) == (5, "-")
    for name in ("changing.example", "far.example.evil.example", "localhost", "ship.internal.evil.example"):
        assert ask(closed, name) == (5, "-"), name


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("nothing.far.example", {2, 3}), ("1.0.18.198.in-addr.arpa", {3}), ("8.8.8.8", {3}), ("", {3}),
        ("far.example\\x00", {3}), ("far\\x2eexample..", {0}), ("a b.far.example", {3}), ("-.far.example", {3}),
        (".".join(["a"] * 126), {5}), (".".join(["a" * 60] * 4), {5}), (".".join(["a" * 60] * 5), {1}),
        ("\\xff\\xfe.far.example", {3}),
    ],
)  # fmt: skip
def test_odd_names_get_an_error(closed: Sandbox, name: str, code: set[int]) -> None:
    assert ask(closed, name)[0] in code


def test_a_name_with_special_letters_is_found(inside: Sandbox, far: TextServer) -> None:
    code = f'import socket; print(socket.create_connection(("bücher.example", {far.port}), 5))'
    inside.commands.run(f"python3 -c '{code}'")
    inside.commands.run(f"curl -sf http://xn--bcher-kva.example:{far.port}/")


def test_a_name_that_changes_leads_nowhere_else(
    named: Named, inside: Sandbox, far: TextServer, hosts_file: Path
) -> None:
    before = hosts_file.read_text()
    _, address = ask(inside, "changing.example")
    assert "hello" in inside.commands.run(f"{ASK} {address} {far.port}").stdout
    hosts_file.write_text(before.replace("changing.example", "") + "169.254.169.254 changing.example\n")
    try:
        failing(inside, f"{ASK} {address} {far.port}")
        assert named.was_refused(inside, "TCP", f"changing.example:{far.port}")
        assert ask(inside, "changing.example") == (5, "-")
    finally:
        hosts_file.write_text(before)


SEND = (
    "python3 -c 'import socket,sys; s = socket.socket(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])); "
)
SEND += 's.settimeout(5); s.connect((sys.argv[4], int(sys.argv[5]))); s.send(b"x"); s.recv(1)\''
UDP_LITE = 136


def told(host: Host, sandbox: Sandbox, target: str) -> list[dict[str, str]]:
    """What the log of a sandbox tells of refusals of one target."""
    with httpx.Client(base_url=host.url, headers={"X-API-Key": API_KEY}) as client:
        path = f"/v2/sandboxes/{sandbox.sandbox_id}/logs"
        entries = client.get(path, params={"search": "egress refused"}).json()["logs"]
    return [entry["fields"] for entry in entries if entry["fields"].get("target") == target]


@pytest.mark.parametrize(
    ("kind", "address", "port", "method", "reason"),
    [
        ((socket.AF_INET, socket.SOCK_DGRAM, 0), "8.8.8.8", 443, "UDP", "use TCP"),
        ((socket.AF_INET6, socket.SOCK_DGRAM, 0), "::ffff:8.8.4.4", 443, "UDP", "use TCP"),
        ((socket.AF_INET, socket.SOCK_DGRAM, 0), "10.0.0.1", 123, "UDP", "use TCP"),
        ((socket.AF_INET, socket.SOCK_DGRAM, UDP_LITE), "9.9.9.9", 53, "UDP-Lite", "use TCP"),
        ((socket.AF_INET6, socket.SOCK_DGRAM, 0), "2606:4700::1111", 443, "UDP", "use that, or IPv4"),
        ((socket.AF_INET6, socket.SOCK_DGRAM, 0), "2001:4860:4860::8888", 53, "UDP", "use that, or IPv4"),
        ((socket.AF_INET6, socket.SOCK_STREAM, 0), "2606:4700::1111", 80, "TCP", "use that, or IPv4"),
        ((socket.AF_INET6, socket.SOCK_STREAM, 0), "fd00::1", 80, "TCP", "use that, or IPv4"),
    ],
)  # fmt: skip
def test_a_packet_that_may_not_pass_fails_at_once_and_is_told(
    named: Named,
    inside: Sandbox,
    backend: str,
    kind: tuple[int, int, int],
    address: str,
    port: int,
    method: str,
    reason: str,
) -> None:
    if backend == "gvisor" and (kind[2] == UDP_LITE or "IPv4" in reason):
        pytest.skip("gVisor has no such packets")
    words = " ".join(str(int(number)) for number in kind)
    assert "refused" in failing(inside, f"{SEND} {words} {address} {port}")
    shown = address.removeprefix("::ffff:")
    target = f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"
    (line,) = eventually(lambda: told(named, inside, target))
    assert line["method"] == method
    assert reason in line["reason"]


def test_a_datagram_that_nobody_waits_for_is_told_and_makes_no_call_fail(
    named: Named, inside: Sandbox
) -> None:
    send = SEND.replace('s.connect((sys.argv[4], int(sys.argv[5]))); s.send(b"x"); s.recv(1)', "{}")
    send = send.format('s.bind(("0.0.0.0", 3129)); s.sendto(b"x", (sys.argv[4], int(sys.argv[5])))')
    inside.commands.run(f"{send} 2 2 0 162.159.200.1 123")
    assert eventually(lambda: told(named, inside, "162.159.200.1:123"))


def test_a_ping_is_not_answered_by_the_sandbox_itself(named: Named, inside: Sandbox, backend: str) -> None:
    """Programs in it cannot send one, but for gVisor's: root of the machine can."""
    if backend == "gvisor":
        code = (
            'import socket; s = socket.socket(2, 2, 1); s.settimeout(1); s.connect(("8.8.8.8", 0)); '
            's.send(bytes.fromhex("0800f7ff00000000")); s.recv(99)'
        )
        failing(inside, f"python3 -c '{code}'")
        assert eventually(lambda: told(named, inside, "8.8.8.8"))[0]["method"] == "ICMP"
        return
    init = named.record(inside.sandbox_id)["init"]["pid"]
    code = (
        "import socket; s = socket.socket(2, 3, 1); s.settimeout(5); "
        's.sendto(bytes.fromhex("0800f7ff00000000"), ("8.8.8.8", 0)); print(s.recv(99)[20])'
    )
    command = ["nsenter", "-t", str(init), "-n", sys.executable, "-c", code]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert answer == "3\n"  # unreachable
    assert eventually(lambda: told(named, inside, "8.8.8.8"))[0]["method"] == "ICMP"


def test_multicast_stays_inside_and_nothing_else_is_taken_for_it(named: Named, inside: Sandbox) -> None:
    code = (
        "import socket\n"
        "ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "ear.settimeout(5)\n"
        "ear.bind(('', 4300))\n"
        "ear.setsockopt(0, socket.IP_ADD_MEMBERSHIP, socket.inet_aton('224.0.0.251') + bytes(4))\n"
        "for target in ('10.1.1.1', '224.0.0.251', '127.0.0.1'):\n"
        "    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth:\n"
        "        mouth.sendto(target.encode(), (target, 4300))\n"
        "print(ear.recv(99).decode(), ear.recv(99).decode())\n"
    )
    inside.files.write("/tmp/group.py", code)
    assert inside.commands.run("python3 /tmp/group.py").stdout.split() == ["224.0.0.251", "127.0.0.1"]
    assert eventually(lambda: told(named, inside, "10.1.1.1:4300"))
    assert not told(named, inside, "224.0.0.251:4300")


def test_a_flood_of_packets_is_told_within_bounds(named: Named) -> None:
    sandbox = named.create()
    code = (
        "import socket\n"
        "with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:\n"
        "    for number in range(20_000):\n"
        "        s.sendto(b'x' * 999, (f'9.{number >> 8}.{number & 255}.9', 443))\n"
        "    for _ in range(50):\n"
        "        s.sendto(b'x', ('9.9.9.10', 443))\n"
    )
    sandbox.files.write("/tmp/flood.py", code)
    began = time.monotonic()
    sandbox.commands.run("python3 /tmp/flood.py")
    most = 250 + 50 * (time.monotonic() - began + 1)
    eventually(lambda: any("faster than each" in line["reason"] for line in named.refusals(sandbox)))
    assert 200 < len(named.refusals(sandbox)) < most
    # It goes on when the flood is over.
    again = f"{SEND} 2 2 0 9.9.9.11 443 || true"
    eventually(lambda: sandbox.commands.run(again) and told(named, sandbox, "9.9.9.11:443"))
    sandbox.kill()


def test_a_host_that_comes_back_tells_of_packets_again(
    tmp_path: Path, hosts_file: Path, far: TextServer, backend: str
) -> None:
    host = Named(tmp_path / "back" / "data", hosts_file, far, backend)
    sandbox = host.create()
    host.stop(kill=True)
    host.start()
    send = f"{SEND} 2 2 0 9.9.9.9 443 || true"
    assert eventually(lambda: sandbox.commands.run(send) and told(host, sandbox, "9.9.9.9:443"))
    held = traces.descriptors(host.process.pid)
    for _ in range(3):
        sandbox.pause(keep_memory=False)
        sandbox.connect()
    sandbox.commands.run(f"{SEND} 2 2 0 9.9.9.10 443 || true")
    assert eventually(lambda: told(host, sandbox, "9.9.9.10:443"))
    if backend == "bubblewrap":
        sandbox.commands.run(f"{SEND} 10 1 0 2606:4700::1111 443 || true")
        assert eventually(lambda: told(host, sandbox, "[2606:4700::1111]:443"))
    assert traces.descriptors(host.process.pid) <= held + 2
    host.close()


def test_a_kernel_that_cannot_tell_of_packets_is_told_of_once(
    tmp_path: Path, hosts_file: Path, far: TextServer, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    customize(
        monkeypatch,
        tmp_path,
        "from ship_sandboxd.network import nftables\n"
        "true = nftables.expression\n"
        "nftables.expression = lambda name, *values: true(name.replace('log', 'nolog'), *values)\n",
    )
    host = Named(tmp_path / "mute" / "data", hosts_file, far, backend)
    sandboxes = [host.create() for _ in range(2)]
    for sandbox in sandboxes:
        assert "hello" in sandbox.commands.run(f"{ASK} far.example {far.port}").stdout
        assert "refused" in failing(sandbox, f"{SEND} 2 2 0 8.8.8.8 443")
        unreachable = "No route" if backend == "gvisor" else "unreachable"
        assert unreachable in failing(sandbox, f"{SEND} 10 1 0 2606:4700::1111 443")
    assert host.log().count("cannot tell of packets") == 1
    host.close()


def test_gvisor_does_with_the_proxy_where_there_is_no_wire(
    tmp_path: Path, hosts_file: Path, far: TextServer, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "bubblewrap":
        pytest.skip("bubblewrap needs no wire")
    code = "from ship_sandboxd.network import routes\ntrue = routes.text\nroutes.text = lambda kind, text: true(kind, text.replace('veth', 'none'))\n"
    customize(monkeypatch, tmp_path, code)
    host = Named(tmp_path / "cut" / "data", hosts_file, far, backend)
    assert httpx.get(f"{host.url}/health").json()["transparent_egress"] is False
    sandbox = host.create()
    assert "hello" in sandbox.commands.run(f"curl -s http://far.example:{far.port}/").stdout
    failing(sandbox, f"{ASK} far.example {far.port}")
    host.close()


def customize(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """Have hosts that are started from now on run this first, which changes what they ask of the kernel."""
    (folder / "sitecustomize.py").write_text(code)
    paths = [str(folder), *os.environ.get("PYTHONPATH", "").split(":")]
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, paths)))


@pytest.mark.parametrize(
    "code",
    [
        # NFT_MSG_DELTABLE of the table that holds the rules, and RTM_DELROUTE of the route that they need
        's = socket.socket(16, 3, 12); m = struct.pack("=IHHII", 20, 0x10, 1, 1, 0) + b"\\0\\0\\0\\x0a" + '
        'struct.pack("=IHHII", 32, 0xa02, 5, 2, 0) + b"\\2\\0\\0\\0" + struct.pack("=HH", 9, 1) + b"ship\\0\\0\\0\\0" + '
        'struct.pack("=IHHII", 20, 0x11, 1, 3, 0) + b"\\0\\0\\0\\x0a"; s.send(m); '
        "raise SystemExit(-struct.unpack_from('=i', s.recv(999), 16)[0])",
        's = socket.socket(16, 3, 0); s.send(struct.pack("=IHHII", 28, 25, 5, 1, 0) + bytes([2, 0, 0, 0, 255, 3, 254, 2]) + '
        "bytes(4)); raise SystemExit(-struct.unpack_from('=i', s.recv(999), 16)[0])",
        # RTM_DELADDR of the address at the end of the wire
        's = socket.socket(16, 3, 0); s.send(struct.pack("=IHHII", 32, 21, 5, 1, 0) + struct.pack("=4BI", 2, 30, 0, 0, 2) + '
        "struct.pack('=HH', 8, 2) + bytes([192, 0, 0, 2])); raise SystemExit(-struct.unpack_from('=i', s.recv(999), 16)[0])",
        "socket.socket().setsockopt(1, 36, 1)",  # SO_MARK
        "socket.socket().setsockopt(0, 19, 1)",  # IP_TRANSPARENT
        "socket.socket(2, 3, 255)",  # a raw socket
    ],
    ids=["table", "route", "address", "mark", "transparent", "raw"],
)  # fmt: skip
def test_a_sandbox_cannot_change_its_way_out(
    named: Named, inside: Sandbox, far: TextServer, backend: str, code: str
) -> None:
    inside.files.write("/tmp/attempt.py", f"import socket, struct\n{code}\n")
    if backend == "gvisor" and "setsockopt" in code:
        inside.commands.run("python3 /tmp/attempt.py")  # its kernel makes nothing of these options
    else:
        with pytest.raises(CommandExitException) as raised:
            inside.commands.run("python3 /tmp/attempt.py")
        # EPERM, or gVisor's EACCES, as an exit status or an exception
        assert raised.value.exit_code in ({1, 13} if backend == "gvisor" else {1})
        errors = ("not permitted", "Protocol not supported") if backend == "gvisor" else ("not permitted",)
        assert "rror" not in raised.value.stderr or any(word in raised.value.stderr for word in errors)
    failing(inside, f"{ASK} 10.0.0.1 {far.port}")
    assert named.was_refused(inside, "TCP", f"10.0.0.1:{far.port}")
    assert "hello" in inside.commands.run(f"{ASK} far.example {far.port}").stdout


def test_the_kernel_remembers_a_bounded_number_of_flows(
    named: Named, inside: Sandbox, far: TextServer, backend: str
) -> None:
    # A question that is no refusal by itself, as the lines of a minute are bounded: for a text of a name in reach.
    code = (
        "import socket, struct\n"
        "question = struct.pack('!6H', 7, 256, 1, 0, 0, 0) + b'\\3far\\7example\\0' + struct.pack('!2H', 16, 1)\n"
        "refused = 0\n"
        "for number in range(9_000):\n"
        "    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:\n"
        "        try: s.sendto(question, (f'9.{number >> 8}.{number & 255}.9', 53))\n"
        "        except PermissionError: refused += 1\n"
        "print(refused)\n"
    )
    inside.files.write("/tmp/flood.py", code)
    refused = int(inside.commands.run("python3 /tmp/flood.py").stdout)
    assert refused > 0 or backend == "gvisor"  # whose kernel does not learn of it
    assert remembered_flows(named, inside) < MAX_TRACKED + 200
    lines = eventually(lambda: [line for line in named.refusals(inside) if "flows" in line["reason"]])
    assert {line["method"] for line in lines} == {"UDP"}
    assert all(re.fullmatch(r"9\.\d+\.\d+\.9:53", line["target"]) for line in lines)
    # They are forgotten after seconds; then it goes on.
    eventually(lambda: "hello" in inside.commands.run(f"{ASK} far.example {far.port} || true").stdout, 60)


def test_nothing_passes_over_ipv6_or_in_pieces(named: Named, inside: Sandbox, backend: str) -> None:
    if backend == "bubblewrap":
        pytest.skip("packets of a size that would be cut never come to be")
    failing(inside, f"{ASK} 2606:4700:4700::1111 80")
    code = (
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(bytes(4000), ('9.9.9.9', 53))"
    )
    inside.commands.run(f'python3 -c "{code}"')
    # In the order of their sending: what came before this answer was seen to before.
    assert ask(inside, "far.example")[0] == 0
    counters = in_its_network(named, inside, "/proc/thread-self/net/snmp").splitlines()
    names, numbers = (line.split() for line in counters if line.startswith("Ip:"))
    received = dict(zip(names, numbers, strict=True))
    assert received["ReasmReqds"] == "0" != received["InReceives"]


def test_traffic_on_its_own_loopback_is_not_remembered(named: Named) -> None:
    sandbox = named.create()
    code = (
        "import socket\n"
        "listener = socket.create_server(('127.0.0.1', 4200))\n"
        "held = []\n"
        "for _ in range(400):\n"
        "    held += [socket.create_connection(('127.0.0.1', 4200)), listener.accept()[0]]\n"
        "    held[-1].send(b'x'), held[-2].recv(1)\n"
        "print('talked', flush=True)\n"
        "input()\n"
    )
    sandbox.files.write("/tmp/talk.py", code)
    handle = sandbox.commands.run("python3 /tmp/talk.py", background=True, stdin=True)
    assert next(iter(handle))[0] == "talked\n"
    assert remembered_flows(named, sandbox) < 100
    sandbox.kill()


def test_its_own_loopback_stays_its_own(inside: Sandbox) -> None:
    server = inside.commands.run("python3 -m http.server 4100 --bind 127.0.0.1", background=True, timeout=0)
    eventually(lambda: ":1004" in inside.commands.run("cat /proc/net/tcp").stdout)
    assert (
        "200" in inside.commands.run("curl -s -o /dev/null -w '%{http_code}' http://localhost:4100/").stdout
    )
    server.kill()


@pytest.mark.parametrize("option", ["", "--noproxy '*'"], ids=["proxy", "transparent"])
def test_an_update_cuts_what_it_does_not_allow(
    named: Named, hosts_file: Path, option: str, backend: str
) -> None:
    server = TextServer()
    host = Named(named.data.parent / f"cut{len(option)}" / "data", hosts_file, server, backend)
    sandbox = host.create()
    options = f"-sN {option} http://far.example:{server.port}/stream"
    handle = sandbox.commands.run(f"curl {options} > /tmp/out", background=True, timeout=0)
    eventually(lambda: "more" in sandbox.commands.run("cat /tmp/out || true").stdout, 30)
    sandbox.update_network({"deny_out": ["10.0.0.0/8"]})
    size = len(sandbox.files.read("/tmp/out"))
    eventually(lambda: len(sandbox.files.read("/tmp/out")) > size + 20, 30)
    sandbox.update_network({"deny_out": ["0.0.0.0/0"], "allow_out": ["other.example"]})
    if backend == "gvisor" and not option:
        handle.wait()  # through gVisor's Unix sockets such an answer looks ended
    else:
        with pytest.raises(CommandExitException) as raised:
            handle.wait()
        assert raised.value.exit_code in {18, 56}
    assert server.cut.wait(30)
    assert host.was_refused(sandbox, "CUT", f"far.example:{server.port}")
    failing(sandbox, f"curl -sf {option} http://far.example:{server.port}/")
    sandbox.update_network({})
    sandbox.commands.run(f"curl -sf {option} http://far.example:{server.port}/")
    host.close()
    server.close()


def test_rules_and_names_outlive_the_host(
    tmp_path: Path, hosts_file: Path, far: TextServer, named: Named, backend: str
) -> None:
    host = Named(tmp_path / "own" / "data", hosts_file, far, backend)
    network = {"deny_out": ["0.0.0.0/0"], "allow_out": ["far.example"]}
    sandbox = host.create(network=network)
    sandbox.files.write("/tmp/ask.py", ASK_NAME_SERVER)
    _, address = ask(sandbox, "far.example")
    handle = sandbox.commands.run(
        "until test -e /tmp/away; do sleep 0.05; done; "
        f"{ASK} {address} {far.port}; {ASK} far.example {far.port}",
        background=True,
        timeout=0,
    )
    sandbox.commands.run("(sleep 0.3; touch /tmp/away) > /dev/null 2>&1 &")
    host.stop(kill=True)
    time.sleep(0.6)
    host.start()
    assert sandbox.commands.connect(handle.pid).wait().stdout.count("hello") == 2
    assert "hello" in sandbox.commands.run(f"{ASK} {address} {far.port}").stdout
    failing(sandbox, f"{ASK} changing.example {far.port}")
    with httpx.Client(base_url=host.url, headers={"X-API-Key": API_KEY}) as client:
        told = client.get(f"/sandboxes/{sandbox.sandbox_id}").json()["network"]
        assert told == {"allowPublicTraffic": True, "allowOut": ["far.example"], "denyOut": ["0.0.0.0/0"]}
        wrong = client.put(f"/sandboxes/{sandbox.sandbox_id}/network", json={"allowOut": ["not a name"]})
        assert wrong.status_code == 400
        assert "not a name" in wrong.json()["message"]
        assert client.put("/sandboxes/none/network", json={}).status_code == 404
    assert "hello" in sandbox.commands.run(f"{ASK} far.example {far.port}").stdout
    host.close()


def test_a_host_that_dies_breaks_connections(
    tmp_path: Path, hosts_file: Path, far: TextServer, named: Named, backend: str
) -> None:
    host = Named(tmp_path / "own" / "data", hosts_file, far, backend)
    sandbox = host.create()
    code = (
        "import socket\n"
        f"s = socket.create_connection(('far.example', {far.port}))\n"
        "s.sendall(b'GET /stream HTTP/1.0\\r\\n\\r\\n')\n"
        "s.recv(1)\n"
        "print('open', flush=True)\n"
        "try:\n    while s.recv(65536): pass\n    print('ended')\n"
        "except ConnectionResetError: print('reset')\n"
    )
    sandbox.files.write("/tmp/wait.py", code)
    handle = sandbox.commands.run("python3 /tmp/wait.py", background=True, timeout=0)
    assert next(iter(handle))[0] == "open\n"
    host.restart(kill=True)
    assert sandbox.commands.connect(handle.pid).wait().stdout == "open\nreset\n"
    host.close()


def test_a_sandbox_that_is_started_anew_keeps_its_way_out(named: Named, far: TextServer) -> None:
    sandbox = named.create(network={"deny_out": ["0.0.0.0/0"], "allow_out": ["far.example"]})
    sandbox.files.write("/home/user/ask.py", ASK_NAME_SERVER)
    address = sandbox.commands.run("python3 ask.py far.example 1").stdout.split()[1]
    sandbox.pause(keep_memory=False)
    sandbox.connect()
    assert "hello" in sandbox.commands.run(f"{ASK} {address} {far.port}").stdout
    assert "hello" in sandbox.commands.run(f"curl -s http://far.example:{far.port}/").stdout
    failing(sandbox, f"{ASK} changing.example {far.port}")
    sandbox.kill()


def test_a_parked_sandbox_keeps_its_memory_and_its_way_out(
    tmp_path: Path, hosts_file: Path, far: TextServer, named: Named, backend: str
) -> None:
    if backend == "bubblewrap":
        pytest.skip("bubblewrap cannot write memory out")
    host = Named(tmp_path / "own" / "data", hosts_file, far, backend, "--park-after", "0.2")
    sandbox = host.create()
    code = (
        "import socket\n"
        f"held = socket.create_connection(('far.example', {far.port}))\n"
        "target = held.getpeername()\n"
        "while True:\n"
        "    try:\n"
        "        with socket.create_connection(target, 5) as s:\n"
        "            s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')\n"
        "            if s.recv(1): open('/tmp/answers', 'a').write('x')\n"
        "    except OSError:\n        pass\n"
    )
    sandbox.files.write("/tmp/ask.py", code)
    handle = sandbox.commands.run("python3 /tmp/ask.py", background=True, timeout=0)

    def answers() -> int:
        return len(sandbox.commands.run("cat /tmp/answers || true").stdout)

    eventually(answers)
    host.restart(kill=True)  # which leaves nothing of the connections that were open
    before = answers()
    eventually(lambda: answers() > before)
    sandbox.pause()
    eventually(lambda: host.record(sandbox.sandbox_id)["init"] is None)
    assert host.record(sandbox.sandbox_id)["memory_kept"], host.log()[-2000:]
    host.restart(kill=True)
    sandbox.connect()
    before = answers()
    eventually(lambda: answers() > before)
    assert handle.pid in [process.pid for process in sandbox.commands.list()]
    failing(sandbox, f"{ASK} 10.0.0.1 80")
    assert host.was_refused(sandbox, "TCP", "10.0.0.1:80")
    host.close()


def test_too_many_connections_are_broken_off(named: Named, far: TextServer) -> None:
    sandbox = named.create()
    code = (
        "import socket, time\n"
        "def is_lost(s):\n"
        "    try:\n        return not s.recv(1)\n"
        "    except BlockingIOError:\n        return False\n"
        "    except OSError:\n        return True\n"
        f"held = [socket.create_connection(('198.18.1.0', {far.port})) for _ in range(600)]\n"
        "for s in held:\n    s.setblocking(False)\n"
        "deadline = time.monotonic() + 30\n"
        "while sum(map(is_lost, held)) < 600 - 512 and time.monotonic() < deadline:\n    time.sleep(0.05)\n"
        "print(sum(map(is_lost, held)))\n"
    )
    sandbox.files.write("/tmp/many.py", f"import socket\nsocket.getaddrinfo('far.example', 80)\n{code}")
    assert int(sandbox.commands.run("python3 /tmp/many.py").stdout) >= 600 - 512
    assert any("512 connections" in line["reason"] for line in named.refusals(sandbox))
    eventually(lambda: "hello" in sandbox.commands.run(f"{ASK} far.example {far.port} || true").stdout, 30)
    sandbox.kill()


def test_a_question_is_remembered_for_longer_than_its_answer_may_take() -> None:
    """Else the answer is not led back to who asked."""
    assert TIMEOUTS_S["nf_conntrack_udp_timeout"] > LOOKUP_TIMEOUT_S
