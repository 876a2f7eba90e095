"""The worker: claims due effects and alarms, carries them out, tries again with backoff, gives up into the log."""

import asyncio
import logging
import sqlite3

import msgspec

from ship.errors import ConfigurationError, Conflict, ShipError, Unavailable
from ship.events import facts
from ship.model import SYSTEM, Failure
from ship.sessions import commands, metrics
from ship.sessions.effects import Effects
from ship.sessions.machine import DEADLINES
from ship.sessions.service import Sessions
from ship.store import idempotency, outbox
from ship.store.sqlite import Database

LEASE_MS = 120_000
ATTEMPTS = 4
BACKOFF_MS = (500, 2_000, 6_000)
AT_ONCE = 16
KEY_LIFE_MS = 3 * 24 * 3_600_000
IDLE_S = 60.0
STORE_RETRY_S = 1.0
GRACE_MS = 60_000
"""How long after a start no deadline fires: what it waits for may have happened while nobody listened."""

_log = logging.getLogger("ship.worker")
_decoder = msgspec.json.Decoder(commands.AnyEffect)


class Worker:
    """One loop over the outbox and the alarms of a store."""

    def __init__(self, database: Database, sessions: Sessions, effects: Effects) -> None:
        self._db = database
        self._sessions = sessions
        self._effects = effects
        self._wake = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        sessions.on_work(self._wake.set)

    async def run(self) -> None:
        """Work until cancelled. What an earlier process had claimed is due at once."""
        await self._begin()
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
            for task in self._running:
                task.cancel()

    async def _begin(self) -> None:
        now_ms = self._sessions.now_ms()

        def begin(connection: sqlite3.Connection) -> None:
            outbox.release_all(connection, now_ms)
            outbox.postpone_alarms(connection, DEADLINES, now_ms + GRACE_MS)

        await self._db.write(begin)

    async def _claim(self) -> None:
        now_ms = self._sessions.now_ms()
        free = AT_ONCE - len(self._running)
        effects, alarms = await self._db.write(lambda c: _claim(c, now_ms, free))
        for effect in effects:
            self._spawn(effect)
        for alarm in alarms:
            await self._fire(alarm)

    async def _pause(self) -> None:
        due_at_ms = await self._db.read(outbox.next_due_ms)
        wait_s = IDLE_S if due_at_ms is None else (due_at_ms - self._sessions.now_ms()) / 1000
        if len(self._running) >= AT_ONCE:
            wait_s = IDLE_S
        try:
            async with asyncio.timeout(min(max(wait_s, 0.0), IDLE_S)):
                await self._wake.wait()
        except TimeoutError:
            return

    def _spawn(self, due: outbox.DueEffect) -> None:
        task = asyncio.create_task(self._perform(due))
        self._running.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._wake.set()
        if not task.cancelled() and (error := task.exception()):
            _log.error("an effect could not be settled", exc_info=error)

    async def _perform(self, due: outbox.DueEffect) -> None:
        effect = _decoder.decode(due.body)
        try:
            async with asyncio.timeout(LEASE_MS / 1000 - 10):
                await self._effects.perform(due.session_id, effect)
        except Exception as error:  # the edge of the effect loop: whatever went wrong is kept, not lost
            _log.warning("effect %s failed (try %d): %s", due.effect_id, due.attempts, error)
            await self._failed(due, effect, error)
        else:
            metrics.EFFECTS.labels(_kind(effect), "done").inc()
            await self._db.write(lambda c: outbox.finish(c, due.effect_id))

    async def _failed(self, due: outbox.DueEffect, effect: commands.AnyEffect, error: Exception) -> None:
        final = isinstance(error, ConfigurationError | Conflict) or due.attempts >= ATTEMPTS
        metrics.EFFECTS.labels(_kind(effect), "given_up" if final else "retried").inc()
        if not final:
            due_at_ms = self._sessions.now_ms() + BACKOFF_MS[min(due.attempts, len(BACKOFF_MS)) - 1]
            await self._db.write(lambda c: outbox.extend(c, due.effect_id, due_at_ms))
            return
        failure = _failure(error)
        fact = facts.EffectFailed(
            effect_id=due.effect_id,
            kind=_kind(effect),
            attempts=due.attempts,
            failure=failure,
        )
        report = commands.RecordEffectFailure(fact=fact, generation=effect.generation, failure=failure)
        try:
            await self._sessions.execute(due.session_id, report, SYSTEM)
        except Conflict:
            _log.warning("effect %s was given up after its session's end", due.effect_id)
        await self._db.write(lambda c: outbox.finish(c, due.effect_id))

    async def _fire(self, alarm: outbox.DueAlarm) -> None:
        try:
            await self._sessions.execute(alarm.session_id, commands.FireAlarm(name=alarm.name), SYSTEM)
        except Unavailable:
            raise  # its lease brings it back
        except ShipError as error:
            _log.info("alarm %s of %s had nothing to do: %s", alarm.name, alarm.session_id, error)
        await self._db.write(lambda c: outbox.finish_alarm(c, alarm))


def _claim(
    connection: sqlite3.Connection, now_ms: int, effects: int
) -> tuple[list[outbox.DueEffect], list[outbox.DueAlarm]]:
    idempotency.forget_before(connection, now_ms - KEY_LIFE_MS)
    return (
        outbox.claim(connection, now_ms, LEASE_MS, effects),
        outbox.claim_alarms(connection, now_ms, LEASE_MS, 100),
    )


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
