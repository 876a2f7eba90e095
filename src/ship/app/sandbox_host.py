"""Our own sandbox host as a child: started, or found running; started again when it dies.

It is a session of its own, so that it and its sandboxes outlive this process; the next one finds it by a file in the data
folder.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from ship.app.folder import DataFolder
from ship.errors import ConfigurationError

FILE = "sandboxd.json"
KEY_FILE = "sandboxd.key"
LOG = "sandboxd.log"
START_TIMEOUT_S = 30
RESTART_DELAY_S = (0.0, 0.5, 2.0, 10.0)
STEADY_S = 60.0

_log = logging.getLogger("ship.sandbox_host")


class SandboxHostProcess:
    """Keeps one sandbox host running. ``upstream`` is where the sandboxes' control plane listens, ``HOST:PORT``,
    or several of these with commas between: the nodes of a cluster, this one first."""

    def __init__(self, folder: DataFolder, upstream: str) -> None:
        self._folder = folder
        self._upstream = f"ship.internal:80={upstream}"
        self.api_key = _api_key(folder.secret(KEY_FILE))
        self.url = ""
        self._pid = 0

    async def start(self) -> None:
        """Find it or start it; returns when it answers.

        Raises:
            ConfigurationError: it does not start here; the code and the reason are its own.
        """
        known = self._folder.read_json(FILE)
        if known and await _answers(known["url"]) and is_running(known["pid"], "ship_sandboxd"):
            if known.get("upstream") == self._upstream:
                self.url, self._pid = known["url"], known["pid"]
                return
            await end_process(known["pid"])
        await self._spawn(known.get("url", ""))

    async def keep(self) -> None:
        """Start it again whenever it dies, until cancelled."""
        loop = asyncio.get_running_loop()
        tries = 0
        while True:
            began = loop.time()
            await _exit_of(self._pid)
            tries = 0 if loop.time() - began > STEADY_S else tries + 1
            _log.warning("the sandbox host ended; starting it again")
            await asyncio.sleep(RESTART_DELAY_S[min(tries, len(RESTART_DELAY_S) - 1)])
            try:
                await self._launch(self.url.removeprefix("http://"))
            except ConfigurationError as error:
                _log.error("the sandbox host does not start: %s", error)

    async def stop(self) -> None:
        """End the host process; its sandboxes go on and are found at the next start."""
        await end_process(self._pid)

    async def _spawn(self, former_url: str) -> None:
        port = former_url.rpartition(":")[2] or "0"
        try:
            await self._launch(f"127.0.0.1:{port}")
        except ConfigurationError as error:
            if port == "0" or error.code != "port_in_use":
                raise
            await self._launch("127.0.0.1:0")

    async def _launch(self, listen: str) -> None:
        log = os.open(self._folder.path / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        start = os.lseek(log, 0, os.SEEK_END)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "ship_sandboxd", "--listen", listen),
                *("--data", str(self._folder.sandboxes), "--upstream", self._upstream),
                env={**_plain_environment(), "SHIP_SANDBOXD_API_KEY": self.api_key},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=PIPE,
                stderr=log,
                start_new_session=True,
            )
        finally:
            os.close(log)
        assert process.stdout is not None
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                line = await process.stdout.readline()
        except TimeoutError:
            line = b""
        if not line:
            # A kill that meets a process which has just ended takes its exit status away from asyncio: ask first.
            try:
                async with asyncio.timeout(1):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
            raise self._reason(start)
        ready = json.loads(line)
        self.url, self._pid = ready["url"], process.pid
        self._folder.write_json(FILE, {"url": self.url, "pid": self._pid, "upstream": self._upstream})

    def _reason(self, start: int) -> ConfigurationError:
        """What the host wrote when it gave up: the last line of its log that carries a code."""
        with (self._folder.path / LOG).open("rb") as log:
            log.seek(start)
            lines = log.read().decode(errors="replace").splitlines()
        for line in reversed(lines):
            with contextlib.suppress(json.JSONDecodeError):
                entry = json.loads(line)
                if isinstance(entry, dict) and entry.get("code"):
                    reason = entry.get("message") or entry.get("event") or "it gave no reason"
                    return ConfigurationError(
                        f"the sandbox host does not start: {reason}",
                        code=str(entry["code"]),
                        hint=str(entry.get("hint", "")),
                    )
        return ConfigurationError(
            f"the sandbox host does not start: {lines[-1] if lines else 'it said nothing'}",
            code="sandbox_host_failed",
            hint="`ship doctor` checks what it needs.",
        )


def running_host(data: Path) -> tuple[str, str] | None:
    """(URL, API key) of the sandbox host that runs on this data folder of Ship, if one does; nothing is made or started."""
    try:
        known = json.loads((data / FILE).read_text())
        secret = (data / KEY_FILE).read_text().strip()
    except (OSError, json.JSONDecodeError):
        return None
    return (known["url"], _api_key(secret)) if is_running(known["pid"], "ship_sandboxd") else None


def _api_key(secret: str) -> str:
    # E2B's clients expect a key to look like this.
    return f"e2b_{secret[:40]}"


async def end_process(pid: int) -> None:
    """Ask that process to end, and make it after a while."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(10):
                await _exit_of(pid)
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)


def is_running(pid: int, module: str) -> bool:
    """Whether that process lives and its command line names the module: pids are used again."""
    try:
        return module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


async def _exit_of(pid: int) -> None:
    """Returns when that process has ended, whoever's child it is."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(handle, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


async def _answers(url: str) -> bool:
    return await asyncio.to_thread(_is_healthy, urlsplit(url).netloc)


def _is_healthy(address: str) -> bool:
    # Not httpx: importing it would take a good part of a start.
    connection = HTTPConnection(address, timeout=2)
    try:
        connection.request("GET", "/health")
        return HTTPStatus.OK <= connection.getresponse().status < HTTPStatus.MULTIPLE_CHOICES
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _plain_environment() -> dict[str, str]:
    """What the host needs of our environment; the keys stay here."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
