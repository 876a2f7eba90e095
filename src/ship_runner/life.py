"""The runner's life: learn what to do, clone and start the agent, report ready, then run tasks until refused."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from ship_runner import briefing, facts
from ship_runner.checkpoints import Checkpoints
from ship_runner.control import Bootstrap, ControlPlane, kept_bootstrap
from ship_runner.failures import RunnerFailure
from ship_runner.instructions import Refused
from ship_runner.link import Link
from ship_runner.opencode.driver import OpenCode
from ship_runner.settings import Settings
from ship_runner.spool import Spool
from ship_runner.tasks import Tasks
from ship_runner.tls import authorities
from ship_runner.workspace import Prepared, Workspace

log = logging.getLogger(__name__)

_SLOWEST_RETRY_S = 5.0
_PATIENCE_S = 2.0
"""How long a runner that was told what to do before waits for the control plane to say it again."""


async def rehearse() -> None:
    """Ask a server of our own something: HTTP's parts are loaded when they are first needed, and a runner that waits has the time."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    with contextlib.suppress(OSError, httpx.HTTPError):
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            address = f"http://{host}:{port}/"
            async with httpx.AsyncClient(trust_env=False, verify=authorities(address)) as client:
                await client.get(address)


@dataclass(frozen=True, slots=True)
class _Started:
    """The agent stands: its conversation, and whether it remembers it from an earlier sandbox."""

    conversation: str
    remembers: bool


class Life:
    """One runner. ``live`` returns when the control plane has refused it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._control = ControlPlane(settings.url, settings.token)
        self._kept = settings.state / "bootstrap.json"
        self._bootstrap: Bootstrap | None = None

    @property
    def bootstrap(self) -> Bootstrap:
        assert self._bootstrap is not None, "live() reads it first"
        return self._bootstrap

    async def live(self) -> Refused:
        self._bootstrap = await self._learn()
        spool = Spool(self._settings.state / f"spool-{self.bootstrap.generation}")
        workspace = Workspace(self._settings.workspace, self._settings.state)
        agent = OpenCode(self._settings, lambda: self.bootstrap)
        checkpoints = Checkpoints(
            agent, spool, workspace, self._control, diff_bytes=self._settings.diff_bytes
        )
        tasks = Tasks(
            agent,
            spool,
            checkpoints,
            grow=lambda delta: link.grow(delta),
            title=self.bootstrap.title,
            default_model=lambda: self.bootstrap.default_model,
            checkpoint_every_s=self._settings.checkpoint_every_s,
        )
        link = Link(
            self._settings.url,
            self._settings.token,
            self.bootstrap.generation,
            spool,
            connected=lambda: self._connected(link, agent),
            instructed=tasks.instruct,
        )
        work = asyncio.create_task(self._work(spool, workspace, agent, tasks))
        talk = asyncio.create_task(link.run())
        try:
            await asyncio.wait({work, talk}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()  # only ever raises: tasks run for ever
            refused = talk.result()
            log.warning("refused by the control plane: %s: %s", refused.code, refused.reason)
            await agent.stop()
            return refused
        finally:
            for task in (work, talk):
                task.cancel()
            await asyncio.gather(work, talk, return_exceptions=True)
            await agent.let_go()
            await self._control.close()
            spool.close()

    async def _learn(self) -> Bootstrap:
        """Ask until the control plane answers; an earlier answer serves while it is away."""
        kept, started, pause = kept_bootstrap(self._kept), time.monotonic(), 0.1
        while True:
            try:
                return await self._control.bootstrap(self._kept)
            except httpx.HTTPError as error:
                if kept is not None and time.monotonic() - started > _PATIENCE_S:
                    return kept
                log.info("the control plane does not say what to do: %s", error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _SLOWEST_RETRY_S if kept is None else 0.5)

    def _connected(self, link: Link, agent: OpenCode) -> None:
        """A control plane that was started anew knows no unfinished text, and may offer other models."""
        for delta in agent.growing():
            link.grow(delta)
        self._learning = asyncio.create_task(self._learn_quietly())

    async def _learn_quietly(self) -> None:
        try:
            self._bootstrap = await self._control.bootstrap(self._kept)
        except (httpx.HTTPError, RunnerFailure) as error:
            log.info("what to do could not be read again: %s", error)

    async def _work(self, spool: Spool, workspace: Workspace, agent: OpenCode, tasks: Tasks) -> None:
        if not spool.notes.get("ready") and not await self._prepare(spool, workspace, agent):
            await (
                asyncio.Event().wait()
            )  # the failure is reported over the link; the control plane ends this sandbox
        await tasks.run()

    async def _prepare(self, spool: Spool, workspace: Workspace, agent: OpenCode) -> bool:
        """Clone and start the agent side by side; whether both stand."""
        clone = asyncio.create_task(self._step(spool, "clone", self._clone(workspace), self._clone_detail()))
        start = asyncio.create_task(self._step(spool, "agent", self._start(agent, spool, clone), "OpenCode"))
        done, unfinished = await asyncio.wait({clone, start}, return_when=asyncio.FIRST_EXCEPTION)
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
        for task in done:
            error = task.exception()
            if isinstance(error, RunnerFailure):
                failed = facts.sandbox_failed(self.bootstrap.generation, error.document())
                spool.report(failed, key="sandbox.failed")
                await agent.stop()
                return False
            if error is not None:
                raise error
        self._report_ready(spool, clone.result(), start.result())
        return True

    def _report_ready(self, spool: Spool, prepared: Prepared, started: _Started) -> None:
        generation = self.bootstrap.generation
        notes: dict[str, Any] = {"ready": True, "conversation": started.conversation}
        restore = self.bootstrap.restore
        if restore or self.bootstrap.is_again:
            lost = briefing.lost(self.bootstrap, prepared.lost, remembers=started.remembers)
            checkpoint_id = restore.checkpoint_id if restore else ""
            restored = facts.sandbox_restored(
                generation, checkpoint_id, conversation=started.remembers, lost=lost
            )
            spool.report(restored, key="sandbox.restored")
            if restore:
                notes["news"] = briefing.news(lost, remembers=started.remembers, summary=restore.summary)
        ready = facts.sandbox_ready(generation, prepared.base_commit, self.bootstrap.work_branch)
        spool.report(ready, key="sandbox.ready", notes=notes)

    async def _step(self, spool: Spool, step: str, work: Coroutine[Any, Any, Any], detail: str) -> Any:
        generation, started = self.bootstrap.generation, time.monotonic()
        spool.report(facts.step_started(generation, step, detail), key=f"started:{step}")
        result = await work
        took_ms = int((time.monotonic() - started) * 1000)
        spool.report(facts.step_finished(generation, step, took_ms, detail), key=f"finished:{step}")
        return result

    def _clone_detail(self) -> str:
        branch = self.bootstrap.branch
        where = f"branch {branch}" if branch else "default branch"
        return f"{where}, back to a checkpoint" if self.bootstrap.restore else where

    async def _clone(self, workspace: Workspace) -> Prepared:
        """The workspace as it is to be; the bundles of a checkpoint come while git clones."""
        restore = self.bootstrap.restore
        if restore is None or not restore.bundles:
            return await workspace.prepare(self.bootstrap, self._settings.token)
        fetching = asyncio.create_task(self._fetch_bundles(restore.bundles))
        try:
            return await workspace.prepare(self.bootstrap, self._settings.token, fetching)
        finally:
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)
            for path in self._settings.state.glob("restore-*"):
                path.unlink()

    async def _fetch_bundles(self, names: Sequence[str]) -> list[Path]:
        paths = [self._settings.state / f"restore-{number}.bundle" for number in range(len(names))]
        for name, path in zip(names, paths, strict=True):
            try:
                await self._control.fetch_artifact(name, path)
            except httpx.HTTPError as error:
                raise RunnerFailure(
                    "restore_failed",
                    f"The checkpoint {name} cannot be fetched: {error or type(error).__name__}",
                    "Retry; or start a new session.",
                ) from error
        return paths

    async def _start(self, agent: OpenCode, spool: Spool, clone: asyncio.Task[Any]) -> _Started:
        """Start the agent while the repository is cloned, and warm it up in there afterwards."""
        conversation = await self._remember(agent, spool)
        try:
            await agent.start()
        except RunnerFailure as error:
            if not conversation:
                raise
            log.error("the agent does not start with what it remembers: %s", error)
            conversation = ""
            await agent.forget()
            await agent.start()
        await asyncio.wait({clone})
        if clone.exception() is not None:
            return _Started("", remembers=False)
        if conversation and await agent.resume(conversation):
            return _Started(conversation, remembers=True)
        return _Started(await agent.begin(self.bootstrap.title), remembers=False)

    async def _remember(self, agent: OpenCode, spool: Spool) -> str:
        """Give the agent its memory back before it starts; the conversation's id, empty without one.

        A memory that is missing or damaged costs the conversation, never the sandbox.
        """
        if "remembered" in spool.notes:
            return str(spool.notes["remembered"])
        conversation = ""
        if (restore := self.bootstrap.restore) and restore.agent_artifact:
            path = self._settings.state / "memory-restored.tar.gz"
            try:
                await self._control.fetch_artifact(restore.agent_artifact, path)
                conversation = await agent.restore_memory(path)
            except (httpx.HTTPError, RunnerFailure) as error:
                log.error("the agent's memory does not come back: %r", error)
            finally:
                path.unlink(missing_ok=True)
        spool.note(remembered=conversation)
        return conversation
