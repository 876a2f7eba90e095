"""Several equal nodes on this machine: `ship up` as processes of their own, on one database, broker, bucket and sandbox host."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
from tests.system.conftest import Ship

from ship.config import Settings
from ship.sandboxes.template import build_ship_template
from ship.testing import sample_repository
from ship.testing.nats_server import NatsServer
from ship.testing.ports import free_port
from ship.testing.postgres_server import PostgresServer, postgres_server
from ship.testing.s3_servers import S3Server, moto_server


class Cluster:
    """The nodes and all that they share; each part may be killed and started again."""

    def __init__(
        self, nodes: list[Ship], postgres: PostgresServer, nats: NatsServer, bucket: S3Server
    ) -> None:
        self.nodes = nodes
        self.postgres = postgres
        self.nats = nats
        self.bucket = bucket


@contextlib.contextmanager
def cluster(folder: Path, model_url: str, *, size: int = 3) -> Iterator[Cluster]:
    """A running cluster. Its sandboxes reach the nodes in their order: the first that lives holds the runners' links."""
    folder.chmod(0o755)
    ports = [free_port() for _ in range(size)]
    with contextlib.ExitStack() as stack:
        postgres = stack.enter_context(postgres_server())
        nats = NatsServer(folder)
        nats.start()
        stack.callback(nats.kill)
        bucket = stack.enter_context(moto_server())
        host_url, key = stack.enter_context(_sandbox_host(folder / "sandboxes", ports))
        environment = {
            "SHIP_DATABASE": postgres.url("postgres"),
            "SHIP_BUS": nats.url,
            "SHIP_BLOBS": bucket.url,
            "SHIP_SANDBOX_API_URL": host_url,
            "SHIP_SANDBOX_URL": host_url,
            "SHIP_SANDBOX_API_KEY": key,
            "SHIP_LOCAL_ROOTS": str(folder),
        }
        nodes = []
        for number, port in enumerate(ports):
            place = folder / f"node-{number}"
            place.mkdir()
            node = Ship(place, model_url, port=port, **environment)
            node.repository = folder / "repository"
            nodes.append(node)
        sample_repository.create(folder / "repository")
        for node in nodes:
            node.start()
            stack.callback(node.stop)
        yield Cluster(nodes, postgres, nats, bucket)


@contextlib.contextmanager
def _sandbox_host(data: Path, nodes: list[int]) -> Iterator[tuple[str, str]]:
    """The URL and the key of a host whose sandboxes know these nodes as the control plane."""
    build_ship_template(data / "templates", Settings().cache_path, report=lambda line: None)
    key = f"e2b_{secrets.token_hex(20)}"
    upstream = ",".join(f"127.0.0.1:{port}" for port in nodes)
    with (data / "log").open("ab") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ship_sandboxd", "--listen", "127.0.0.1:0", "--data", str(data)),
                *("--upstream", f"ship.internal:80={upstream}"),
            ],
            env={**os.environ, "SHIP_SANDBOXD_API_KEY": key},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert line, (data / "log").read_text()[-2000:]
        url = str(json.loads(line)["url"])
        yield url, key
        with httpx.Client(base_url=url, headers={"X-API-KEY": key}, timeout=60) as client:
            for sandbox in client.get("/v2/sandboxes").json():
                client.delete(f"/sandboxes/{sandbox['sandboxID']}")
    finally:
        process.terminate()
        process.wait(30)
        assert process.stdout
        process.stdout.close()
