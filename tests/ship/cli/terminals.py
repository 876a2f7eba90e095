"""A person at a terminal."""

import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import threading
import time

DEADLINE_S = 20.0


class Terminal:
    """A command at a terminal of its own: what it shows, and a keyboard."""

    def __init__(self, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        self.resize(100, 30)
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ship.cli", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.shown = ""

    def wait_for(self, text: str) -> None:
        """Reads until the text has been shown."""
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self._master], [], [], 0.05)[0]:
                try:
                    self.shown += os.read(self._master, 65536).decode(errors="replace")
                except OSError:
                    assert text in self.shown, self.shown

    def type(self, keys: str) -> None:
        """Presses keys."""
        os.write(self._master, keys.encode())

    def ends_with(self) -> int:
        """The exit code; what was shown until then is read."""
        reader = threading.Thread(target=self._drain)
        reader.start()
        code = self.process.wait(DEADLINE_S)
        reader.join(DEADLINE_S)
        return code

    def _drain(self) -> None:
        while True:
            try:
                content = os.read(self._master, 65536)
            except OSError:
                return
            if not content:
                return
            self.shown += content.decode(errors="replace")

    def resize(self, columns: int, rows: int) -> None:
        """Drags the window's corner."""
        termios.tcsetwinsize(self._master, (rows, columns))

    def close(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.wait()
        os.close(self._master)
