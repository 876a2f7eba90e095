"""Nothing is left of sandboxes: not of hundreds in a row, of those that were being made when the host died, or of those that were killed
while something was done with them."""

import contextlib
import itertools
import os
import random
import threading
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

from ship_sandboxd.templates import SPARE

pytestmark = pytest.mark.system

MakeHost = Callable[..., Host]
CYCLES, AT_ONCE = 400, 6
ROUNDS = 8
CHANGES: dict[str, dict[str, Any]] = {
    "/pause": {"memory": False},
    "/connect": {"timeout": 60},
    "/snapshots": {},
    "/fork": {"count": 1},
}


@pytest.mark.timeout(600)  # a tenth of a second each, where there is nothing else to do
@pytest.mark.parametrize("spares", [0, 4])
def test_hundreds_of_sandboxes_leave_nothing(own_host: MakeHost, spares: int) -> None:
    if spares and os.geteuid() != 0:
        pytest.skip("nothing waits at a host that is not root")
    host = own_host("--spares", str(spares))
    assert host.process is not None
    waiting = traces.Traces(launched=spares)

    def is_still() -> bool:
        return traces.of(host) == waiting and [one["state"] for one in host.records()] == ["warm"] * spares

    host.create().kill()
    eventually(is_still)
    before = [traces.descriptors(pid) for pid in (host.process.pid, traces.fork_server(host))]
    resident = _resident_mb(host.process.pid)
    records = _cycles(host)
    assert len(records) == CYCLES
    eventually(is_still)
    eventually(lambda: list((host.data / "trash").iterdir()) == [])
    after = [traces.descriptors(pid) for pid in (host.process.pid, traces.fork_server(host))]
    assert after[0] <= before[0] + AT_ONCE + 2, "more than the clients' open connections"
    assert after[1] == before[1]
    names = {record["id"] for record in records}
    assert traces.groups(names) == []
    # One that waits may have the uid of one that has ended.
    uids = {record["uid"] for record in records} - {None, *(record["uid"] for record in host.records())}
    assert traces.processes(uids, names) == []
    assert len(list((host.data / "sandboxes").iterdir())) == spares
    assert _resident_mb(host.process.pid) < resident + 16


def _cycles(host: Host) -> list[dict[str, Any]]:
    """Make sandboxes, let each leave something to clean up, and end them, several at once; answers their records."""
    numbers = itertools.count()
    records: list[dict[str, Any]] = []

    def work() -> None:
        while next(numbers) < CYCLES:
            sandbox = host.create()
            records.append(host.record(sandbox.sandbox_id))
            if len(records) % 5 == 0:
                sandbox.commands.run(
                    "sleep 1000 & setsid sleep 1000 > /dev/null & touch /opt/x; mkdir -p /tmp/a/b/c",
                    timeout=60,
                )
            sandbox.kill()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done in [pool.submit(work) for _ in range(AT_ONCE)]:
            done.result()
    return records


def _resident_mb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024


@pytest.mark.parametrize("spares", [0, 2])
def test_a_host_that_is_killed_while_it_makes_sandboxes_leaves_whole_ones_or_none(
    own_host: MakeHost, spares: int
) -> None:
    host = own_host("--spares", str(spares))
    host.create().kill()
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    chance = random.Random(seed)
    seen: set[str] = set()
    for _ in range(ROUNDS):
        asking = [threading.Thread(target=_ask, args=(host,)) for _ in range(3)]
        for thread in asking:
            thread.start()
        time.sleep(chance.uniform(0, 0.25))  # the moment is what the test varies
        host.stop(kill=True)
        for thread in asking:
            thread.join()
        seen |= {folder.name for folder in (host.data / "sandboxes").iterdir()}
        host.start()
        kept = {info.sandbox_id for info in Sandbox.list(**_api(host)).next_items()}
        there = {record["id"] for record in host.records() if record["template"] != SPARE}
        assert there == kept
        assert traces.processes(set(), seen - kept) == []
        for name in kept:
            sandbox = Sandbox.connect(name, **host.options_of_sdk)
            assert sandbox.commands.run("echo whole", timeout=60).stdout == "whole\n"
            sandbox.kill()
    host.options = ()
    host.restart()
    eventually(lambda: traces.of(host) == traces.Traces())
    assert traces.groups(seen) == []
    assert traces.processes(set(), seen) == []
    eventually(lambda: list((host.data / "trash").iterdir()) == [])


def _ask(host: Host) -> None:
    with contextlib.suppress(httpx.HTTPError):  # the host dies meanwhile
        httpx.post(f"{host.url}/v2/sandboxes", json={"templateID": "base"}, headers={"X-API-KEY": API_KEY})


def _api(host: Host) -> dict[str, Any]:
    return {key: value for key, value in host.options_of_sdk.items() if key != "sandbox_url"}


@pytest.mark.skipif(os.geteuid() != 0, reason="snapshots need a sandbox host that runs as root")
@pytest.mark.parametrize(("path", "body"), CHANGES.items(), ids=[path.strip("/") for path in CHANGES])
def test_what_is_killed_in_the_middle_of_a_change_leaves_nothing(
    own_host: MakeHost, path: str, body: dict[str, Any]
) -> None:
    host = own_host("--spares", "0")
    headers = {"X-API-KEY": API_KEY}
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    chance = random.Random(seed)
    seen: set[str] = set()
    with ThreadPoolExecutor(1) as other:
        for _ in range(2 * ROUNDS):
            sandbox = host.create()
            seen.add(sandbox.sandbox_id)
            url = f"{host.url}/sandboxes/{sandbox.sandbox_id}"
            if path == "/connect":
                sandbox.pause(keep_memory=False)
            change = other.submit(httpx.post, url + path, json=body, headers=headers, timeout=60)
            time.sleep(chance.uniform(0, 0.06))  # the moment is what the test varies
            assert httpx.delete(url, headers=headers, timeout=30).status_code == 204
            assert change.result().status_code in (201, 204, 404)
        for info in Sandbox.list(**_api(host)).next_items():  # forks that came about all the same
            seen.add(info.sandbox_id)
            Sandbox.kill(info.sandbox_id, **_api(host))
    eventually(lambda: traces.of(host) == traces.Traces())
    assert traces.groups(seen) == []
    assert traces.processes(set(), seen) == []
    eventually(lambda: list((host.data / "trash").iterdir()) == [])
