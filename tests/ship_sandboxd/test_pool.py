"""Sandboxes that wait ready, and processes that wait for what they become: handed out with what the caller wants,
refilled, renewed, and gone with their host."""

import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import traces
from conftest import API_KEY, Host, eventually
from e2b import Sandbox

from ship_sandboxd.lifecycle.records import last_version

pytestmark = pytest.mark.system
MakeHost = Callable[..., Host]


def records(host: Host, state: str) -> dict[str, dict[str, Any]]:
    """The records in this state, by id."""
    found = {}
    for path in host.data.glob("sandboxes/*/sandbox.json"):
        try:
            record = last_version(path.read_bytes())
        except FileNotFoundError:
            continue  # it has just ended
        if record["state"] == state:
            found[record["id"]] = record
    return found


def filled(host: Host, count: int) -> dict[str, dict[str, Any]]:
    return eventually(lambda: len(warm := records(host, "warm")) == count and warm, 30)


def test_a_warm_sandbox_is_handed_out_with_what_its_caller_wants(own_host: MakeHost) -> None:
    host = own_host("--warm", "base=2")
    warm = filled(host, 2)
    assert (
        Sandbox.list(**{k: v for k, v in host.options_of_sdk.items() if k != "sandbox_url"}).next_items()
        == []
    )
    began = time.time()
    sandbox = host.create(
        envs={"MINE": "yes", "LANG": "de"}, metadata={"a": "b"}, timeout=77, allow_internet_access=False
    )
    assert sandbox.sandbox_id in warm
    info = sandbox.get_info()
    assert (info.metadata, info.state.value) == ({"a": "b"}, "running")
    assert info.started_at.timestamp() >= began - 1
    assert 70 < info.end_at.timestamp() - began < 80
    script = (
        "echo $MINE $LANG $E2B_SANDBOX_ID; curl -s -o /dev/null -w '%{http_code}' http://1.1.1.1/ || true"
    )
    assert sandbox.commands.run(script).stdout == f"yes de {sandbox.sandbox_id}\n403"
    other = host.create()
    assert other.sandbox_id in warm
    assert other.commands.run("echo -$MINE-").stdout == "--\n"
    renewed = filled(host, 2)
    assert not renewed.keys() & warm.keys()
    host.restart(kill=True)
    again = filled(host, 2)
    assert not again.keys() & renewed.keys()
    assert traces.processes(set(), set(renewed)) == []
    assert sandbox.commands.run("echo $MINE").stdout == "yes\n"


def test_a_start_command_runs_in_a_warm_sandbox_and_in_a_new_one(own_host: MakeHost) -> None:
    """Nothing says when it is ready, so nobody waits for that."""
    host = own_host()
    folder = host.data / "templates" / "starting"
    folder.mkdir()
    command = "echo $USER >> /tmp/started; exec sleep 1000"
    (folder / "template.json").write_text(json.dumps({"warm": 1, "start_command": command}))
    host.restart()
    warm = filled(host, 1)
    for expected in (True, False):
        sandbox = host.create(template="starting")
        assert (sandbox.sandbox_id in warm) is expected
        assert [command in process.args for process in sandbox.commands.list()] == [True]
        eventually(lambda sandbox=sandbox: sandbox.commands.run("cat /tmp/started; true").stdout == "user\n")


@pytest.mark.parametrize("spares", ["0", "1"])
def test_a_start_command_that_fails_is_told_once(own_host: MakeHost, spares: str) -> None:
    """Meanwhile another process waits again, which the same command would fail in as well."""
    host = own_host("--spares", spares)
    folder = host.data / "templates" / "failing"
    folder.mkdir()
    template = {"start_command": "echo tried; sleep 0.5; exit 3", "ready_command": "false"}
    (folder / "template.json").write_text(json.dumps(template))
    if spares != "0" and os.geteuid() == 0:
        filled(host, 1)
    headers = {"X-API-KEY": API_KEY}
    answer = httpx.post(
        f"{host.url}/v2/sandboxes", json={"templateID": "failing"}, headers=headers, timeout=20
    )
    assert (answer.status_code, answer.json()["error_code"]) == (500, "start_command_failed")
    assert answer.json()["message"] == "the start command ended with exit status 3: tried"
    eventually(lambda: {record["state"] for record in host.records()} <= {"warm"})
    assert host.create().commands.run("echo ok").stdout == "ok\n"


def test_a_warm_sandbox_that_dies_or_grows_old_is_replaced(own_host: MakeHost) -> None:
    host = own_host()
    folder = host.data / "templates" / "ready"
    folder.mkdir()
    (folder / "template.json").write_text(json.dumps({"warm": 1, "env": {"AGE": "old"}}))
    host.restart()
    (first,) = filled(host, 1).values()
    os.kill(first["init"]["pid"], signal.SIGKILL)
    eventually(lambda: first["id"] not in records(host, "warm"))
    (second,) = filled(host, 1).values()
    (folder / "template.json").write_text(json.dumps({"warm": 1, "env": {"AGE": "new"}}))
    sandbox = host.create(template="ready")
    assert sandbox.sandbox_id != second["id"]
    assert sandbox.commands.run("echo $AGE").stdout == "new\n"
    eventually(lambda: second["id"] not in records(host, "warm"))
    (third,) = filled(host, 1).values()
    assert host.create(template="ready").sandbox_id == third["id"]


def test_no_warm_sandbox_outlives_a_host_that_stops(own_host: MakeHost) -> None:
    host = own_host("--warm", "base=2")
    warm = filled(host, 2)
    host.stop()
    assert traces.processes(set(), set(warm)) == []
    assert records(host, "warm") == {}
    host.start()


def test_callers_at_once_get_different_ones(own_host: MakeHost) -> None:
    host = own_host("--warm", "base=2")
    filled(host, 2)

    with ThreadPoolExecutor(5) as threads:
        made = list(threads.map(lambda _: host.create(), range(5)))
    assert len({sandbox.sandbox_id for sandbox in made}) == 5
    assert {sandbox.commands.run("echo ok").stdout for sandbox in made} == {"ok\n"}


def test_a_template_that_cannot_be_made_warm_does_not_stop_the_host(own_host: MakeHost) -> None:
    host = own_host("--warm", "missing=1", "--warm", "base=1")
    filled(host, 1)
    assert "template 'missing' not found" in Path(host.data.parent / "host.log").read_text()


def test_a_snapshot_is_not_kept_warm_whatever_it_is_called(own_host: MakeHost) -> None:
    if os.geteuid() != 0:
        pytest.skip("snapshots need a host that is root")
    host = own_host("--warm", "base=1")
    filled(host, 1)
    snapshot = host.create().create_snapshot(name="base")
    made = host.create(template=snapshot.snapshot_id)
    assert made.commands.run("echo made").stdout == "made\n"
    assert host.record(made.sandbox_id)["made_of"]["warm"] == 0
    warm = filled(host, 1)
    assert [record["template"] for record in warm.values()] == ["base"]


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a root is laid later by a host that is root alone")


@needs_root
def test_what_waits_becomes_a_sandbox_of_any_template_on_the_machine(
    own_host: MakeHost, open_path: Path
) -> None:
    (open_path / "lent").write_text("lent\n")
    host = own_host("--spares", "1")
    folder = host.data / "templates" / "small"
    folder.mkdir()
    template = {
        "mounts": [{"source": str(open_path), "target": "/opt/lent"}],
        "env": {"OF": "template"},
        "memory_mb": 256,
        "pids": 100,
        "disk_mb": 100,
    }
    (folder / "template.json").write_text(json.dumps(template))
    boots, looks = set[str](), []
    for name in ("small", "base", "small"):
        (spare,) = filled(host, 1)
        sandbox = host.create(template=name, envs={"OWN": "yes"})
        assert sandbox.sandbox_id == spare
        script = (
            "cat /proc/sys/kernel/random/boot_id; ls -A / /home /home/user /run /dev; cut -d' ' -f2- /proc/mounts | sed 's/.id=[0-9]*//g' | sort; pwd;"
            "ulimit -f; cat /opt/lent/lent; echo $OF $OWN; df --output=size -m / | tail -1; touch /usr/x /home/user/kept || true"
        )
        boot_id, look = sandbox.commands.run(script).stdout.split("\n", 1)
        boots.add(boot_id)
        looks.append(look)
        record = host.record(spare)
        assert (record["template"], record["made_of"]["name"], record["state"]) == (name, name, "running")
    assert len(boots) == 3
    assert "lent\ntemplate yes\n" in looks[0]
    assert "template" not in looks[1]
    assert looks[0] == looks[2]
    # The same as what is started for its template from the beginning.
    host.options = ("--spares", "0")
    host.restart()
    alone = host.create(template="small", envs={"OWN": "yes"}).commands.run(script).stdout
    assert alone.split("\n", 1)[1] == looks[0]


@needs_root
def test_what_waits_and_dies_is_replaced_and_holds_nobody_up(own_host: MakeHost) -> None:
    host = own_host("--spares", "1")
    (first,) = filled(host, 1).values()
    os.kill(first["init"]["pid"], signal.SIGKILL)
    assert host.create().commands.run("echo ok").stdout == "ok\n"
    eventually(lambda: first["id"] not in records(host, "warm"))
    (second,) = filled(host, 1)
    assert second != first["id"]


@needs_root
def test_what_waits_ends_by_itself_when_its_host_is_killed(own_host: MakeHost) -> None:
    host = own_host("--spares", "2")
    spares = filled(host, 2)
    host.stop(kill=True)
    eventually(lambda: traces.processes(set(), set(spares)) == [])
    host.start()
    assert not filled(host, 2).keys() & spares.keys()
    assert traces.groups(set(spares)) == []


@needs_root
def test_what_waits_becomes_what_a_snapshot_has_kept(own_host: MakeHost) -> None:
    host = own_host("--spares", "1")
    filled(host, 1)
    taken = host.create()
    taken.files.write("/srv/kept", "kept")
    snapshot = taken.create_snapshot()
    (spare,) = filled(host, 1)
    again = host.create(template=snapshot.snapshot_id)
    assert again.sandbox_id == spare
    assert again.files.read("/srv/kept") == "kept"
