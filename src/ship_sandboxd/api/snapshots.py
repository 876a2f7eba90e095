"""Snapshots of sandboxes, and forks."""

from .call import Route
from .router import unsupported


class SnapshotRoutes:
    def table(self) -> list[Route]:
        return [
            Route("POST", "/sandboxes/{sandboxID}/snapshots", unsupported),
            Route("POST", "/sandboxes/{sandboxID}/fork", unsupported),
            Route("GET", "/snapshots", unsupported),
        ]
