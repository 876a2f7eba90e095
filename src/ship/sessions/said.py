"""The last messages of the sessions that are read, encoded as they travel: a page of them costs no look into the store."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from ship.ports.store import Append

SESSIONS = 64
KEPT, KEPT_BYTES = 256, 256 * 1024


class _Tail(NamedTuple):
    """The last messages up to ``head``; ``whole`` says that there are no others."""

    whole: bool
    head: int
    messages: list[bytes]
    size_bytes: int


class LastSaid:
    """True only for the head that it was made for: whoever asks says where the log ends now."""

    def __init__(self) -> None:
        self._tails: OrderedDict[str, _Tail] = OrderedDict()

    def page(self, session_id: str, head: int, limit: int) -> list[bytes] | None:
        """The last ``limit`` messages of a log that ends at ``head``, newest last; None when they are not known here."""
        tail = self._tails.get(session_id)
        if tail is None or tail.head != head or (len(tail.messages) < limit and not tail.whole):
            return None
        self._tails.move_to_end(session_id)
        return tail.messages[-limit:]

    def learn(self, session_id: str, head: int, rows: Sequence[tuple[int, bytes]], limit: int) -> None:
        """These are the last messages of a log that ends at ``head``; all of them when they are fewer than ``limit``, but for a page
        that ended for its size: that is more than is kept here."""
        messages = [body for _, body in rows]
        self._tails[session_id] = _bounded(_Tail(len(rows) < limit, head, messages, sum(map(len, messages))))
        if len(self._tails) > SESSIONS:
            self._tails.popitem(last=False)

    def appended(self, append: Append) -> None:
        """This is in the log now."""
        tail = self._tails.get(append.session_id)
        if tail is None:
            return
        if tail.head != append.expected_head:
            del self._tails[append.session_id]  # something came in between that we have not heard
            return
        tail.messages.extend(said.body for said in append.said)
        size_bytes = tail.size_bytes + sum(len(said.body) for said in append.said)
        head = append.expected_head + len(append.events)
        self._tails[append.session_id] = _bounded(_Tail(tail.whole, head, tail.messages, size_bytes))


def _bounded(tail: _Tail) -> _Tail:
    """The tail itself, or its later half when it is too long."""
    if len(tail.messages) <= KEPT and tail.size_bytes <= KEPT_BYTES:
        return tail
    messages = tail.messages[len(tail.messages) // 2 + 1 :]
    return _Tail(False, tail.head, messages, sum(map(len, messages)))
