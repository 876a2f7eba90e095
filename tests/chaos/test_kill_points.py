"""The only node dies or stands still at the worst moments, under load: nothing acknowledged is lost, nothing is there twice, nobody
is stuck."""

from pathlib import Path

import pytest
from tests.chaos import faults
from tests.chaos.load import until
from tests.chaos.scene import Scene
from tests.chaos.single import single_node

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


async def test_a_node_is_killed_around_a_commit(tmp_path: Path) -> None:
    async with single_node(tmp_path) as scene:
        await scene.begin(sessions=2, watchers=2)
        async with scene.load(writers=3):
            for point in ("before_append", "mid_append", "after_commit"):
                await faults.killed(scene, point)
        await scene.check()


async def test_a_node_is_killed_in_the_middle_of_an_effect(tmp_path: Path) -> None:
    async with single_node(tmp_path) as scene:
        await scene.begin(sessions=1, watchers=2)
        async with scene.load(writers=2):
            for point in faults.PROVISIONING:
                await faults.killed(scene, point)
        await scene.check()


async def test_a_node_is_killed_between_an_alarms_claim_and_its_end(tmp_path: Path) -> None:
    async with single_node(tmp_path) as scene:
        await scene.begin(sessions=1, watchers=2)
        async with scene.load(writers=2):
            for point in faults.ALARMS:
                checks = scene.host.checks()
                await faults.killed(scene, point)
                # What the dead had claimed comes soon: the sandbox is looked after.
                await checked(scene, checks)
        await scene.check()


async def checked(scene: Scene, before: int) -> None:
    """Wait until sandboxes were looked after more often than that."""
    await until(lambda: scene.host.checks() > before, lambda: "the alarm was lost", timeout_s=40)


async def test_a_node_stands_still_for_a_while(tmp_path: Path) -> None:
    async with single_node(tmp_path) as scene:
        await scene.begin(sessions=2, watchers=2)
        async with scene.load(writers=3):
            for point in ("mid_append", "after_commit"):
                await faults.halted(scene, point, 1.5)
        await scene.check()
