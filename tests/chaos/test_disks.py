"""Disks that are full or read-only, and two servers on one data folder."""

import asyncio
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.chaos.scene import Scene
from tests.chaos.single import single_node

from ship.cli.exits import Exit

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

DISK_MB = 24


def _mounted(folder: Path, *options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not _mounted(folder, f"size={DISK_MB}m"):
        pytest.skip("a small disk cannot be mounted without root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def test_a_full_disk_refuses_in_plain_words_and_loses_nothing(disk: Path) -> None:
    async with single_node(disk) as scene:
        await scene.begin(sessions=2, watchers=2)
        async with scene.load(writers=2, tasks_every=0):
            await scene.acknowledged(10)
            filler = disk / "filler"
            await asyncio.to_thread(_fill, filler)
            refusal = await _refused(scene)
            assert refusal["code"] == "disk_full", refusal
            assert "space" in refusal["hint"]
            async with _client(scene) as client:
                assert (await client.get("/readyz")).status_code == 503
                # What was said before can be read meanwhile.
                assert (await client.get(f"/api/v1/sessions/{scene.sessions[0]}/events")).status_code == 200
            filler.unlink()
            await scene.acknowledged(10)
        await scene.check()


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            return


def _client(scene: Scene) -> httpx.AsyncClient:
    (node,) = scene.nodes
    headers = {"Authorization": f"Bearer {node.token}"}
    return httpx.AsyncClient(base_url=node.url, headers=headers, trust_env=False)


async def _refused(scene: Scene) -> dict[str, str]:
    """The first refusal of a note: what fits into the room that the database's files have left is still taken."""
    async with _client(scene) as client, asyncio.timeout(60):
        for count in itertools.count():
            text = f"filling {count}"
            answer = await client.post(f"/api/v1/sessions/{scene.sessions[0]}/messages", json={"text": text})
            if not answer.is_success:
                return dict(answer.json())
            scene.ledger.notes[text] = (scene.sessions[0], answer.json()["seq"])
    raise AssertionError


async def test_a_read_only_disk_and_a_second_server_are_refused_before_anything_is_served(disk: Path) -> None:
    async with single_node(disk) as scene:
        (node,) = scene.nodes
        await scene.begin(sessions=1, watchers=1)
        async with scene.load(writers=1, tasks_every=0):
            await scene.acknowledged(5)
            second = await asyncio.to_thread(up, node.data)
            assert second.returncode == Exit.MACHINE
            assert "another Ship uses the data folder" in second.stderr
            await scene.acknowledged(5)
        node.kill()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        try:
            refused = await asyncio.to_thread(up, node.data)
        finally:
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        assert refused.returncode == Exit.MACHINE
        assert "cannot be written" in refused.stderr
        assert "Traceback" not in second.stderr + refused.stderr
        await node.start()
        async with scene.load(writers=1, tasks_every=0):
            await scene.acknowledged(5)
        await scene.check()


def up(data: Path) -> "subprocess.CompletedProcess[str]":
    """`ship up` on that folder, which must end by itself."""
    command = [sys.executable, "-m", "ship.cli", "up", "--listen", "127.0.0.1:0", "--data", str(data)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
