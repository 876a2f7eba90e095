"""Which adapter keeps the sessions: chosen by the scheme of the setting ``database``."""

from ship.app.folder import DataFolder
from ship.errors import ConfigurationError
from ship.ports.store import Store
from ship.store.sqlite import SqliteStore


def store(database: str, folder: DataFolder, *, exclusive: bool = True) -> Store:
    """The store of a URL like ``postgresql://user:password@host/name``; without one, the SQLite file of the data folder.

    One that is not ``exclusive`` is opened beside a server, for a few calls.

    Raises:
        ConfigurationError: ``configuration_invalid``: no store has this scheme.
    """
    scheme = database.partition("://")[0]
    if not database:
        return SqliteStore(folder.database, exclusive=exclusive)
    if scheme in ("postgresql", "postgres"):
        from ship.store.postgres import PostgresStore  # its driver is loaded only where it is used

        return PostgresStore(database)
    raise ConfigurationError(
        f"no store has the scheme {scheme!r}",
        code="configuration_invalid",
        hint="The setting `database` is postgresql://user:password@host/name, or empty for SQLite in the data folder.",
    )
