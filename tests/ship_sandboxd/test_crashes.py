"""The host is killed at random moments while its sandboxes are paused, parked, resumed, snapshotted and forked: each is found
again with its files, and nothing is left behind."""

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from conftest import API_KEY, Host
from e2b import Sandbox

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="layers need a sandbox host that runs as root"),
]

ROUNDS, SANDBOXES = 4, 3
CALLS: tuple[tuple[str, dict[str, object]], ...] = (
    ("pause", {}),
    ("pause", {"memory": False}),
    ("connect", {"timeout": 1000}),
    ("connect", {"timeout": 1000}),
    ("snapshots", {"name": "again"}),
    ("fork", {"timeout": 1}),
)


def _use(host: Host, sandbox_id: str, seed: int, wrong: list[str]) -> None:
    """Ask for one thing after the other until the host is gone."""
    chance = random.Random(seed)
    with httpx.Client(base_url=host.url, headers={"X-API-KEY": API_KEY}, timeout=30) as client:
        while True:
            path, body = chance.choice(CALLS)
            try:
                answer = client.post(f"/sandboxes/{sandbox_id}/{path}", json=body)
            except httpx.TransportError:
                return
            if answer.status_code >= 400 and answer.status_code != 409:
                wrong.append(f"{path}: {answer.text}")


def test_no_sandbox_is_lost_by_kills_of_the_host(own_host: Callable[..., Host]) -> None:
    host = own_host("--park-after", "1")
    chance, wrong = random.Random(7), list[str]()
    ids = [host.create(timeout=1000).sandbox_id for _ in range(SANDBOXES)]
    for sandbox_id in ids:
        Sandbox.connect(sandbox_id, **host.options_of_sdk).files.write("/srv/id", sandbox_id)
    for _ in range(ROUNDS):
        users = [
            threading.Thread(target=_use, args=(host, sandbox_id, chance.getrandbits(32), wrong))
            for sandbox_id in ids
        ]
        for user in users:
            user.start()
        time.sleep(chance.uniform(0.05, 1.5))
        host.stop(kill=True)
        for user in users:
            user.join()
        host.start()
        for sandbox_id in ids:
            found = Sandbox.connect(sandbox_id, timeout=1000, **host.options_of_sdk)
            assert found.files.read("/srv/id") == sandbox_id
    assert wrong == []
    records = list((host.data / "sandboxes").iterdir())
    host.close()
    try:
        assert not list((host.data / "sandboxes").iterdir())
        assert not list((host.data / "layers").glob("new-*"))
        groups = [
            path
            for record in records
            for path in Path("/sys/fs/cgroup").glob(f"*/ship-sandboxd/{record.name}")
        ]
        assert groups == []
    finally:
        host.start()  # for the fixture, which ends it
