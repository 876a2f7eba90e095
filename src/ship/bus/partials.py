"""Text that is still growing, kept so that who joins in mid-stream sees it. Lost with the process: the finished part is logged."""

from collections import OrderedDict

import msgspec

from ship.events.frames import Delta

PART_LIMIT = 256 * 1024
PARTS_LIMIT = 64


class Partials:
    """The unfinished parts of every session: session id → part id → one delta that holds all of it."""

    def __init__(self) -> None:
        self._sessions: dict[str, OrderedDict[str, Delta]] = {}

    def grow(self, session_id: str, delta: Delta) -> None:
        """Put the delta's text in its place. One that does not follow what is known starts the part anew at its offset 0, or is
        dropped."""
        parts = self._sessions.setdefault(session_id, OrderedDict())
        known = parts.get(delta.part_id)
        have = known.text if known else ""
        if delta.offset > len(have) or delta.offset + len(delta.text) > PART_LIMIT:
            return
        parts[delta.part_id] = msgspec.structs.replace(
            delta, offset=0, text=have[: delta.offset] + delta.text
        )
        if len(parts) > PARTS_LIMIT:
            parts.popitem(last=False)

    def finish(self, session_id: str, part_id: str) -> None:
        """The part stands in the log now."""
        parts = self._sessions.get(session_id)
        if parts and parts.pop(part_id, None) and not parts:
            del self._sessions[session_id]

    def clear(self, session_id: str) -> None:
        """The task is over: nothing grows any more."""
        self._sessions.pop(session_id, None)

    def of(self, session_id: str) -> list[Delta]:
        """What is growing now."""
        return list(self._sessions.get(session_id, OrderedDict()).values())
