"""Text that is still growing, kept so that who joins in mid-stream sees it. Lost with the process: the finished part is logged."""

from collections import OrderedDict

import msgspec

from ship.events.frames import Delta

PART_CHARACTERS = 256 * 1024
PARTS = 64


class _Part:
    """One part, as the pieces that came: a delta costs its own length, not the part's."""

    def __init__(self, first: Delta) -> None:
        self._first = first
        self._pieces: list[str] = []
        self._length = 0

    def grow(self, delta: Delta) -> bool:
        if delta.offset > self._length or delta.offset + len(delta.text) > PART_CHARACTERS:
            return False
        if delta.offset < self._length:
            self._pieces = ["".join(self._pieces)[: delta.offset]]
        self._pieces.append(delta.text)
        self._length = delta.offset + len(delta.text)
        return True

    def whole(self) -> Delta:
        return msgspec.structs.replace(self._first, offset=0, text="".join(self._pieces))


class Partials:
    """The unfinished parts of every session."""

    def __init__(self) -> None:
        self._sessions: dict[str, OrderedDict[str, _Part]] = {}

    def grow(self, session_id: str, delta: Delta) -> bool:
        """Put the delta's text in its place. False when it does not follow what is known, or the part is too long: who watches gets
        the finished part."""
        parts = self._sessions.setdefault(session_id, OrderedDict())
        part = parts.get(delta.part_id) or _Part(delta)
        if not part.grow(delta):
            return False
        parts[delta.part_id] = part
        if len(parts) > PARTS:
            parts.popitem(last=False)
        return True

    def finish(self, session_id: str, part_id: str) -> None:
        """The part stands in the log now."""
        parts = self._sessions.get(session_id)
        if parts and parts.pop(part_id, None) and not parts:
            del self._sessions[session_id]

    def clear(self, session_id: str) -> None:
        """Nothing grows any more."""
        self._sessions.pop(session_id, None)

    def of(self, session_id: str) -> list[Delta]:
        """What is growing now, each part as one delta from its beginning."""
        return [part.whole() for part in self._sessions.get(session_id, OrderedDict()).values()]
