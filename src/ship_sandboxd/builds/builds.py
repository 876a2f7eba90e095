"""Templates in the making: which builds there are, how they begin and end, and what they say.

waiting ── started ──► building ── every step done, the start command ready ──► ready
                           └── a step failed, or the host ended ──► error
"""

import asyncio
import contextlib
import logging
import time
from pathlib import Path

from ..errors import ApiError, Conflict, NotFound
from ..isolation.disks import Disks
from ..lifecycle.sandboxes import Sandboxes
from ..quotas import Quotas
from ..storage.layers import Layers
from .build_log import BuildLog
from .builder import TENANT, Builder, Work
from .catalogue import BUILDING, WAITING, Build, Catalogue, Entry
from .places import Places
from .recipes import Recipe
from .step_cache import StepCache
from .uploads import Uploads

_log = logging.getLogger("ship_sandboxd.builds.builds")


class Builds:
    """All builds of this host."""

    def __init__(
        self,
        data: Path,
        catalogue: Catalogue,
        sandboxes: Sandboxes,
        layers: Layers,
        disks: Disks,
        quotas: Quotas,
    ) -> None:
        folder = data / "builds"
        self._logs_folder = folder / "logs"
        for each in (folder, self._logs_folder):
            each.mkdir(mode=0o700, exist_ok=True)
        self.catalogue = catalogue
        self.uploads = Uploads(folder / "files", quotas)
        self._sandboxes = sandboxes
        cache = StepCache(folder / "cache")
        self._builder = Builder(catalogue, sandboxes, layers, disks, self.uploads, cache)
        self._running: dict[str, asyncio.Task[None]] = {}
        self._logs: dict[str, BuildLog] = {}
        self._places = Places()
        layers.add_holder(lambda: catalogue.layers() | cache.layers())

    def start(self, entry: Entry, build: Build, recipe: Recipe) -> None:
        """Begin a build that was requested. Raises Conflict when it was begun before, NotFound and BadRequest for the
        base."""
        if build.status != WAITING:
            raise Conflict(f"build '{build.id}' was started before", "build_started")
        self._builder.check_base(recipe.base, entry.tenant)
        build.status = BUILDING
        self.catalogue.save(entry)
        work = Work(entry, build, recipe, BuildLog(self._log_path(build.id)))
        self._logs[build.id] = work.log
        task = asyncio.create_task(self._attend(work))
        self._running[build.id] = task
        task.add_done_callback(lambda _: self._running.pop(build.id, None))

    async def log(self, build_id: str) -> BuildLog:
        """What a build has said, or says."""
        running = self._logs.get(build_id)
        if running is not None:
            return running
        return await asyncio.to_thread(BuildLog.read, self._log_path(build_id))

    async def delete(self, entry: Entry) -> None:
        """End a template's builds and forget it. Sandboxes that were made of it run on."""
        self.catalogue.delete(entry)
        await self._sandboxes.pool.forget(entry.id)
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

    async def _attend(self, work: Work) -> None:
        """A build from its beginning to its end, however it ends."""
        entry, build = work.entry, work.build
        facts = {"build": build.id, "template": entry.id}
        began = time.monotonic()
        try:
            async with self._places.one(entry.tenant):
                template = await self._builder.make(work)
            work.log.add("info", f"Template is ready after {time.monotonic() - began:.1f} s", work.step)
            self.catalogue.finish(entry, build, template)
            _log.info("template built", extra=facts)
        except asyncio.CancelledError:
            self._fail(work, "the build was cancelled")
            raise
        except (ApiError, OSError) as error:
            self._fail(work, str(error))
            _log.warning("build failed", extra={**facts, "step": work.step, "reason": str(error)})
        except Exception:
            self._fail(work, "the sandbox host failed: see its log")
            _log.exception("build failed", extra={**facts, "step": work.step})
        finally:
            self._logs.pop(build.id, None)
            work.log.close()

    def _fail(self, work: Work, reason: str) -> None:
        work.log.add("error", reason, work.step)
        try:
            self.catalogue.fail(work.entry, work.build, reason, work.step)
        except OSError as error:
            _log.error(
                "a build's end cannot be written down", extra={"build": work.build.id, "reason": str(error)}
            )

    def _log_path(self, build_id: str) -> Path:
        return self._logs_folder / f"{build_id}.jsonl"
