"""Sees that who listens on this node hears of all that is in the log, whatever the bus has lost."""

import asyncio
import logging
from collections.abc import Callable

from ship.errors import Unavailable
from ship.ports.bus import HEAD, Bus, Notice
from ship.ports.store import LogStore

SUMMARIES = "sessions"
"""The topic of the list of sessions; every other topic is a session's id."""

EVERY_S = 1.0

_log = logging.getLogger("ship.heads")


class Heads:
    """Compares, each second and in one query, where the logs end with what was told here. For a store that other nodes share."""

    def __init__(self, store: LogStore, bus: Bus, heard: Callable[[str, int], None]) -> None:
        """``heard`` gets (session id, seq) of a log that has grown without a word."""
        self._store = store
        self._bus = bus
        self._heard = heard
        self._told: dict[str, int] = {}

    def told(self, session_id: str, seq: int) -> None:
        """The listeners of this node have got everything up to that seq, or a gap that they see."""
        self._told[session_id] = max(seq, self._told.get(session_id, 0))

    async def run(self) -> None:
        """Compare until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.check()
            except Unavailable as error:
                _log.warning("the heads of the logs cannot be read; trying again: %s", error)

    async def check(self) -> None:
        """Tell who listens where their logs end, if they do not know."""
        if self._bus.missed():
            self._bus.publish_here(SUMMARIES, [Notice(0, HEAD, b"")])
        topics = [topic for topic in self._bus.topics() if topic != SUMMARIES]
        heads = await self._store.heads(topics) if topics else {}
        for session_id, head in heads.items():
            if head > self._told.get(session_id, 0):
                self._heard(session_id, head)
                self._bus.publish_here(session_id, [Notice(head, HEAD, b"")])
        self._told = {topic: max(heads.get(topic, 0), self._told.get(topic, 0)) for topic in topics}
