"""Carries out what the machine asks of the world. Each effect is done at least once and may be done again."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from ship.errors import NotFound
from ship.events import facts
from ship.model import SYSTEM, SessionStatus
from ship.ports.sandboxes import SandboxHost
from ship.sessions import commands
from ship.sessions.service import Sessions

RUNNER = "ship-runner"
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
        if await self._is_over(session_id, generation):
            await self._host.kill(sandbox_id)
            return
        await self._report(
            session_id,
            generation,
            facts.SandboxStepFinished(
                generation=generation, step="create", took_ms=self._sessions.now_ms() - began_ms
            ),
            facts.SandboxCreated(generation=generation, sandbox_id=sandbox_id),
            facts.SandboxStepStarted(generation=generation, step="runner"),
        )
        await self._start_runner(session_id, generation, sandbox_id)

    async def _is_over(self, session_id: str, generation: int) -> bool:
        """Whether nobody waits for this generation any more: its KillSandbox may have come before there was anything to kill."""
        state = await self._sessions.state(session_id)
        return (
            state.status is SessionStatus.ARCHIVED
            or state.sandbox.generation != generation
            or state.sandbox.status not in ("creating", "ready")
        )

    async def _start_runner(self, session_id: str, generation: int, sandbox_id: str) -> None:
        if await self._host.running(sandbox_id, RUNNER):
            return
        token = self._runner.issue_token(session_id, generation)
        env: Mapping[str, str] = {"SHIP_URL": self._runner.url, "SHIP_TOKEN": token}
        await self._host.start(sandbox_id, f"exec {RUNNER}", env)

    async def _check(self, session_id: str, effect: commands.CheckSandbox) -> None:
        try:
            await self._host.extend(effect.sandbox_id, SANDBOX_TIMEOUT_S)
            await self._start_runner(session_id, effect.generation, effect.sandbox_id)
        except NotFound:
            missing = commands.ReportMissing(
                generation=effect.generation, reason="the sandbox host does not have it any more"
            )
            await self._sessions.execute(session_id, missing, SYSTEM)

    async def _kill(self, session_id: str, generation: int) -> None:
        for sandbox_id, metadata in await self._host.find({"ship.session": session_id}):
            if int(metadata["ship.generation"]) <= generation:
                await self._host.kill(sandbox_id)

    async def _report(self, session_id: str, generation: int, *reported: facts.Fact) -> None:
        for fact in reported:
            await self._sessions.execute(
                session_id, commands.ReportProgress(generation=generation, fact=fact), SYSTEM
            )
