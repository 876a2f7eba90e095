"""Sandboxes of a machine that is started anew: in order, or because somebody has pulled the plug."""

import contextlib
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from e2b import NotFoundException, Sandbox
from tests.machine.virtual_machine import COUNT, VirtualMachine
from tests.ship_sandboxd.conftest import eventually

pytestmark = pytest.mark.system

SANDBOX_ID = re.compile(r"\b[a-z0-9]{20}\b")
TRACES = (
    "find /data/host/sandboxes /data/host/trash /sys/fs/cgroup -type d;"
    "cat /sys/block/loop*/loop/backing_file || true"
)


@pytest.mark.parametrize("end", [VirtualMachine.cut_power, VirtualMachine.shut_down])
def test_paused_sandboxes_survive_with_their_files(
    machine: VirtualMachine, end: Callable[[VirtualMachine], None]
) -> None:
    with_memory, in_memory = marked(machine, template=machine.template("gvisor", backend="gvisor"))
    counting = with_memory.commands.run(COUNT, background=True, timeout=0)
    eventually(lambda: with_memory.files.exists("/tmp/count"))
    boot_with_memory = boot_id(with_memory)
    with_memory.pause()  # and its memory is written out after a while
    parked, in_parked = marked(machine, metadata={"colour": "green"}, envs={"COLOUR": "green"})
    parked.pause(keep_memory=False)
    running, _ = marked(machine)
    # Its time passes while the machine is down.
    late, in_late = marked(machine, lifecycle={"on_timeout": "pause"})
    late.commands.run("sync")
    eventually(lambda: "its memory is written out" in machine.console, 60)
    frozen, in_frozen = marked(machine)
    boots = {boot_id(sandbox) for sandbox in (frozen, late)}
    frozen.pause()
    lines = [last_line(machine, sandbox) for sandbox in (with_memory, parked, frozen)]
    for text in (in_memory, in_parked, in_late, in_frozen, *lines):
        eventually(lambda text=text: machine.has_on_disk(text))
    late.set_timeout(5)
    end(machine)
    machine.boot()

    told = {entry["sandboxID"]: (entry["state"], entry["memoryKept"]) for entry in listed(machine)}
    assert told == {
        with_memory.sandbox_id: ("paused", True),
        **{sandbox.sandbox_id: ("paused", False) for sandbox in (parked, late, frozen)},
    }
    with pytest.raises(NotFoundException):
        running.connect()
    for sandbox, mark in ((parked, in_parked), (late, in_late), (frozen, in_frozen)):
        sandbox.connect()
        assert sandbox.files.read("/home/user/mark") == mark
        assert boot_id(sandbox) not in boots
        assert not details(machine, sandbox)["memoryKept"]
        assert events(machine, sandbox)[-1] == "sandbox resumed without its memory: its processes are new"
    for sandbox in (with_memory, parked, frozen):
        assert events(machine, sandbox)[0] == "sandbox created"
    assert parked.get_info().metadata == {"colour": "green"}
    assert parked.commands.run("echo $COLOUR").stdout == "green\n"
    with_memory.connect()
    assert details(machine, with_memory)["memoryKept"]
    assert boot_id(with_memory) == boot_with_memory
    assert with_memory.files.read("/home/user/mark") == in_memory
    count = eventually(lambda: int(with_memory.files.read("/tmp/count") or 0))
    eventually(lambda: int(with_memory.files.read("/tmp/count") or 0) > count)
    assert counting.pid in [process.pid for process in with_memory.commands.list()]
    for sandbox in (with_memory, parked, late, frozen):
        sandbox.kill()
    assert_nothing_is_left(machine)


def test_what_was_under_way_when_the_power_went_is_whole_or_gone(machine: VirtualMachine) -> None:
    dark = False

    def churn(number: int) -> None:
        with contextlib.suppress(Exception):
            while not dark:
                sandbox, _ = marked(machine)
                sandbox.pause(keep_memory=number % 2 == 0)
                sandbox.connect()
                sandbox.kill()

    with ThreadPoolExecutor(3) as threads:
        for number in range(3):
            threads.submit(churn, number)
        eventually(lambda: len(listed(machine)) >= 2)
        machine.cut_power()
        dark = True
    machine.boot()
    for entry in listed(machine):
        assert entry["state"] == "paused"
        sandbox = Sandbox.connect(entry["sandboxID"], **machine.options_of_sdk)
        assert sandbox.commands.run("echo well").stdout == "well\n"
        sandbox.kill()
    assert_nothing_is_left(machine)


def marked(machine: VirtualMachine, **options: Any) -> tuple[Sandbox, str]:
    """A sandbox, and what its file ``mark`` holds."""
    sandbox, mark = machine.create(**options), os.urandom(32).hex()
    sandbox.files.write("/home/user/mark", mark)
    return sandbox, mark


def boot_id(sandbox: Sandbox) -> str:
    return sandbox.files.read("/proc/sys/kernel/random/boot_id").strip()


def listed(machine: VirtualMachine) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = machine.get("/v2/sandboxes")
    return entries


def details(machine: VirtualMachine, sandbox: Sandbox) -> dict[str, Any]:
    answer: dict[str, Any] = machine.get(f"/sandboxes/{sandbox.sandbox_id}")
    return answer


def events(machine: VirtualMachine, sandbox: Sandbox) -> list[str]:
    """What the log of a sandbox says, oldest first."""
    return [entry["message"] for entry in machine.get(f"/v2/sandboxes/{sandbox.sandbox_id}/logs")["logs"]]


def last_line(machine: VirtualMachine, sandbox: Sandbox) -> str:
    """Of the file of its log."""
    return machine.run(f"tail -n 1 /data/host/sandboxes/{sandbox.sandbox_id}/log.jsonl").strip()


def assert_nothing_is_left(machine: VirtualMachine) -> None:
    """No folder, group or disk of any sandbox, but of the one whose processes wait to become the next."""
    assert listed(machine) == []
    assert machine.run("ls /data/host/unreadable") == ""
    eventually(lambda: len(set(SANDBOX_ID.findall(machine.run(TRACES)))) <= 1)
