"""What all sandboxes of a host have in common on their way out: what the operator decides, and what is counted."""

import asyncio
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import policy
from .nodes import Nodes
from .rules import Block, Rules, Upstream

Resolve = Callable[[str], Awaitable[list[str]]]
_LOOKUP_THREADS = 64


class Resolver:
    """The machine's own way to look up names. A lookup waits in a thread; these are for nothing else, so that slow ones
    hold up nothing else."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_LOOKUP_THREADS, "lookup")

    async def __call__(self, host: str) -> list[str]:
        """The addresses of a name, as texts. Raises socket.gaierror."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, _look_up, host)


def _look_up(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


class Gateway:
    """`upstreams` are the reserved names, `private` the special addresses that sandboxes may reach. `refusals` counts what
    was not let through since the start, by the kind of the reason: rule, address, reserved, request, limit, unreachable."""

    def __init__(
        self,
        upstreams: tuple[Upstream, ...] = (),
        private: tuple[Block, ...] = (),
        lookup: Resolve | None = None,
        redirects: bool = False,
    ) -> None:
        self.upstreams = upstreams
        self.nodes = Nodes()
        self.private = private
        self.lookup = lookup or Resolver()
        self.redirects = redirects
        self.refusals: Counter[str] = Counter()

    def rules(self, kept: dict[str, Any], allow_internet: bool) -> Rules:
        """The rules of one sandbox, of the network in its record."""
        return policy.rules(kept, allow_internet, self.upstreams, self.private)
