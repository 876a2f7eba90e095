"""Attempts to get out of a sandbox, or to harm the host and its neighbours from within. Each must fail inside."""

import ast
import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import API_KEY, Host, eventually
from e2b import CommandExitException, Sandbox, SandboxException

pytestmark = pytest.mark.system

PROGRAM = Path(__file__).parent / "attacks" / "inside.py"
NEIGHBOUR = PROGRAM.with_name("beside.py")
BOMBS = {"descriptors", "disk", "inodes", "shared_memory"}
OF_ITS_OWN_KERNEL = {
    "devices",
    "end_the_first_process",
    "kernel_interfaces",
    "namespaces",
    "out_of_memory_score",
}
"""What these reach in gVisor is of the kernel that a sandbox has for itself, and ends with it."""
FORGER = """
import contextlib, socket
lines = []
for number in range(64):
    line = socket.socket(socket.AF_UNIX)
    line.settimeout(30)
    line.connect("/run/envd/link/control.sock")
    lines.append(line)
    with contextlib.suppress(OSError):
        line.sendall(b"POST / HTTP/1.1\\r\\n\\r\\n" if number % 2 else b"0" * 64 + b"\\n")
for line in lines:
    with contextlib.suppress(ConnectionError):
        assert not line.recv(1), "somebody speaks to who does not know the key"
print("none was taken")
"""
SMALL = '{"memory_mb": 256, "pids": 64, "disk_mb": 128}'


def attacks() -> list[str]:
    """The functions of the program that are marked as attacks."""
    return [
        node.name
        for node in ast.parse(PROGRAM.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.decorator_list
    ]


@pytest.fixture(scope="module")
def neighbour(host: Host) -> Iterator[Sandbox]:
    """A sandbox that must not notice anything."""
    made = host.create(timeout=600)
    made.files.write("/home/user/mine", "private")
    settle(made)
    yield made
    made.kill()


def settle(neighbour: Sandbox) -> None:
    """Let it hold what a program could look for."""
    neighbour.files.write("/home/user/beside.py", NEIGHBOUR.read_text())
    holding = neighbour.commands.run("python3 /home/user/beside.py", background=True, timeout=0)
    assert next(iter(holding))[0] == "ready\n"


def processes(host: Host, sandbox: Sandbox) -> str:
    """The numbers that the machine knows a sandbox's processes by."""
    found = [host.record(sandbox.sandbox_id)["init"]["pid"]]
    for pid in found:
        found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return " ".join(map(str, found))


@pytest.fixture(scope="module")
def attacker(host: Host) -> Iterator[Sandbox]:
    made = host.create(timeout=600)
    made.files.write("/home/user/inside.py", PROGRAM.read_text())
    yield made
    made.kill()


@pytest.fixture
def small(host: Host) -> Iterator[Sandbox]:
    """A sandbox with little of everything."""
    folder = host.data / "templates" / "small-attacker"
    folder.mkdir(exist_ok=True)
    (folder / "template.json").write_text(SMALL)
    made = host.create(template="small-attacker", timeout=600)
    made.files.write("/home/user/inside.py", PROGRAM.read_text())
    yield made
    made.kill()


@pytest.fixture(autouse=True)
def all_is_well(host: Host, neighbour: Sandbox) -> Iterator[None]:
    """After each attack: the host answers, the neighbour has what it had and works on."""
    yield
    assert httpx.get(f"{host.url}/health").json()["status"] == "ok"
    assert neighbour.files.read("/home/user/mine") == "private"
    assert [process.cmd for process in neighbour.commands.list()]
    assert neighbour.commands.run("echo alive", timeout=30).stdout == "alive\n"


@pytest.mark.parametrize("name", [name for name in attacks() if name not in BOMBS])
def test_an_attack_from_within_is_held(host: Host, attacker: Sandbox, neighbour: Sandbox, name: str) -> None:
    command = f"python3 /home/user/inside.py {name} {processes(host, neighbour)}"
    said = attacker.commands.run(command, timeout=60).stdout
    assert "ESCAPED" not in said, said
    assert said.splitlines()[-1].startswith("held: "), said
    assert attacker.is_running()


@pytest.fixture(scope="module")
def guarding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host whose sandboxes have a kernel of their own."""
    if shutil.which("runsc") is None or os.geteuid() != 0:
        pytest.skip("runsc is not installed, or this is not root")
    host = Host(tmp_path_factory.mktemp("gvisor") / "data", ("--backend", "gvisor"))
    yield host
    host.close()


@pytest.fixture(scope="module")
def beside(guarding: Host) -> Iterator[Sandbox]:
    made = guarding.create(timeout=600)
    settle(made)
    yield made
    assert made.commands.run("echo alive", timeout=30).stdout == "alive\n"


@pytest.fixture(scope="module")
def guarded(guarding: Host, beside: Sandbox) -> Sandbox:
    """An attacker behind a kernel of its own, with a neighbour."""
    made = guarding.create(timeout=600)
    made.files.write("/home/user/inside.py", PROGRAM.read_text())
    return made


@pytest.mark.parametrize(
    "name", [name for name in attacks() if name not in BOMBS | OF_ITS_OWN_KERNEL | {"control_socket"}]
)
def test_an_attack_from_within_gvisor_is_held(
    guarding: Host, guarded: Sandbox, beside: Sandbox, name: str
) -> None:
    command = f"python3 /home/user/inside.py {name} {processes(guarding, beside)}"
    said = guarded.commands.run(command, timeout=60).stdout
    assert "ESCAPED" not in said, said
    assert said.splitlines()[-1].startswith("held: "), said
    assert guarded.is_running()


def test_a_line_to_the_host_cannot_be_forged(guarded: Sandbox) -> None:
    """Whoever is inside may dial, as its daemon does; the host speaks only to who gives the key."""
    guarded.files.write("/home/user/forger.py", FORGER)
    assert guarded.commands.run("python3 forger.py", timeout=60).stdout == "none was taken\n"
    assert guarded.commands.run("echo alive", timeout=30).stdout == "alive\n"


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_a_bomb_goes_off_inside(host: Host, small: Sandbox, name: str) -> None:
    if not _limits(host)[{"shared_memory": "memory", "descriptors": "pids"}.get(name, "disk")]:
        pytest.skip("this machine does not let us limit what this attack uses up")
    try:
        said = small.commands.run(f"python3 /home/user/inside.py {name}", timeout=120).stdout
    except CommandExitException as ended:
        said = f"held: {ended.error} {ended.exit_code}"
    assert "ESCAPED" not in said, said
    eventually(lambda: small.commands.run("echo alive", timeout=30).stdout == "alive\n")


def test_a_full_disk_leaves_the_sandbox_usable(host: Host, small: Sandbox, neighbour: Sandbox) -> None:
    if not _limits(host)["disk"]:
        pytest.skip("this machine does not let us limit disks")
    with pytest.raises(CommandExitException, match="No space left"):
        small.commands.run("dd if=/dev/zero of=/home/user/bomb bs=1M count=1000")
    with pytest.raises(SandboxException):
        small.files.write("/home/user/more", "x" * 1_000_000)
    neighbour.files.write("/home/user/more", "x" * 1_000_000)
    small.commands.run("rm /home/user/bomb")
    small.files.write("/home/user/more", "x" * 1_000_000)
    assert len(small.files.read("/home/user/more")) == 1_000_000


@pytest.mark.parametrize(
    "name",
    ["../../../../../../tmp/ship-escape", "/proc/1/root/tmp/ship-escape", "/proc/self/root/tmp/ship-escape"],
)
def test_an_upload_cannot_leave_the_sandbox(attacker: Sandbox, name: str) -> None:
    attacker.files.write(name, "escaped")
    assert attacker.files.read("/tmp/ship-escape") == "escaped"
    assert not Path("/tmp/ship-escape").exists()
    attacker.files.remove("/tmp/ship-escape")


SWAP = """
import os, sys
while True:
    for target in sys.argv[1:]:
        os.symlink(target, "/tmp/race/new")
        os.replace("/tmp/race/new", "/tmp/race/dir")
"""


def test_a_link_that_is_swapped_during_transfers_leads_nowhere(attacker: Sandbox, tmp_path: Path) -> None:
    """The folder that it leads to is there inside and on the host, by the same name."""
    target = tmp_path / "of-the-host"
    target.write_text("untouched")
    attacker.files.write("/tmp/race/swap.py", SWAP)
    attacker.files.make_dir("/tmp/other")
    attacker.files.make_dir(str(tmp_path))
    swapping = attacker.commands.run(
        f"python3 /tmp/race/swap.py {tmp_path} /tmp/other", background=True, timeout=0
    )

    def both_were_written() -> bool:
        attacker.files.write("/tmp/race/dir/of-the-host", "swapped")
        return all(attacker.files.exists(f"{folder}/of-the-host") for folder in (tmp_path, "/tmp/other"))

    eventually(lambda: attacker.files.exists("/tmp/race/dir"))
    eventually(both_were_written)
    for _ in range(40):
        attacker.files.write("/tmp/race/dir/of-the-host", "swapped")
        assert attacker.files.read("/tmp/race/dir/of-the-host") == "swapped"
    swapping.kill()
    assert target.read_text() == "untouched"


def test_a_token_opens_one_sandbox_only(host: Host, attacker: Sandbox, neighbour: Sandbox) -> None:
    token = host.record(attacker.sandbox_id)["token"]
    fields = {"E2b-Sandbox-Id": neighbour.sandbox_id, "E2b-Sandbox-Port": "49983", "X-Access-Token": token}
    url = f"{host.url}/files?path=/home/user/mine"
    assert httpx.get(url, headers=fields).status_code == 401
    assert httpx.get(url, headers={**fields, "X-Access-Token": API_KEY}).status_code == 401
    assert httpx.delete(f"{host.url}/sandboxes/{neighbour.sandbox_id}", headers=fields).status_code == 401


@pytest.mark.parametrize("port", [3128, 3129, 3153])
def test_a_visitor_cannot_go_out_in_the_name_of_a_sandbox(host: Host, attacker: Sandbox, port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as inside:
        inside.settimeout(0.2)
        target = f"http://127.0.0.1:{inside.getsockname()[1]}/"
        for line in (f"GET {target}", "GET /", "CONNECT example.com:443"):
            answer = raw(host, f"{line} HTTP/1.1\r\nHost: {port}-{attacker.sandbox_id}.localhost\r\n\r\n")
            assert answer.split()[1] in {b"400", b"403"}, answer
        with pytest.raises(TimeoutError):
            inside.accept()


def test_a_port_of_a_sandbox_is_no_proxy(host: Host, attacker: Sandbox) -> None:
    answer = raw(host, f"GET http://x/ HTTP/1.1\r\nHost: 8000-{attacker.sandbox_id}.localhost\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")


def raw(host: Host, request: str) -> bytes:
    """The beginning of the answer to a request that no client library would send."""
    address = httpx.URL(host.url)
    with socket.create_connection((address.host, address.port or 80), 10) as connection:
        connection.sendall(request.encode())
        return connection.recv(4096)


def test_a_stranger_does_not_wake_a_paused_sandbox(host: Host) -> None:
    sleeper = host.create(lifecycle={"on_timeout": "pause", "auto_resume": True})
    sleeper.pause()
    fields = {"E2b-Sandbox-Id": sleeper.sandbox_id, "E2b-Sandbox-Port": "49983"}
    late = "path=/etc/passwd&signature_expiration=1&signature=v1_x"
    for path, token in (("/health", ""), ("/envs", "wrong"), (f"/files?{late}", "")):
        answer = httpx.get(f"{host.url}{path}", headers={**fields, "X-Access-Token": token})
        assert answer.status_code == 502
    assert sleeper.get_info().state == "paused"
    assert sleeper.commands.run("echo woken").stdout == "woken\n"
    sleeper.kill()


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/connect+json", b"\x00\xff\xff\xff\xff{}", 200),
        ("application/connect+json", b"\x00\x00\x00\x00\x05{{{{{", 200),
        ("application/connect+json", b"\x01\x00\x00\x00\x02{}", 200),
        ("application/connect+json", b"\x00\x00", 200),
        ("application/connect+json", b"", 200),
        ("application/json", b"{}", 415),
        ("text/plain", b"\x00" * 1000, 415),
    ],
    ids=["oversized", "not json", "compressed", "cut short", "empty", "unary type", "other type"],
)
def test_malformed_frames_are_refused(
    host: Host, attacker: Sandbox, content_type: str, body: bytes, status: int
) -> None:
    fields = {
        "E2b-Sandbox-Id": attacker.sandbox_id,
        "X-Access-Token": host.record(attacker.sandbox_id)["token"],
        "Content-Type": content_type,
    }
    answer = httpx.post(f"{host.url}/process.Process/Start", headers=fields, content=body)
    assert answer.status_code == status
    if status == 200:
        assert answer.content[0] == 2
        assert b'"error"' in answer.content


def test_nothing_of_the_host_is_in_the_environment(attacker: Sandbox) -> None:
    said = attacker.commands.run("env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'").stdout
    assert API_KEY not in said
    for name in os.environ:
        if name.startswith(("SHIP_", "SSH_", "PYTEST_")):
            assert name not in said


def test_processes_of_the_host_and_of_neighbours_are_out_of_reach(
    host: Host, attacker: Sandbox, neighbour: Sandbox
) -> None:
    first = host.record(neighbour.sandbox_id)["init"]["pid"]
    seen = attacker.commands.run("ls /proc | grep -E '^[0-9]+$' | wc -l").stdout
    assert int(seen) < 20
    script = f"for p in {first} {os.getpid()}; do kill -0 $p 2>/dev/null && cat /proc/$p/comm; done; true"
    assert attacker.commands.run(script).stdout == ""


def _limits(host: Host) -> dict[str, bool]:
    return {"memory": False, "pids": False, "disk": False, **httpx.get(f"{host.url}/health").json()["limits"]}


HOSTILE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/javascript\r\nService-Worker-Allowed: /\r\nSet-Cookie: a=b; Domain=localhost\r\n"
    b"Content-Disposition: inline\r\nContent-Security-Policy: default-src *\r\nAccess-Control-Allow-Origin: *\r\n"
    b"Refresh: 0; url=/\r\nContent-Range: bytes 0-3/9\r\nContent-Length: 4\r\n\r\nevil"
)


@pytest.fixture
def hostile(host: Host) -> Iterator[tuple[Sandbox, list[bytes]]]:
    """A sandbox whose tenant has made its daemon into a program of their own, and the answers that this one gives to all
    that comes."""
    made = host.create()
    answers = [HOSTILE]
    path = host.data / "sandboxes" / made.sandbox_id / "envd.sock"
    true = path.with_name("true.sock")
    path.rename(true)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(answers[-1])

        serving = threading.Thread(target=serve)
        serving.start()
        yield made, answers
        listener.shutdown(socket.SHUT_RDWR)
        serving.join()
    true.replace(path)
    made.kill()


def test_a_signed_url_gives_no_program_to_the_origin_of_the_api(
    host: Host, hostile: tuple[Sandbox, list[bytes]]
) -> None:
    url = hostile[0].download_url("/tmp/x")
    assert url.startswith(f"{host.url}/files?")
    answer = httpx.get(url)
    assert (answer.status_code, answer.content) == (200, b"evil")
    assert dict(answer.headers) == {
        "content-type": "application/octet-stream",
        "content-disposition": "attachment",
        "content-security-policy": "sandbox; default-src 'none'",
        "x-content-type-options": "nosniff",
        "content-range": "bytes 0-3/9",
        "content-length": "4",
    }
    for fields in ({"Service-Worker": "script"}, {"Connection": "Upgrade", "Upgrade": "websocket"}):
        refused = httpx.get(url, headers=fields)
        assert (refused.status_code, refused.headers["content-type"]) == (403, "application/json")


def test_a_sandbox_cannot_change_to_a_protocol_that_nobody_asked_for(
    host: Host, hostile: tuple[Sandbox, list[bytes]]
) -> None:
    hostile[1].append(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")
    assert httpx.get(hostile[0].download_url("/tmp/x")).status_code == 502
