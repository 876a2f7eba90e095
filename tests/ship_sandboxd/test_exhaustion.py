"""The daemon goes on when the programs of its sandbox have used up what there is: processes, descriptors, memory, disk."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import Host, eventually
from e2b import CommandExitException, FilesystemEventType, NotEnoughSpaceException, Sandbox, SandboxException

pytestmark = pytest.mark.system

FORKS = "while :; do sleep 1000 & done 2>/dev/null"
DESCRIPTORS = """
import os, time
try:
    while True:
        os.dup(1)
except OSError:
    print("full", flush=True)
time.sleep(1000)
"""


@pytest.fixture(scope="module")
def small(host: Host) -> Iterator[Sandbox]:
    """A sandbox with little of everything."""
    folder = Path(host.data / "templates" / "scarce")
    folder.mkdir()
    (folder / "template.json").write_text(
        json.dumps({"pids": 40, "disk_mb": 64, "memory_mb": 512, "cpu_count": 1})
    )
    sandbox = host.create(template="scarce", timeout=300)
    yield sandbox
    sandbox.kill()


def test_files_and_signals_work_while_no_process_can_start(small: Sandbox) -> None:
    watcher = small.files.watch_dir("/workspace")
    bomb = small.commands.run(FORKS, background=True, timeout=0)

    def is_full() -> bool:
        try:
            small.commands.run("/bin/true")
        except SandboxException as error:
            return "unavailable" in str(error) or "fork" in str(getattr(error, "stderr", ""))
        return False

    eventually(is_full)
    data = b"x" * 1_000_000
    small.files.write("/workspace/during", data)
    assert small.files.read("/workspace/during", format="bytes") == data
    assert ("during", FilesystemEventType.CREATE) in [(e.name, e.type) for e in watcher.get_new_events()]
    assert bomb.pid in [process.pid for process in small.commands.list()]
    assert bomb.kill()
    assert eventually(lambda: not small.commands.list())
    assert eventually(lambda: small.commands.run("pgrep -c sleep || true").stdout == "0\n")
    watcher.stop()


def test_a_program_without_descriptors_is_alone_with_that(small: Sandbox) -> None:
    small.files.write("/tmp/descriptors.py", DESCRIPTORS)
    hog = small.commands.run("ulimit -n 4096; python3 /tmp/descriptors.py", background=True, timeout=0)
    again = small.commands.connect(hog.pid)
    assert next(iter(again))[0] == "full\n"
    assert small.commands.run("echo well").stdout == "well\n"
    assert hog.kill()


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("exec python3 -c 'bytearray(2 << 30)'", "signal: killed: out of memory"),
        ("python3 -c 'bytearray(2 << 30)'; exit $?", "exit status 137: out of memory"),
    ],
)
def test_a_command_that_memory_ended_says_so(host: Host, small: Sandbox, command: str, error: str) -> None:
    if not httpx.get(f"{host.url}/health").json()["limits"]["memory"]:
        pytest.skip("this machine cannot limit memory")
    with pytest.raises(CommandExitException) as raised:
        small.commands.run(command)
    assert raised.value.error == error
    fields = {"E2b-Sandbox-Id": small.sandbox_id, "E2b-Sandbox-Port": "9"}
    visit = httpx.get(host.url, headers=fields)
    assert visit.json()["message"] == "The sandbox is running but port is not open: 9"
    assert visit.elapsed.total_seconds() < 1, "its daemon lives: there is no end to wait for"
    assert small.commands.run("echo well").stdout == "well\n"


def test_a_stream_that_a_pause_breaks_off_is_not_told_of_memory_that_ran_out_before(
    host: Host, small: Sandbox
) -> None:
    if not httpx.get(f"{host.url}/health").json()["limits"]["memory"]:
        pytest.skip("this machine cannot limit memory")
    waiting = small.commands.run("echo begun; sleep 1000", background=True, timeout=0)
    assert next(iter(waiting))[0] == "begun\n"
    with pytest.raises(CommandExitException):
        small.commands.run("exec python3 -c 'bytearray(2 << 30)'")
    small.pause()
    with pytest.raises(SandboxException) as broken:
        waiting.wait()
    assert "memory" not in str(broken.value)
    small.connect(timeout=300)


BUSY = """
import time
ends = time.monotonic() + 2
while time.monotonic() < ends:
    pass
print(time.process_time(), flush=True)
"""


def test_two_busy_programs_share_the_one_processor_that_a_sandbox_has(host: Host, small: Sandbox) -> None:
    if not httpx.get(f"{host.url}/health").json()["limits"]["cpu"]:
        pytest.skip("this machine cannot limit processors")
    small.files.write("/tmp/busy.py", BUSY)
    ran = small.commands.run("python3 /tmp/busy.py & python3 /tmp/busy.py & wait")
    first, second = (float(line) for line in ran.stdout.split())
    assert first + second < 2.5


def test_a_full_disk_is_told_and_can_be_emptied(host: Host, small: Sandbox) -> None:
    if not httpx.get(f"{host.url}/health").json()["limits"]["disk"]:
        pytest.skip("this machine cannot limit disks")
    for options in ({"use_octet_stream": True}, {"use_octet_stream": False}):
        with pytest.raises(NotEnoughSpaceException):
            small.files.write("/workspace/big", b"x" * 100_000_000, **options)
        assert small.commands.run("echo still here").stdout == "still here\n"
        small.files.remove("/workspace/big")
        small.files.write("/workspace/little", "fits again")
    assert small.files.read("/workspace/little") == "fits again"
