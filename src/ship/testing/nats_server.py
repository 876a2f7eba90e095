"""A NATS broker of its own for tests: a child on a port of its own, to be killed, halted and started again."""

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from ship.testing.ports import free_port

START_S = 10


class NatsServer:
    """``options`` are nats-server's own. It ends with the process that started it."""

    def __init__(self, folder: Path, *options: str, scheme: str = "nats", credentials: str = "") -> None:
        self.port = free_port()
        self.url = f"{scheme}://{credentials}127.0.0.1:{self.port}"
        self._log = folder / "nats-server.log"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it listens."""
        program = shutil.which("nats-server", path="/usr/sbin:/usr/bin:/usr/local/bin:/sbin:/bin")
        if program is None:
            raise FileNotFoundError("no nats-server: scripts/system-packages.sh --tests installs it")
        command = ["setpriv", "--pdeathsig", "KILL", program, "--addr", "127.0.0.1", "--port", str(self.port)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self._options], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_S
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"nats-server does not start: {self._log.read_text()}")
            time.sleep(0.02)

    def kill(self) -> None:
        """As a crash does it; ``start`` brings it back on the same port."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def halt(self) -> None:
        """It stands still, with its connections open."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After ``halt``."""
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True
