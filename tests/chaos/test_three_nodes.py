"""Three nodes under load, and one part after the other dies, stands still or is cut off: what is acknowledged stays, once, and
everybody sees it."""

from pathlib import Path

import pytest
from tests.chaos import faults, lab
from tests.chaos.cluster import cluster, cluster_with_cables

from ship.testing.postgres_server import PostgresServer
from ship.testing.s3_servers import S3Server

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


async def test_nodes_die_and_stand_still(tmp_path: Path, postgres: PostgresServer, bucket: S3Server) -> None:
    async with cluster(tmp_path, postgres, bucket) as three:
        scene = three.scene
        await scene.begin(sessions=3, watchers=3)
        async with scene.load(writers=3):
            for point in ("mid_append", "after_commit", "sandbox_made"):
                await faults.killed(scene, point)
            await faults.halted(scene, "mid_append", 1.5)
        await scene.check()


async def test_the_servers_below_die(tmp_path: Path, postgres: PostgresServer, bucket: S3Server) -> None:
    async with cluster(tmp_path, postgres, bucket) as three:
        scene = three.scene
        await scene.begin(sessions=3, watchers=3)
        async with scene.load(writers=3):
            await scene.acknowledged(10)
            await faults.broker_killed(scene, three.nats, 2.0)
            await scene.acknowledged(10)
            await faults.database_stopped(scene, postgres, 0.0)
            await scene.acknowledged(10)
        await scene.check()


@pytest.mark.skipif(bool(lab.possible()), reason=lab.possible())
async def test_a_node_is_cut_off(tmp_path: Path, postgres: PostgresServer) -> None:
    async with cluster_with_cables(tmp_path, postgres) as three:
        assert three.network
        scene = three.scene
        await scene.begin(sessions=3, watchers=3)
        async with scene.load(writers=3):
            for node, address in zip(scene.nodes, (lab.DATABASE, lab.BUS, lab.SANDBOXES), strict=True):
                await scene.acknowledged(10)
                await faults.cut_off(scene, three.network, address, node, 2.0)
        await scene.check()
