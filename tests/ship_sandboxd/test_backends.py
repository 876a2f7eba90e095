"""What every backend must do, whatever it isolates sandboxes with: one suite, run on each that this machine has."""

import contextlib
import http.server
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import traces
from conftest import API_KEY, Host, eventually
from e2b import CommandExitException, FileType, Sandbox, SandboxException

from ship_sandboxd import durable
from ship_sandboxd.isolation.gvisor import GVisor

pytestmark = pytest.mark.system

COUNT = "i=0; while :; do i=$((i+1)); echo $i > /tmp/new; mv /tmp/new /tmp/count; sleep 0.1; done"
SERVER = """
import asyncio
async def main():
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 5000)
    open("/tmp/serving", "w").write("yes")
    await server.serve_forever()
asyncio.run(main())
"""


class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"hello from {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def upstream() -> Iterator[int]:
    """A server that sandboxes reach by a reserved name; answers its port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hello)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def host(backend: str, tmp_path_factory: pytest.TempPathFactory, upstream: int) -> Iterator[Host]:
    """A host of this backend, in place of the one that other modules share."""
    data = tmp_path_factory.mktemp(backend) / "data"
    small = data / "templates" / "small"
    small.mkdir(parents=True)
    (small / "template.json").write_text(json.dumps({"memory_mb": 512, "pids": 60}))
    host = Host(data, ("--backend", backend, "--upstream", f"tests.internal:80=127.0.0.1:{upstream}"))
    yield host
    host.close()


@pytest.fixture(scope="module")
def shared(host: Host) -> Iterator[Sandbox]:
    made = host.create(timeout=600, envs={"COLOUR": "green"})
    yield made
    made.kill()


def test_a_command_gives_its_output_and_its_exit_code(shared: Sandbox) -> None:
    with pytest.raises(CommandExitException) as raised:
        shared.commands.run("echo $COLOUR; echo err >&2; id -u; pwd; exit 7")
    assert (raised.value.stdout, raised.value.stderr) == ("green\n1000\n/home/user\n", "err\n")
    assert raised.value.exit_code == 7


def test_there_is_a_folder_in_memory_for_all_users(shared: Sandbox) -> None:
    seen = shared.commands.run(
        "echo x > /dev/shm/own; cat /dev/shm/own; stat -f -c %T /dev/shm; rm /dev/shm/own"
    )
    assert seen.stdout == "x\ntmpfs\n"


def test_files_are_written_and_read_on_both_sides(shared: Sandbox) -> None:
    content = os.urandom(3 * 1024 * 1024)
    shared.files.write("/workspace/a/data", content)
    copied = shared.commands.run(
        "cp /workspace/a/data /tmp/data; echo by command > /opt/own; sha256sum < /tmp/data"
    )
    assert len(copied.stdout.split()[0]) == 64
    assert bytes(shared.files.read("/tmp/data", format="bytes")) == content
    assert shared.files.read("/opt/own") == "by command\n"
    assert [(entry.name, entry.type) for entry in shared.files.list("/workspace")] == [("a", FileType.DIR)]


def test_input_signals_and_the_background(shared: Sandbox) -> None:
    fed = shared.commands.run("read line; echo got $line", background=True, stdin=True)
    fed.send_stdin("words\n")
    assert fed.wait().stdout == "got words\n"
    sleeping = shared.commands.run(
        "trap 'echo caught; exit 3' TERM; while :; do sleep 0.1; done", background=True
    )
    eventually(lambda: sleeping.pid in [process.pid for process in shared.commands.list()])
    shared.commands.run(f"sleep 0.3; kill -TERM {sleeping.pid}")
    with pytest.raises(CommandExitException) as raised:
        sleeping.wait()
    assert (raised.value.stdout, raised.value.exit_code) == ("caught\n", 3)
    endless = shared.commands.run("sleep 1000", background=True, timeout=0)
    assert endless.kill()
    eventually(lambda: endless.pid not in [process.pid for process in shared.commands.list()])


def test_the_way_out_is_the_proxy_and_keeps_to_the_rules(host: Host, shared: Sandbox) -> None:
    assert shared.commands.run("curl -sS http://tests.internal/path").stdout == "hello from /path"
    with pytest.raises(CommandExitException, match="403"):
        shared.commands.run("curl -sS -m 10 https://10.0.0.1/")
    with pytest.raises(CommandExitException):
        shared.commands.run("curl -sS -m 5 --noproxy '*' http://10.0.0.1/")
    eventually(lambda: "10.0.0.1" in host.log())


def test_a_port_is_reached_through_the_host(host: Host, shared: Sandbox) -> None:
    shared.commands.run(
        "cd /workspace && echo served > page && python3 -m http.server 4000", background=True, timeout=0
    )
    headers = {"E2b-Sandbox-Id": shared.sandbox_id, "E2b-Sandbox-Port": "4000"}
    answer = eventually(
        lambda: (got := httpx.get(f"{host.url}/page", headers=headers)).status_code == 200 and got, 20
    )
    assert answer.text == "served\n"


def test_what_is_outside_is_hidden_and_nothing_gives_privileges(host: Host, shared: Sandbox) -> None:
    secret = host.data.parent / "secret"
    secret.write_text("secret")
    other = host.create()
    other.files.write("/tmp/mine", "private")
    for path in (str(secret), str(host.data), "/etc/shadow", "/tmp/mine", "/run/ship-sandboxd"):
        with pytest.raises(CommandExitException):
            shared.commands.run(f"cat {path} || stat {path}")
    for command in ("touch /usr/x", "mount -t tmpfs none /mnt", "chown 0 /tmp/data", "mknod /tmp/null c 1 3"):
        with pytest.raises(CommandExitException):
            shared.commands.run(command)
    status = shared.commands.run("cat /proc/self/status").stdout
    assert "CapEff:\t0000000000000000" in status
    assert "CapBnd:\t0000000000000000" in status
    for process in ("init", "monitor"):
        outside = Path(f"/proc/{host.record(shared.sandbox_id)[process]['pid']}/status").read_text()
        assert os.geteuid() != 0 or "\nUid:\t0\t" not in outside
    other.kill()


def test_a_fork_bomb_and_a_memory_bomb_leave_the_neighbours_well(host: Host, shared: Sandbox) -> None:
    forks, memory = host.create(template="small"), host.create(template="small")
    bomb = "for i in $(seq 200); do sleep 30 & done; wait"
    forks.commands.run(bomb, background=True, timeout=0)
    with pytest.raises(SandboxException):
        memory.commands.run("python3 -c 'x = bytearray(900 * 1024 * 1024)'")
    assert shared.commands.run("echo well").stdout == "well\n"
    listed = forks.commands.list()
    assert [process.cmd for process in listed] == ["/bin/bash"]
    forks.kill()
    if memory.is_running():
        memory.kill()


def test_a_command_outlives_the_host_and_its_output_is_not_lost(host: Host, shared: Sandbox) -> None:
    handle = shared.commands.run(
        "for i in $(seq 1 60); do echo line $i; sleep 0.05; done", background=True, timeout=0
    )
    assert next(iter(handle))[0] == "line 1\n"
    host.restart(kill=True)
    again = Sandbox.connect(shared.sandbox_id, **host.options_of_sdk)
    assert again.commands.connect(handle.pid).wait().stdout == "".join(f"line {n}\n" for n in range(1, 61))
    assert again.commands.run("curl -sS http://tests.internal/again").stdout == "hello from /again"


def test_a_paused_sandbox_goes_on_with_its_processes(host: Host) -> None:
    sandbox = host.create()
    counting = sandbox.commands.run(COUNT, background=True, timeout=0)
    boot_id = _boot_id(sandbox)
    sandbox.pause()
    assert _told(host, sandbox) == ("paused", True)
    host.restart(kill=True)
    again = Sandbox.connect(sandbox.sandbox_id, **host.options_of_sdk)
    assert _told(host, sandbox) == ("running", True)
    assert counting.pid in [process.pid for process in again.commands.list()]
    assert _boot_id(again) == boot_id != Path("/proc/sys/kernel/random/boot_id").read_text()
    _goes_on(again)
    again.kill()


def test_one_that_is_paused_without_memory_keeps_its_files(host: Host) -> None:
    sandbox = host.create()
    sandbox.commands.run("echo kept > /workspace/a; echo kept > /tmp/b; echo kept > /opt/c")
    sandbox.commands.run("sleep 1000", background=True, timeout=0)
    boot_id = _boot_id(sandbox)
    sandbox.pause(keep_memory=False)
    assert host.record(sandbox.sandbox_id)["init"] is None
    again = Sandbox.connect(sandbox.sandbox_id, **host.options_of_sdk)
    assert _told(host, sandbox) == ("running", False)
    assert again.commands.list() == []
    assert _boot_id(again) != boot_id
    assert again.commands.run("cat /workspace/a /tmp/b /opt/c").stdout == "kept\n" * 3
    again.kill()


def test_a_snapshot_holds_what_was_written_last(host: Host) -> None:
    sandbox = host.create()
    sandbox.commands.run("sleep 1000", background=True, timeout=0)
    sandbox.commands.run("mkdir /opt/d; for i in $(seq 50); do echo $i > /opt/d/$i; done; rm -r /srv")
    snapshot = sandbox.create_snapshot()
    assert len(sandbox.commands.list()) == 1
    sandbox.commands.run("rm -r /opt/d")
    copy = host.create(template=snapshot.snapshot_id)
    assert (
        copy.commands.run("cat /opt/d/* | wc -l; cat /opt/d/50; test -e /srv || echo gone").stdout
        == "50\n50\ngone\n"
    )
    for made in (sandbox, copy):
        made.kill()


@pytest.mark.parametrize("with_server", [False, True], ids=["calm", "serving"])
def test_a_parked_sandbox_says_whether_its_memory_came_back(
    backend: str, own_host: Callable[..., Host], with_server: bool
) -> None:
    host = own_host("--backend", backend, "--park-after", "0.2")
    sandbox = host.create()
    counting = sandbox.commands.run(COUNT, background=True, timeout=0)
    if with_server:
        # Some kernels in user space cannot save a server that waits like this.
        sandbox.commands.run(f"python3 -c '{SERVER}'", background=True, timeout=0)
        eventually(lambda: sandbox.commands.run("cat /tmp/serving || true").stdout)
    eventually(lambda: sandbox.commands.run("cat /tmp/count || true").stdout)
    boot_id = _boot_id(sandbox)
    sandbox.pause()
    eventually(lambda: host.record(sandbox.sandbox_id)["init"] is None, 30)
    host.stop(kill=True)
    for leftover in ("memory.taken", "memory.new"):  # as a host leaves them that dies at a bad moment
        (host.data / "sandboxes" / sandbox.sandbox_id / leftover).mkdir()
        (host.data / "sandboxes" / sandbox.sandbox_id / leftover / "checkpoint.img").touch()
    host.start()
    again = Sandbox.connect(sandbox.sandbox_id, **host.options_of_sdk)
    state, memory_kept = _told(host, sandbox)
    assert state == "running"
    if not with_server:
        assert memory_kept == (backend == "gvisor")
    assert (counting.pid in [process.pid for process in again.commands.list()]) == memory_kept
    assert int(again.commands.run("cat /tmp/count").stdout) > 0
    assert (_boot_id(again) == boot_id) == memory_kept
    if memory_kept:
        _goes_on(again)


def test_a_request_to_one_that_is_being_parked_is_served_with_its_memory(
    backend: str, own_host: Callable[..., Host]
) -> None:
    if backend != "gvisor":
        pytest.skip("parking takes time only where memory is written out")
    host = own_host("--backend", backend, "--park-after", "0.1")
    sandbox = host.create(lifecycle={"on_timeout": "pause", "auto_resume": True})
    counting = sandbox.commands.run(COUNT, background=True, timeout=0)
    sandbox.pause()
    written = host.data / "sandboxes" / sandbox.sandbox_id / "memory.new"
    eventually(lambda: written.exists() or host.record(sandbox.sandbox_id)["init"] is None)
    assert counting.pid in [process.pid for process in sandbox.commands.list()]
    assert _told(host, sandbox) == ("running", True)


def test_nothing_is_left_of_a_sandbox(host: Host) -> None:
    sandbox = host.create()
    record = host.record(sandbox.sandbox_id)
    sandbox.commands.run("setsid sleep 1000 > /dev/null & sleep 0.1")
    sandbox.kill()
    assert not sandbox.is_running()
    eventually(lambda: not any(_alive(record[name]["pid"]) for name in ("init", "monitor")))
    assert not [folder for folder in record["cgroups"] if Path(folder).exists()]
    eventually(lambda: not list((host.data / "trash").iterdir()))
    _all_end({sandbox.sandbox_id})
    assert not [line for line in Path("/proc/mounts").read_text().splitlines() if str(host.data) in line]


def test_sandboxes_that_end_leave_the_host_no_descriptors(host: Host) -> None:
    assert host.process is not None
    pid = host.process.pid
    host.create().kill()
    before = traces.descriptors(pid)
    for _ in range(4):
        host.create().kill()
    eventually(lambda: traces.descriptors(pid) <= before + 2)  # connections of clients that stay open


def test_a_host_that_dies_while_it_makes_a_sandbox_leaves_nothing(
    backend: str, own_host: Callable[..., Host]
) -> None:
    host = own_host("--backend", backend)
    chance = random.Random(7)
    for _ in range(3):
        asking = threading.Thread(target=_ask, args=(host,))
        asking.start()
        names = eventually(lambda: {folder.name for folder in (host.data / "sandboxes").iterdir()})
        time.sleep(chance.uniform(0, 0.6))  # the moment is what the test varies
        host.stop(kill=True)
        asking.join()
        groups = [group for name in names for group in host.record(name)["cgroups"]]
        host.start()
        kept = {folder.name for folder in (host.data / "sandboxes").iterdir()}
        _all_end(names - kept)
        for name in kept:
            sandbox = Sandbox.connect(name, **host.options_of_sdk)
            assert sandbox.commands.run("echo whole", timeout=60).stdout == "whole\n"
            sandbox.kill()
        _all_end(names)
        assert not [group for group in groups if Path(group).exists()]


def test_a_sandbox_that_dies_is_noticed(host: Host) -> None:
    sandbox = host.create()
    os.kill(host.record(sandbox.sandbox_id)["init"]["pid"], signal.SIGKILL)
    eventually(lambda: not sandbox.is_running())
    eventually(lambda: not (host.data / "sandboxes" / sandbox.sandbox_id).exists())


@pytest.mark.parametrize("on_timeout", ["kill", "pause"])
def test_one_whose_first_process_memory_ended_says_so(host: Host, backend: str, on_timeout: str) -> None:
    if not httpx.get(f"{host.url}/health").json()["limits"]["memory"]:
        pytest.skip("this machine cannot limit memory")
    sandbox = host.create(template="small", lifecycle={"on_timeout": on_timeout})
    shortages = _shortages(host, backend)
    hog = sandbox.commands.run(
        "exec python3 -c 'input(); bytearray(900 * 1024 * 1024)'", background=True, stdin=True, timeout=0
    )
    if backend == "bubblewrap":
        _prefer_the_first_as_victim(host.record(sandbox.sandbox_id))
    hog.send_stdin("go\n")
    with pytest.raises(SandboxException, match="the sandbox ran out of memory"):
        hog.wait()
    with pytest.raises(SandboxException, match="not found: it ran out of memory"):
        sandbox.commands.run("true")
    assert _shortages(host, backend) > shortages
    headers = {"X-API-KEY": API_KEY}
    log = httpx.get(f"{host.url}/v2/sandboxes/{sandbox.sandbox_id}/logs", headers=headers)
    if on_timeout == "kill":
        assert "not found: it ran out of memory" in log.json()["message"]
        told = [line for line in host.log().splitlines() if sandbox.sandbox_id in line]
        assert '"sandbox ended: it ran out of memory"' in told[-1]
        assert '"code": "out_of_memory"' in told[-1]
        return
    eventually(lambda: host.record(sandbox.sandbox_id)["init"] is None)
    log = httpx.get(f"{host.url}/v2/sandboxes/{sandbox.sandbox_id}/logs", headers=headers)
    told_fields = [entry["fields"] for entry in log.json()["logs"]]
    assert "out_of_memory" in [fields.get("code") for fields in told_fields]
    assert told_fields[-1]["reason"] == "it ran out of memory"
    again = Sandbox.connect(sandbox.sandbox_id, **host.options_of_sdk)
    assert again.commands.run("echo well").stdout == "well\n"
    again.pause(keep_memory=False)
    with pytest.raises(SandboxException) as raised:
        again.commands.run("true")
    assert "memory" not in str(raised.value)
    again.kill()


def test_one_that_cannot_start_for_want_of_memory_says_so(host: Host, backend: str) -> None:
    if not httpx.get(f"{host.url}/health").json()["limits"]["memory"]:
        pytest.skip("this machine cannot limit memory")
    greedy = "python3 -c 'bytearray(900 * 1024 * 1024)'"
    limits = {"memory_mb": 512, "start_command": greedy, "ready_command": "false"}
    for name, content in {"tiny": {"memory_mb": 4}, "greedy": limits}.items():
        (host.data / "templates" / name).mkdir()
        (host.data / "templates" / name / "template.json").write_text(json.dumps(content))
    with pytest.raises(SandboxException, match=r"ran out of memory|exit status 137: out of memory"):
        host.create(template="greedy")
    if backend == "gvisor":  # the other's processes may be there before they have so little
        with pytest.raises(SandboxException, match="4 MB are not enough memory to start in"):
            host.create(template="tiny")


def _shortages(host: Host, backend: str) -> float:
    text = httpx.get(f"{host.url}/metrics", headers={"X-API-KEY": API_KEY}).text
    found = text.partition(f'memory_shortages_total{{backend="{backend}"}} ')[2].split()
    return float(found[0]) if found else 0.0


def _prefer_the_first_as_victim(record: dict[str, Any]) -> None:
    """Let the kernel choose the daemon when the sandbox's memory runs out."""
    (group,) = (Path(folder) for folder in record["cgroups"] if Path(folder, "memory.stat").exists())
    first = record["init"]["pid"]
    for pid in map(int, (group / "cgroup.procs").read_text().split()):
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000" if pid == first else "0")


def _ask(host: Host) -> None:
    with contextlib.suppress(httpx.HTTPError):  # the host dies meanwhile
        httpx.post(f"{host.url}/v2/sandboxes", json={"templateID": "base"}, headers={"X-API-KEY": API_KEY})


def _told(host: Host, sandbox: Sandbox) -> tuple[str, bool]:
    """The state of a sandbox, and whether its memory is kept."""
    answer = httpx.get(f"{host.url}/sandboxes/{sandbox.sandbox_id}", headers={"X-API-KEY": API_KEY}).json()
    return answer["state"], answer["memoryKept"]


def _boot_id(sandbox: Sandbox) -> str:
    return sandbox.commands.run("cat /proc/sys/kernel/random/boot_id").stdout


def _goes_on(sandbox: Sandbox) -> None:
    before = int(sandbox.commands.run("cat /tmp/count").stdout)
    eventually(lambda: int(sandbox.commands.run("cat /tmp/count").stdout) > before)


def _all_end(names: set[str]) -> None:
    """Wait until no process is left that has to do with these sandboxes, the removal of their folders included."""
    eventually(lambda: _processes_of(names) == [])


def _processes_of(names: set[str]) -> list[str]:
    """The command lines that one of the names is in, be it in a path."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            words = path.read_text(errors="replace")
            if any(name in words for name in names):
                found.append(words)
    return found


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


async def test_memory_is_kept_once_all_that_it_goes_with_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is restored on the disk that it knows, and speaks to whoever has the key that it knows."""
    program = tmp_path / "runsc"
    program.write_text(
        "#!/bin/bash\nfor word; do case $word in --image-path=*) mkdir ${word#*=}; echo > ${word#*=}/image;; esac; done\n"
    )
    program.chmod(0o755)
    folder = tmp_path / "sandbox"
    (folder / "boot").mkdir(parents=True)
    for name in ("link.key", "disk.img", "boot/boot_id"):
        (folder / name).touch()
    synced = set()

    def note(path: Path) -> None:
        assert not (folder / "memory").exists()
        synced.add(path.name)

    monkeypatch.setattr(durable, "sync", note)

    async def comply(*_: object) -> None:
        pass

    async def sync_disk(folder: Path) -> None:
        note(folder / "what the sandbox has written")

    roots: Any = SimpleNamespace(disks=SimpleNamespace(sync=sync_disk))
    forks: Any = None
    backend = GVisor(str(program), forks, roots, tmp_path, freezes=True, redirects=False)
    line: Any = SimpleNamespace(hang_up=comply, close=comply)
    backend._lines["sandbox"] = line
    await backend.checkpoint(folder, "token", [])
    assert (folder / "memory" / "image").exists()
    assert synced >= {"image", "link.key", "boot_id", "what the sandbox has written"}
