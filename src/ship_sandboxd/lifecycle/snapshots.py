"""Snapshots: what sandboxes can be made of again, on every host that shares the store.

A snapshot is one blob, `snapshots/ID.json`; its files are the layers that it names. It belongs to a tenant, and has a
name and a tag if it was given one: a later snapshot of the same name and tag takes its place.
"""

import asyncio
import dataclasses
import json
import logging
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import BadRequest, Conflict, NotFound
from ..quotas import Quotas
from ..storage.blobs import BlobMissing, Blobs
from ..templates import Template
from .captures import machine_system
from .records import template_of

DEFAULT_TAG = "default"
_PREFIX, _SUFFIX = "snapshots/", ".json"
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_ID = re.compile(r"[a-z0-9]{20}")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,127}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_log = logging.getLogger("ship_sandboxd.lifecycle.snapshots")


@dataclass(frozen=True)
class Snapshot:
    """`template` is what sandboxes are made of; `name` may be empty; `size_bytes` is what its newest layer takes in the
    store. `system` names the machine's operating system where its layers lie on that, and is empty else."""

    id: str
    tenant: str
    name: str
    tag: str
    sandbox_id: str
    created_at: float
    template: Template
    size_bytes: int
    system: str

    @property
    def reference(self) -> str:
        """What clients know it by."""
        return f"{self.tenant}/{self.name}:{self.tag}" if self.name else f"{self.id}:{DEFAULT_TAG}"


class Snapshots:
    """Those in a store. They never change, so each is read once."""

    def __init__(self, blobs: Blobs, quotas: Quotas) -> None:
        self._blobs = blobs
        self._quotas = quotas
        self._known: dict[str, Snapshot] = {}
        self._unreadable: set[str] = set()
        self._writing = asyncio.Lock()

    async def add(
        self, tenant: str, reference: str, sandbox_id: str, template: Template, size_bytes: int
    ) -> Snapshot:
        """Keep a snapshot under `name`, `name:tag`, or an empty reference. Raises BadRequest, QuotaExceeded,
        OSError."""
        name, tag = parse_name(reference, tenant) if reference else ("", DEFAULT_TAG)
        new_id = "".join(secrets.choice(_ALPHABET) for _ in range(20))
        snapshot = Snapshot(
            id=new_id,
            tenant=tenant,
            name=name,
            tag=tag,
            sandbox_id=sandbox_id,
            created_at=time.time(),
            template=dataclasses.replace(template, name=new_id, alias=name),
            size_bytes=size_bytes,
            system=machine_system() if template.on_machine else "",
        )
        async with self._writing:
            await self.check_room(tenant, reference)
            await self._blobs.write(_key(new_id), json.dumps(asdict(snapshot)).encode())
            self._known[new_id] = snapshot
            if name:
                for earlier in await self.all(tenant):
                    if (earlier.name, earlier.tag) == (name, tag) and earlier.id != new_id:
                        await self._forget(earlier)
        return snapshot

    async def check_room(self, tenant: str, reference: str) -> None:
        """Whether a tenant may add a snapshot of this name. Raises BadRequest, QuotaExceeded, DiskFull."""
        self._quotas.check_room()
        replaced = parse_name(reference, tenant) if reference else None
        others = [one for one in await self.all(tenant) if (one.name, one.tag) != replaced]
        self._quotas.of(tenant).check("snapshots", len(others))

    async def find(self, reference: str, tenant: str) -> Snapshot:
        """The snapshot of an id, `id:tag`, name, or `name:tag`, each with or without `tenant/`. Raises NotFound, and
        Conflict when it lies on another system than this machine's."""
        wanted = reference.removeprefix(f"{tenant}/")
        name, _, tag = wanted.partition(":")
        snapshot = await self._by_id(name)
        if snapshot is None:
            named = [
                one for one in await self.all(tenant) if (one.name, one.tag) == (name, tag or DEFAULT_TAG)
            ]
            snapshot = named[0] if named else None
        if snapshot is None or snapshot.tenant != tenant:
            raise NotFound(f"template '{reference[:200]}' not found", "template_not_found")
        return snapshot

    async def template(self, reference: str, tenant: str) -> Template:
        """What a sandbox of a snapshot is made of. Raises NotFound, and Conflict when this machine cannot."""
        snapshot = await self.find(reference, tenant)
        if snapshot.system and snapshot.system != machine_system():
            raise Conflict(
                f"snapshot '{snapshot.reference}' lies on the system of the machine that made it, {snapshot.system}; "
                f"this one is {machine_system()}",
                "snapshot_of_another_system",
            )
        return snapshot.template

    async def all(self, tenant: str) -> list[Snapshot]:
        """A tenant's, newest first."""
        await self.refresh()
        own = [snapshot for snapshot in self._known.values() if snapshot.tenant == tenant]
        return sorted(own, key=lambda snapshot: (snapshot.created_at, snapshot.id), reverse=True)

    async def delete(self, reference: str, tenant: str) -> None:
        """Raises NotFound. Sandboxes that were made of it stay."""
        await self._forget(await self.find(reference, tenant))

    async def _forget(self, snapshot: Snapshot) -> None:
        await self._blobs.delete(_key(snapshot.id))
        self._known.pop(snapshot.id, None)

    def layers(self) -> Iterable[str]:
        """The digests of all layers that a snapshot needs, as of the last `refresh`."""
        for snapshot in self._known.values():
            yield from snapshot.template.layers

    @property
    def complete(self) -> bool:
        """Whether every snapshot in the store could be read, at the last `refresh`."""
        return not self._unreadable

    async def refresh(self) -> None:
        """Learn what other hosts have added and deleted. Raises OSError."""
        ids = {key.removeprefix(_PREFIX).removesuffix(_SUFFIX) for key in await self._blobs.keys(_PREFIX)}
        for gone in set(self._known) - ids:
            self._known.pop(gone, None)
        self._unreadable &= ids
        for new in ids - set(self._known) - self._unreadable:
            await self._by_id(new)

    async def _by_id(self, snapshot_id: str) -> Snapshot | None:
        if not _ID.fullmatch(snapshot_id):
            return None
        if snapshot_id not in self._known:
            try:
                self._known[snapshot_id] = _decode(await self._blobs.read(_key(snapshot_id)))
            except BlobMissing:
                return None
            except (ValueError, TypeError, KeyError) as error:
                self._unreadable.add(snapshot_id)
                _log.error("a snapshot cannot be read", extra={"snapshot": snapshot_id, "reason": str(error)})
                return None
        return self._known[snapshot_id]


def parse_name(reference: str, tenant: str) -> tuple[str, str]:
    """(name, tag) of `name`, `name:tag` or `tenant/name:tag`. Raises BadRequest."""
    name, colon, tag = reference.removeprefix(f"{tenant}/").partition(":")
    name, tag = name.lower(), tag if colon else DEFAULT_TAG
    if not _NAME.fullmatch(name) or not _TAG.fullmatch(tag):
        raise BadRequest(
            f"{reference[:200]!r} is no name for a snapshot: write name or name:tag, "
            "of a-z, 0-9, '_', '.' and '-', at most 128 characters each",
            "snapshot_name_invalid",
        )
    return name, tag


def _key(snapshot_id: str) -> str:
    return f"{_PREFIX}{snapshot_id}{_SUFFIX}"


def _decode(data: bytes) -> Snapshot:
    values: dict[str, Any] = json.loads(data)
    return Snapshot(**{**values, "template": template_of(values["template"])})
