"""The host process: claims its data folder, finds what an earlier process left, serves until it is told to stop."""

import asyncio
import contextlib
import dataclasses
import fcntl
import logging
import os
import resource
import signal
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from hmac import compare_digest
from pathlib import Path

from . import durable, greeting
from .api.operations import OperationRoutes
from .api.router import Api
from .api.sandboxes import SandboxRoutes
from .api.snapshots import SnapshotRoutes
from .api.telemetry import TelemetryRoutes
from .api.templates import TemplateRoutes
from .builds.builds import Builds
from .builds.catalogue import Catalogue
from .builds.debian import DebianRoot
from .edge.endpoints import Endpoints
from .edge.front import Front
from .edge.tls import HANDSHAKE_TIMEOUT_S
from .envd.http1 import BACKLOG, CHUNK_BYTES
from .errors import NotFound, SetupError
from .isolation import bubblewrap, cgroups, daemon_log, gvisor, layout, seccomp, staging
from .isolation.backend import Backend, Backends
from .isolation.bubblewrap import Bubblewrap
from .isolation.cgroups import Cgroups
from .isolation.disks import STORAGE_UID
from .isolation.forkserver import ForkServer
from .isolation.gvisor import GVisor
from .isolation.rootfs import Roots
from .lifecycle.captures import Captures
from .lifecycle.launches import Launches
from .lifecycle.records import DEFAULT_TENANT
from .lifecycle.sandboxes import Sandboxes
from .lifecycle.snapshots import Snapshots
from .network import netfilter, wire
from .network.gateway import Gateway
from .openapi import with_document
from .quotas import Quotas
from .settings import Settings
from .storage.blobs import Blobs, FolderBlobs
from .storage.layers import Layers
from .storage.s3 import S3Blobs
from .telemetry.metrics import Metrics
from .telemetry.usage import Usage
from .templates import Template
from .tenants import Tenants

STAGE = Path("/run/ship-sandboxd")
PROBE_UID = 199_999
_TIDY_S = 3600.0
_log = logging.getLogger("ship_sandboxd.server")


def claim(data: Path) -> int:
    """Take the data folder for this process, without what an earlier one left half-made; answers the lock's descriptor. Raises
    SetupError `data_in_use`, OSError."""
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
    durable.tidy(data)
    return lock


class Machine:
    """What this machine allows: found out once, at the start, before any thread runs."""

    def __init__(self, data: Path, default: str = Bubblewrap.name) -> None:
        self.is_root = os.geteuid() == 0
        program = bubblewrap.find()
        bubblewrap.check(program, PROBE_UID if self.is_root else None)
        filter_program = seccomp.program()
        self.groups = _cgroups()
        daemon = layout.install_daemon(data)
        etc = layout.write_etc(data)
        stage = staging.enter(STAGE) if self.is_root else ""
        self.roots = Roots.detect(data, stage, etc)
        forks = ForkServer.start(data, stage)
        redirects = self.is_root and netfilter.is_available()
        self.refuses = redirects and _refuses()
        freezes = self.groups.can_freeze
        found: list[Backend] = [
            Bubblewrap(program, forks, self.roots, daemon, filter_program, freezes, redirects)
        ]
        if default == GVisor.name or not gvisor.obstacle(self.roots):
            wires = redirects and wire.is_available()
            found.append(GVisor(gvisor.find(self.roots), forks, self.roots, daemon, freezes, wires))
        self.backends = Backends(*sorted(found, key=lambda backend: backend.name != default))

    def about(self) -> dict[str, object]:
        """What `GET /health` tells, for `doctor` commands: how strong the isolation and the limits are."""
        controllers = self.groups.controllers
        return {
            "status": "ok",
            "isolation": "a uid for each sandbox" if self.is_root else "one uid for all sandboxes",
            "backend": self.backends.default.name,
            "backends": self.backends.names,
            "keeps_memory": self.backends.default.keeps_memory,
            "root": "bound folders" if self.roots.obstacle else "layers",
            "limits": {
                **{name: name in controllers for name in ("memory", "pids", "cpu")},
                "disk": self.roots.disks.limited,
            },
            "transparent_egress": self.backends.default.redirects,
        }


def _refuses() -> bool:
    obstacle = netfilter.refusing_obstacle()
    if obstacle is not None:
        event = "the kernel cannot tell of packets that it refuses: sandboxes' logs miss UDP, IPv6 and flows beyond the limit"
        _log.warning(event, extra={"reason": str(obstacle)})
    return obstacle is None


def _cgroups() -> Cgroups:
    return cgroups.detect(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mounts").read_text())


class Store:
    """What outlives sandboxes: layers, and what is made of them."""

    def __init__(self, settings: Settings, quotas: Quotas) -> None:
        data, in_bucket = settings.data, settings.blobs.startswith("s3://")
        blobs: Blobs = S3Blobs(settings.blobs) if in_bucket else FolderBlobs(Path(settings.blobs))
        self.layers = Layers(data / "layers", blobs)
        debian = DebianRoot(data / "debian", self.layers, STORAGE_UID, settings.debian_root)
        self.catalogue = Catalogue(data / "catalogue", data / "templates", debian, quotas)
        self.snapshots = Snapshots(blobs, quotas)
        self.layers.add_holder(self.snapshots.layers)
        self._warm = dict(settings.warm)

    async def find(self, reference: str, tenant: str) -> Template:
        """The template or snapshot that a sandbox is to be made of. Raises what `Catalogue.find` and
        `Snapshots.template` raise."""
        try:
            return self._warmed(await self.catalogue.find(reference, tenant), tenant)
        except NotFound as error:
            with contextlib.suppress(NotFound):
                return dataclasses.replace(await self.snapshots.template(reference, tenant), warm=0)
            raise error from None

    def _warmed(self, template: Template, tenant: str) -> Template:
        """It, with the number of warm sandboxes that the operator wants. A template that was built has a name of its
        builder's choice, so that counts for the operator's own tenant alone."""
        warm = self._warm.get(template.name, template.warm)
        if tenant == DEFAULT_TENANT:
            warm = self._warm.get(template.alias, warm)
        return dataclasses.replace(template, warm=warm)

    async def tidy(self) -> None:
        """Delete layers that nothing needs, from time to time."""
        while True:
            try:
                await self.snapshots.refresh()
                if self.snapshots.complete:
                    await self.layers.collect()
            except OSError:
                _log.exception("layers cannot be collected")
            await asyncio.sleep(_TIDY_S)


def _sandboxes(
    settings: Settings, machine: Machine, gateway: Gateway, store: Store, quotas: Quotas
) -> Sandboxes:
    sandboxes = Sandboxes(
        settings.data,
        machine.backends,
        Launches(machine.groups, gateway, store.layers),
        Captures(store.layers, machine.roots.disks, machine.roots.obstacle),
        store.find,
        machine.is_root,
        quotas,
        settings.park_after_s,
        dict(settings.warm),
        settings.spares,
    )
    store.layers.add_holder(sandboxes.layers_in_use)
    return sandboxes


async def serve(settings: Settings, machine: Machine) -> None:
    """Serve until SIGTERM or SIGINT; the sandboxes run on."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    loop = asyncio.get_running_loop()
    # What waits for disks does so in threads; one that is slow must not hold up the others.
    loop.set_default_executor(ThreadPoolExecutor(64))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    tenants = Tenants(settings.api_key, settings.keys)
    endpoints = Endpoints.open(settings)

    quotas = Quotas(settings.data, settings.quotas, settings.min_free_mb)

    def reload() -> None:
        tenants.reload()
        quotas.reload()
        endpoints.reload()

    # A person who closes the terminal means the host to stop; from anyone else it means a look at the files.
    loop.add_signal_handler(signal.SIGHUP, stop.set if sys.stdout.isatty() else reload)
    gateway = Gateway(settings.upstreams, settings.private, refuses=machine.refuses)
    store = Store(settings, quotas)
    sandboxes = _sandboxes(settings, machine, gateway, store, quotas)
    cutting = asyncio.create_task(daemon_log.keep_short(settings.data / "sandboxes"))
    await sandboxes.recover()
    builds = Builds(settings.data, store.catalogue, sandboxes, store.layers, machine.roots.disks, quotas)
    await builds.recover()
    tidying = asyncio.create_task(store.tidy())
    usage = Usage(lambda: ((sandbox.record, sandbox.folder) for sandbox in sandboxes.all()))
    sampling = asyncio.create_task(usage.run())
    metrics = _metrics(settings, sandboxes, gateway)

    def about() -> dict[str, object]:
        return {**machine.about(), **endpoints.told()}

    def may_read_metrics(key: str) -> bool:
        known = bool(settings.metrics_key) and compare_digest(key.encode(), settings.metrics_key.encode())
        return settings.metrics_public or known or tenants.owner(key) == DEFAULT_TENANT

    of_sandboxes = SandboxRoutes(sandboxes, endpoints.domain, metrics)
    routes = [
        *OperationRoutes(about, metrics, may_read_metrics).table(),
        *of_sandboxes.table(),
        *TelemetryRoutes(sandboxes, usage).table(),
        *SnapshotRoutes(sandboxes, store.snapshots, of_sandboxes.handle_of).table(),
        *TemplateRoutes(builds, store.snapshots).table(),
    ]
    api = Api(with_document(routes), tenants, metrics)
    front = Front(sandboxes, api, endpoints.domain, metrics)
    servers = await _serve(front, endpoints)
    greeting.announce({**endpoints.told(), "pid": os.getpid()}, settings)
    warming = asyncio.create_task(sandboxes.warm_up())
    renewing = asyncio.create_task(endpoints.keep_valid())
    await stop.wait()
    for server in servers:
        server.close()
    cutting.cancel()
    sampling.cancel()
    tidying.cancel()
    warming.cancel()
    renewing.cancel()
    await front.close()
    await builds.leave()
    await sandboxes.leave()


async def stop_all(settings: Settings, machine: Machine) -> int:
    """End every sandbox of the data folder; answers how many there were."""
    quotas = Quotas(settings.data)
    sandboxes = _sandboxes(settings, machine, Gateway(), Store(settings, quotas), quotas)
    await sandboxes.recover()
    count = len(sandboxes.all())
    await sandboxes.kill_all()
    await sandboxes.leave()
    return count


def _metrics(settings: Settings, sandboxes: Sandboxes, gateway: Gateway) -> Metrics:
    metrics = Metrics(settings.data)
    metrics.read(
        "sandboxes",
        "Sandboxes of this host",
        "state",
        lambda: {"running": 0, **Counter(sandbox.record.state for sandbox in sandboxes.all())},
    )
    metrics.read(
        "egress_refusals_total",
        "What was not let out, by the kind of the reason",
        "kind",
        lambda: gateway.refusals,
        kind="counter",
    )
    metrics.read(
        "memory_shortages_total",
        "Times that the kernel ended a process of a sandbox for want of memory",
        "backend",
        lambda: sandboxes.memory_shortages,
        kind="counter",
    )
    metrics.read(
        "warm_sandboxes", "Sandboxes that wait to be handed out", "template", lambda: sandboxes.pool.counts()
    )
    return metrics


async def _serve(front: Front, endpoints: Endpoints) -> list[asyncio.Server]:
    servers = [
        await asyncio.start_server(
            front.serve_connection, sock=endpoints.http, limit=CHUNK_BYTES, backlog=BACKLOG
        )
    ]
    if endpoints.https is not None:
        servers.append(
            await asyncio.start_server(
                front.serve_connection,
                sock=endpoints.https.socket,
                ssl=endpoints.https.certificate.context,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                limit=CHUNK_BYTES,
                backlog=BACKLOG,
            )
        )
    return servers
