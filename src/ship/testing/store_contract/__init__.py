"""What every store must do: one check for each promise of ``ship.ports.store``, to be run on each adapter.

Each check gets two stores. Where a store may be shared they are two nodes on one empty database; else they are one and the same.
"""

from . import appends, keys, leases, races, reads, searches, whole
from .two_nodes import Check, Stores

__all__ = ["STORE_CHECKS", "Check", "Stores", "check_store"]

STORE_CHECKS: tuple[Check, ...] = (
    *appends.CHECKS,
    *races.CHECKS,
    *reads.CHECKS,
    *leases.CHECKS,
    *keys.CHECKS,
    *searches.CHECKS,
    *whole.CHECKS,
)


async def check_store(stores: Stores) -> None:
    """Every check, one after the other, on one database. Raises AssertionError."""
    for check in STORE_CHECKS:
        await check(stores)
