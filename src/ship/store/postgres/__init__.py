"""The store in a PostgreSQL database, for any number of nodes."""

from ship.store.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
