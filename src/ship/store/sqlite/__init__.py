"""The store in one SQLite file."""

from ship.store.sqlite.store import SqliteStore

__all__ = ["SqliteStore"]
