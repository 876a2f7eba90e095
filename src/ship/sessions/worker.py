"""The worker: claims due effects and alarms, carries them out, tries again with backoff, gives up into the log."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Protocol

import msgspec

from ship.errors import ConfigurationError, Conflict, NotFound, ShipError, Unavailable
from ship.events import facts
from ship.model import SYSTEM, Failure
from ship.ports.store import DueAlarm, DueEffect, LogStore, Outbox, Searchable
from ship.sessions import commands, metrics
from ship.sessions.effects import Effects
from ship.sessions.ids import new_id
from ship.sessions.indexing import keep_indexed
from ship.sessions.machine import DEADLINES
from ship.sessions.service import Sessions

LEASE_MS = 15_000
"""How long after a node's death another one takes over what it had claimed."""
RENEW_S = 5.0
EFFECT_S = 110.0
ATTEMPTS = 6
LAST_ATTEMPTS = 150
"""For what follows a session's end, about a day: nobody waits for it, and nobody would see that it was given up."""
BACKOFF_MS = (500, 2_000, 6_000, 15_000, 30_000, 60_000, 600_000)
AT_ONCE = 16
ALARMS_AT_ONCE = 100
KEY_LIFE_MS = 3 * 24 * 3_600_000
IDLE_S = 60.0
SHARED_IDLE_S = 2.0
"""Nobody wakes a node for what another one has written, or can do no more."""
BUSY_S = 1.0
"""How long alarms may wait for each other while there is no room for more effects, which may be what is due."""
STORE_RETRY_S = 1.0
GRACE_MS = 60_000
"""How long after a start no deadline fires: what it waits for may have happened while nobody listened."""
JUMP_MS = 5_000
"""A clock that jumps by more was set, or the machine slept; then it is as after a start. What a clock that was set back made due
far ahead comes nearer by as much."""

_log = logging.getLogger("ship.worker")
_decoder = msgspec.json.Decoder(commands.AnyEffect)


class WorkerStore(LogStore, Outbox, Searchable, Protocol):
    """What the worker needs of a store."""

    shared: bool


class Worker:
    """One loop over the outbox and the alarms of a store."""

    def __init__(self, store: WorkerStore, sessions: Sessions, effects: Effects) -> None:
        self._store = store
        self._sessions = sessions
        self._effects = effects
        self._wake = asyncio.Event()
        self._running: dict[asyncio.Task[None], str] = {}
        self._idle_s = SHARED_IDLE_S if store.shared else IDLE_S
        self._clock = _Clock(sessions.now_ms())
        sessions.on_work(self._wake.set)

    async def run(self) -> None:
        """Work until cancelled. Where the store is this process's alone, what an earlier one had claimed is due at once."""
        if not self._store.shared:
            await self._begin()
        by_meaning = self._sessions.by_meaning
        indexing = asyncio.create_task(keep_indexed(self._store, by_meaning.model if by_meaning else None))
        try:
            while True:
                self._wake.clear()
                try:
                    await self._claim()
                    await self._pause()
                except Unavailable as error:
                    _log.error("the store does not work; trying again: %s", error)
                    await asyncio.sleep(STORE_RETRY_S)
        finally:
            for task in (indexing, *self._running):
                task.cancel()

    async def _begin(self) -> None:
        now_ms = self._sessions.now_ms()
        await self._store.release_effects(now_ms)
        await self._store.postpone_alarms(DEADLINES, now_ms + GRACE_MS)

    async def _claim(self) -> None:
        now_ms = self._sessions.now_ms()
        jumped_ms = self._clock.jumped_ms(now_ms)
        if abs(jumped_ms) > JUMP_MS:
            if jumped_ms < 0 and not self._store.shared:  # other nodes' clocks may be right
                await self._store.move_due(round(jumped_ms))
                # A lease may have been renewed by the new clock before.
                for effect_id in list(self._running.values()):
                    await self._store.postpone_effect(effect_id, now_ms + LEASE_MS)
            await self._store.postpone_alarms(DEADLINES, now_ms + GRACE_MS)
        _, effects, alarms = await asyncio.gather(
            self._store.forget_answers(now_ms - KEY_LIFE_MS),
            self._store.claim_effects(now_ms, LEASE_MS, AT_ONCE - len(self._running)),
            self._store.claim_alarms(now_ms, LEASE_MS, ALARMS_AT_ONCE),
        )
        for effect in effects:
            self._spawn(effect)
        fired = await asyncio.gather(*map(self._fire, alarms), return_exceptions=True)
        for error in filter(None, fired):
            raise error

    async def _pause(self) -> None:
        due_at_ms = await self._store.next_due_ms()
        wait_s = self._idle_s if due_at_ms is None else (due_at_ms - self._sessions.now_ms()) / 1000
        if len(self._running) >= AT_ONCE:
            wait_s = max(wait_s, BUSY_S)
        try:
            async with asyncio.timeout(min(max(wait_s, 0.0), self._idle_s)):
                await self._wake.wait()
        except TimeoutError:
            return

    def _spawn(self, due: DueEffect) -> None:
        task = asyncio.create_task(self._perform(due))
        self._running[task] = due.effect_id
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._wake.set()
        if not task.cancelled() and (error := task.exception()):
            _log.error("an effect could not be settled", exc_info=error)

    async def _perform(self, due: DueEffect) -> None:
        effect = _decoder.decode(due.body)
        try:
            async with asyncio.timeout(EFFECT_S), self._held(due):
                await self._effects.perform(due.session_id, effect)
        except Exception as error:  # the edge of the effect loop: whatever went wrong is kept, not lost
            _log.warning("effect %s failed (try %d): %s", due.effect_id, due.attempts, error)
            await self._failed(due, effect, error)
        else:
            metrics.EFFECTS.labels(_kind(effect), "done").inc()
            await self._store.finish_effect(due.effect_id)

    @contextlib.asynccontextmanager
    async def _held(self, due: DueEffect) -> AsyncIterator[None]:
        """Renew the lease of an effect while it is carried out."""
        holding = asyncio.create_task(self._renew(due))
        try:
            yield
        finally:
            holding.cancel()
            await asyncio.gather(holding, return_exceptions=True)

    async def _renew(self, due: DueEffect) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            try:
                await self._store.postpone_effect(due.effect_id, self._sessions.now_ms() + LEASE_MS)
            except Unavailable as error:
                _log.warning("the lease of effect %s was not renewed: %s", due.effect_id, error)

    async def _failed(self, due: DueEffect, effect: commands.AnyEffect, error: Exception) -> None:
        afterwards = isinstance(effect, commands.KillSandbox | commands.PackLog)
        allowed = LAST_ATTEMPTS if afterwards else ATTEMPTS
        refused = isinstance(error, ConfigurationError | Conflict) and not _is_busy(error)
        final = refused or due.attempts >= allowed
        metrics.EFFECTS.labels(_kind(effect), "given_up" if final else "retried").inc()
        if not final:
            due_at_ms = self._sessions.now_ms() + BACKOFF_MS[min(due.attempts, len(BACKOFF_MS)) - 1]
            await self._store.postpone_effect(due.effect_id, due_at_ms)
            return
        failure = _failure(error)
        fact = facts.EffectFailed(
            effect_id=due.effect_id,
            kind=_kind(effect),
            attempts=due.attempts,
            failure=failure,
        )
        report = commands.RecordEffectFailure(
            fact=fact, generation=effect.generation, failure=failure, child_id=getattr(effect, "child_id", "")
        )
        try:
            await self._sessions.execute(due.session_id, report, SYSTEM)
        except Conflict as ended:
            if _is_busy(ended):
                raise  # its lease brings it back
            _log.warning("effect %s was given up after its session's end", due.effect_id)
        await self._store.finish_effect(due.effect_id)

    async def _fire(self, alarm: DueAlarm) -> None:
        fired = commands.FireAlarm(name=alarm.name, checkpoint_id=new_id("ckp"))
        try:
            await self._sessions.execute(alarm.session_id, fired, SYSTEM)
        except Unavailable:
            raise  # its lease brings it back
        except Exception as error:  # one session's trouble is not the others'
            if not isinstance(error, Conflict | NotFound) or _is_busy(error):
                # Its lease brings it back: to a node that knows these events, or when there is less to do.
                _log.exception("alarm %s of %s failed", alarm.name, alarm.session_id)
                return
            _log.info("alarm %s of %s had nothing to do: %s", alarm.name, alarm.session_id, error)
        await self._store.finish_alarm(alarm)


class _Clock:
    """Compares the clock on the wall, which alarms go by, with one that nobody sets and that stands still while the machine sleeps."""

    def __init__(self, now_ms: int) -> None:
        self._ahead_ms = now_ms - time.monotonic() * 1000

    def jumped_ms(self, now_ms: int) -> float:
        """How far it went ahead, or back, since the last time."""
        before, self._ahead_ms = self._ahead_ms, now_ms - time.monotonic() * 1000
        return self._ahead_ms - before


def _is_busy(error: Exception) -> bool:
    """Whether it may work later, unlike any other Conflict."""
    return isinstance(error, Conflict) and error.code == "session_busy"


def _kind(effect: commands.AnyEffect) -> str:
    return str(effect.__struct_config__.tag)


def _failure(error: Exception) -> Failure:
    if isinstance(error, ShipError):
        return Failure(code=error.code, reason=error.message, hint=error.hint)
    if isinstance(error, TimeoutError):
        return Failure(code="effect_timeout", reason="it took too long", hint="Retry.")
    return Failure(
        code="internal_error",
        reason=f"{type(error).__name__}: {error}",
        hint="This is a defect of Ship; its log has the details.",
    )
