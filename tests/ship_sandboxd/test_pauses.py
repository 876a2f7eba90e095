"""Pausing and resuming: frozen, parked, by hand, by timeout, by a request, and over a kill of the host."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import API_KEY, Host, eventually
from e2b import Sandbox, SandboxException, SandboxQuery, SandboxState

from ship_sandboxd.edge.front import ENVD_PORT, Front, Target
from ship_sandboxd.envd.http1 import Exchange, Headers, Request
from ship_sandboxd.lifecycle import sandbox as sandbox_module
from ship_sandboxd.lifecycle.records import PAUSED, RUNNING, SandboxRecord
from ship_sandboxd.moments import Moment
from ship_sandboxd.templates import Template

pytestmark = pytest.mark.system

MakeHost = Callable[..., Host]
COUNT = "i=0; while true; do i=$((i+1)); echo $i > /tmp/count; sleep 0.01; done"


def rest(host: Host, method: str, path: str, **body: Any) -> httpx.Response:
    with httpx.Client(base_url=host.url, headers={"X-API-KEY": API_KEY}) as client:
        return client.request(method, path, **({"json": body} if method == "POST" else {}))


def details(host: Host, sandbox: Sandbox) -> dict[str, Any]:
    answer: dict[str, Any] = rest(host, "GET", f"/sandboxes/{sandbox.sandbox_id}").json()
    return answer


def boot_id(sandbox: Sandbox) -> str:
    return sandbox.files.read("/proc/sys/kernel/random/boot_id").strip()


def events(host: Host, sandbox: Sandbox) -> list[str]:
    folder = host.data / "sandboxes" / sandbox.sandbox_id
    return [json.loads(line)["event"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_frozen_sandbox_stands_still_and_goes_on_where_it_was(host: Host, sandbox: Sandbox) -> None:
    handle = sandbox.commands.run(COUNT, background=True, timeout=0)
    eventually(lambda: sandbox.files.exists("/tmp/count"))
    before = boot_id(sandbox)
    assert sandbox.pause() is True
    assert not sandbox.is_running()
    assert sandbox.pause() is False
    told = details(host, sandbox)
    assert (told["state"], told["memoryKept"]) == ("paused", True)
    processes = _processes(host, sandbox)
    assert processes
    used = [_cpu_ticks(pid) for pid in processes]
    time.sleep(0.2)
    assert [_cpu_ticks(pid) for pid in processes] == used
    again = sandbox.connect()
    assert again.is_running()
    assert boot_id(again) == before
    assert handle.pid in [process.pid for process in again.commands.list()]
    count = eventually(lambda: int(again.files.read("/tmp/count") or 0))
    eventually(lambda: int(again.files.read("/tmp/count") or 0) > count)
    told = details(host, sandbox)
    assert (told["state"], told["memoryKept"]) == ("running", True)


def test_what_a_paused_sandbox_has_written_comes_to_its_disk(host: Host, sandbox: Sandbox) -> None:
    """The kernel by itself would let it lie in memory for half a minute; a power cut must not take it."""
    image = host.data / "sandboxes" / sandbox.sandbox_id / "disk.img"
    if not image.exists():
        pytest.skip("this machine's sandboxes have no disks of their own")
    mark = os.urandom(32).hex()
    sandbox.files.write("/home/user/marked.txt", mark)
    assert not _holds(image, mark)
    sandbox.pause()
    eventually(lambda: _holds(image, mark), 4)
    sandbox.connect()


def _holds(image: Path, mark: str) -> bool:
    """Whether it stands in a part of the image that was ever written."""
    with image.open("rb", buffering=0) as file:
        end = 0
        while True:
            try:
                begin = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                return False  # there is no more
            end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            if mark.encode() in os.pread(file.fileno(), end - begin, begin):
                return True


def _processes(host: Host, sandbox: Sandbox) -> list[int]:
    """The pids on this machine of what runs in a sandbox."""
    init = host.record(sandbox.sandbox_id)["init"]["pid"]
    listing = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    for line in listing.splitlines()[1:]:
        pid, parent = map(int, line.split())
        children.setdefault(parent, []).append(pid)
    found, left = [], [init]
    while left:
        found.append(left.pop())
        left += children.get(found[-1], [])
    return found


def _lives(pid: int) -> bool:
    """Whether it is more than what is left of a process until its parent looks at it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_output_that_came_before_the_pause_is_not_lost(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run(
        "for i in $(seq 1 300); do echo line $i; sleep 0.005; done", background=True, timeout=0
    )
    assert next(iter(handle))[0].startswith("line 1\n")
    sandbox.pause()
    again = sandbox.connect()
    result = again.commands.connect(handle.pid).wait()
    assert result.stdout == "".join(f"line {number}\n" for number in range(1, 301))


def test_a_pause_does_not_use_up_the_time_of_a_command(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run(
        "for i in $(seq 1 8); do sleep 0.1; done; echo done", background=True, timeout=3
    )
    sandbox.pause()
    over = time.monotonic() + 4.5
    eventually(lambda: time.monotonic() > over)
    result = sandbox.connect().commands.connect(handle.pid).wait()
    assert (result.stdout, result.exit_code) == ("done\n", 0)


def test_a_pause_without_memory_keeps_the_files_and_says_so(host: Host, sandbox: Sandbox) -> None:
    sandbox.files.write("/home/user/kept.txt", "kept")
    sandbox.commands.run("sleep 1000", background=True, timeout=0)
    before, record = boot_id(sandbox), host.record(sandbox.sandbox_id)
    assert sandbox.pause(keep_memory=False)
    parked = host.record(sandbox.sandbox_id)
    assert parked["init"] is None
    assert not any(Path(folder).exists() for folder in record["cgroups"])
    assert details(host, sandbox)["memoryKept"] is False
    again = sandbox.connect()
    assert again.files.read("/home/user/kept.txt") == "kept"
    assert boot_id(again) != before
    assert again.commands.list() == []
    resumed = host.record(sandbox.sandbox_id)
    assert (resumed["uid"], resumed["token"]) == (record["uid"], record["token"])
    told = details(host, sandbox)
    assert (told["state"], told["memoryKept"]) == ("running", False)
    assert "sandbox resumed without its memory: its processes are new" in events(host, sandbox)


def test_the_environment_is_there_again_after_a_resume_without_memory(host: Host) -> None:
    sandbox = host.create(envs={"COLOUR": "blue"})
    sandbox.pause(keep_memory=False)
    assert sandbox.connect().commands.run("echo $COLOUR $E2B_SANDBOX_ID").stdout == (
        f"blue {sandbox.sandbox_id}\n"
    )
    sandbox.kill()


def test_what_is_paused_for_long_is_parked(own_host: MakeHost) -> None:
    host = own_host("--park-after", "0.3")
    sandbox = host.create()
    sandbox.pause()
    assert host.record(sandbox.sandbox_id)["init"] is not None
    eventually(lambda: host.record(sandbox.sandbox_id)["init"] is None)
    told = details(host, sandbox)
    assert (told["state"], told["memoryKept"]) == ("paused", False)
    assert sandbox.connect().commands.run("echo back").stdout == "back\n"


def test_a_timeout_can_pause_and_a_request_can_resume(own_host: MakeHost) -> None:
    host = own_host()
    sandbox = host.create(timeout=60, lifecycle={"on_timeout": "pause", "auto_resume": True})
    asleep = host.create(timeout=60, lifecycle={"on_timeout": "pause", "auto_resume": False})
    told = details(host, sandbox)["lifecycle"]
    assert told == {"autoResume": True, "onTimeout": "pause"}
    sandbox.commands.run("python3 -m http.server 8000", background=True, timeout=0)
    for one in (sandbox, asleep):
        one.set_timeout(1)
    for one in (sandbox, asleep):
        eventually(lambda one=one: one.get_info().state == SandboxState.PAUSED)
    assert not asleep.is_running()
    answer = httpx.get(
        host.url, headers={"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8000"}, timeout=15
    )
    assert answer.status_code == 200
    assert sandbox.get_info().state == SandboxState.RUNNING
    assert asleep.get_info().state == SandboxState.PAUSED
    assert asleep.connect(timeout=60).is_running()


ECHO = """
import asyncio
async def serve(reader, writer):
    head = await reader.readuntil(b"\\r\\n\\r\\n")
    writer.write(b"HTTP/1.1 101 Switching Protocols\\r\\nConnection: Upgrade\\r\\nUpgrade: echo\\r\\n\\r\\n")
    while data := await reader.read(100):
        writer.write(data.upper())
    writer.close()
async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", 8000) as server:
        await server.serve_forever()
asyncio.run(main())
"""


@pytest.fixture
def sleeper(host: Host) -> Iterator[Sandbox]:
    """A sandbox that a request wakes; a server of it waits on port 8000."""
    made = host.create(lifecycle={"on_timeout": "pause", "auto_resume": True})
    made.files.write("/tmp/echo.py", ECHO)
    made.commands.run("python3 /tmp/echo.py", background=True, timeout=0)
    made.commands.run("until (: < /dev/tcp/127.0.0.1/8000) 2>/dev/null; do sleep 0.02; done")
    yield made
    with contextlib.suppress(SandboxException):
        made.kill()


def test_many_requests_at_once_wake_a_sandbox_once_and_all_are_served(host: Host, sleeper: Sandbox) -> None:
    sleeper.pause()
    fields = {
        "E2b-Sandbox-Id": sleeper.sandbox_id,
        "X-Access-Token": host.record(sleeper.sandbox_id)["token"],
    }
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(httpx.get, f"{host.url}/envs", headers=fields) for _ in range(8)]
    assert [answer.result().status_code for answer in asked] == [200] * 8
    assert events(host, sleeper).count("sandbox resumed") == 1


def test_an_upgrade_wakes_a_sandbox(host: Host, sleeper: Sandbox) -> None:
    sleeper.pause()
    with _asked(
        host,
        f"GET / HTTP/1.1\r\nHost: 8000-{sleeper.sandbox_id}.localhost",
        "Connection: Upgrade",
        "Upgrade: echo",
    ) as visit:
        assert visit.recv(1000).startswith(b"HTTP/1.1 101 ")
        visit.sendall(b"words")
        assert visit.recv(1000) == b"WORDS"


def test_a_request_that_waits_to_send_its_body_wakes_a_sandbox(host: Host, sleeper: Sandbox) -> None:
    sleeper.pause()
    token = host.record(sleeper.sandbox_id)["token"]
    with _asked(
        host,
        f"POST /files?path=/tmp/late HTTP/1.1\r\nHost: 49983-{sleeper.sandbox_id}.localhost",
        f"X-Access-Token: {token}",
        "Content-Type: application/octet-stream",
        "Content-Length: 5",
        "Expect: 100-continue",
    ) as upload:
        assert upload.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        upload.sendall(b"words")
        assert upload.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert sleeper.files.read("/tmp/late") == "words"


def test_a_request_to_a_sandbox_that_is_being_ended_is_answered(host: Host, sleeper: Sandbox) -> None:
    fields = {
        "E2b-Sandbox-Id": sleeper.sandbox_id,
        "X-Access-Token": host.record(sleeper.sandbox_id)["token"],
    }
    sleeper.pause()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(httpx.get, f"{host.url}/envs", headers=fields) for _ in range(6)]
        assert pool.submit(sleeper.kill).result()
        asked += [pool.submit(httpx.get, f"{host.url}/envs", headers=fields) for _ in range(2)]
    for request in asked:
        error = request.exception()
        # One that was at its answer when the sandbox ended is broken off.
        assert error is None or isinstance(error, httpx.TransportError)
        if error is None and request.result().status_code != 200:
            assert request.result().status_code == 502
            assert request.result().json()["message"] == "The sandbox was not found"
    assert asked[-1].result().status_code == 502
    assert not (host.data / "sandboxes" / sleeper.sandbox_id).exists()


def _asked(host: Host, *lines: str) -> socket.socket:
    """A connection to the host on which the head of a request was sent."""
    address = httpx.URL(host.url)
    connection = socket.create_connection((address.host, address.port or 80), 10)
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    return connection


def test_a_stranger_without_the_traffic_token_wakes_nobody(own_host: MakeHost) -> None:
    host = own_host()
    sandbox = host.create(
        timeout=60,
        lifecycle={"on_timeout": "pause", "auto_resume": True},
        network={"allow_public_traffic": False},
    )
    sandbox.pause()
    answer = httpx.get(host.url, headers={"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8000"})
    assert answer.status_code == 403
    assert sandbox.get_info().state == SandboxState.PAUSED


def test_a_timeout_that_pauses_without_memory_starts_anew(host: Host) -> None:
    sandbox = host.create(
        timeout=60, lifecycle={"on_timeout": {"action": "pause", "keep_memory": False}, "auto_resume": False}
    )
    before = boot_id(sandbox)
    sandbox.set_timeout(1)
    eventually(lambda: sandbox.get_info().state == SandboxState.PAUSED)
    assert boot_id(sandbox.connect(timeout=60)) != before
    sandbox.kill()


def test_paused_sandboxes_are_listed_do_not_expire_and_can_be_killed(host: Host) -> None:
    sandbox = host.create(metadata={"test": "listed"})
    sandbox.set_timeout(1)
    sandbox.pause()

    def listed(*states: SandboxState) -> list[str]:
        query = SandboxQuery(metadata={"test": "listed"}, state=list(states))
        return [item.sandbox_id for item in Sandbox.list(query=query, **host.options_of_sdk).next_items()]

    assert sandbox.get_info().end_at.timestamp() < time.time() + 1.5
    time.sleep(1.2)
    assert listed(SandboxState.PAUSED) == [sandbox.sandbox_id]
    assert listed(SandboxState.RUNNING) == []
    assert listed() == [sandbox.sandbox_id]
    processes = _processes(host, sandbox)
    assert sandbox.kill()
    assert listed() == []
    eventually(lambda: not any(map(_lives, processes)))


def test_the_old_route_resumes_what_is_paused_and_refuses_what_runs(host: Host, sandbox: Sandbox) -> None:
    path = f"/sandboxes/{sandbox.sandbox_id}/resume"
    assert rest(host, "POST", path, timeout=60).status_code == 409
    sandbox.pause()
    assert rest(host, "POST", f"/sandboxes/{sandbox.sandbox_id}/timeout", timeout=60).status_code == 409
    answer = rest(host, "POST", path, timeout=60)
    assert (answer.status_code, answer.json()["memoryKept"]) == (201, True)
    assert sandbox.is_running()


def test_a_refresh_only_extends(host: Host, sandbox: Sandbox) -> None:
    path = f"/sandboxes/{sandbox.sandbox_id}/refreshes"
    end = sandbox.get_info().end_at
    assert rest(host, "POST", path, duration=10).status_code == 204
    assert sandbox.get_info().end_at == end
    assert rest(host, "POST", path, duration=3000).status_code == 204
    assert sandbox.get_info().end_at > end


@pytest.mark.parametrize("kill", [True, False])
def test_a_frozen_sandbox_survives_the_host(own_host: MakeHost, kill: bool) -> None:
    host = own_host()
    sandbox = host.create()
    handle = sandbox.commands.run(COUNT, background=True, timeout=0)
    before = boot_id(sandbox)
    sandbox.pause()
    host.restart(kill=kill)
    told = details(host, sandbox)
    assert (told["state"], told["memoryKept"]) == ("paused", True)
    again = sandbox.connect()
    assert boot_id(again) == before
    assert handle.pid in [process.pid for process in again.commands.list()]
    # The way out is taken up again as well: a refusal by the proxy, not a refused connection.
    tried = again.commands.run("curl -s -o /dev/null -w '%{http_code}' http://10.0.0.1/ || true")
    assert tried.stdout == "403"


def test_a_frozen_sandbox_whose_processes_die_becomes_a_parked_one(own_host: MakeHost) -> None:
    host = own_host()
    alone, watched = host.create(), host.create()
    for sandbox in (alone, watched):
        sandbox.files.write("/home/user/kept.txt", "kept")
        sandbox.pause()
    _kill_frozen(host, watched)
    eventually(lambda: host.record(watched.sandbox_id)["init"] is None)
    host.stop(kill=True)
    _kill_frozen(host, alone)
    host.start()
    for sandbox in (alone, watched):
        told = details(host, sandbox)
        assert (told["state"], told["memoryKept"]) == ("paused", False)
        assert sandbox.connect().files.read("/home/user/kept.txt") == "kept"


def _kill_frozen(host: Host, sandbox: Sandbox) -> None:
    """As a reboot or the machine's lack of memory would."""
    record = host.record(sandbox.sandbox_id)
    os.kill(record["init"]["pid"], signal.SIGKILL)
    _switch_freezer(record, "0", "THAWED")


def _switch_freezer(record: dict[str, Any], word_2: str, word_1: str) -> None:
    """Halt or release a sandbox's processes, by version 2 of cgroups where it is there."""
    for name, word in (("cgroup.freeze", word_2), ("freezer.state", word_1)):
        for folder in record["cgroups"]:
            if (Path(folder) / name).exists():
                (Path(folder) / name).write_text(word)
                return


def test_a_parked_sandbox_survives_a_reboot(own_host: MakeHost) -> None:
    host = own_host()
    sandbox = host.create()
    sandbox.files.write("/home/user/kept.txt", "kept")
    sandbox.pause(keep_memory=False)
    host.stop(kill=True)
    # What a new boot changes: another kernel's boot id, and a monotonic clock that begins again.
    path = host.data / "sandboxes" / sandbox.sandbox_id / "sandbox.json"
    record = host.record(sandbox.sandbox_id)
    for moment in (record["end"], record["paused"]):
        moment["boot"] = "another"
        moment["monotonic"] += 1e6
    path.write_text(json.dumps(record))
    host.start()
    assert sandbox.connect().files.read("/home/user/kept.txt") == "kept"


def test_a_host_that_died_between_freezing_and_telling_finds_a_running_sandbox(own_host: MakeHost) -> None:
    host = own_host()
    sandbox = host.create()
    record = host.record(sandbox.sandbox_id)
    host.stop(kill=True)
    _switch_freezer(record, "1", "FROZEN")
    host.start()
    assert sandbox.commands.run("echo runs").stdout == "runs\n"


def test_a_host_that_died_in_a_resume_leaves_a_parked_sandbox(own_host: MakeHost) -> None:
    host = own_host()
    sandbox = host.create()
    sandbox.files.write("/home/user/kept.txt", "kept")
    init = host.record(sandbox.sandbox_id)["init"]["pid"]
    host.stop(kill=True)
    path = host.data / "sandboxes" / sandbox.sandbox_id / "sandbox.json"
    record = host.record(sandbox.sandbox_id)
    path.write_text(json.dumps({**record, "state": "resuming", "init": None, "monitor": None}))
    host.start()
    assert not _lives(init)
    assert details(host, sandbox)["state"] == "paused"
    assert sandbox.connect().files.read("/home/user/kept.txt") == "kept"


def test_a_supervisor_that_dies_takes_its_sandbox_along_and_a_pausing_one_is_parked(
    own_host: MakeHost,
) -> None:
    host = own_host()
    sandbox = host.create()
    pausing = host.create(lifecycle={"on_timeout": "pause", "auto_resume": False})
    pausing.files.write("/home/user/kept.txt", "kept")
    record = host.record(sandbox.sandbox_id)
    for one in (sandbox, pausing):
        os.kill(host.record(one.sandbox_id)["init"]["pid"], signal.SIGKILL)
    eventually(lambda: not (host.data / "sandboxes" / sandbox.sandbox_id).exists())
    assert not any(Path(folder).exists() for folder in record["cgroups"])
    assert "sandbox ended by itself" in host.log()
    eventually(lambda: pausing.get_info().state == SandboxState.PAUSED)
    assert pausing.connect().files.read("/home/user/kept.txt") == "kept"


@pytest.mark.parametrize("processes_live", [True, False])
def test_a_host_that_died_while_it_parked_leaves_a_parked_sandbox(
    own_host: MakeHost, processes_live: bool
) -> None:
    host = own_host()
    sandbox = host.create()
    sandbox.files.write("/home/user/kept.txt", "kept")
    before = boot_id(sandbox)
    host.stop(kill=True)
    path = host.data / "sandboxes" / sandbox.sandbox_id / "sandbox.json"
    record = host.record(sandbox.sandbox_id)
    path.write_text(json.dumps({**record, "state": "paused", "memory_kept": False}))
    if not processes_live:
        os.kill(record["init"]["pid"], signal.SIGKILL)
    host.start()
    told = details(host, sandbox)
    assert (told["state"], told["memoryKept"]) == ("paused", False)
    eventually(lambda: not _lives(record["init"]["pid"]))
    again = sandbox.connect()
    assert again.files.read("/home/user/kept.txt") == "kept"
    assert boot_id(again) != before


def test_a_host_that_died_while_it_ended_a_sandbox_ends_it(own_host: MakeHost) -> None:
    host = own_host()
    sandbox = host.create(lifecycle={"on_timeout": "pause", "auto_resume": False})
    host.stop(kill=True)
    path = host.data / "sandboxes" / sandbox.sandbox_id / "sandbox.json"
    record = host.record(sandbox.sandbox_id)
    path.write_text(json.dumps({**record, "state": "ending"}))
    host.start()
    assert rest(host, "GET", f"/sandboxes/{sandbox.sandbox_id}").status_code == 404
    assert not path.exists()
    assert not _lives(record["init"]["pid"])


class OvertakenBackend:
    """Connects to a daemon while the sandbox is being paused."""

    def __init__(self) -> None:
        self.record: SandboxRecord | None = None
        self.daemon: socket.socket | None = None
        self.overtakes = True

    async def connect(self, folder: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        ours, self.daemon = socket.socketpair()
        streams = await asyncio.open_unix_connection(sock=ours)
        if self.overtakes:
            self.record.state = PAUSED
        return streams


async def test_a_connection_that_a_pause_overtakes_is_broken_too(tmp_path: Path) -> None:
    backend = OvertakenBackend()
    made_of = Template("base")
    backend.record = SandboxRecord(
        "id", "base", "token", "token", 0.0, Moment.after(60), 60, 1, 1, 1, None, made_of, state=RUNNING
    )
    box = sandbox_module.Sandbox(backend.record, tmp_path, backend)
    with pytest.raises(ConnectionAbortedError, match="paused"):
        await box.connect()
    with backend.daemon as daemon:
        daemon.settimeout(5)
        assert await asyncio.to_thread(daemon.recv, 1) == b""


async def test_a_request_that_a_pause_overtakes_resumes_the_sandbox_again(tmp_path: Path) -> None:
    backend = OvertakenBackend()
    backend.record = SandboxRecord(
        "id",
        "base",
        "token",
        "token",
        0.0,
        Moment.after(60),
        60,
        1,
        1,
        1,
        None,
        Template("base"),
        auto_resume=True,
    )
    box = sandbox_module.Sandbox(backend.record, tmp_path, backend)
    resumed: list[str] = []

    class Resuming:
        async def awake(self, sandbox_id: str) -> None:
            resumed.append(sandbox_id)
            backend.record.state = RUNNING
            backend.overtakes = len(resumed) == 1
            if backend.daemon is not None:
                backend.daemon.close()

        def running(self, sandbox_id: str) -> sandbox_module.Sandbox:
            return box

    front = Front(Resuming(), None, "localhost", None)
    request = Exchange(None, Request("GET", "/", "HTTP/1.1", Headers()))
    found, server = await front._reach(request, Target("id", ENVD_PORT), wakes=True)
    assert found is box
    assert resumed == ["id", "id"]
    await server.close()
    backend.daemon.close()
