"""The agent port on ``opencode serve``."""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from ship_runner.agent import Outcome, Restart, Run, Sink
from ship_runner.control import Bootstrap
from ship_runner.facts import Delta
from ship_runner.failures import RunnerFailure
from ship_runner.git import bearer_configuration
from ship_runner.opencode import mapping, memory
from ship_runner.opencode.configuration import configuration, environment
from ship_runner.opencode.process import FIRST_LOOK, AgentProcess
from ship_runner.opencode.terms import Terms
from ship_runner.opencode.turn import Turn
from ship_runner.settings import Settings

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""How often a run is looked at when nothing stirs: memory, CPU, and whether it has ended unnoticed."""
ABORT_S = 10.0
ASK_AGAIN_S = 1.0
BEGIN_S = 30.0
SETTLE_S = 2.0
"""OpenCode calls itself idle for a moment while it takes up a message that came just when it was done."""
SILENCE_S = 35.0
"""OpenCode's stream has a heartbeat each 10 s; one that is silent for longer is dead."""


class OpenCode:
    """OpenCode in one folder. ``bootstrap`` is asked anew at each start: providers may have changed."""

    def __init__(self, settings: Settings, bootstrap: Callable[[], Bootstrap]) -> None:
        self._settings = settings
        self._bootstrap = bootstrap
        home = Path(os.environ.get("HOME", "/home/user"))
        self._process = AgentProcess(settings.opencode, settings.state, home)
        self._data = memory.data_folder(os.environ, home)
        self._starting = asyncio.Lock()
        self._turn: Turn | None = None
        self._stream: asyncio.Task[None] | None = None
        self._warming: asyncio.Task[None] | None = None
        self._killing: asyncio.Task[None] | None = None
        self._had_one = False
        self._open = False
        self._cpu_s = 0.0

    async def start(self) -> Restart | None:
        async with self._starting:
            return await self._ensure()

    async def _ensure(self) -> Restart | None:
        restart = None
        if not self._had_one and await self._process.find():
            self._had_one = True
        elif self._had_one and not self._process.running:
            restart = Restart("crashed", "The agent's process ended unexpectedly.")
        if self._process.running:
            restart = self._outgrown()
            if self._following or (restart is None and self._process.agree(*self._terms())):
                self._listen()
                return None
        await self._launch()
        return restart

    async def _launch(self) -> None:
        """Start the process, and listen only then: OpenCode never answers who connects while it is starting."""
        await self._silence()
        await self._process.start(*self._terms())
        self._had_one = True
        self._listen()

    @property
    def _following(self) -> bool:
        return self._turn is not None and self._turn.following

    def _terms(self) -> tuple[dict[str, str], Terms]:
        """The environment that OpenCode is to have, and what it is to know."""
        bootstrap = self._bootstrap()
        document = configuration(
            bootstrap.providers,
            bootstrap.default_model,
            bootstrap.approval,
            tools=(*self._settings.program, "mcp"),
            tools_environment={"SHIP_URL": self._settings.url},
        )
        token = self._settings.token
        git = bearer_configuration(bootstrap.clone_url, token) if "://" in bootstrap.clone_url else ""
        return environment(os.environ), Terms(document, token, git)

    def _outgrown(self) -> Restart | None:
        size, limit = self._process.memory_bytes(), self._settings.agent_memory_bytes
        if size <= limit:
            return None
        return Restart(
            "oversized", f"The agent had grown to {size >> 20} MiB; its limit is {limit >> 20} MiB."
        )

    async def begin(self, title: str) -> str:
        await self.start()
        answer = await self._call("POST", "/session", {"title": title or "Ship"})
        self._opened()
        return str(answer["id"])

    async def resume(self, conversation: str) -> bool:
        await self.start()
        try:
            answer = await self._request("GET", f"/session/{quote(conversation)}/message")
        except httpx.HTTPError as error:
            raise RunnerFailure("agent_start_failed", f"The agent does not answer: {error!r}") from error
        self._opened()
        return answer.status_code == 200

    async def save_memory(self, conversation: str, path: Path) -> None:
        await asyncio.to_thread(memory.save, self._data, conversation, path)

    async def restore_memory(self, path: Path) -> str:
        async with self._starting:
            await self._process.find_and_end()  # one that waits has opened another memory
        return await asyncio.to_thread(memory.restore, path, self._data)

    async def forget(self) -> None:
        await self.stop()
        await asyncio.to_thread(shutil.rmtree, self._data, ignore_errors=True)

    def _opened(self) -> None:
        """The workspace is there: whoever looks into it sees the repository, and OpenCode looks but once."""
        self._open = True
        self._listen()

    async def _warm(self) -> None:
        """The first look into a folder loads providers and tools: done now, the first prompt need not wait for it."""
        for path in FIRST_LOOK:
            with contextlib.suppress(RunnerFailure):
                await self._call("GET", path)

    def new_message(self) -> str:
        return mapping.new_message_id()

    async def run(self, run: Run, sink: Sink) -> Outcome:
        turn = self._turn = Turn(run, sink)
        try:
            await self.start()
            self._opened()
            turn.following = True
            if run.aborted:
                await self.abort()
            return await self._follow(turn)
        except RunnerFailure as error:
            return Outcome("failed", error.code, error.reason, error.hint)
        finally:
            turn.closed = True
            turn.begun.set()
            turn.taken_up.set()
            self._turn = None
            if self._killing is not None:
                self._killing.cancel()

    async def _follow(self, turn: Turn) -> Outcome:
        """Prompt, then look whenever something stirs."""
        try:
            there = await self._has_message(turn.run.conversation, turn.run.message)
            if not there and not turn.aborting:
                turn.prompted = True
                await self._prompt(turn.run, turn.run.message, turn.run.text)
            turn.reread = True
            turn.stirred.set()
            turn.prompted_at = time.monotonic()
        except (httpx.HTTPError, RunnerFailure) as error:
            # One that is dying breaks off its answers before it is known to be dead.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._process.dead.wait()
            if self._process.running:
                raise RunnerFailure(
                    "agent_unreachable", f"The agent does not take a prompt: {error}"
                ) from error
        while True:
            await self._wait(turn)
            turn.stirred.clear()
            if not self._process.running:
                return await self._revive(turn, Restart("crashed", "The agent's process ended unexpectedly."))
            try:
                outcome = await self._look(turn)
            except httpx.HTTPError as error:
                log.info("could not look at the agent: %s", error)
                outcome = None
            if outcome is not None:
                return await self._ended(turn, outcome)
            if disturbed := self._disturbed(turn):
                return await self._revive(turn, disturbed)

    async def _ended(self, turn: Turn, outcome: Outcome) -> Outcome:
        """What an end means that the agent has come to."""
        if turn.verdict is not None:
            return turn.verdict
        if turn.aborting:
            return outcome if outcome.kind == "completed" else Outcome("aborted")
        # An agent that was stopped by nobody is broken, and will stop all that follows, too.
        if outcome.kind == "aborted":
            return await self._revive(turn, Restart("crashed", "The agent stopped its work unasked."))
        return outcome

    async def _wait(self, turn: Turn) -> None:
        """Until something stirs, the process dies, or it is time to look anyhow."""
        waits = {asyncio.create_task(turn.stirred.wait()), asyncio.create_task(self._process.dead.wait())}
        pause = min(LOOK_S, self._settings.hung_after_s / 2) if not turn.aborting else 0.2
        try:
            await asyncio.wait(waits, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _look(self, turn: Turn) -> Outcome | None:
        """How the run has ended, or None while it goes on."""
        if turn.verdict is not None and not turn.aborting:
            await self.abort()
        if await self._busy(turn.run.conversation):
            if time.monotonic() > turn.ask_again_at:  # something was said to it just when it was to stop
                await self._ask_to_stop(turn)
            if turn.reread:
                turn.reread = False
                await self._reread(turn)
            return None
        messages = await self._messages(turn.run.conversation)
        if await self._busy(turn.run.conversation):
            turn.stirred.set()
            return None
        outcome = mapping.idle_outcome(messages, turn.last_message, turn.error)
        if turn.aborting and (outcome is mapping.STOPPED or (outcome is None and not turn.prompted)):
            outcome = Outcome("aborted")
        if outcome is None and time.monotonic() - turn.prompted_at > BEGIN_S:
            outcome = Outcome("interrupted", "connection", "The agent did not take up its work.")
        if outcome is mapping.STOPPED and time.monotonic() - turn.quiet_since < SETTLE_S:
            outcome = None
        if outcome is not None:
            turn.closed = True
            await turn.sink.room()
            turn.read(messages, over=True)
            turn.sink.plan(mapping.todos(await self._get(f"/session/{turn.run.conversation}/todo")))
        return outcome

    async def _reread(self, turn: Turn) -> None:
        """Report what happened while nobody listened."""
        messages = await self._messages(turn.run.conversation)
        await turn.sink.room()
        turn.read(messages, over=False)
        turn.ask(await self._get("/permission"), await self._get("/question"))
        turn.sink.plan(mapping.todos(await self._get(f"/session/{turn.run.conversation}/todo")))

    def _disturbed(self, turn: Turn) -> Restart | None:
        """Why the agent must be started anew in the middle of a run, if it must."""
        now, used = time.monotonic(), self._process.cpu_s()
        frozen = now - turn.looked_at > 6 * LOOK_S  # we did not run either: the sandbox was paused
        if frozen or used - self._cpu_s > 0.05 * LOOK_S or turn.waiting_for or turn.running_tools:
            turn.quiet_since = now
        self._cpu_s, turn.looked_at = used, now
        if now - turn.quiet_since > self._settings.hung_after_s and time.time() * 1000 > turn.retry_until_ms:
            return Restart("hung", f"The agent did nothing for {self._settings.hung_after_s:.0f} s.")
        return self._outgrown()

    async def _revive(self, turn: Turn, why: Restart) -> Outcome:
        """Kill what is left, start anew, and report what the run had done."""
        turn.following, turn.closed = False, True
        await self._process.end()
        async with self._starting:
            await self._launch()
        try:
            messages = await self._messages(turn.run.conversation)
        except httpx.HTTPError as error:
            raise RunnerFailure("agent_unreachable", f"The agent does not show its work: {error}") from error
        await turn.sink.room()
        turn.read(messages, over=True)
        if turn.verdict is not None:
            return turn.verdict
        if turn.aborting:
            return Outcome("aborted")
        return Outcome("interrupted", why.code, why.reason)

    def growing(self) -> list[Delta]:
        return self._turn.growing() if self._turn is not None else []

    async def steer(self, text: str, earlier: str, note: Callable[[str], None]) -> bool:
        turn = self._turn
        if turn is None:
            return False
        await turn.begun.wait()
        try:
            there = bool(earlier) and await self._has_message(turn.run.conversation, earlier)
        except httpx.HTTPError as error:
            raise RunnerFailure("agent_unreachable", f"The agent does not answer: {error!r}") from error
        if turn.closed or turn.aborting:
            return False
        # Named at the last moment: OpenCode passes over a message that is older than the answer it works on.
        message = earlier if there else self.new_message()
        before, turn.last_message = turn.last_message, max(turn.last_message, message, key=mapping.order)
        if there:
            return True
        note(message)
        turn.prompted_at = time.monotonic()
        try:
            await self._prompt(turn.run, message, text)
        except RunnerFailure:
            turn.last_message = before
            raise
        return True

    async def abort(self) -> None:
        turn = self._turn
        if turn is None:
            return
        turn.stirred.set()
        if not turn.aborting:
            turn.aborting = True
            self._killing = asyncio.create_task(self._kill_unless_ended(turn))
        # Before a run has begun, OpenCode passes over an abort; while it loads its tools, one breaks them for all later runs.
        if self._warming is not None:
            await asyncio.wait([self._warming])
        if turn.prompted:
            await turn.taken_up.wait()
        await self._ask_to_stop(turn)

    async def _ask_to_stop(self, turn: Turn) -> None:
        if self._turn is turn:
            turn.ask_again_at = time.monotonic() + ASK_AGAIN_S
            with contextlib.suppress(RunnerFailure):
                await self._call("POST", f"/session/{turn.run.conversation}/abort")

    async def _kill_unless_ended(self, turn: Turn) -> None:
        """The last rung: an agent that has not stopped in time is killed with its commands, wherever its run waits just then."""
        await asyncio.sleep(ABORT_S)
        if self._turn is turn and turn.sink.has_room:
            log.warning("the agent did not stop when it was asked to; it is killed")
            self._process.kill()

    async def answer(self, request_id: str, answer: Mapping[str, Any]) -> None:
        await self.start()
        kind = "permission" if request_id.startswith("per") else "question"
        if kind == "permission":
            body = {"reply": answer.get("reply") or "reject", "message": answer.get("message") or ""}
            path = f"/permission/{quote(request_id)}/reply"
        elif answer.get("reply") == "reject":
            body, path = {}, f"/question/{quote(request_id)}/reject"
        else:
            body, path = {"answers": answer.get("answers") or []}, f"/question/{quote(request_id)}/reply"
        try:
            await self._call("POST", path, body)
        except RunnerFailure as error:
            log.info("nobody waits for the answer to %s: %s", request_id, error.reason)

    async def stop(self) -> None:
        await self._silence()
        await self._process.end()

    async def let_go(self) -> None:
        """Leave the agent at its work and release what we hold of it."""
        await self._silence()
        await self._process.let_go()

    def _listen(self) -> None:
        if self._stream is None or self._stream.done():
            self._stream = asyncio.create_task(self._drain())
        if self._open and self._warming is None:
            self._warming = asyncio.create_task(self._warm())

    async def _silence(self) -> None:
        for task in (self._stream, self._warming):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._stream = self._warming = None

    async def _drain(self) -> None:
        """Read the event stream for ever, whether or not anybody cares: OpenCode's memory grows when nobody does."""
        while self._process.http is not None and self._process.running:
            timeout = httpx.Timeout(10, read=SILENCE_S)
            try:
                async with self._process.http.stream("GET", "/global/event", timeout=timeout) as stream:
                    stream.raise_for_status()
                    if self._turn is not None:
                        self._turn.reread = True
                        self._turn.stirred.set()
                    async for line in stream.aiter_lines():
                        if line.startswith("data:"):
                            self._take(line[5:])
            except (httpx.HTTPError, httpx.StreamError) as error:
                log.info("the agent's event stream ended: %r", error)
            await asyncio.sleep(0.1)

    def _take(self, line: str) -> None:
        try:
            payload = json.loads(line)["payload"]
            if self._turn is not None and payload.get("type") != "sync":
                self._turn.handle(payload)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # The parts of a run are read again at its end, so an event that we cannot read costs no more than time.
            log.warning("could not read an event of the agent: %r", error)

    async def _has_message(self, conversation: str, message: str) -> bool:
        path = f"/session/{conversation}/message/{message}"
        answer = await self._request("GET", path)
        return answer.status_code == 200

    async def _prompt(self, run: Run, message: str, text: str) -> None:
        provider, _, model = run.model.partition("/")
        body = {
            "messageID": message,
            "agent": run.mode,
            "parts": [{"type": "text", "text": text}],
            "model": {"providerID": provider, "modelID": model},
        }
        await self._call("POST", f"/session/{run.conversation}/prompt_async", body)

    async def _busy(self, conversation: str) -> bool:
        status = (await self._get("/session/status", timeout=3)).get(conversation)
        return status is not None and status.get("type") != "idle"

    async def _messages(self, conversation: str) -> list[Any]:
        return list(await self._get(f"/session/{conversation}/message"))

    async def _get(self, path: str, *, timeout: float = 60) -> Any:
        answer = await self._request("GET", path, timeout=timeout)
        answer.raise_for_status()
        return answer.json()

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """As ``_get``, for what must not fail: raises RunnerFailure ``agent_unreachable``."""
        try:
            answer = await self._request(method, path, body)
        except httpx.HTTPError as error:
            raise RunnerFailure("agent_unreachable", f"The agent does not answer: {error!r}") from error
        if answer.is_error:
            raise RunnerFailure("agent_unreachable", f"The agent refused {path}: {answer.text[:500]}")
        return answer.json() if answer.content else None

    async def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, timeout: float = 60
    ) -> httpx.Response:
        if self._process.http is None:
            raise httpx.ConnectError("the agent does not run")
        headers = {"x-opencode-directory": quote(str(self._settings.workspace))}
        return await self._process.http.request(method, path, json=body, headers=headers, timeout=timeout)
