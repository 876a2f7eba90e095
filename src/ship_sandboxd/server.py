"""The host process: claims its data folder, finds what an earlier process left, serves until it is told to stop."""

import asyncio
import errno
import fcntl
import os
import resource
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import bubblewrap, cgroups, greeting, layout, seccomp
from .api.operations import OperationRoutes
from .api.router import Api
from .api.sandboxes import SandboxRoutes
from .api.snapshots import SnapshotRoutes
from .api.templates import TemplateRoutes
from .backend import Backends
from .bubblewrap import Bubblewrap
from .cgroups import Cgroups
from .errors import SetupError
from .front import Front
from .sandboxes import Sandboxes
from .settings import Settings
from .staging import Stage
from .tenants import Tenants

STAGE = Path("/run/ship-sandboxd")
PROBE_UID = 199_999


def claim(data: Path) -> int:
    """Take the data folder for this process; answers the lock's descriptor. Raises SetupError `data_in_use`."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise SetupError(
            f"another sandbox host runs on {data}: stop it, or give this one another --data folder",
            "data_in_use",
            2,
        ) from error
    return lock


class Machine:
    """What this machine allows: found out once, at the start, before any thread runs."""

    def __init__(self, data: Path) -> None:
        self.is_root = os.geteuid() == 0
        program = bubblewrap.find()
        bubblewrap.check(program, PROBE_UID if self.is_root else None)
        filter_program = seccomp.program()
        self.groups = _cgroups()
        daemon = layout.install_daemon(data)
        etc = layout.write_etc(data)
        stage = Stage.enter(STAGE) if self.is_root else Stage.none()
        self.backends = Backends(
            Bubblewrap(program, stage, daemon, etc, filter_program, self.groups.can_freeze)
        )

    def about(self) -> dict[str, object]:
        """What `GET /health` tells, for `doctor` commands: how strong the isolation and the limits are."""
        controllers = self.groups.controllers
        return {
            "status": "ok",
            "isolation": "a uid for each sandbox" if self.is_root else "one uid for all sandboxes",
            "backend": self.backends.default.name,
            "backends": self.backends.names,
            "keeps_memory": self.backends.default.keeps_memory,
            "limits": {name: name in controllers for name in ("memory", "pids", "cpu")},
        }


def _cgroups() -> Cgroups:
    return cgroups.detect(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mounts").read_text())


async def serve(settings: Settings, machine: Machine) -> None:
    """Serve until SIGTERM or SIGINT; the sandboxes run on."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    loop = asyncio.get_running_loop()
    # Name lookups wait in threads; a sandbox that asks for slow ones must not hold up the others.
    loop.set_default_executor(ThreadPoolExecutor(64))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    tenants = Tenants(settings.api_key, settings.keys)
    loop.add_signal_handler(signal.SIGHUP, tenants.reload)
    listener = _listen(settings)
    host, port = listener.getsockname()[:2]
    domain = settings.domain or f"localhost:{port}"
    sandboxes = Sandboxes(
        settings.data, machine.backends, machine.groups, settings.upstreams, machine.is_root
    )
    await sandboxes.recover()
    routes = [
        *OperationRoutes(machine.about()).table(),
        *SandboxRoutes(sandboxes, domain).table(),
        *SnapshotRoutes().table(),
        *TemplateRoutes().table(),
    ]
    api = Api(routes, tenants)
    front = Front(sandboxes, api, domain)
    server = await asyncio.start_server(front.serve_connection, sock=listener)
    shown = f"[{host}]" if ":" in host else host
    greeting.announce({"url": f"http://{shown}:{port}", "pid": os.getpid()}, settings)
    await stop.wait()
    server.close()
    await front.close()
    await sandboxes.leave()


async def stop_all(settings: Settings, machine: Machine) -> int:
    """End every sandbox of the data folder; answers how many there were."""
    sandboxes = Sandboxes(
        settings.data, machine.backends, machine.groups, settings.upstreams, machine.is_root
    )
    await sandboxes.recover()
    count = len(sandboxes.all())
    await sandboxes.kill_all()
    await sandboxes.leave()
    return count


def _listen(settings: Settings) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in settings.listen_host else socket.AF_INET
        return socket.create_server((settings.listen_host, settings.listen_port), family=family, backlog=512)
    except OSError as error:
        code = "port_in_use" if error.errno == errno.EADDRINUSE else "listen_failed"
        address = f"{settings.listen_host}:{settings.listen_port}"
        raise SetupError(f"cannot listen on {address}: {error.strerror or error}", code, 2) from error
