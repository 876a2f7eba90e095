"""Templates in the making: each step in a sandbox of its own, on the layers that the steps before it have left.

    waiting ── started ──► building ── every step done, the start command ready ──► ready
                               └── a step failed, or the host ended ──► error

What a step has made is kept under a key that follows from all that went before, so the same steps are not done twice. A
build belongs to one tenant, and so does what is kept of it.
"""

import asyncio
import contextlib
import json
import logging
import time
from dataclasses import replace
from pathlib import Path

from . import startup, steps
from .build_log import BuildLog, Lines
from .catalogue import BUILDING, WAITING, Build, Catalogue, Entry, split
from .disks import Disks
from .errors import ApiError, BadRequest, Conflict, NotFound
from .layers import Layers
from .recipes import COPY, Recipe, Stage, Step
from .sandbox import Sandbox
from .sandboxes import NewSandbox, Sandboxes
from .templates import BASE, DEBIAN, Template
from .uploads import Uploads

TENANT = " builds"
"""Whose the sandboxes of builds are: no key has a tenant of this name."""
MAX_AT_ONCE = 3
MAX_LAYERS = 200
"""The kernel mounts some more over one another, of which snapshots have need too."""
_STEP_S = 3600
_LEAST_MEMORY_MB = 1024
_CACHE_ENTRIES = 2000
_BASE, _FINALIZE = "base", "finalize"
_log = logging.getLogger("ship_sandboxd.builds")


class Builds:
    """All builds of this host."""

    def __init__(
        self,
        data: Path,
        catalogue: Catalogue,
        sandboxes: Sandboxes,
        layers: Layers,
        disks: Disks,
    ) -> None:
        self.catalogue = catalogue
        self._sandboxes = sandboxes
        self._layers = layers
        self._disks = disks
        self._logs_folder = data / "builds" / "logs"
        for folder in (data / "builds", self._logs_folder):
            folder.mkdir(mode=0o700, exist_ok=True)
        self.uploads = Uploads(data / "builds" / "files")
        self._cache = Cache(data / "builds" / "cache")
        self._running: dict[str, asyncio.Task[None]] = {}
        self._logs: dict[str, BuildLog] = {}
        self._places = asyncio.Semaphore(MAX_AT_ONCE)
        layers.add_holder(lambda: catalogue.layers() | self._cache.layers())

    def start(self, entry: Entry, build: Build, recipe: Recipe) -> None:
        """Begin a build that was requested. Raises Conflict when it was begun before, NotFound for the base."""
        if build.status != WAITING:
            raise Conflict(f"build '{build.id}' was started before", "build_started")
        if recipe.base and split(recipe.base)[0] not in (BASE, DEBIAN):
            self._check_base(self.catalogue.known(recipe.base, entry.tenant))
        build.status = BUILDING
        self.catalogue.save(entry)
        self._logs[build.id] = BuildLog(self._log_path(build.id))
        task = asyncio.create_task(self._attend(entry, build, recipe))
        self._running[build.id] = task
        task.add_done_callback(lambda _: self._running.pop(build.id, None))

    def log(self, build_id: str) -> BuildLog:
        return self._logs.get(build_id) or BuildLog.read(self._log_path(build_id))

    async def delete(self, entry: Entry) -> None:
        """End a template's builds and forget it. Sandboxes that were made of it run on."""
        self.catalogue.delete(entry)
        await self._cancel([build_id for build_id in entry.builds if build_id in self._running])
        for build_id in entry.builds:
            self._logs.pop(build_id, None)
            self._log_path(build_id).unlink(missing_ok=True)

    async def recover(self) -> None:
        """Clear away what builds of an earlier process have left."""
        for sandbox in self._sandboxes.all():
            if sandbox.record.tenant == TENANT:
                with contextlib.suppress(NotFound):
                    await self._sandboxes.kill(sandbox.id)
        for entry, build in self.catalogue.unfinished():
            self.catalogue.fail(
                entry, build, "the sandbox host was restarted during the build: build it again", ""
            )

    async def leave(self) -> None:
        """End the builds that run: nothing of a half-done step can be kept."""
        await self._cancel(list(self._running))

    async def _cancel(self, build_ids: list[str]) -> None:
        tasks = [self._running[build_id] for build_id in build_ids]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _attend(self, entry: Entry, build: Build, recipe: Recipe) -> None:
        """A build from its beginning to its end, however it ends."""
        log = self._logs[build.id]
        at = _Place()
        began = time.monotonic()
        try:
            async with self._places:
                template = await self._build(entry, build, recipe, log, at)
        except asyncio.CancelledError:
            self.catalogue.fail(entry, build, "the build was cancelled", at.step)
            raise
        except (ApiError, OSError) as error:
            log.add("error", str(error), at.step)
            self.catalogue.fail(entry, build, str(error), at.step)
            _log.warning("build failed", extra={"build": build.id, "step": at.step, "reason": str(error)})
        except Exception:
            self.catalogue.fail(entry, build, "the sandbox host failed: see its log", at.step)
            _log.exception("build failed", extra={"build": build.id, "step": at.step})
        else:
            log.add("info", f"Template is ready after {time.monotonic() - began:.1f} s", _FINALIZE)
            self.catalogue.finish(entry, build, template)
            _log.info("template built", extra={"build": build.id, "template": entry.id})
        finally:
            self._logs.pop(build.id, None)

    async def _build(
        self, entry: Entry, build: Build, recipe: Recipe, log: BuildLog, at: "_Place"
    ) -> Template:
        base = await self._base(recipe.base, entry.tenant, log)
        made = replace(
            base,
            name=entry.id,
            alias=entry.name,
            cpu_count=build.cpu_count,
            memory_mb=build.memory_mb,
            disk_mb=build.disk_mb,
        )
        stage = Stage.of(base, entry.tenant)
        force = recipe.force
        for number, step in enumerate(recipe.steps, 1):
            at.step = str(number)
            force = force or step.force
            prefix = f"[builder {number}/{len(recipe.steps)}]"
            stage = await self._do(entry, _of_stage(made, stage), stage, step, log, (prefix, at.step, force))
        at.step = _FINALIZE
        made = replace(
            _of_stage(made, stage),
            start_command=recipe.start_command or base.start_command,
            ready_command=recipe.ready_command or ("" if recipe.start_command else base.ready_command),
        )
        await self._try_start(made, log)
        return made

    async def _base(self, name: str, tenant: str, log: BuildLog) -> Template:
        log.add("info", f"[base] FROM {name or DEBIAN}", _BASE)
        if not name or split(name)[0] in (BASE, DEBIAN):
            return await self.catalogue.debian(lambda text: log.add("info", f"[base] {text}", _BASE))
        template = self.catalogue.known(name, tenant)
        self._check_base(template)
        return template

    @staticmethod
    def _check_base(template: Template) -> None:
        if not template.layers or template.on_machine:
            raise BadRequest(
                f"the template '{template.name}' is laid out by the operator on the machine's own /usr, which nothing "
                f"can be built on; use '{DEBIAN}'",
                "base_not_layered",
            )

    async def _do(
        self,
        entry: Entry,
        template: Template,
        stage: Stage,
        step: Step,
        log: BuildLog,
        place: tuple[str, str, bool],
    ) -> Stage:
        """One step: by what is kept of an earlier build, or by doing it."""
        prefix, number, force = place
        if not steps.changes_files(step):
            steps.check(step, None)
            log.add("info", f"{prefix} {step}", number)
            return stage.after(step)
        key = stage.key_after(step)
        layer = None if force else await self._kept(key)
        if layer is not None:
            log.add("info", f"CACHED {prefix} {step}", number)
            return stage.after(step, layer)
        log.add("info", f"{prefix} {step}", number)
        if len(stage.layers) >= MAX_LAYERS:
            raise steps.StepFailed(
                f"a template lies on at most {MAX_LAYERS} layers, those of its base included: join some steps"
            )
        archive = self.uploads.path(entry.tenant, step.files_hash) if step.kind == COPY else None
        steps.check(step, archive)
        lines = Lines(log, prefix, number)
        sandbox = await self._sandbox(template)
        try:
            async with asyncio.timeout(_STEP_S):
                await steps.apply(sandbox, stage, step, archive, lines.heard)
            lines.end()
            layer = await self._capture(sandbox)
        except TimeoutError as error:
            raise steps.StepFailed(f"the step took longer than {_STEP_S} s") from error
        finally:
            lines.end()
            await self._end(sandbox)
        self._cache.put(key, layer)
        return stage.after(step, layer)

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

    async def _try_start(self, template: Template, log: BuildLog) -> None:
        """Prove that the start command works, in a sandbox that is thrown away."""
        if not template.start_command and not template.ready_command:
            return
        log.add("info", f"[finalize] START {template.start_command}", _FINALIZE)
        lines = Lines(log, "[start]", _FINALIZE)
        sandbox = await self._sandbox(template)
        try:
            await startup.start(sandbox, template, lines.heard)
        finally:
            lines.end()
            await self._end(sandbox)

    async def _sandbox(self, template: Template) -> Sandbox:
        """A sandbox to do a step in; nothing is started in it."""
        bare = replace(
            template,
            name=f"{template.name}/build",
            memory_mb=max(template.memory_mb, _LEAST_MEMORY_MB),
            start_command="",
            ready_command="",
        )
        return await self._sandboxes.create(NewSandbox(tenant=TENANT, timeout_s=2 * _STEP_S), bare)

    async def _end(self, sandbox: Sandbox) -> None:
        with contextlib.suppress(NotFound):
            await self._sandboxes.kill(sandbox.id)

    def _log_path(self, build_id: str) -> Path:
        return self._logs_folder / f"{build_id}.jsonl"


class _Place:
    """How far a build has come; `step` is what its failure is told of."""

    step = _BASE


def _of_stage(template: Template, stage: Stage) -> Template:
    return replace(template, layers=stage.layers, env=stage.env, workdir=stage.workdir, user=stage.user)


class Cache:
    """The layers of steps that were done, each under its key; the ones that were not used for long are forgotten."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, exist_ok=True)

    def get(self, key: str) -> str | None:
        path = self._folder / key
        try:
            layer = str(json.loads(path.read_text())["layer"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        path.touch()
        return layer

    def put(self, key: str, layer: str) -> None:
        scratch = self._folder / f"{key}.new"
        scratch.write_text(json.dumps({"layer": layer}))
        scratch.replace(self._folder / key)
        kept = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in kept[:-_CACHE_ENTRIES]:
            path.unlink(missing_ok=True)

    def layers(self) -> set[str]:
        return {layer for path in self._folder.iterdir() if (layer := self.get_quietly(path)) is not None}

    @staticmethod
    def get_quietly(path: Path) -> str | None:
        """A kept layer, without counting as a use."""
        try:
            return str(json.loads(path.read_text())["layer"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
