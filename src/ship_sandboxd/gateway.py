"""What all sandboxes of a host have in common on their way out: what the operator decides, and what is counted."""

import asyncio
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from . import network
from .rules import Block, Rules, Upstream

Resolve = Callable[[str], Awaitable[list[str]]]


async def resolve(host: str) -> list[str]:
    """The addresses of a name, as texts. Raises socket.gaierror."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


class Gateway:
    """`upstreams` are the reserved names, `private` the special addresses that sandboxes may reach. `refusals` counts what
    was not let through since the start, by the kind of the reason: rule, address, reserved, request, unreachable."""

    def __init__(
        self,
        upstreams: tuple[Upstream, ...] = (),
        private: tuple[Block, ...] = (),
        lookup: Resolve = resolve,
        redirects: bool = False,
    ) -> None:
        self.upstreams = upstreams
        self.private = private
        self.lookup = lookup
        self.redirects = redirects
        self.refusals: Counter[str] = Counter()

    def rules(self, kept: dict[str, Any], allow_internet: bool) -> Rules:
        """The rules of one sandbox, of the network in its record."""
        return network.rules(kept, allow_internet, self.upstreams, self.private)
