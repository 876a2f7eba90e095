"""A typed, asynchronous client of Ship's API; the command line uses it."""

from ship.client.client import Client
from ship.client.stream import Events

__all__ = ["Client", "Events"]
