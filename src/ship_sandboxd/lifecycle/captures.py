"""The file system of a sandbox as it is at one moment, as a layer on top of those that it was made of."""

import asyncio
import dataclasses
import logging
import platform
import time
from pathlib import Path

from .. import durable
from ..errors import Unsupported
from ..isolation.disks import Disks
from ..storage.layers import Layer, Layers
from ..templates import Template, laid
from .records import RUNNING
from .sandbox import Sandbox

_OS_RELEASE = Path("/etc/os-release")
_log = logging.getLogger("ship_sandboxd.lifecycle.captures")


class Captures:
    """`obstacle` says why this machine cannot do it, empty where it can."""

    def __init__(self, layers: Layers, disks: Disks, obstacle: str) -> None:
        self._layers = layers
        self._disks = disks
        self._obstacle = obstacle

    async def sync(self, sandbox: Sandbox) -> None:
        """Bring its files, its record, its log and what else the host keeps of it to the machine's own disk. Raises OSError."""
        if not self._obstacle:
            await self._disks.sync(sandbox.folder)
        await asyncio.to_thread(durable.sync_files, sandbox.folder)

    async def take(self, sandbox: Sandbox) -> tuple[Template, int]:
        """A template that starts with this sandbox's files, environment and limits, and the bytes that its new layer takes
        in the store. To be called in the sandbox's turn.

        A running sandbox stands still while its files are read, so that they are what a power cut at that moment would
        leave. Raises Unsupported, FreezeFailed, LayerBroken, OSError.
        """
        if self._obstacle:
            raise Unsupported(f"snapshots and forks need layers: {self._obstacle}")
        record, template = sandbox.record, sandbox.record.made_of
        began = time.monotonic()
        layer = await self._pack(sandbox)
        sandbox.tell(
            "sandbox captured",
            layer=layer.digest,
            size_bytes=layer.size_bytes,
            took_ms=round((time.monotonic() - began) * 1000),
        )
        made = dataclasses.replace(
            template,
            env={**template.env, **record.envs},
            layers=laid(template.layers, layer.digest),
            on_machine=template.lies_on_machine,
            warm=0,
        )
        return made, layer.size_bytes

    async def _pack(self, sandbox: Sandbox) -> Layer:
        backend, groups = sandbox.backend, sandbox.record.cgroups
        async with self._disks.opened(sandbox.folder) as disk:
            upper = disk / "upper"
            if sandbox.record.state != RUNNING:
                return await self._layers.pack(upper)
            if not backend.keeps_memory:
                raise Unsupported("this machine cannot halt a running sandbox: pause it first")
            await backend.freeze(groups)
            try:
                return await self._layers.pack(upper, lambda: backend.thaw(groups))
            finally:
                await backend.thaw(groups)


def machine_system() -> str:
    """The operating system whose /usr sandboxes without a root of their own see, such as `debian-12-x86_64`."""
    facts = dict(line.split("=", 1) for line in _OS_RELEASE.read_text().splitlines() if "=" in line)
    name, version = (facts.get(key, "").strip('"') for key in ("ID", "VERSION_ID"))
    return f"{name}-{version}-{platform.machine()}"
