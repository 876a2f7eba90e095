"""The places that builds run in: a few for all, shared out among tenants so that none waits for one that has many builds."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

AT_ONCE = 4
OF_ONE_TENANT = 3
"""One place is always within reach of a tenant that has no build running."""


class Places:
    """A place that becomes free goes to who holds the fewest, and of several to who has waited longest."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def one(self, tenant: str) -> AsyncIterator[None]:
        """A place for a build of this tenant, as soon as there is one."""
        place = asyncio.get_running_loop().create_future()
        self._waiting.append((tenant, place))
        self._share_out()
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():
                self._free(tenant)  # it was given at that very moment
            self._waiting = [each for each in self._waiting if each[1] is not place]
            raise
        try:
            yield
        finally:
            self._free(tenant)

    def _free(self, tenant: str) -> None:
        self._held[tenant] -= 1
        self._share_out()

    def _share_out(self) -> None:
        while self._held.total() < AT_ONCE:
            fitting = [
                each for each in self._waiting if self._held[each[0]] < OF_ONE_TENANT and not each[1].done()
            ]
            if not fitting:
                return
            chosen = min(fitting, key=lambda each: self._held[each[0]])
            self._waiting.remove(chosen)
            self._held[chosen[0]] += 1
            chosen[1].set_result(None)
