"""The limits of sandboxes where the machine has cgroups of version 2 and no others."""

import json
from collections.abc import Iterator

import pytest
from e2b import CommandExitException, Sandbox
from tests.machine.virtual_machine import COUNT, VirtualMachine
from tests.ship_sandboxd.conftest import eventually

pytestmark = pytest.mark.system

GROUPS = "/sys/fs/cgroup/system.slice/ship-sandboxd"
HOLD = """
import time
data = bytearray(48 << 20)
print("held", flush=True)
while True:
    time.sleep(1)
"""
FORK = """
import os, signal
children = []
try:
    while len(children) < 100:
        child = os.fork()
        if child == 0:
            signal.pause()
        children.append(child)
except BlockingIOError:
    print(len(children))
for child in children:
    os.kill(child, 9)
"""
BUSY = """
import time
began, ends = time.process_time(), time.monotonic() + 2
while time.monotonic() < ends:
    pass
print(time.process_time() - began, flush=True)
"""

ORDINARY_USER = """
user=/sys/fs/cgroup/user.slice/user@1000.service
mkdir -p $user
echo "+memory +pids +cpu" > /sys/fs/cgroup/user.slice/cgroup.subtree_control
mkdir -p $user/app.slice/ship.service /data/user
chown -R 1000:1000 $user /data/user
echo "+memory +pids +cpu" > $user/cgroup.subtree_control
echo $BASHPID > $user/app.slice/ship.service/cgroup.procs
cd /data/user
SHIP_SANDBOXD_API_KEY=e2b_7777 setpriv --reuid 1000 --regid 1000 --clear-groups \
    python3 -m ship_sandboxd --listen 127.0.0.1:49990 --data /data/user/host > told 2>&1 &
until [ -s told ]; do sleep 0.1; done
python3 -c 'import urllib.request; print(urllib.request.urlopen("http://127.0.0.1:49990/health").read().decode())'
kill $!
"""


@pytest.fixture(scope="module")
def small(machine: VirtualMachine) -> Iterator[Sandbox]:
    """A sandbox with little of everything."""
    made = machine.create(template=machine.template("small", memory_mb=128, pids=32, cpu_count=1, disk_mb=64))
    yield made
    made.kill()


def group(machine: VirtualMachine, sandbox: Sandbox, file: str) -> dict[str, str]:
    """The fields of a file of a sandbox's group."""
    text = machine.run(f"cat {GROUPS}/{sandbox.sandbox_id}/{file}")
    return dict(line.split(" ", 1) for line in text.splitlines())


def keeps_memory(machine: VirtualMachine, sandbox: Sandbox) -> bool:
    return bool(machine.get(f"/sandboxes/{sandbox.sandbox_id}")["memoryKept"])


def test_every_limit_holds(machine: VirtualMachine) -> None:
    health = machine.get("/health")
    assert health["limits"] == {"memory": True, "pids": True, "cpu": True, "disk": True}
    assert health["keeps_memory"]
    assert " cgroup rw" not in machine.run("cat /proc/mounts")


def test_a_command_that_memory_ended_says_so_and_so_does_the_log(
    machine: VirtualMachine, small: Sandbox
) -> None:
    with pytest.raises(CommandExitException) as raised:
        small.commands.run("exec python3 -c 'bytearray(200 << 20)'")
    assert raised.value.error == "signal: killed: out of memory"
    log = machine.get(f"/v2/sandboxes/{small.sandbox_id}/logs", level="warn")["logs"]
    assert "out_of_memory" in [entry["fields"].get("code") for entry in log]
    assert small.commands.run("echo well").stdout == "well\n"


def test_processes_are_counted(machine: VirtualMachine, small: Sandbox) -> None:
    small.files.write("/tmp/fork.py", FORK)
    assert 20 < int(small.commands.run("python3 /tmp/fork.py").stdout) < 32
    assert group(machine, small, "pids.events")["max"] != "0"


def test_two_busy_programs_share_the_one_processor_that_a_sandbox_has(
    machine: VirtualMachine, small: Sandbox
) -> None:
    small.files.write("/tmp/busy.py", BUSY)
    ran = small.commands.run("python3 /tmp/busy.py & python3 /tmp/busy.py & wait")
    assert sum(float(line) for line in ran.stdout.split()) < 2.5
    assert int(group(machine, small, "cpu.stat")["nr_throttled"]) > 0


def test_what_a_sandbox_uses_is_measured(machine: VirtualMachine, small: Sandbox) -> None:
    small.files.write("/tmp/hold.py", HOLD)
    hold = small.commands.run("python3 /tmp/hold.py", background=True, timeout=0)

    def used_mb() -> float:
        (newest,) = machine.get("/sandboxes/metrics", sandbox_ids=small.sandbox_id)["sandboxes"].values()
        return float(newest["memUsed"]) / (1 << 20)

    assert eventually(lambda: used_mb() > 48)
    assert used_mb() <= 128
    hold.kill()


def test_a_frozen_sandbox_stands_still_and_goes_on_where_it_was(
    machine: VirtualMachine, small: Sandbox
) -> None:
    counter = small.commands.run(COUNT, background=True, timeout=0)
    eventually(lambda: small.files.exists("/tmp/count"))
    small.pause()
    assert group(machine, small, "cgroup.events")["frozen"] == "1"
    used = group(machine, small, "cpu.stat")["usage_usec"]
    machine.run("sleep 0.3")
    assert group(machine, small, "cpu.stat")["usage_usec"] == used
    assert keeps_memory(machine, small)
    small.connect()
    assert keeps_memory(machine, small)
    count = int(small.files.read("/tmp/count"))
    eventually(lambda: int(small.files.read("/tmp/count")) > count)
    assert counter.kill()


def test_no_group_outlives_its_sandbox(machine: VirtualMachine) -> None:
    running, frozen, parked = (machine.create() for _ in range(3))
    for sandbox in (running, frozen, parked):
        sandbox.commands.run("sleep 1000", background=True, timeout=0)
        assert group(machine, sandbox, "cgroup.events")["populated"] == "1"
    frozen.pause()
    parked.pause(keep_memory=False)
    assert parked.sandbox_id not in machine.run(f"ls {GROUPS}")
    for sandbox in (running, frozen, parked):
        sandbox.kill()
        assert sandbox.sandbox_id not in machine.run(f"ls {GROUPS}")


def test_an_ordinary_user_has_limits_too_where_groups_are_delegated_to_him(machine: VirtualMachine) -> None:
    """As systemd does it: the group of his own manager is his, and a unit of his is a group in a slice in that."""
    health = json.loads(machine.run(ORDINARY_USER))
    assert health["limits"] == {"memory": True, "pids": True, "cpu": True, "disk": False}
    assert health["keeps_memory"]
