"""Group commit: the appends that arrive while a commit is under way share the next transaction.

Its end is always known. When the connection breaks in COMMIT, a new one asks for the number of the batch, and waits for the row of
it as long as the old transaction still holds it.
"""

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Sequence

import asyncpg

from ship.errors import ShipError, Unavailable
from ship.ports.store import Append, HeadMoved, KeyTaken
from ship.store.postgres import batch, pool
from ship.store.postgres.batch import Number

BATCH = 256
BATCH_BYTES = 8 * 1024**2
PATIENCE_S = 10.0

Outcome = BaseException | None

_log = logging.getLogger("ship.store")


class _NotKept(Exception):
    """The connection broke in COMMIT, and the transaction turned out to be undone."""


class GroupCommit:
    """The one writer of appends of this node; it keeps the order of the calls."""

    def __init__(self, url: str, read_back_s: float) -> None:
        self._url = url
        self._read_back_s = read_back_s
        self._writer = secrets.token_hex(16)
        self._batches = 0
        self._pending: deque[tuple[Append, asyncio.Future[None]]] = deque()
        self._committing: asyncio.Task[None] | None = None
        self._connection: pool.Connection | None = None

    async def append(self, append: Append) -> None:
        """Put it into the next transaction. Raises as ``LogStore.append``."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((append, future))
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit_all())
        await future

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
            outcomes = await self._commit([append for append, _ in asked])
            for (append, future), outcome in zip(asked, outcomes, strict=True):
                if outcome is not None:
                    append.break_chain()
                if future.done():
                    continue
                if outcome is None:
                    future.set_result(None)
                else:
                    future.set_exception(outcome)
        self._committing = None

    def _take(self) -> list[tuple[Append, asyncio.Future[None]]]:
        taken = [self._pending.popleft()]
        size_bytes = _size_bytes(taken[0][0])
        while self._pending and len(taken) < BATCH:
            size_bytes += _size_bytes(self._pending[0][0])
            if size_bytes > BATCH_BYTES:
                break
            taken.append(self._pending.popleft())
        return taken

    async def _commit(self, appends: list[Append]) -> Sequence[Outcome]:
        """Never raises: whatever goes wrong is the outcome of each."""
        deadline = time.monotonic() + PATIENCE_S
        singly = False
        for pause_s in (*pool.PAUSES_S, None):
            try:
                return await self._transaction(appends, singly)
            except (asyncpg.IntegrityConstraintViolationError, *pool.BAD_VALUES) as error:
                if singly:
                    return [pool.unavailable(error)] * len(appends)
                singly = True
                continue
            except Exception as error:  # the edge of the writer: whoever waits is told
                if pause_s is None or not _may_try_again(error) or time.monotonic() > deadline:
                    return [pool.unavailable(error) for _ in appends]
                _log.warning("a batch of %d appends is tried again: %s", len(appends), error)
            await asyncio.sleep(pause_s or 0)
        raise AssertionError

    async def _transaction(self, appends: list[Append], singly: bool) -> Sequence[Outcome]:
        connection = await self._connected()
        self._batches += 1
        number = Number(self._writer, self._batches, int(time.time() * 1000))
        transaction = connection.transaction()
        try:
            await transaction.start()
            write = _write_singly if singly else batch.write
            outcomes: Sequence[Outcome] = await write(connection, number, appends)
        except BaseException as error:
            await self._roll_back(transaction, error)
            raise
        await self._end(transaction, number)
        return outcomes

    async def _end(self, transaction: asyncpg.transaction.Transaction, number: Number) -> None:
        try:
            await transaction.commit()
        except pool.ERRORS as error:
            if isinstance(error, asyncpg.PostgresError) and not pool.is_away(error):
                raise  # the server answered: it undid the transaction
            _log.warning("the connection broke in a commit; reading back: %s", error)
            self._drop()
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
                connection = await self._connected()
                # Waits for the row while the old transaction holds it, and makes it when it never came to be.
                last = await connection.fetchval(
                    "INSERT INTO writers (id, batch, at_ms) VALUES ($1, $2::bigint - 1, $3) "
                    "ON CONFLICT (id) DO UPDATE SET batch = writers.batch RETURNING batch",
                    *number,
                )
            except (*pool.ERRORS, ShipError) as error:
                self._drop()
                if time.monotonic() > deadline:
                    raise Unavailable(
                        "the connection to the store broke in a commit, and it has not come back",
                        code="outcome_unknown",
                        hint="Ask again with the same Idempotency-Key: the first answer is given when it was kept.",
                    ) from error
                await asyncio.sleep(pool.PAUSES_S[-2])
            else:
                return bool(last == number.batch)

    async def _connected(self) -> pool.Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await pool.connect(self._url)
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


async def _write_singly(
    connection: pool.Connection, number: Number, appends: Sequence[Append]
) -> list[Outcome]:
    """Each in a savepoint of its own, after something in the batch as a whole did not fit."""
    return [await _write_one(connection, number, append) for append in appends]


async def _write_one(connection: pool.Connection, number: Number, append: Append) -> Outcome:
    try:
        async with connection.transaction():
            (outcome,) = await batch.write(connection, number, [append])
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
    retried = _NotKept | asyncpg.DeadlockDetectedError | asyncpg.SerializationError
    return isinstance(error, retried) or pool.is_away(error)


def _size_bytes(append: Append) -> int:
    return sum(len(event.body) for event in append.events) + (
        len(append.snapshot.body) if append.snapshot else 0
    )
