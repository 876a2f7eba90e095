"""One SQLite file, one writer with group commit, a few readers.

Every write job that arrives while a commit is under way joins the next one: concurrent requests share one transaction and one
fsync. A job's future is done only after that commit, so what was acknowledged survives kill -9 and a power cut.
"""

import asyncio
import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ship.errors import ConfigurationError, ShipError, Unavailable
from ship.store.sqlite import migrations

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], T]

READERS = 2


class Database:
    """An open database file.

    ``write`` and ``read`` run a plain function on a connection of theirs and return what it returns. A write job must be
    quick and may be undone as a whole: it runs inside a savepoint of a shared transaction. A database that is not ``exclusive``
    may be opened beside the process that owns the file, for a few statements.
    """

    def __init__(self, path: Path, *, exclusive: bool = True) -> None:
        self._path = path
        self._exclusive = exclusive
        self._writer = ThreadPoolExecutor(1, "store-writer")
        self._readers = ThreadPoolExecutor(READERS, "store-reader")
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._pending: list[tuple[_Asked, asyncio.Future[Any]]] = []
        self._committing = False
        self._lock_file = -1

    async def open(self) -> None:
        """Take the file for this process and bring its tables up to date.

        Raises:
            ConfigurationError: ``data_in_use`` when another process has it, ``data_newer`` when a newer Ship wrote it.
        """
        await self._on(self._writer, self._open)

    async def close(self) -> None:
        """Finish what is pending and let the file go."""
        await self.write(lambda connection: None)
        self._writer.shutdown()
        self._readers.shutdown()
        for connection in self._connections:
            connection.close()
        if self._lock_file >= 0:
            os.close(self._lock_file)

    async def write(self, job: Job[T], undone: Callable[[], None] = lambda: None) -> T:
        """Run the job in the next group commit; returns when it is on disk. ``undone`` is called when the job is not kept, in the
        writer's thread, before any later job runs.

        Raises:
            Unavailable: ``store_unavailable`` or ``disk_full`` when the commit failed; nothing of the job is kept.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._pending.append((_Asked(job, undone), future))
        if not self._committing:
            self._committing = True
            asyncio.get_running_loop().call_soon(self._start_commit)
        return await future

    async def read(self, job: Job[T]) -> T:
        """Run the job on a snapshot of what is committed."""
        return await self._on(self._readers, lambda: _translated(job, self._connection()))

    async def _on(self, pool: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, call)

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(
                self._path, isolation_level=None, timeout=10, cached_statements=256, check_same_thread=False
            )  # each thread has its own; they are closed together when the threads are gone
            self._connections.append(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.row_factory = sqlite3.Row
            self._local.connection = connection
        return connection

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._exclusive:
            self._lock()
        migrations.migrate(self._connection())
        self._path.chmod(0o600)

    def _lock(self) -> None:
        self._lock_file = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(
                f"another Ship uses the data folder {self._path.parent}",
                code="data_in_use",
                hint="Stop it first, or give this one a folder of its own with --data.",
            ) from error

    def _start_commit(self) -> None:
        batch, self._pending = self._pending, []
        running = asyncio.get_running_loop().run_in_executor(
            self._writer, self._commit, [asked for asked, _ in batch]
        )
        running.add_done_callback(lambda done: self._settle(batch, done.result()))

    def _settle(
        self, batch: "list[tuple[_Asked, asyncio.Future[Any]]]", outcomes: "list[Any | BaseException]"
    ) -> None:
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if future.cancelled():
                continue
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
        if self._pending:
            self._start_commit()
        else:
            self._committing = False

    def _commit(self, batch: "list[_Asked]") -> "list[Any | BaseException]":
        connection = self._connection()
        try:
            connection.execute("BEGIN IMMEDIATE")
            outcomes = [_in_savepoint(connection, asked) for asked in batch]
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            for asked in batch:
                asked.undone()
            return [unavailable(error)] * len(batch)
        return outcomes


class _Asked(NamedTuple):
    job: Job[Any]
    undone: Callable[[], None]


def _in_savepoint(connection: sqlite3.Connection, asked: _Asked) -> "Any | BaseException":
    connection.execute("SAVEPOINT job")
    try:
        outcome = asked.job(connection)
    except sqlite3.OperationalError:
        raise
    except Exception as error:  # a job that fails must not fail its neighbours; its caller gets the error
        connection.execute("ROLLBACK TO job")
        asked.undone()
        outcome = error
    connection.execute("RELEASE job")
    return outcome


def _translated(job: Job[T], connection: sqlite3.Connection) -> T:
    try:
        return job(connection)
    except sqlite3.OperationalError as error:
        raise unavailable(error) from error


def unavailable(error: sqlite3.Error) -> ShipError:
    """What an error of SQLite is to the callers of a store."""
    name = getattr(error, "sqlite_errorname", "")
    if name == "SQLITE_FULL":
        code, hint = "disk_full", "Free some space on the disk of the data folder and try again."
    elif name.startswith("SQLITE_READONLY"):
        code, hint = "store_read_only", "Make the data folder writable."
    else:
        code, hint = "store_unavailable", "Try again."
    failure = Unavailable(f"the store could not do this: {error}", code=code, hint=hint)
    failure.__cause__ = error
    return failure
