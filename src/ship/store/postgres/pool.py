"""Connections to PostgreSQL: a bounded pool that finds its way back, and what its errors mean to Ship."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import asyncpg

from ship.errors import ConfigurationError, InvalidInput, ShipError, Unavailable

T = TypeVar("T")
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

CONNECTIONS = 8
CONNECT_S = 5.0
STATEMENT_S = 30.0
PAUSES_S = (0.0, 0.05, 0.2, 0.5, 1.0)
"""Before each further try when the server is away: long enough for it to be started again."""

_SETTINGS = {
    "application_name": "ship",
    "synchronous_commit": "on",
    "statement_timeout": f"{STATEMENT_S:.0f}s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "10s",
    "jit": "off",
    # Rows are asked for by their keys. A small table looks cheaper to read whole, but the row of a busy session has thousands of dead
    # versions in it.
    "enable_seqscan": "off",
}
_REFUSALS = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ClientConfigurationError,
)

ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
"""What a connection may raise."""
BAD_VALUES = (asyncpg.DataError, ValueError)
"""Raised for a value that PostgreSQL cannot keep, like a text with a NUL in it."""


async def connect(url: str) -> Connection:
    """A connection with our settings.

    Raises:
        ConfigurationError: ``database_refused``: the URL, the database or the credentials are wrong.
        OSError: (or another error that ``is_away`` knows) it cannot be reached.
    """
    try:
        connection: Connection = await asyncpg.connect(url, **_arguments())
    except _REFUSALS as error:
        raise _refused(error) from error
    return connection


class Pool:
    """Up to ``CONNECTIONS`` connections for whatever is one statement long."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    async def open(self) -> None:
        """Make the first connection.

        Raises:
            ConfigurationError: as ``connect``.
            Unavailable: ``store_unavailable``.
        """
        try:
            self._pool = await asyncpg.create_pool(
                self._url, min_size=1, max_size=CONNECTIONS, reset=_leave_as_it_is, **_arguments()
            )
        except _REFUSALS as error:
            raise _refused(error) from error
        except ValueError:
            # What it says may be a part of the password.
            raise ConfigurationError(
                "the setting `database` is no URL that can be read",
                code="database_refused",
                hint="It is like postgresql://user:password@host/name; in a password %-encode what is neither a letter nor a digit.",
            ) from None
        except ERRORS as error:
            raise unavailable(error) from error

    async def close(self) -> None:
        """Let all of them go."""
        if self._pool is not None:
            try:
                async with asyncio.timeout(CONNECT_S):
                    await self._pool.close()
            except TimeoutError:
                self._pool.terminate()

    async def run(self, call: Callable[[Connection], Awaitable[T]], *, again: bool = True) -> T:
        """What the call on a connection returns. When the connection breaks it is tried again, unless doing it twice would
        tell the caller something else.

        Raises:
            Unavailable: as ``unavailable``.
        """
        for pause_s in (*PAUSES_S, None):
            reached = False
            try:
                async with self._acquire() as connection:
                    reached = True
                    return await call(connection)
            except (*ERRORS, *BAD_VALUES) as error:
                if pause_s is None or not is_away(error) or (reached and not again):
                    raise unavailable(error) from error
                await asyncio.sleep(pause_s)
        raise AssertionError

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection for as long as the block runs.

        Raises:
            Unavailable: as ``unavailable``, also for what breaks in the block.
        """
        try:
            async with self._acquire() as connection:
                yield connection
        except (*ERRORS, *BAD_VALUES) as error:
            raise unavailable(error) from error

    @contextlib.asynccontextmanager
    async def _acquire(self) -> AsyncIterator[Connection]:
        assert self._pool is not None
        async with self._pool.acquire(timeout=CONNECT_S) as connection:
            yield connection  # type: ignore[misc]  # a proxy that behaves as the connection


async def _leave_as_it_is(connection: object) -> None:
    """Nothing that we do outlives its transaction: a reset would only cost a round trip."""


def is_away(error: BaseException) -> bool:
    """Whether the connection broke or the server is not there; not: the server refused what we asked."""
    if isinstance(error, asyncpg.QueryCanceledError | ValueError):
        return False
    return isinstance(
        error,
        OSError
        | TimeoutError
        | asyncpg.InterfaceError
        | asyncpg.InternalClientError
        | asyncpg.PostgresConnectionError
        | asyncpg.OperatorInterventionError
        | asyncpg.TooManyConnectionsError
        | asyncpg.IdleInTransactionSessionTimeoutError,
    )


def unavailable(error: BaseException) -> ShipError:
    """What the error of a connection is to the callers of a store."""
    if isinstance(error, ShipError):
        return error
    if isinstance(error, BAD_VALUES):
        return InvalidInput(f"the store cannot keep this value: {error}", code="value_not_storable")
    if isinstance(error, asyncpg.DiskFullError):
        return Unavailable(
            f"the store is full: {error}",
            code="disk_full",
            hint="Free some space on the disk of the database and try again.",
        )
    if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
        return Unavailable(
            f"the store takes no writes: {error}",
            code="store_read_only",
            hint="The database is read-only, or a standby: point the setting `database` at the primary.",
        )
    return Unavailable(
        f"the store could not do this: {error or type(error).__name__}",
        code="store_unavailable",
        hint="Try again.",
    )


def _arguments() -> dict[str, Any]:
    return {"timeout": CONNECT_S, "command_timeout": STATEMENT_S + 5, "server_settings": _SETTINGS}


def _refused(error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"PostgreSQL refused the connection: {error}",
        code="database_refused",
        hint="Check the setting `database`: user, password, host and the database's name.",
    )
