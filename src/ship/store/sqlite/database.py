"""One SQLite file, one writer with group commit, a few readers.

Every write job that arrives while a commit is under way joins the next one: concurrent requests share one transaction and one
fsync. A job's future is done only after that commit, so what was acknowledged survives kill -9 and a power cut.
"""

import asyncio
import contextlib
import fcntl
import itertools
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ship.errors import ConfigurationError, ShipError, Unavailable
from ship.store.sqlite import migrations

T = TypeVar("T")
W = TypeVar("W")
Job = Callable[[sqlite3.Connection], T]
Together = Callable[[sqlite3.Connection, Sequence[W]], Sequence[Any]]


class Entry(NamedTuple):
    """Something to write."""

    together: Together[Any]
    item: Any
    undone: Callable[[], None]
    future: "asyncio.Future[Any]"


Batch = Sequence[Entry]
Outcomes = list[Any]
"""Of each of a batch: what it returned, or the exception that it failed with."""

BUSY_TIMEOUT_MS = 10_000
SLOW_COMMIT_S = 0.002
"""When a commit takes longer than this, as a moving average, the event loop does not wait for it, but to see how it is."""
LOOK_EVERY = 64
ENOUGH, GATHER_S = 256, 0.005
"""So many appends do not wait for more, and none waits longer."""
CHECKPOINT_COMMITS, CHECKPOINT_FRAMES = 256, 8_192
"""The write-ahead log is brought home after so many commits, but not before it has about so many frames (of 4 KiB): the two or three
commits beside that are the slowest."""
LONGEST_LOG_FRAMES = 16_384
"""When it has so many frames more and is not all home, commits wait for those who still read it, but not
for who reads on and on, as an export does."""
READERS_WAIT_MS = 50

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
        self._write_connection: sqlite3.Connection
        self._glancing: sqlite3.Connection
        self._pending: list[Entry] = []
        self._committing = False
        self._gathers_until = 0.0
        self._commits = 0
        self._commit_s = 0.0
        self._checkpointing: asyncio.Future[tuple[int, int]] | None = None
        self._last_checkpoint, self._next_checkpoint = 0, CHECKPOINT_COMMITS
        self._frames = 0
        self._longest = LONGEST_LOG_FRAMES
        self._rest_is_due = False
        self._lock_file = -1

    async def open(self) -> None:
        """Take the file for this process and bring its tables up to date.

        Raises:
            ConfigurationError: ``data_in_use`` when another process has it, ``data_newer`` when a newer Ship wrote it.
            Unavailable: as ``unavailable``.
        """
        try:
            await self._on(self._writer, self._open)
        except sqlite3.Error as error:
            raise unavailable(error) from error

    async def close(self) -> None:
        """Finish what is pending and let the file go."""
        with contextlib.suppress(Unavailable):  # who waits for what is pending hears of it
            await self.write(lambda connection: None)
        self._writer.shutdown()
        self._readers.shutdown()
        for connection in self._connections:
            connection.close()
        if self._lock_file >= 0:
            os.close(self._lock_file)

    async def write(self, job: Job[T]) -> T:
        """Run the job in the next group commit; returns when it is on disk.

        Raises:
            Unavailable: ``store_unavailable`` or ``disk_full`` when the commit failed; nothing of the job is kept.
        """
        done: T = await self.write_together(_each, job)
        return done

    def write_together(
        self, together: Together[W], item: W, undone: Callable[[], None] = lambda: None
    ) -> "asyncio.Future[Any]":
        """As ``write``, for what is written faster with others of its kind: ``together`` gets all that came one after the other, and
        returns what each came to; an exception among it is for that one alone, which has left nothing behind. ``undone`` is called
        when the transaction is not kept, before anything later is written."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending.append(Entry(together, item, undone, future))
        if not self._committing:
            self._committing = True
            self._gather_soon()
        return future

    async def read(self, job: Job[T]) -> T:
        """Run the job on a snapshot of what is committed."""
        return await self._on(self._readers, lambda: _translated(job, self._connection()))

    def glance(self, job: Job[T]) -> T:
        """As ``read``, for a row or two by their key, here on the event loop: a thread's turn costs more than the look."""
        return _translated(job, self._glancing)

    async def _on(self, pool: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, call)

    def _connection(self) -> sqlite3.Connection:
        """This thread's own."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
        return connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, isolation_level=None, timeout=10, cached_statements=256, check_same_thread=False
        )  # they are closed together when the threads are gone
        self._connections.append(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.row_factory = sqlite3.Row
        return connection

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._exclusive:
            self._lock()
        migrations.migrate(self._connection())
        self._connection().execute(f"PRAGMA busy_timeout = {READERS_WAIT_MS}")
        self._path.chmod(0o600)
        self._glancing = self._connect()
        self._write_connection = self._connect()
        self._write_connection.execute("PRAGMA busy_timeout = 0")
        self._write_connection.execute("PRAGMA wal_autocheckpoint = 0")

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

    def _gather_soon(self) -> None:
        loop = asyncio.get_running_loop()
        self._gathers_until = loop.time() + GATHER_S
        loop.call_soon(self._gather, len(self._pending))

    def _gather(self, known: int) -> None:
        """Commit what waits when a turn of the event loop has brought nothing more: those who were answered by the last commit come
        again within a few turns, and one commit for all costs little more than one for each of them."""
        loop, waiting = asyncio.get_running_loop(), len(self._pending)
        if known < waiting < ENOUGH and loop.time() < self._gathers_until:
            loop.call_soon(self._gather, waiting)
        else:
            self._start_commit()

    def _start_commit(self) -> None:
        """Commit what has come, here on the event loop: threads that take turns at the interpreter cost more than the statements do.
        The fsync moves to a thread when the disk is slow, and all of it while another process writes."""
        self._commits += 1
        if self._rest_is_due:
            mode = "RESTART" if self._frames > self._longest else "PASSIVE"
            self._checkpoint(self._writer, mode).add_done_callback(lambda done: self._start_commit())
            return
        if self._commits >= self._next_checkpoint and self._checkpointing is None:
            self._checkpoint(self._readers, "PASSIVE")
        batch, self._pending = self._pending, []
        try:
            self._write_connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                self._in_thread(batch, lambda: self._patiently(batch))
            else:
                self._settle(batch, self._undo(error, batch))
            return
        try:
            outcomes = _statements(self._write_connection, batch)
        except Exception as error:
            # Whatever it is, those who wait are told, and the transaction does not stay open.
            self._settle(batch, self._undo(error, batch))
            return
        if self._commit_s > SLOW_COMMIT_S and self._commits % LOOK_EVERY:
            self._in_thread(batch, lambda: self._commit(batch, outcomes))
            return
        was_slow, began = self._commit_s > SLOW_COMMIT_S, time.perf_counter()
        outcomes = self._commit(batch, outcomes)
        took_s = time.perf_counter() - began
        self._commit_s = took_s if was_slow else self._commit_s + (took_s - self._commit_s) / 4
        self._settle(batch, outcomes)

    def _checkpoint(self, pool: ThreadPoolExecutor, mode: str) -> "asyncio.Future[tuple[int, int]]":
        """Bring the write-ahead log home: beside the commits, and while they wait for what came meanwhile. Once it is all home it is
        written again from its start, and a file that does not grow is on disk in two thirds of the time."""

        def checkpointed() -> tuple[int, int]:
            """How many frames the log had, and how many it has if not all of them are home."""
            with contextlib.suppress(sqlite3.Error):
                _, frames, home = self._connection().execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
                return int(frames), int(frames) if home < frames else 0
            return 0, 0

        def done(future: "asyncio.Future[tuple[int, int]]") -> None:
            had, self._frames = future.result()
            self._checkpointing = None
            if mode == "RESTART" or not self._frames:
                self._longest = self._frames + LONGEST_LOG_FRAMES
            self._rest_is_due = pool is self._readers
            if self._rest_is_due:
                self._plan_checkpoint(had)

        self._checkpointing = asyncio.get_running_loop().run_in_executor(pool, checkpointed)
        self._checkpointing.add_done_callback(done)
        return self._checkpointing

    def _plan_checkpoint(self, frames: int) -> None:
        """The next one, if commits go on to write as much as they did to let the log grow to so many frames."""
        commits = self._commits - self._last_checkpoint
        enough = CHECKPOINT_FRAMES * commits // frames if frames else 0
        self._last_checkpoint = self._commits
        self._next_checkpoint = self._commits + max(CHECKPOINT_COMMITS, enough)

    def _in_thread(self, batch: "Batch", write: Callable[[], "Outcomes"]) -> None:
        running = asyncio.get_running_loop().run_in_executor(self._writer, write)
        running.add_done_callback(lambda done: self._settle(batch, done.result()))

    def _settle(self, batch: "Batch", outcomes: "Outcomes") -> None:
        for (_, _, _, future), outcome in zip(batch, outcomes, strict=True):
            if future.cancelled():
                continue
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
        if self._pending:
            self._gather_soon()
        else:
            self._committing = False

    def _patiently(self, batch: "Batch") -> "Outcomes":
        """All of it, waiting for the other process."""
        connection = self._write_connection
        try:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            connection.execute("BEGIN IMMEDIATE")
            return self._commit(batch, _statements(connection, batch))
        except Exception as error:  # as in _start_commit
            return self._undo(error, batch)
        finally:
            connection.execute("PRAGMA busy_timeout = 0")

    def _commit(self, batch: "Batch", outcomes: "Outcomes") -> "Outcomes":
        try:
            self._write_connection.execute("COMMIT")
        except sqlite3.Error as error:
            return self._undo(error, batch)
        return outcomes

    def _undo(self, error: Exception, batch: "Batch") -> "Outcomes":
        if self._write_connection.in_transaction:
            self._write_connection.execute("ROLLBACK")
        for entry in batch:
            entry.undone()
        return [unavailable(error)] * len(batch)


def _statements(connection: sqlite3.Connection, batch: Batch) -> Outcomes:
    outcomes: Outcomes = []
    for together, entries in itertools.groupby(batch, key=lambda entry: entry.together):
        outcomes += together(connection, [entry.item for entry in entries])
    return outcomes


def _each(connection: sqlite3.Connection, jobs: Sequence[Job[Any]]) -> Outcomes:
    return [_in_savepoint(connection, job) for job in jobs]


def _in_savepoint(connection: sqlite3.Connection, job: Job[Any]) -> "Any | BaseException":
    connection.execute("SAVEPOINT job")
    try:
        outcome = job(connection)
    except Exception as error:  # a job that fails must not fail its neighbours; its caller gets the error
        if _is_of_the_file(error):
            raise
        connection.execute("ROLLBACK TO job")
        outcome = error
    connection.execute("RELEASE job")
    return outcome


def _translated(job: Job[T], connection: sqlite3.Connection) -> T:
    try:
        return job(connection)
    except sqlite3.Error as error:
        if _is_of_the_file(error):
            raise unavailable(error) from error
        raise


def _is_of_the_file(error: Exception) -> bool:
    """Whether it says something of the file or the disk, and not of what was asked: a damaged file has no class of errors of its own."""
    return isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError


def unavailable(error: Exception) -> ShipError:
    """What an error of SQLite, or of what was to be written, is to the callers of a store."""
    name = getattr(error, "sqlite_errorname", "")
    if name == "SQLITE_FULL":
        code, hint = "disk_full", "Free some space on the disk of the data folder and try again."
    elif name.startswith("SQLITE_READONLY"):
        code, hint = "store_read_only", "Make the data folder writable."
    elif name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        code, hint = (
            "store_damaged",
            "Stop Ship, keep a copy of its data folder, and bring back a backup of ship.db.",
        )
    else:
        code, hint = "store_unavailable", "Try again."
    failure = Unavailable(f"the store could not do this: {error}", code=code, hint=hint)
    failure.__cause__ = error
    return failure
