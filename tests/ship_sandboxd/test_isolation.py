"""What a sandbox must not see or do."""

import os
import socket
import threading
from pathlib import Path

import httpx
import pytest
from conftest import Host, eventually
from e2b import CommandExitException, Sandbox, SandboxException

pytestmark = pytest.mark.system


def failing(sandbox: Sandbox, command: str) -> str:
    """What a command that must fail says."""
    with pytest.raises(CommandExitException) as raised:
        sandbox.commands.run(command)
    return raised.value.stdout + raised.value.stderr


def test_the_files_of_the_host_are_hidden(host: Host, shared: Sandbox) -> None:
    secret = host.data.parent / "host-secret"
    secret.write_text("secret")
    for path in ("/root", "/etc/shadow", str(host.data), str(secret), "/sys", "/boot", "/run/ship-sandboxd"):
        assert shared.commands.run(f"ls -A {path} 2>/dev/null || true").stdout == "", path
    assert "Read-only" in failing(shared, "touch /usr/x")
    assert "Read-only" in failing(shared, "touch /etc/ssl/x")
    assert "ead-only" in failing(shared, "echo x > /proc/sys/kernel/core_pattern")
    failing(shared, "cat /proc/1/environ")


def test_two_sandboxes_do_not_see_each_other(host: Host, shared: Sandbox) -> None:
    other = host.create()
    other.files.write("/workspace/mine", "private")
    other.files.write("/tmp/mine", "private")
    other.commands.run(
        "python3 -c 'import socket,time; s=socket.socket(socket.AF_UNIX); s.bind(\"\\0abstract\"); time.sleep(999)'",
        background=True,
    )
    server = other.commands.run("python3 -m http.server 4000", background=True, timeout=0)
    eventually(lambda: ":0FA0" in other.commands.run("cat /proc/net/tcp").stdout)
    assert shared.commands.run("ls -A /workspace/mine /tmp/mine 2>/dev/null | wc -l").stdout == "0\n"
    assert f" {server.pid} " not in shared.commands.run("ps -eo pid,args | grep [h]ttp.server || true").stdout
    assert "abstract" not in shared.commands.run("cat /proc/net/unix").stdout
    failing(shared, "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 4000), 2)'")
    assert host.record(other.sandbox_id)["uid"] != host.record(shared.sandbox_id)["uid"] or os.geteuid() != 0
    other.kill()


def test_a_sandbox_runs_under_a_uid_of_its_own(host: Host, shared: Sandbox) -> None:
    if os.geteuid() != 0:
        pytest.skip("only a host that is root gives each sandbox a uid")
    record = host.record(shared.sandbox_id)
    status = Path(f"/proc/{record['init']['pid']}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == [str(record["uid"])] * 4
    assert record["uid"] >= 200_000
    assert {fields[name].strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {""}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")


def test_there_is_no_network_but_loopback(shared: Sandbox) -> None:
    interfaces = shared.commands.run("cut -d: -f1 /proc/net/dev | tail -n +3").stdout.split()
    assert interfaces == ["lo"]
    failing(shared, "python3 -c 'import socket; socket.create_connection((\"2606:4700::1111\", 53), 2)'")


def test_the_loopback_of_the_host_is_out_of_reach(shared: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        failing(shared, f"python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", {port}), 2)'")
        for name in ("127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433", "[::ffff:127.0.0.1]"):
            status = shared.commands.run(
                f"curl -s -o /dev/null -w '%{{http_code}}' --noproxy '' http://{name}:{port}/"
            ).stdout
            assert status in {"403", "502"}, name


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.socket(40, socket.SOCK_STREAM)",
        "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        "import ctypes; l=ctypes.CDLL(None,use_errno=True); raise SystemExit(l.unshare(0x10000000) != 0)",
        "import ctypes; l=ctypes.CDLL(None,use_errno=True); raise SystemExit(l.mount(b'x',b'/tmp',b'tmpfs',0,None) != 0)",
        "import ctypes; l=ctypes.CDLL(None,use_errno=True); raise SystemExit(l.syscall(321,0,0,0) != 0)",
        "import ctypes; l=ctypes.CDLL(None,use_errno=True); raise SystemExit(l.syscall(250,0,0,0) != 0)",
        "import fcntl, os; m,s=os.openpty(); fcntl.ioctl(s, 0x5412, b'x')",
        "import os; os.setuid(0)",
    ],
    ids=["vsock", "packet", "user namespace", "mount", "bpf", "keyctl", "terminal injection", "root"],
)
def test_dangerous_calls_are_denied(shared: Sandbox, code: str) -> None:
    failing(shared, f'python3 -c "{code}"')


def test_a_memory_bomb_ends_inside(host: Host) -> None:
    if not _limited(host, "memory"):
        pytest.skip("this machine does not let us limit memory")
    _template(host, "small", '{"memory_mb": 128}')
    sandbox = host.create(template="small")
    with pytest.raises(CommandExitException) as raised:
        sandbox.commands.run("python3 -c 'x = bytearray(600 * 1024 * 1024)'")
    assert raised.value.exit_code in {-1, 137}
    assert "out of memory" in (raised.value.error or "")
    log = (host.data / "sandboxes" / sandbox.sandbox_id / "log.jsonl").read_text()
    assert '"code": "out_of_memory"' in log
    assert sandbox.commands.run("echo alive").stdout == "alive\n"
    sandbox.kill()


def test_a_fork_bomb_ends_inside(host: Host) -> None:
    _template(host, "few", '{"pids": 64}')
    sandbox = host.create(template="few")
    handle = sandbox.commands.run("bomb() { bomb | bomb & }; bomb; sleep 1000", background=True)
    eventually(lambda: _is_full(sandbox))
    handle.kill()
    eventually(lambda: not _is_full(sandbox))
    assert sandbox.commands.run("echo alive").stdout == "alive\n"
    sandbox.kill()


def _is_full(sandbox: Sandbox) -> bool:
    try:
        sandbox.commands.run("true", timeout=2)
    except SandboxException:
        return True
    return False


def test_many_requests_at_once_are_served(shared: Sandbox) -> None:
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: results.append(shared.commands.run(f"echo {n}").stdout))
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(results) == sorted(f"{n}\n" for n in range(20))


def _limited(host: Host, controller: str) -> bool:
    return bool(httpx.get(f"{host.url}/health").json()["limits"][controller])


def _template(host: Host, name: str, text: str) -> None:
    folder = host.data / "templates" / name
    folder.mkdir(exist_ok=True)
    (folder / "template.json").write_text(text)
