"""What all sandboxes of a host have in common on their way out: what the operator decides, and what is counted."""

from collections import Counter
from typing import Any

from . import policy
from .lookups import Lookups, Resolver
from .nodes import Nodes
from .rules import Block, Rules, Upstream


class Gateway:
    """`upstreams` are the reserved names, `private` the special addresses that sandboxes may reach. `refusals` counts what
    was not let through since the start, by the kind of the reason: rule, address, reserved, request, protocol, limit,
    unreachable. `refuses` says whether `netfilter` can refuse packets and tell of them."""

    def __init__(
        self,
        upstreams: tuple[Upstream, ...] = (),
        private: tuple[Block, ...] = (),
        refuses: bool = False,
    ) -> None:
        self.upstreams = upstreams
        self.nodes = Nodes()
        self.private = private
        self.lookups = Lookups(Resolver())
        self.refuses = refuses
        self.refusals: Counter[str] = Counter()

    def rules(self, kept: dict[str, Any], allow_internet: bool) -> Rules:
        """The rules of one sandbox, of the network in its record."""
        return policy.rules(kept, allow_internet, self.upstreams, self.private)
