"""Carries out what the machine asks of the world. Each effect is done at least once and may be done again."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from ship.errors import Conflict, NotFound
from ship.events import facts
from ship.model import SYSTEM, LimitsPatch, Parent, SessionStatus, TaskStatus
from ship.ports.sandboxes import SandboxHost
from ship.sessions import commands
from ship.sessions.draft import outcome
from ship.sessions.ids import new_id
from ship.sessions.service import Sessions
from ship.sessions.tasks import left

RUNNER = "exec ship-runner"
SANDBOX_TIMEOUT_S = 3_600


class RunnerSettings(NamedTuple):
    """What a sandbox needs to find its way home. ``url`` is the control plane as the sandbox sees it; ``issue_token`` makes the
    session token of a generation."""

    template: str
    url: str
    issue_token: Callable[[str, int], str]


class Effects:
    """The effects' handlers."""

    def __init__(self, sessions: Sessions, host: SandboxHost, runner: RunnerSettings) -> None:
        self._sessions = sessions
        self._host = host
        self._runner = runner

    async def perform(self, session_id: str, effect: commands.AnyEffect) -> None:
        """Do it.

        Raises:
            ShipError: it did not work; it may work later.
        """
        match effect:
            case commands.ProvisionSandbox():
                await self._provision(session_id, effect.generation)
            case commands.CheckSandbox():
                await self._check(session_id, effect)
            case commands.KillSandbox():
                await self._kill(session_id, effect.generation)
            case commands.PackLog():
                await self._sessions.pack(session_id)
            case commands.PauseSandbox():
                await self._freeze(session_id, effect)
            case commands.ResumeSandbox():
                await self._thaw(session_id, effect)
            case commands.BeginChild():
                await self._begin_child(session_id, effect)
            case commands.ReportToParent():
                await self._report_to_parent(session_id)
            case commands.EndChildren():
                await self._end_children(effect)

    async def _provision(self, session_id: str, generation: int) -> None:
        if await self._is_over(session_id, generation):
            return
        began_ms = self._sessions.now_ms()
        await self._report(
            session_id, generation, facts.SandboxStepStarted(generation=generation, step="create")
        )
        metadata = {"ship.session": session_id, "ship.generation": str(generation)}
        found = await self._host.find(metadata)
        sandbox_id = (
            found[0][0]
            if found
            else await self._host.create(self._runner.template, metadata, SANDBOX_TIMEOUT_S)
        )
        with _passing("session_archived"):  # meanwhile
            await self._report(
                session_id,
                generation,
                facts.SandboxStepFinished(
                    generation=generation, step="create", took_ms=self._sessions.now_ms() - began_ms
                ),
                facts.SandboxCreated(generation=generation, sandbox_id=sandbox_id),
                facts.SandboxStepStarted(generation=generation, step="runner"),
            )
        kept = await self._kept(session_id, generation)
        if kept != sandbox_id:
            await self._host.kill(sandbox_id)
        if kept:
            await self._start_runner(session_id, generation, kept)

    async def _kept(self, session_id: str, generation: int) -> str:
        """The sandbox that the log names for this generation: of two nodes that made one each, the first to say so. Empty when
        nobody waits for it any more."""
        if await self._is_over(session_id, generation):
            return ""
        return (await self._sessions.state(session_id)).sandbox.sandbox_id

    async def _is_over(self, session_id: str, generation: int) -> bool:
        """Whether nobody waits for this generation any more: its KillSandbox may have come before there was anything to kill."""
        state = await self._sessions.state(session_id)
        return (
            state.status is SessionStatus.ARCHIVED
            or state.sandbox.generation != generation
            or not state.sandbox.is_alive
        )

    async def _start_runner(self, session_id: str, generation: int, sandbox_id: str) -> None:
        if await self._host.running(sandbox_id, RUNNER):
            return
        token = self._runner.issue_token(session_id, generation)
        env: Mapping[str, str] = {"SHIP_URL": self._runner.url, "SHIP_TOKEN": token}
        await self._host.start(sandbox_id, RUNNER, env)

    async def _check(self, session_id: str, effect: commands.CheckSandbox) -> None:
        if not await self._is_resting(session_id):
            try:
                await self._host.extend(effect.sandbox_id, SANDBOX_TIMEOUT_S)
                await self._start_runner(session_id, effect.generation, effect.sandbox_id)
            except NotFound as error:
                if not await self._is_resting(session_id):
                    await self._report_missing(session_id, effect.generation, str(error))
        await self._freeze_again(session_id, effect)

    async def _freeze_again(
        self, session_id: str, effect: commands.CheckSandbox | commands.ResumeSandbox
    ) -> None:
        """A pause may have come in between, and the effect, or an earlier try of it, may have woken what was frozen. A pause that still
        waits for its checkpoint is left alone."""
        state = await self._sessions.state(session_id)
        due = state.sandbox.status == "paused" or state.wanted_checkpoint is None
        if due and state.status is SessionStatus.PAUSED:
            frozen = commands.PauseSandbox(generation=effect.generation, sandbox_id=effect.sandbox_id)
            await self._freeze(session_id, frozen)

    async def _freeze(self, session_id: str, effect: commands.PauseSandbox) -> None:
        if await self._is_over(session_id, effect.generation) or not await self._is_paused(session_id):
            return
        try:
            await self._host.pause(effect.sandbox_id)
        except NotFound as error:
            await self._report_missing(session_id, effect.generation, str(error))
            return
        frozen = commands.ReportFrozen(generation=effect.generation)
        await self._sessions.execute(session_id, frozen, SYSTEM)

    async def _thaw(self, session_id: str, effect: commands.ResumeSandbox) -> None:
        if await self._is_over(session_id, effect.generation) or await self._is_paused(session_id):
            return
        try:
            await self._host.resume(effect.sandbox_id, SANDBOX_TIMEOUT_S)
            # No protocol tells whether it came back as it was; its runner does, which goes on or is gone.
            memory = await self._host.running(effect.sandbox_id, RUNNER)
            thawed = commands.ReportThawed(generation=effect.generation, memory=memory)
            await self._sessions.execute(session_id, thawed, SYSTEM)
            if not await self._is_paused(session_id):
                await self._start_runner(session_id, effect.generation, effect.sandbox_id)
        except NotFound as error:
            if not await self._is_paused(session_id):  # it may be frozen again
                await self._report_missing(session_id, effect.generation, str(error))
        await self._freeze_again(session_id, effect)

    async def _is_paused(self, session_id: str) -> bool:
        return (await self._sessions.state(session_id)).status is SessionStatus.PAUSED

    async def _is_resting(self, session_id: str) -> bool:
        """Whether its sandbox may be frozen: a host answers for such a one as if it were gone."""
        state = await self._sessions.state(session_id)
        return state.status is SessionStatus.PAUSED or state.sandbox.status == "paused"

    async def _report_missing(self, session_id: str, generation: int, reason: str) -> None:
        missing = commands.ReportMissing(generation=generation, reason=reason)
        await self._sessions.execute(session_id, missing, SYSTEM)

    async def _begin_child(self, session_id: str, effect: commands.BeginChild) -> None:
        state = await self._sessions.state(session_id)
        task = state.task(effect.task_id)
        limits = left(state, task, self._sessions.now_ms()) if task else state.limits
        parent = Parent(
            session_id=session_id,
            task_id=effect.task_id,
            depth=state.parent.depth + 1 if state.parent else 1,
        )
        command = commands.CreateSession(
            title=effect.title,
            repository=state.repository,
            model=effect.model,
            approval=state.approval,
            prompt=effect.prompt,
            task_id=new_id("tsk"),
            limits=LimitsPatch(time_s=limits.time_s, tokens=limits.tokens, cost_usd=limits.cost_usd),
            parent=parent,
        )
        with _passing("session_exists"):  # an earlier try has begun it
            await self._sessions.execute(effect.child_id, command, effect.by)
        state = await self._sessions.state(session_id)
        task = state.task(effect.task_id)
        is_over = task is not None and task.status in (TaskStatus.FAILED, TaskStatus.CANCELLED)
        if is_over or state.status is SessionStatus.ARCHIVED:
            await self._archive(effect.child_id)

    async def _report_to_parent(self, session_id: str) -> None:
        state = await self._sessions.state(session_id)
        status = outcome(state)
        if state.parent is None or status is None:
            return
        files = state.checkpoint.files if state.checkpoint else ()
        fact = facts.ChildFinished(
            child_id=session_id,
            status=status,
            summary=state.failure.reason if state.failure else state.last_text,
            files_changed=len(files),
            additions=sum(file.additions for file in files),
            deletions=sum(file.deletions for file in files),
            usage=state.used,
        )
        with _passing("session_archived"):  # the parent: nobody waits for it
            await self._sessions.execute(state.parent.session_id, commands.FinishChild(fact=fact), SYSTEM)

    async def _end_children(self, effect: commands.EndChildren) -> None:
        for child_id in effect.child_ids:
            await self._archive(child_id)

    async def _archive(self, session_id: str) -> None:
        with contextlib.suppress(
            NotFound
        ):  # it has not begun yet: who begins it sees that its parent is over
            await self._sessions.execute(session_id, commands.ArchiveSession(), SYSTEM)

    async def _kill(self, session_id: str, generation: int) -> None:
        for sandbox_id, metadata in await self._host.find({"ship.session": session_id}):
            if int(metadata["ship.generation"]) <= generation:
                await self._host.kill(sandbox_id)

    async def _report(self, session_id: str, generation: int, *reported: facts.Fact) -> None:
        for fact in reported:
            await self._sessions.execute(
                session_id, commands.ReportProgress(generation=generation, fact=fact), SYSTEM
            )


@contextlib.contextmanager
def _passing(*codes: str) -> Iterator[None]:
    """Let a Conflict of these codes pass. Another one may be that the session is busy, and then this effect comes again."""
    try:
        yield
    except Conflict as error:
        if error.code not in codes:
            raise
