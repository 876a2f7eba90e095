"""Takes checkpoints: the workspace and the agent's memory, stored with the control plane, then reported."""

import asyncio
import hashlib
import logging
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from ship_runner import facts
from ship_runner.agent import Agent
from ship_runner.control import ControlPlane
from ship_runner.facts import Fact
from ship_runner.failures import RunnerFailure
from ship_runner.git import GitFailed
from ship_runner.spool import Spool
from ship_runner.workspace import Checkpoint, Workspace

log = logging.getLogger(__name__)

LINKS = 20
"""How many bundles may build on each other before a whole one is made."""
TIME_S = 180.0
"""How long making one may take, without storing it."""
REFUSALS_S = 60.0
"""How long the control plane may refuse to store something before it is left out."""
DISK_HINT = "Free disk space in the sandbox or give it more, then send the task again."
_LEAST_DISK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Taken:
    """What is to be reported of a checkpoint, and the spool's notes that belong to it."""

    fact: Fact
    notes: dict[str, Any]


class Checkpoints:
    """One checkpoint at a time. A failure is an answer, never an error: no task is lost for want of a checkpoint.

    Notes of the spool: ``chain`` is the last reported checkpoint that a bundle may build on, ``{id, links}``; ``memory`` the name
    under which the agent's memory was stored last.
    """

    def __init__(
        self, agent: Agent, spool: Spool, workspace: Workspace, control: ControlPlane, *, diff_bytes: int
    ) -> None:
        self._agent = agent
        self._spool = spool
        self._workspace = workspace
        self._control = control
        self._diff_bytes = diff_bytes
        self._folder = spool.path.parent
        self._one = asyncio.Lock()

    async def take(self, task_id: str, reason: str, checkpoint_id: str = "") -> Taken:
        """Make one and store it; ``reason`` is ``task``, ``asked``, ``pause`` or ``time``."""
        checkpoint_id = checkpoint_id or f"ckp_{secrets.token_hex(10)}"
        async with self._one:
            try:
                return await self._take(task_id, reason, checkpoint_id)
            except (GitFailed, RunnerFailure, TimeoutError, OSError, httpx.HTTPError) as error:
                log.error("no checkpoint: %r", error)
                return Taken(facts.checkpoint_failed(checkpoint_id, task_id, reason, self._why(error)), {})
            finally:
                for path in self._folder.glob(f"*-{checkpoint_id}.*"):
                    path.unlink(missing_ok=True)

    async def _take(self, task_id: str, reason: str, checkpoint_id: str) -> Taken:
        if not self._workspace.base_commit:
            raise RunnerFailure("checkpoint_failed", "There is no workspace yet.", "Wait until it is ready.")
        chain = self._spool.notes.get("chain", {"id": "", "links": 0})
        parent = chain["id"] if chain["links"] < LINKS else ""
        async with asyncio.timeout(TIME_S):
            memory = asyncio.create_task(self._save_memory(checkpoint_id))
            try:
                if reason != "task":
                    # While the agent works its files must not be older than what it remembers to have written.
                    await asyncio.wait({memory})
                kept = await self._workspace.checkpoint(self._diff_bytes, checkpoint_id, parent)
                saved = await memory
            finally:
                memory.cancel()
        bundle, memory_name = await self._store(kept, saved)
        fact = facts.checkpoint_created(
            kept.id,
            task_id,
            reason,
            commit=kept.commit,
            base_commit=kept.base_commit,
            parent_id=kept.parent if bundle else "",
            files=kept.files,
            diff_artifact=kept.diff.name,
            bundle_artifact=bundle,
            agent_artifact=memory_name,
        )
        notes: dict[str, Any] = {}
        if bundle:
            notes["chain"] = {"id": kept.id, "links": chain["links"] + 1 if kept.parent else 0}
        if memory_name:
            notes["memory"] = memory_name
        return Taken(fact, notes)

    async def _save_memory(self, checkpoint_id: str) -> Path | None:
        """The agent's memory in a file, or None where there is none or it cannot be kept."""
        conversation = self._spool.notes.get("conversation")
        if not conversation:
            return None
        path = self._folder / f"memory-{checkpoint_id}.tar.gz"
        try:
            await self._agent.save_memory(conversation, path)
        except RunnerFailure as error:
            log.error("the agent's memory is not in the checkpoint: %s", error)
            return None
        return path

    async def _store(self, kept: Checkpoint, memory: Path | None) -> tuple[str, str]:
        """Store all; the names of the bundle and of the memory, empty for one that was not taken."""
        _, bundle, name = await asyncio.gather(
            self._put(kept.diff.name, kept.diff, "text/x-diff"),
            self._put_or_leave(kept.bundle.name, kept.bundle, "application/x-git-bundle"),
            self._put_memory(memory),
        )
        return bundle, name

    async def _put_memory(self, path: Path | None) -> str:
        """Stored under a name of its content: what is unchanged is not stored again."""
        if path is None:
            return ""
        name = f"agent-{(await asyncio.to_thread(_sha256, path))[:16]}.tar.gz"
        if name == self._spool.notes.get("memory"):
            return name
        return await self._put_or_leave(name, path, "application/gzip")

    async def _put_or_leave(self, name: str, path: Path, media_type: str) -> str:
        try:
            await self._put(name, path, media_type)
        except httpx.HTTPError as error:
            log.error("%s was not stored: %s", name, error)
            return ""
        return name

    async def _put(self, name: str, path: Path, media_type: str) -> None:
        await _persistently(lambda: self._control.store_artifact(name, path, media_type))

    def _why(self, error: Exception) -> dict[str, Any]:
        if self.disk_full or getattr(error, "disk_full", False):
            return facts.failure("disk_full", "The sandbox's disk is full.", DISK_HINT)
        if isinstance(error, RunnerFailure):
            return error.document()
        reason = "It took too long." if isinstance(error, TimeoutError) else str(error) or repr(error)
        hint = "The files are still in the sandbox; send another task."
        return facts.failure("checkpoint_failed", f"The work could not be kept: {reason}", hint)

    @property
    def disk_full(self) -> bool:
        """Whether there is no room for anything more."""
        return any(
            shutil.disk_usage(folder).free < _LEAST_DISK_BYTES
            for folder in (self._folder, self._workspace.folder)
            if folder.exists()
        )


async def _persistently(work: Callable[[], Awaitable[None]]) -> None:
    """Repeat for as long as the control plane is away, and for a minute while it refuses; what it will never take is raised at
    once, as httpx.HTTPError."""
    refused_since: float | None = None
    pause = 0.2
    while True:
        try:
            await work()
            return
        except httpx.HTTPStatusError as error:
            refused_since = refused_since or time.monotonic()
            status = error.response.status_code
            final = status < 500 and status not in {408, 429}
            if final or time.monotonic() - refused_since > REFUSALS_S:
                raise
            log.info("the control plane did not take it: %s", error)
        except httpx.HTTPError as error:
            log.info("the control plane does not answer: %r", error)
        await asyncio.sleep(pause)
        pause = min(pause * 2, 5.0)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
