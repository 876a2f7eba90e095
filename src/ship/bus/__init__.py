"""Fan-out: what was committed, and what is not logged, to everyone who listens."""

from ship.bus.local import LocalBus
from ship.bus.partials import Partials

__all__ = ["LocalBus", "Partials"]
