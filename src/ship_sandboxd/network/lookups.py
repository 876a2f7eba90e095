"""Lookups of names: each may wait for a slow server and cannot be broken off, so the sandboxes share what may run at the same time."""

import asyncio
import socket
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

AT_ONCE, OF_ONE_SANDBOX = 128, 8
Resolve = Callable[[str], Awaitable[list[str]]]


class Resolver:
    """The machine's own way to look up names. A lookup waits in a thread; these are for nothing else, so that slow ones
    hold up nothing else."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(AT_ONCE, "lookup")

    async def __call__(self, host: str) -> list[str]:
        """The addresses of a name, as texts. Raises socket.gaierror."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, _look_up, host)


def _look_up(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


class Lookups:
    """Half of the places are for sandboxes that have no lookup under way, so no few of them can keep the others waiting."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._free = AT_ONCE
        self._held: Counter[str] = Counter()
        # By sandbox, whose turn is next first; of each, who has waited longest first.
        self._waiting: OrderedDict[str, OrderedDict[asyncio.Future[None], None]] = OrderedDict()

    async def find(self, sandbox_id: str, host: str) -> list[str]:
        """The addresses of a name, for a sandbox. A lookup holds its place until it has ended, even when nobody waits for
        it any more: its thread goes on. Raises what the way to look up names raises."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(sandbox_id, OrderedDict())[place] = None
        self._share_out()
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                self._leave(sandbox_id, place)
            else:
                self._give_back(sandbox_id)  # it was given at that very moment
            raise
        lookup = asyncio.ensure_future(self._resolve(host))
        lookup.add_done_callback(partial(self._ended, sandbox_id))
        return await asyncio.shield(lookup)

    def _ended(self, sandbox_id: str, lookup: asyncio.Future[list[str]]) -> None:
        self._give_back(sandbox_id)
        if not lookup.cancelled():
            lookup.exception()  # told to whoever waits; nobody may

    def _give_back(self, sandbox_id: str) -> None:
        self._free += 1
        self._held[sandbox_id] -= 1
        if not self._held[sandbox_id]:
            del self._held[sandbox_id]
        self._share_out()

    def _share_out(self) -> None:
        """To the sandboxes that wait, in turn, as far as they may have more."""
        while self._free and (sandbox_id := self._next()) is not None:
            place = next(iter(self._waiting[sandbox_id]))
            if not place.done():  # else its task was cancelled, and has not come to know it yet
                self._waiting.move_to_end(sandbox_id)
                self._free -= 1
                self._held[sandbox_id] += 1
                place.set_result(None)
            self._leave(sandbox_id, place)

    def _next(self) -> str | None:
        """Whose turn it is. Those that are passed over hold places, so there are never many."""
        most = OF_ONE_SANDBOX if self._free > AT_ONCE // 2 else 1
        return next((each for each in self._waiting if self._held[each] < most), None)

    def _leave(self, sandbox_id: str, place: asyncio.Future[None]) -> None:
        if waiting := self._waiting.get(sandbox_id):
            waiting.pop(place, None)
            if not waiting:
                del self._waiting[sandbox_id]
