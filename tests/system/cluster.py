"""Several equal nodes on this machine: `ship up` as processes of their own, on one database, broker, bucket and sandbox host."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
from tests.system.conftest import Ship
from tests.system.line import Line, line

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
        self,
        nodes: list[Ship],
        postgres: PostgresServer,
        nats: NatsServer,
        bucket: S3Server,
        host: "SandboxHost",
        line: Line,
    ) -> None:
        self.nodes = nodes
        self.postgres = postgres
        self.nats = nats
        self.bucket = bucket
        self.host = host
        self.line = line
        """From the nodes to the sandbox host."""


class SandboxHost:
    """A host whose sandboxes know these nodes, by their ports, as the control plane."""

    def __init__(self, data: Path, nodes: list[int]) -> None:
        self.key = f"e2b_{secrets.token_hex(20)}"
        self.port = free_port()
        self._data = data
        self._nodes = nodes
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process
        return self._process.pid

    def start(self) -> None:
        """Start it, again on the same port, and wait until it listens."""
        upstream = ",".join(f"127.0.0.1:{port}" for port in self._nodes)
        with (self._data / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ship_sandboxd"),
                    *("--listen", f"127.0.0.1:{self.port}", "--data", str(self._data)),
                    *("--upstream", f"ship.internal:80={upstream}"),
                ],
                env={**os.environ, "SHIP_SANDBOXD_API_KEY": self.key},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout
        assert self._process.stdout.readline(), (self._data / "log").read_text()[-2000:]

    def kill(self) -> None:
        """As a crash does it; its sandboxes live on."""
        self._end(signal.SIGKILL)

    def _client(self) -> httpx.Client:
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", headers={"X-API-KEY": self.key}, timeout=60
        )

    def sandboxes(self, session_id: str) -> list[str]:
        """The ids of that session's sandboxes."""
        with self._client() as client:
            listed = client.get("/v2/sandboxes", params={"metadata": f"ship.session={session_id}"}).json()
        return [sandbox["sandboxID"] for sandbox in listed]

    def end(self) -> None:
        """End it, and its sandboxes before."""
        with self._client() as client:
            for sandbox in client.get("/v2/sandboxes").json():
                client.delete(f"/sandboxes/{sandbox['sandboxID']}")
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        assert self._process
        assert self._process.stdout
        self._process.send_signal(how)
        self._process.wait(30)
        self._process.stdout.close()


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
        host = SandboxHost(folder / "sandboxes", ports)
        build_ship_template(
            folder / "sandboxes" / "templates", Settings().cache_path, report=lambda line: None
        )
        host.start()
        stack.callback(host.end)
        to_host = stack.enter_context(line(host.port))
        host_url = f"http://127.0.0.1:{to_host.port}"
        environment = {
            "SHIP_DATABASE": postgres.url("postgres"),
            "SHIP_BUS": nats.url,
            "SHIP_BLOBS": bucket.url,
            "SHIP_SANDBOX_API_URL": host_url,
            "SHIP_SANDBOX_URL": host_url,
            "SHIP_SANDBOX_API_KEY": host.key,
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
        yield Cluster(nodes, postgres, nats, bucket, host, to_host)
