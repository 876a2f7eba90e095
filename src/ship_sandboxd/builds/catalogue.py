"""The templates of this host by name: the operator's, and those that callers have built, each tenant's for itself.

A built template is one file, `DATA/catalogue/ID.json`: its name, its builds, and its tags, each of which points to a build.
`name` alone means the tag `default`.
"""

import contextlib
import json
import os
import re
import secrets
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import templates
from ..errors import BadRequest, NotFound
from ..lifecycle.records import template_of
from ..quotas import Quotas
from ..templates import BASE, DEBIAN, Template
from .debian import DebianRoot

WAITING, BUILDING, READY, ERROR = "waiting", "building", "ready", "error"
DEFAULT_TAG = "default"
MAX_BUILDS = 50
BUILD_MEMORY_MB = 1024
"""The least that the sandboxes of a build get."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,127}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_ID = re.compile(r"[a-z0-9]{20}")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True)
class Size:
    """How much of the machine a sandbox of a template may use."""

    cpu_count: int = 2
    memory_mb: int = 4096
    disk_mb: int = 10240


@dataclass
class Build:
    """One build of a template. Times are seconds since 1970. `template` is what came of it, once it is ready; `tags`
    are given to it then."""

    id: str
    created_at: float
    cpu_count: int
    memory_mb: int
    disk_mb: int
    tags: list[str]
    status: str = WAITING
    updated_at: float = 0.0
    finished_at: float | None = None
    step: str = ""
    reason: str = ""
    template: Template | None = None

    @property
    def ended(self) -> bool:
        return self.status in (READY, ERROR)


@dataclass
class Tag:
    build_id: str
    created_at: float


@dataclass
class Entry:
    """A template that was built, or is to be."""

    id: str
    tenant: str
    name: str
    created_at: float
    updated_at: float
    builds: dict[str, Build] = field(default_factory=dict)
    tags: dict[str, Tag] = field(default_factory=dict)
    spawn_count: int = 0
    last_spawned_at: float | None = None

    def build(self, build_id: str) -> Build:
        """Raises NotFound."""
        build = self.builds.get(build_id)
        if build is None:
            raise NotFound(f"build '{build_id}' not found", "build_not_found")
        return build

    @property
    def ready_tags(self) -> list[str]:
        """Those that point to a build that is ready."""
        builds = ((name, self.builds.get(tag.build_id)) for name, tag in self.tags.items())
        return [name for name, build in builds if build is not None and build.status == READY]

    @property
    def newest(self) -> Build:
        """The last build that is ready, or else the last one."""
        builds = sorted(self.builds.values(), key=lambda build: build.created_at)
        return next((build for build in reversed(builds) if build.status == READY), builds[-1])


class Catalogue:
    """All of them. `operators` holds the folders of the operator's templates."""

    def __init__(self, folder: Path, operators: Path, debian: DebianRoot, quotas: Quotas) -> None:
        self._debian = debian
        self._quotas = quotas
        self._folder = folder
        self._operators = operators
        self._entries: dict[str, Entry] = {}
        for place in (folder, operators):
            place.mkdir(mode=0o700, exist_ok=True)
        for path in sorted(folder.glob("*.json")):
            if (entry := _load(path)) is not None:
                self._entries[entry.id] = entry

    async def find(self, reference: str, tenant: str) -> Template:
        """The template that a sandbox is made of, as `known` tells it. The first time that anyone asks for the Debian
        root it is made. Raises NotFound, TemplateInvalid, and what making that root raises."""
        if reference == DEBIAN and not self.has_file(DEBIAN):
            return await self.debian(lambda text: None)
        template = self.known(reference, tenant)
        entry = self._entries.get(template.name)
        if entry is not None:
            entry.spawn_count += 1
            entry.last_spawned_at = time.time()
        return template

    async def debian(self, report: Callable[[str], None]) -> Template:
        """The Debian root as a template; `report` is told of its making."""
        return Template(DEBIAN, layers=(await self._debian.layer(report),), alias=DEBIAN)

    def known(self, reference: str, tenant: str) -> Template:
        """The template of a `name`, `name:tag`, id or `id:tag`. Raises NotFound, TemplateInvalid."""
        name, tag = split(reference)
        entry = self._lookup(name, tenant)
        if entry is None:
            return templates.read(self._operators, reference)
        known = entry.tags.get(tag)
        build = entry.builds.get(known.build_id) if known is not None else None
        if build is None or build.template is None:
            ready = ", ".join(sorted(entry.tags)) or "none yet"
            raise NotFound(
                f"template '{name}' has no build with the tag '{tag}'; it has: {ready}", "template_not_found"
            )
        return build.template

    def entry(self, reference: str, tenant: str) -> Entry:
        """A built template by its id or name. Raises NotFound."""
        entry = self._lookup(split(reference)[0], tenant)
        if entry is None:
            raise NotFound(f"template '{reference}' not found", "template_not_found")
        return entry

    def entries(self, tenant: str) -> list[Entry]:
        """A tenant's own, newest first."""
        own = [entry for entry in self._entries.values() if entry.tenant == tenant]
        return sorted(own, key=lambda entry: (entry.created_at, entry.id), reverse=True)

    def tenant_of(self, template_id: str) -> str:
        """Whose a built template is. Raises NotFound."""
        entry = self._entries.get(template_id)
        if entry is None:
            raise NotFound(f"template '{template_id}' not found", "template_not_found")
        return entry.tenant

    def laid_out(self) -> list[str]:
        """The names of the operator's templates."""
        return templates.names(self._operators)

    def operators(self) -> list[Template]:
        """What the operator has laid out, for everyone."""
        names = set(self.laid_out())
        found = []
        for name in sorted(names | {BASE}):
            with contextlib.suppress(templates.TemplateInvalid, NotFound):
                found.append(templates.read(self._operators, name))
        return found if DEBIAN in names else [*found, Template(DEBIAN)]

    def is_operators(self, name: str) -> bool:
        return name in (BASE, DEBIAN) or self.has_file(name)

    def has_file(self, name: str) -> bool:
        return templates.has_file(self._operators, name)

    def request(self, tenant: str, name: str, tags: Iterable[str], size: Size) -> tuple[Entry, Build]:
        """A new build of the template of this name, which is made when there is none yet. Raises BadRequest,
        QuotaExceeded, DiskFull."""
        self._quotas.check_room()
        name, colon, tag = name.partition(":")
        if not _NAME.fullmatch(name):
            raise BadRequest(
                "a template's name is made of a-z, 0-9, - and _, at most 128 characters",
                "template_name_invalid",
            )
        if self.is_operators(name):
            raise BadRequest(f"the name '{name}' belongs to this host's operator", "template_name_taken")
        quota = self._quotas.of(tenant)
        quota.check("memory_mb", 0, max(size.memory_mb, BUILD_MEMORY_MB))
        quota.check("disk_mb", 0, size.disk_mb)
        wanted = list(dict.fromkeys([*([tag] if colon else []), *tags])) or [DEFAULT_TAG]
        for each in wanted:
            check_tag(each)
        now = time.time()
        entry = self._lookup(name, tenant)
        if entry is None:
            quota.check("templates", len(self.entries(tenant)))
            new_id = "".join(secrets.choice(_ALPHABET) for _ in range(20))
            entry = Entry(new_id, tenant, name, created_at=now, updated_at=now)
            self._entries[entry.id] = entry
        build = Build(
            str(uuid.uuid4()), now, size.cpu_count, size.memory_mb, size.disk_mb, wanted, updated_at=now
        )
        entry.builds[build.id] = build
        _forget_old(entry)
        self.save(entry)
        return entry, build

    def assign(self, target: str, tags: Iterable[str], tenant: str) -> Build:
        """Let tags point to the build that `name:tag` means. Raises NotFound, BadRequest."""
        name, tag = split(target)
        entry = self.entry(name, tenant)
        known = entry.tags.get(tag)
        if known is None:
            raise NotFound(f"template '{name}' has no tag '{tag}'", "tag_not_found")
        wanted = list(tags)
        for each in wanted:
            check_tag(each)
        for each in wanted:
            entry.tags[each] = Tag(known.build_id, time.time())
        self.save(entry)
        return entry.build(known.build_id)

    def unassign(self, name: str, tags: Iterable[str], tenant: str) -> None:
        """Take tags away; the builds stay. Raises NotFound."""
        entry = self.entry(name, tenant)
        wanted = set(tags)
        missing = wanted - set(entry.tags)
        if missing:
            raise NotFound(f"template '{name}' has no tag '{min(missing)}'", "tag_not_found")
        for each in wanted:
            del entry.tags[each]
        self.save(entry)

    def finish(self, entry: Entry, build: Build, template: Template) -> None:
        """A build is ready: it can be used, by its tags. Deleted meanwhile, it is nobody's any more."""
        now = time.time()
        build.status, build.template, build.finished_at = READY, template, now
        for tag in build.tags:
            entry.tags[tag] = Tag(build.id, now)
        self.save(entry)

    def fail(self, entry: Entry, build: Build, reason: str, step: str) -> None:
        build.status, build.reason, build.step, build.finished_at = ERROR, reason, step, time.time()
        self.save(entry)

    def delete(self, entry: Entry) -> None:
        self._entries.pop(entry.id, None)
        self._path(entry).unlink(missing_ok=True)

    def save(self, entry: Entry) -> None:
        """Replace the file in one step, so that a crash leaves the old one or the new one."""
        if entry.id not in self._entries:
            return
        entry.updated_at = time.time()
        scratch = self._path(entry).with_suffix(".new")
        with scratch.open("w") as file:
            os.fchmod(file.fileno(), 0o600)
            json.dump(asdict(entry), file)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(self._path(entry))

    def layers(self) -> set[str]:
        """Every layer that a template needs."""
        return self._debian.held() | {
            layer
            for entry in self._entries.values()
            for build in entry.builds.values()
            if build.template is not None
            for layer in build.template.layers
        }

    def unfinished(self) -> list[tuple[Entry, Build]]:
        return [
            (entry, build)
            for entry in self._entries.values()
            for build in entry.builds.values()
            if build.status == BUILDING
        ]

    def _lookup(self, name: str, tenant: str) -> Entry | None:
        for entry in self._entries.values():
            if entry.tenant == tenant and name in (entry.id, entry.name):
                return entry
        return None

    def _path(self, entry: Entry) -> Path:
        return self._folder / f"{entry.id}.json"


def split(reference: str) -> tuple[str, str]:
    """`name:tag` in two; without a tag the default one. Raises BadRequest where a half is missing."""
    name, colon, tag = reference.partition(":")
    if not name or (colon and not tag):
        raise BadRequest(f"{reference[:200]!r} is not a template: write name or name:tag", "tag_invalid")
    return name, tag or DEFAULT_TAG


def check_tag(tag: str) -> None:
    """Raises BadRequest for what is no tag."""
    if not _TAG.fullmatch(tag):
        raise BadRequest(
            f"{tag[:200]!r} is not a tag: letters, digits, '_', '.' and '-', at most 128 characters",
            "tag_invalid",
        )


def _forget_old(entry: Entry) -> None:
    """Keep what tags point to, what is being built, and the newest."""
    tagged = {tag.build_id for tag in entry.tags.values()}
    builds = sorted(entry.builds.values(), key=lambda build: build.created_at)
    for build in builds[:-MAX_BUILDS]:
        if build.id not in tagged and build.status != BUILDING:
            del entry.builds[build.id]


def _load(path: Path) -> Entry | None:
    """A template's file; None of one that another version wrote, or nobody."""
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        values["builds"] = {key: _load_build(build) for key, build in values["builds"].items()}
        values["tags"] = {key: Tag(**tag) for key, tag in values["tags"].items()}
        entry = Entry(**values)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return entry if _ID.fullmatch(entry.id) and entry.builds else None


def _load_build(values: dict[str, Any]) -> Build:
    if values["template"] is not None:
        values["template"] = template_of(values["template"])
    return Build(**values)
