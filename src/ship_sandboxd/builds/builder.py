"""Makes a template of a recipe: each step in a sandbox of its own, on the layers that the steps before it have left.

What a step has made is kept under a key that follows from all that went before, so the same steps are not done twice. What is
kept belongs to one tenant.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from ..errors import BadRequest, NotFound
from ..isolation.disks import Disks
from ..lifecycle import startup
from ..lifecycle.new_sandbox import NewSandbox
from ..lifecycle.sandbox import Sandbox
from ..lifecycle.sandboxes import Sandboxes
from ..storage.layers import Layers
from ..templates import BASE, DEBIAN, Template
from . import steps
from .build_log import BuildLog, Lines
from .catalogue import BUILD_MEMORY_MB, Build, Catalogue, Entry, split
from .recipes import COPY, Recipe, Stage, Step
from .step_cache import StepCache
from .uploads import Uploads

TENANT = " builds"
"""Whose the sandboxes of builds are: no key has a tenant of this name."""
MAX_LAYERS = 200
"""The kernel mounts some more over one another, of which snapshots have need too."""
_STEP_S = 3600
_FINALIZE = "finalize"


@dataclass
class Work:
    """A build that runs: what it is of, where it says what it does, and how far it has come. `step` is `base`, a step's
    number from 1, or `finalize`; `prefix` stands before what is said."""

    entry: Entry
    build: Build
    recipe: Recipe
    log: BuildLog
    step: str = "base"
    prefix: str = "[base]"

    def say(self, text: str) -> None:
        self.log.add("info", f"{self.prefix} {text}", self.step)

    def lines(self) -> Lines:
        """Where the output of a command goes."""
        return Lines(self.log, self.prefix, self.step)


class Builder:
    """Does the steps. `cache` keeps what they have made."""

    def __init__(
        self,
        catalogue: Catalogue,
        sandboxes: Sandboxes,
        layers: Layers,
        disks: Disks,
        uploads: Uploads,
        cache: StepCache,
    ) -> None:
        self._catalogue = catalogue
        self._sandboxes = sandboxes
        self._layers = layers
        self._disks = disks
        self._uploads = uploads
        self._cache = cache

    def check_base(self, name: str, tenant: str) -> None:
        """Raises NotFound, and BadRequest for a template that nothing can be built on."""
        if not _is_debian(name):
            self._layered(name, tenant)

    def _layered(self, name: str, tenant: str) -> Template:
        template = self._catalogue.known(name, tenant)
        if template.lies_on_machine:
            raise BadRequest(
                f"the template '{template.name}' lies on the machine's own /usr, which nothing can be built on; "
                f"use '{DEBIAN}'",
                "base_not_layered",
            )
        return template

    async def make(self, work: Work) -> Template:
        """Build from the base to the start command. Raises StepFailed, StartFailed, LaunchFailed, LayerBroken, OSError, and
        what making the Debian root raises; `work` tells then how far it came."""
        entry, build, recipe = work.entry, work.build, work.recipe
        base = await self._base(work)
        made = replace(
            base,
            name=entry.id,
            alias=entry.name,
            cpu_count=build.cpu_count,
            memory_mb=build.memory_mb,
            disk_mb=build.disk_mb,
        )
        stage, force = Stage.of(base, entry.tenant), recipe.force
        for number, step in enumerate(recipe.steps, 1):
            work.step, work.prefix = str(number), f"[builder {number}/{len(recipe.steps)}]"
            force = force or step.force
            stage = await self._do(work, _at(made, stage), stage, step, force=force)
        work.step, work.prefix = _FINALIZE, f"[{_FINALIZE}]"
        made = replace(
            _at(made, stage),
            start_command=recipe.start_command or base.start_command,
            ready_command=recipe.ready_command or ("" if recipe.start_command else base.ready_command),
        )
        await self._try_start(work, made)
        return made

    async def _base(self, work: Work) -> Template:
        name = work.recipe.base
        work.say(f"FROM {name or DEBIAN}")
        if _is_debian(name):
            return await self._catalogue.debian(work.say)
        return self._layered(name, work.entry.tenant)

    async def _do(self, work: Work, template: Template, stage: Stage, step: Step, *, force: bool) -> Stage:
        """One step: by what is kept of an earlier build, or by doing it."""
        if not steps.changes_files(step):
            work.say(str(step))
            steps.check(step, None)
            return stage.after(step)
        key = stage.key_after(step)
        layer = None if force else await self._kept(key)
        if layer is not None:
            work.log.add("info", f"CACHED {work.prefix} {step}", work.step)
            return stage.after(step, layer)
        work.say(str(step))
        if len(stage.layers) >= MAX_LAYERS:
            raise steps.StepFailed(
                f"a template lies on at most {MAX_LAYERS} layers, those of its base included: join some steps"
            )
        layer = await self._layer_of(work, template, stage, step)
        self._cache.put(key, layer)
        return stage.after(step, layer)

    async def _layer_of(self, work: Work, template: Template, stage: Stage, step: Step) -> str:
        """Do a step; answers the digest of the layer that it has made."""
        archive = None
        if step.kind == COPY:
            archive = self._uploads.path(work.entry.tenant, step.files_hash)
        steps.check(step, archive)
        lines = work.lines()
        async with self._sandbox(template) as sandbox:
            try:
                async with asyncio.timeout(_STEP_S):
                    await steps.apply(sandbox, stage, step, archive, lines.heard)
            except TimeoutError as error:
                raise steps.StepFailed(f"the step took longer than {_STEP_S} s") from error
            finally:
                lines.end()
            return await self._capture(sandbox)

    async def _capture(self, sandbox: Sandbox) -> str:
        """The layer of what a sandbox has changed. Its processes are ended first, so that nothing changes any more."""
        await self._sandboxes.pause(sandbox.id, keep_memory=False)
        async with self._disks.opened(sandbox.folder) as disk:
            return (await self._layers.pack(disk / "upper")).digest

    async def _kept(self, key: str) -> str | None:
        """The layer of a step that was done before, if it is still there."""
        layer = self._cache.get(key)
        if layer is not None:
            try:
                await self._layers.unpacked(layer)
            except NotFound:
                return None
        return layer

    async def _try_start(self, work: Work, template: Template) -> None:
        """Prove that the start command works, in a sandbox that is thrown away."""
        if not template.start_command and not template.ready_command:
            return
        work.say(f"START {template.start_command}")
        lines = work.lines()
        async with self._sandbox(template) as sandbox:
            try:
                await startup.start(sandbox, template, lines.heard)
            finally:
                lines.end()

    @asynccontextmanager
    async def _sandbox(self, template: Template) -> AsyncIterator[Sandbox]:
        """A sandbox to do a step in; nothing is started in it."""
        bare = replace(
            template,
            name=f"{template.name}/build",
            memory_mb=max(template.memory_mb, BUILD_MEMORY_MB),
            start_command="",
            ready_command="",
        )
        sandbox = await self._sandboxes.create(NewSandbox(tenant=TENANT, timeout_s=2 * _STEP_S), bare)
        try:
            yield sandbox
        finally:
            with contextlib.suppress(NotFound):
                await self._sandboxes.kill(sandbox.id)


def _is_debian(name: str) -> bool:
    return not name or split(name)[0] in (BASE, DEBIAN)


def _at(template: Template, stage: Stage) -> Template:
    return replace(template, layers=stage.layers, env=stage.env, workdir=stage.workdir, user=stage.user)
