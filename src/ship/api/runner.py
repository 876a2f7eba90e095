"""The runner's side: what it is to do, its link, its artifacts. Every call carries the session token."""

import asyncio
import contextlib
import logging
import time
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response, WebSocket
from starlette.websockets import WebSocketDisconnect

from ship.api import artifacts, inputs, lifecycle, schemas
from ship.api.answers import encoded
from ship.api.dependencies import Runner, RunnerKey, Serving
from ship.api.services import RunnerCaller, Services, runner, services
from ship.errors import NotFound, ShipError
from ship.events import Cursor, decode_fact, facts, frames
from ship.model import AGENT, SYSTEM
from ship.ports.bus import HEAD, Listener, Notice
from ship.sessions import commands, metrics
from ship.sessions.feeds import HEARTBEAT_S
from ship.sessions.instructions import instructions
from ship.sessions.recap import MESSAGES, recap
from ship.sessions.state import SessionState

router = APIRouter(prefix="/runner/v1", tags=["runner"])

CLOSE_REFUSED, CLOSE_BREACH, CLOSE_RETRY = 4403, 4400, 1013
FACT_BYTES = 1024**2
DELTAS_PER_S = 1_000
DELTA_CHARACTERS = 64 * 1024
SILENCE_MS = 1_000
"""How long after a lost link the sandbox is looked after."""

_FINAL = frozenset({"session_token_invalid", "stale_generation", "session_archived", "session_not_found"})
"""A runner that hears one of these ends; after anything else it comes back and resumes."""

_log = logging.getLogger("ship.runner_link")
_from_runner = msgspec.json.Decoder(frames.FromRunner)
_ENDS = frozenset(
    {
        facts.SandboxRequested.TYPE,
        facts.SessionArchived.TYPE,
        facts.SandboxFailed.TYPE,
        facts.SandboxLost.TYPE,
    }
)
_TELLS = frozenset(
    {
        facts.SandboxReady.TYPE,
        facts.SandboxResumed.TYPE,
        facts.TaskStarted.TYPE,
        facts.TaskSteered.TYPE,
        facts.TaskCancelRequested.TYPE,
        facts.TaskLimitReached.TYPE,
        facts.TaskStuck.TYPE,
        facts.CheckpointRequested.TYPE,
        facts.RequestAnswered.TYPE,
    }
)


@router.get("/bootstrap", response_model=schemas.BootstrapOut)
async def get_bootstrap(serving: Serving, caller: Runner) -> Response:
    """What this runner is to do."""
    state = caller.state
    checkpoint = state.checkpoint
    return encoded(
        {
            "session_id": caller.session_id,
            "generation": caller.generation,
            "title": state.title,
            "repository": {
                "clone_url": f"{serving.control_url}/git/repo.git",
                "branch": state.repository.branch,
            },
            "work_branch": state.work_branch or f"ship/{caller.session_id.removeprefix('ses_')[:16]}",
            "base_commit": state.base_commit or (checkpoint.base_commit if checkpoint else ""),
            "restore": await _restore(serving, caller),
            "depth": state.parent.depth if state.parent else 0,
            "approval": state.approval,
            "default_model": state.model,
            "providers": [
                {
                    "name": provider.name,
                    "protocol": provider.protocol,
                    "base_url": f"{serving.control_url}/gateway/models/{provider.name}/v1",
                    "models": [
                        {
                            "name": model.name,
                            "context_tokens": model.context_tokens,
                            "input_tokens": model.input_tokens,
                            "output_tokens": model.output_tokens,
                            "images": model.images,
                        }
                        for model in provider.models
                    ],
                }
                for provider in serving.providers
            ],
        }
    )


async def _restore(serving: Serving, caller: Runner) -> dict[str, Any] | None:
    """What a new sandbox begins with: the newest checkpoint that was kept whole."""
    state = caller.state
    for point in reversed(state.checkpoints):
        chain = state.chain(point.id)
        bundles = [below.bundle_artifact for below in chain]
        if all(bundles) and not chain[0].parent_id:
            if lost := [name for name in bundles if not await artifacts.is_kept(serving, state, name)]:
                _log.error(
                    "session %s: checkpoint %s is passed over: %s is lost", caller.session_id, point.id, lost
                )
                continue
            return {
                "checkpoint_id": point.id,
                "bundles": bundles,
                "agent_artifact": point.agent_artifact,
                "summary": await _said_so_far(serving, caller),
                "lost_task": state.running is not None,
            }
    return None


async def _said_so_far(serving: Serving, caller: Runner) -> str:
    """For an agent whose memory does not come back. A fork's conversation begins in its origin."""
    state, sessions = caller.state, serving.sessions
    try:
        said = await sessions.last_said(caller.session_id, None, MESSAGES)
        if origin := state.origin:
            said = [*await sessions.last_said(origin.session_id, origin.seq + 1, MESSAGES), *said]
    except ShipError as error:  # a log that was packed may be out of reach; the files come back without it
        _log.warning("session %s: what was said so far cannot be read: %s", caller.session_id, error)
        return ""
    untold = [task.id for task in (state.running, *state.queue) if task is not None]
    return recap(said, untold)


@router.put("/artifacts/{name}", status_code=201, response_model=schemas.ArtifactOut)
async def put_artifact(name: str, request: Request, serving: Serving, caller: Runner) -> Response:
    """Store a diff, a bundle or a screenshot."""
    return await artifacts.store(caller.session_id, name, request, serving, AGENT)


@router.get("/artifacts/{name}", response_class=Response)
async def get_artifact(name: str, serving: Serving, caller: Runner) -> Response:
    """Read one back, after the sandbox was replaced."""
    return await artifacts.answer(serving, caller.state, name)


@router.post("/children", status_code=201, response_model=schemas.ChildAccepted)
async def start_child(body: inputs.ChildIn, serving: Serving, caller: Runner, key: RunnerKey) -> Response:
    """The agent starts a session of its own on the same repository."""
    outcome = await serving.sessions.execute(caller.session_id, lifecycle.child(serving, body), AGENT, key)
    return encoded(outcome.answer, 201)


@router.get("/children", response_model=schemas.ChildPage)
async def list_children(serving: Serving, caller: Runner) -> Response:
    """The sessions that this one started."""
    return encoded({"items": caller.state.children})


@router.get("/children/{child_id}", response_model=schemas.ChildOut)
async def get_child(child_id: str, serving: Serving, caller: Runner) -> Response:
    """How one of them goes."""
    found = next((child for child in caller.state.children if child.id == child_id), None)
    if found is None:
        raise NotFound("this session has no such child", code="child_not_found")
    return encoded(found)


@router.websocket("/link")
async def link(socket: WebSocket) -> None:
    """The runner link; ``docs/protocol.md`` has its rules."""
    await socket.accept()
    serving = services(socket)
    try:
        caller = await runner(socket, serving)
        await _Link(socket, serving, caller).run()
    except ShipError as error:
        _log.info("runner link ended: %s", error)
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            if error.code in _FINAL:
                refused = frames.Refused(code=error.code, reason=error.message)
                await socket.send_text(msgspec.json.encode(refused).decode())
            await socket.close(CLOSE_REFUSED if error.code in _FINAL else CLOSE_RETRY, error.code)


class _Link:
    """One connection of one runner."""

    def __init__(self, socket: WebSocket, serving: Services, caller: RunnerCaller) -> None:
        self._socket = socket
        self._sessions = serving.sessions
        self._session_id = caller.session_id
        self._generation = caller.generation
        self._told: set[str] = set()
        self._seen = 0
        self._ending = False
        self._budget_began, self._budget = 0.0, 0

    async def run(self) -> None:
        """Hear and tell until either side goes.

        Raises:
            ShipError: this runner is not heard any more.
        """
        async with self._sessions.listen(self._session_id) as listener:
            with metrics.RUNNER_LINKS.track_inprogress():
                await self._live(listener)

    async def _live(self, listener: Listener) -> None:
        if not await self._greet():
            return
        hearing = asyncio.create_task(self._hear())
        telling = asyncio.create_task(self._tell(listener))
        vouching = asyncio.create_task(self._vouch())
        every = (hearing, telling, vouching)
        try:
            done, _ = await asyncio.wait(every, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except (WebSocketDisconnect, RuntimeError):
            await self._sessions.check_soon(self._session_id, SILENCE_MS)
        finally:
            for task in every:
                task.cancel()
            await asyncio.gather(*every, return_exceptions=True)

    async def _greet(self) -> bool:
        try:
            hello = _from_runner.decode(await self._socket.receive_text())
        except (msgspec.DecodeError, WebSocketDisconnect, KeyError):
            hello = None
        if not isinstance(hello, frames.Hello) or hello.protocol != frames.PROTOCOL:
            with contextlib.suppress(RuntimeError):
                await self._socket.close(CLOSE_BREACH, "hello expected")
            return False
        state = await self._sessions.state(self._session_id)
        await self._send(frames.Welcome(acked=state.cursor.n))
        step = next((s for s in state.sandbox.steps if s.step == "runner" and s.status == "running"), None)
        if step is not None:
            took_ms = self._sessions.now_ms() - step.started_at_ms
            finished = facts.SandboxStepFinished(generation=self._generation, step="runner", took_ms=took_ms)
            report = commands.ReportProgress(generation=self._generation, fact=finished)
            await self._sessions.execute(self._session_id, report, SYSTEM)
        return True

    async def _hear(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1006))
            text = message.get("text") or ""
            try:
                frame = _from_runner.decode(text)
            except (msgspec.DecodeError, RecursionError) as error:
                await self._lose(f"its runner sent a malformed frame: {error}")
                return
            match frame:
                case frames.Reported():
                    await self._hear_report(frame)
                case frames.Delta():
                    await self._hear_delta(frame)
                case frames.Hello():
                    await self._lose("its runner greeted twice")
                    return

    async def _hear_report(self, frame: frames.Reported) -> None:
        data = bytes(frame.data)
        if len(data) > FACT_BYTES or frame.n < 1:
            await self._lose(
                f"its runner reported {frame.type[:80]!r} with {len(data)} bytes as frame {frame.n}"
            )
            return
        try:
            fact = decode_fact(frame.type, frame.v, data)
        except (ShipError, RecursionError) as error:
            await self._lose(f"its runner reported what we cannot read: {error}")
            return
        at = Cursor(generation=self._generation, n=frame.n)
        await self._sessions.execute(self._session_id, commands.ReportFrame(at=at, fact=fact), AGENT)
        await self._send(frames.Ack(n=frame.n))

    async def _hear_delta(self, delta: frames.Delta) -> None:
        """Pass growing text on, within a budget a second: what is over it comes with the finished part."""
        now = time.monotonic()
        if now - self._budget_began > 1:
            self._budget_began, self._budget = now, DELTAS_PER_S
        # A queue that is never empty would otherwise keep the event loop to itself.
        await asyncio.sleep(0)
        self._budget -= 1
        if self._budget > 0 and delta.offset >= 0 and len(delta.text) <= DELTA_CHARACTERS:
            await self._sessions.grow(self._session_id, delta)

    async def _tell(self, listener: Listener) -> None:
        await self._tell_new()
        while True:
            notices = await listener.take(HEARTBEAT_S)
            kinds = {notice.kind for notice in notices}
            missed = listener.lagged or HEAD in kinds or self._is_gap(notices)
            listener.lagged = False
            if missed or kinds & _ENDS:
                await runner(self._socket, services(self._socket))
            if missed or kinds & _TELLS:
                await self._tell_new()

    async def _vouch(self) -> None:
        """As long as the runner is there and ends a task, its sandbox is not replaced at once."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if self._ending:
                still = commands.ReportEnding(generation=self._generation)
                told = await self._sessions.execute(self._session_id, still, SYSTEM)
                self._ending = _is_ending(told.state)

    def _is_gap(self, notices: list[Notice]) -> bool:
        """Whether the bus has lost something between these and what was told before."""
        gap = False
        for seq in (notice.seq for notice in notices if notice.seq):
            gap |= seq > self._seen + 1
            self._seen = max(self._seen, seq)
        return gap

    async def _tell_new(self) -> None:
        state = await self._sessions.state(self._session_id)
        self._seen = max(self._seen, state.head_seq)
        self._ending = _is_ending(state)
        for key, instruction in instructions(state).items():
            if key not in self._told:
                self._told.add(key)
                await self._send(instruction)

    async def _send(self, frame: frames.ToRunner) -> None:
        await self._socket.send_text(msgspec.json.encode(frame).decode())

    async def _lose(self, reason: str) -> None:
        missing = commands.ReportMissing(generation=self._generation, reason=reason)
        await self._sessions.execute(self._session_id, missing, SYSTEM)


def _is_ending(state: SessionState) -> bool:
    return state.running is not None and state.running.ending
