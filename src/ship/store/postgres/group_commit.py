"""Group commit: the appends that arrive while a commit is under way share the next transaction.

It is one statement as long as nobody else appends to the same sessions. Its end is always known. When the connection breaks
in it, or in COMMIT, a new one asks for the number of the batch, and waits for the row of it as long as the old transaction still holds it.
What was not kept by then never will be.

Who is refused because another node came first decides anew while the head of the log stays locked, and comes into the same
transaction. So a node that appends without a pause cannot be first every time.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Sequence, Set
from typing import NamedTuple

import asyncpg

from ship.errors import ShipError, Unavailable
from ship.ports.store import Append, HeadMoved, KeyTaken
from ship.store.postgres import batch, pool
from ship.store.postgres.batch import Number, WriterUnknown

BATCH = 256
BATCH_BYTES = 8 * 1024**2
PATIENCE_S = 10.0
HOLD_S = 0.05
"""How long a head stays locked for those who decide anew on it."""
CROWDED_S = 1.0
"""How long after another node came first it is looked who fits before anything is written."""

Outcome = BaseException | None

_log = logging.getLogger("ship.store")


class _NotKept(Exception):
    """The connection broke in COMMIT, and the transaction turned out to be undone."""


class _Asked(NamedTuple):
    append: Append
    future: "asyncio.Future[None]"

    def tell(self, outcome: Outcome) -> None:
        """What became of it."""
        if outcome is not None:
            self.append.break_chain()
        if self.future.done():
            return
        if outcome is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(outcome)


class GroupCommit:
    """The one writer of appends of this node; it keeps the order of the calls."""

    def __init__(self, url: str, read_back_s: float) -> None:
        self._url = url
        self._read_back_s = read_back_s
        self._writer = secrets.token_hex(16)
        self._batches = 0
        self._crowded_until = 0.0
        self._pending: deque[_Asked] = deque()
        self._arrived = asyncio.Event()
        self._committing: asyncio.Task[None] | None = None
        self._connection: pool.Connection | None = None

    def append(self, append: Append) -> "asyncio.Future[None]":
        """Put it into the next transaction. Raises as ``LogStore.append``."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append(_Asked(append, future))
        self._arrived.set()
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit_all())
        return future

    async def close(self) -> None:
        """Finish what is pending."""
        if self._committing is not None:
            await self._committing
        if self._connection is not None and not self._connection.is_closed():
            try:
                await self._connection.execute("DELETE FROM writers WHERE id = $1", self._writer)
                await self._connection.close(timeout=pool.CONNECT_S)
            except pool.ERRORS as error:
                _log.warning("the connection could not be closed well: %s", error)
                self._connection.terminate()

    async def _commit_all(self) -> None:
        await asyncio.sleep(0)  # whoever asks in the same turn of the loop comes along
        while self._pending:
            asked = self._take()
            outcomes = await self._commit(asked)
            for one, outcome in zip(asked, outcomes, strict=True):
                one.tell(outcome)
        self._committing = None

    def _take(self) -> list[_Asked]:
        taken = [self._pending.popleft()]
        size_bytes = _size_bytes(taken[0].append)
        while self._pending and len(taken) < BATCH:
            size_bytes += _size_bytes(self._pending[0].append)
            if size_bytes > BATCH_BYTES:
                break
            taken.append(self._pending.popleft())
        return taken

    async def _commit(self, asked: list[_Asked]) -> Sequence[Outcome]:
        """The outcome of each of ``asked`` as it is at the end, see ``_transaction``. Never raises: whatever goes wrong is an outcome."""
        deadline = time.monotonic() + PATIENCE_S
        singly = False
        for pause_s in (*pool.PAUSES_S, None):
            try:
                if not singly and await self._write_at_once(asked):
                    return [None] * len(asked)
                return await self._transaction(asked, singly)
            except (asyncpg.IntegrityConstraintViolationError, *pool.BAD_VALUES) as error:
                if singly or pause_s is None:
                    return [pool.unavailable(error) for _ in asked]
                singly = True
                continue
            except Exception as error:  # the edge of the writer: whoever waits is told
                if pause_s is None or not _may_try_again(error) or time.monotonic() > deadline:
                    return [pool.unavailable(error) for _ in asked]
                _log.warning("a batch of %d appends is tried again: %s", len(asked), error)
            await asyncio.sleep(pause_s or 0)
        raise AssertionError

    async def _write_at_once(self, asked: list[_Asked]) -> bool:
        """Keep all of them by one statement; False when nothing was written, because something stands in the way."""
        appends = [one.append for one in asked]
        if time.monotonic() < self._crowded_until or not batch.fit_together(appends):
            return False
        connection, number = await self._connected(), self._next_number()
        try:
            if await batch.write_all(connection, number, appends):
                return True
        except (WriterUnknown, asyncpg.IntegrityConstraintViolationError):
            return False
        except pool.ERRORS as error:
            await self._find_out(error, number)
            return True
        self._be_careful()
        return False

    async def _transaction(self, asked: list[_Asked], singly: bool) -> Sequence[Outcome]:
        """Takes from ``asked`` those that came too late, who are told at once, and adds what they come back with."""
        connection, number = await self._connected(), self._next_number()
        write = _write_singly if singly else batch.write_fitting
        transaction = connection.transaction()
        try:
            await transaction.start()
            outcomes = list(await write(connection, number, [one.append for one in asked]))
            if late := _dismiss_late(asked, outcomes):
                self._be_careful()
                again = await self._decided_anew(late)
                asked += again
                outcomes += await write(connection, number, [one.append for one in again])
        except BaseException as error:
            await self._roll_back(transaction, error)
            raise
        try:
            await transaction.commit()
        except pool.ERRORS as error:
            await self._find_out(error, number)
        return outcomes

    def _be_careful(self) -> None:
        self._crowded_until = time.monotonic() + CROWDED_S

    def _next_number(self) -> Number:
        self._batches += 1
        return Number(self._writer, self._batches, int(time.time() * 1000))

    async def _decided_anew(self, session_ids: Set[str]) -> list[_Asked]:
        """What comes for these sessions, whose heads are locked, within ``HOLD_S``."""
        self._dismiss_broken(session_ids)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HOLD_S):
                while not any(one.append.session_id in session_ids for one in self._pending):
                    self._arrived.clear()
                    await self._arrived.wait()
                    self._dismiss_broken(session_ids)
        await asyncio.sleep(0)  # those who were refused together come back together
        came = self._take_of(session_ids)
        self._pending.extendleft(reversed(came[BATCH:]))
        return came[:BATCH]

    def _dismiss_broken(self, session_ids: Set[str]) -> None:
        """Tell those of these sessions that were decided on what was not kept: they have to come back as well."""
        for one in self._take_of(session_ids):
            if one.append.chain and one.append.chain.broken:
                one.tell(
                    HeadMoved(f"what this append to {one.append.session_id} was decided on was not kept")
                )
            else:
                self._pending.append(one)

    def _take_of(self, session_ids: Set[str]) -> list[_Asked]:
        """All that is pending of these sessions."""
        taken = [one for one in self._pending if one.append.session_id in session_ids]
        self._pending = deque(one for one in self._pending if one.append.session_id not in session_ids)
        return taken

    async def _find_out(self, error: Exception, number: Number) -> None:
        """Return when the batch was kept in spite of the error; raise it, or ``_NotKept``, when it was not."""
        if isinstance(error, asyncpg.PostgresError) and not pool.is_away(error):
            if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
                self._drop()  # there may be a primary elsewhere by now
            raise error  # the server answered: it undid the transaction
        _log.warning("the connection broke in a commit; reading back: %s", error)
        self._drop()
        # Whatever is answered, and even if nothing is: the question may arrive later, and nothing more comes of the old name then.
        self._writer = secrets.token_hex(16)
        if not await self._was_kept(number):
            raise _NotKept from error

    async def _roll_back(self, transaction: asyncpg.transaction.Transaction, error: BaseException) -> None:
        if pool.is_away(error) or isinstance(error, asyncpg.ReadOnlySQLTransactionError):
            self._drop()
            return
        try:
            await transaction.rollback()
        except pool.ERRORS:
            self._drop()

    async def _was_kept(self, number: Number) -> bool:
        deadline = time.monotonic() + self._read_back_s
        while True:
            try:
                return await batch.take_back(await self._connected(), number)
            except (*pool.ERRORS, ShipError) as error:
                self._drop()
                if time.monotonic() > deadline:
                    raise Unavailable(
                        "the connection to the store broke in a commit, and it has not come back",
                        code="outcome_unknown",
                        hint="Ask again with the same Idempotency-Key: the first answer is given when it was kept.",
                    ) from error
                await asyncio.sleep(pool.PAUSES_S[-2])

    async def _connected(self) -> pool.Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await pool.connect(self._url)
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


def _dismiss_late(asked: list[_Asked], outcomes: list[Outcome]) -> set[str]:
    """Tell those before whom another node came, in their order, and take them out of both lists; returns their sessions."""
    judged = list(zip(asked, outcomes, strict=True))
    late: set[str] = set()
    asked.clear()
    outcomes.clear()
    for one, outcome in judged:
        if isinstance(outcome, HeadMoved):
            one.tell(outcome)
            late.add(one.append.session_id)
        else:
            asked.append(one)
            outcomes.append(outcome)
    return late


async def _write_singly(
    connection: pool.Connection, number: Number, appends: Sequence[Append]
) -> list[Outcome]:
    """Each in a savepoint of its own, after something in the batch as a whole did not fit."""
    return [await _write_one(connection, number, append) for append in appends]


async def _write_one(connection: pool.Connection, number: Number, append: Append) -> Outcome:
    try:
        async with connection.transaction():
            (outcome,) = await batch.write_fitting(connection, number, [append])
    except asyncpg.UniqueViolationError as error:
        append.break_chain()
        if error.constraint_name == "idempotency_pkey":
            return KeyTaken("the key has an answer")
        return HeadMoved(f"the log of {append.session_id} has grown: {error}")
    except pool.BAD_VALUES as error:
        append.break_chain()
        return pool.unavailable(error)
    return outcome


def _may_try_again(error: Exception) -> bool:
    retried = _NotKept | WriterUnknown | asyncpg.DeadlockDetectedError | asyncpg.SerializationError
    return isinstance(error, retried) or pool.is_away(error)


def _size_bytes(append: Append) -> int:
    return sum(len(event.body) for event in append.events) + (
        len(append.snapshot.body) if append.snapshot else 0
    )
