"""A NATS broker for tests: Debian's nats-server as a child, on a port of its own, to be killed, halted and started again."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

START_S = 10


class NatsServer:
    """``options`` are nats-server's own."""

    def __init__(self, folder: Path, *options: str, scheme: str = "nats", credentials: str = "") -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self.url = f"{scheme}://{credentials}127.0.0.1:{self.port}"
        self._log = folder / "nats-server.log"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it listens."""
        program = shutil.which("nats-server", path="/usr/sbin:/usr/bin:/usr/local/bin:/sbin:/bin")
        assert program, "nats-server is missing: scripts/system-packages.sh --tests installs it"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [program, "--addr", "127.0.0.1", "--port", str(self.port), *self._options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self._process.poll() is None, self._log.read_text()
                assert time.monotonic() < deadline, self._log.read_text()
                time.sleep(0.02)

    def kill(self) -> None:
        """As a crash does it; ``start`` brings it back on the same port."""
        self._signal(signal.SIGKILL)
        assert self._process
        self._process.wait()

    def halt(self) -> None:
        """It stands still, with its connections open."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After ``halt``."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process
        self._process.send_signal(number)


@pytest.fixture(scope="session")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker for tests that do it no harm: the one that SHIP_TEST_NATS names, or one of this process's own."""
    if named := os.environ.get("SHIP_TEST_NATS"):
        yield named
        return
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server.url
    server.kill()
