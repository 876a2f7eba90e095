"""Three nodes on PostgreSQL, NATS and a bucket, all of them real and each to be killed, halted or cut off."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
from tests.chaos import lab
from tests.chaos.scene import Scene

from ship.testing.nats_server import NatsServer
from ship.testing.postgres_server import PostgresServer, fresh_database
from ship.testing.s3_servers import S3Server, moto_server

NODES = 3


class PostgresView:
    """A ``StoreView`` of a database."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def count(self, table: str) -> int:
        """As the protocol says."""
        connection = await asyncpg.connect(self._url)
        try:
            return int(await connection.fetchval(f"SELECT count(*) FROM {table}"))
        finally:
            await connection.close()


@dataclass(frozen=True)
class Cluster:
    """The nodes with their load, and the servers below them; ``network`` is there when each node has a namespace of its own."""

    scene: Scene
    postgres: PostgresServer
    nats: NatsServer
    network: lab.Lab | None = None


@contextlib.asynccontextmanager
async def cluster(folder: Path, postgres: PostgresServer, bucket: S3Server) -> AsyncIterator[Cluster]:
    """Running nodes on this machine's loopback, with nobody there yet."""
    async with fresh_database(postgres.url("postgres")) as database:
        nats = NatsServer(folder)
        nats.start()
        scene = Scene(folder, NODES, _environment(database, nats.url, bucket.url), PostgresView(database))
        try:
            await scene.start()
            yield Cluster(scene, postgres, nats)
        finally:
            await scene.end()
            nats.kill()


@contextlib.asynccontextmanager
async def cluster_with_cables(folder: Path, postgres: PostgresServer) -> AsyncIterator[Cluster]:
    """The same with a network between the parts, see ``lab``."""
    async with fresh_database(postgres.url("postgres")) as database, lab.laboratory() as network:
        nats = NatsServer(folder)
        nats.start()
        with moto_server() as bucket:
            await network.expose(lab.DATABASE, 5432, postgres.socket)
            await network.expose(lab.BUS, nats.port, nats.port)
            await network.expose(lab.BLOBS, bucket.port, bucket.port)
            schema = database.rpartition("search_path=")[2]
            environment = _environment(
                f"postgresql://ship@{lab.DATABASE}/postgres?sslmode=disable&search_path={schema}",
                f"nats://{lab.BUS}:{nats.port}",
                bucket.url.replace("127.0.0.1", lab.BLOBS),
            )
            scene = Scene(folder, NODES, environment, PostgresView(database))
            scene.runners.address = lab.SANDBOXES
            for node in scene.nodes:
                cable = await network.add_node()
                node.address, node.prefix = cable.address, cable.prefix
            try:
                await scene.start()
                yield Cluster(scene, postgres, nats, network)
            finally:
                await scene.end()
                nats.kill()


def _environment(database: str, bus: str, blobs: str) -> dict[str, str]:
    return {
        "SHIP_DATABASE": database,
        "SHIP_BUS": bus,
        "SHIP_BLOBS": blobs,
        # Named, as nodes that share a database must share their sandboxes; the planted host stands in for it.
        "SHIP_SANDBOX_API_URL": "http://127.0.0.1:9",
        "SHIP_SANDBOX_API_KEY": "e2b_pretend",
    }
