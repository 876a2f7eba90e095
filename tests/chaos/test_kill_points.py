"""A node dies at the worst moments, under load: nothing acknowledged is lost, nothing is there twice, nobody is stuck."""

import asyncio
import signal
import time
from pathlib import Path

import pytest
from tests.chaos import points
from tests.chaos.load import until
from tests.chaos.scene import Scene
from tests.chaos.single import single_node

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


async def die_and_recover(scene: Scene, point: str) -> None:
    """Wait until the only node is dead, start it again, wait until everybody is served again."""
    (node,) = scene.nodes
    await node.at(point)
    assert not node.alive
    began = time.monotonic()
    await node.start()
    await scene.recovery(began)
    await scene.acknowledged(10)


async def checked(scene: Scene, before: int) -> None:
    """Wait until sandboxes were looked after more often than that."""
    await until(lambda: scene.host.checks() > before, lambda: "the alarm was lost", timeout_s=40)


async def test_a_node_is_killed_around_a_commit(tmp_path: Path) -> None:
    async with single_node(tmp_path) as scene:
        (node,) = scene.nodes
        await scene.begin(sessions=2, watchers=2)
        async with scene.load(writers=3):
            for point in ("before_append", "mid_append", "after_commit"):
                await scene.acknowledged(10)
                points.arm(node.faults, point, signal.SIGKILL)
                await die_and_recover(scene, point)
        await scene.check()


async def test_a_node_is_killed_in_the_middle_of_an_effect(tmp_path: Path) -> None:
    async with single_node(tmp_path) as scene:
        (node,) = scene.nodes
        await scene.begin(sessions=1, watchers=2)
        async with scene.load(writers=2):
            for point in ("effect_claimed", "sandbox_made", "effect_reported"):
                points.arm(node.faults, point, signal.SIGKILL)
                beginning = asyncio.create_task(scene.begin(sessions=1, watchers=2))
                await die_and_recover(scene, point)
                await beginning
        await scene.check()


async def test_a_node_is_killed_between_an_alarms_claim_and_its_end(tmp_path: Path) -> None:
    async with single_node(tmp_path) as scene:
        (node,) = scene.nodes
        await scene.begin(sessions=1, watchers=2)
        async with scene.load(writers=2):
            for point in ("alarm_claimed", "alarm_fired"):
                await scene.acknowledged(10)
                checks = scene.host.checks()
                points.arm(node.faults, point, signal.SIGKILL)
                scene.runners.drop_links()
                await die_and_recover(scene, point)
                # What the dead had claimed comes soon: the sandbox is looked after.
                await checked(scene, checks)
        await scene.check()


async def test_a_node_stands_still_for_a_while(tmp_path: Path) -> None:
    async with single_node(tmp_path) as scene:
        (node,) = scene.nodes
        await scene.begin(sessions=2, watchers=2)
        async with scene.load(writers=3):
            for point in ("mid_append", "after_commit"):
                await scene.acknowledged(10)
                points.arm(node.faults, point, signal.SIGSTOP)
                await node.at(point)
                assert node.halted
                # Long enough for the clients to give up on their answers and to ask again with the same key.
                await asyncio.sleep(1.5)
                node.signal(signal.SIGCONT)
                await scene.acknowledged(10)
        await scene.check()
