"""Text that is still growing, on every node: it comes in where the runner's link is, and who listens elsewhere collects it from the bus.

A node that begins to listen in mid-stream asks, and the node with the link answers with each part so far. As that node also sends
what comes after, and the bus keeps the order, nothing is missing in between.
"""

from contextlib import AbstractAsyncContextManager
from types import TracebackType

import msgspec

from ship.bus import Partials
from ship.events import facts
from ship.events.frames import Delta
from ship.ports.bus import DELTA, Bus, Listener, Notice

PART = "part"
"""A part so far, from its beginning: a delta at offset 0."""

WANTED = "parts_wanted"

_END_OF_TEXT = frozenset({facts.TextFinished.TYPE, facts.ReasoningFinished.TYPE, facts.ToolFinished.TYPE})
END_OF_GROWTH = frozenset(
    {
        *(facts.TaskCompleted.TYPE, facts.TaskFailed.TYPE, facts.TaskCancelled.TYPE),
        *(facts.SandboxRequested.TYPE, facts.SandboxFailed.TYPE, facts.SandboxLost.TYPE),
        facts.SessionArchived.TYPE,
    }
)
_delta = msgspec.json.Decoder(Delta)


class _Finished(msgspec.Struct):
    part_id: str


class _FinishedRecord(msgspec.Struct):
    data: _Finished


class Growth:
    """The growing parts of the sessions that this node has to do with."""

    def __init__(self, bus: Bus, *, shared: bool) -> None:
        """``shared`` says that there may be other nodes."""
        self._bus = bus
        self._shared = shared
        self._partials = Partials()
        self._here: set[str] = set()

    def grow(self, session_id: str, delta: Delta) -> None:
        """The runner's link of this node brought it: pass it on, unless it does not follow what is known."""
        if self._partials.grow(session_id, delta):
            self._here.add(session_id)
            self._bus.publish(session_id, [Notice(0, DELTA, msgspec.json.encode(delta))])

    def listen(self, session_id: str) -> AbstractAsyncContextManager[Listener]:
        """A listener of the session. What is known of growing text is true as long as somebody listens."""
        return _Listening(self, session_id, self._bus.listen(session_id))

    def ask(self, session_id: str) -> list[bytes]:
        """What is growing now, each part as one encoded delta. Where nothing is known here, what others know comes to the listeners
        as ``PART`` notices."""
        known = self._partials.of(session_id)
        if self._shared and not known:
            self._bus.publish(session_id, [Notice(0, WANTED, b"")])
        return [msgspec.json.encode(part) for part in known]

    def hear(self, session_id: str, notice: Notice) -> None:
        """Another node published this."""
        if notice.kind in (DELTA, PART):
            self._here.discard(session_id)
            self._partials.grow(session_id, _delta.decode(notice.body))
        elif notice.kind == WANTED and session_id in self._here:
            for part in self._partials.of(session_id):
                self._bus.publish(session_id, [Notice(0, PART, msgspec.json.encode(part))])
        elif notice.kind in _END_OF_TEXT:
            finished = msgspec.json.decode(notice.body, type=_FinishedRecord)
            self._partials.finish(session_id, finished.data.part_id)
        elif notice.kind in END_OF_GROWTH:
            self._forget(session_id)

    def committed(self, session_id: str, fact: facts.Fact) -> None:
        """This node appended it to the log."""
        if isinstance(fact, facts.TextFinished | facts.ReasoningFinished | facts.ToolFinished):
            self._partials.finish(session_id, fact.part_id)
        elif fact.TYPE in END_OF_GROWTH:
            self._forget(session_id)

    def forget_unheard(self, session_id: str) -> None:
        """Nobody has listened, so it may be wrong."""
        if self._shared and session_id not in self._bus.topics():
            self._forget(session_id)

    def _forget(self, session_id: str) -> None:
        self._partials.clear(session_id)
        self._here.discard(session_id)


class _Listening:
    """A listener, and what is forgotten where there is none."""

    __slots__ = ("_growth", "_listening", "_session_id")

    def __init__(
        self, growth: Growth, session_id: str, listening: AbstractAsyncContextManager[Listener]
    ) -> None:
        self._growth = growth
        self._session_id = session_id
        self._listening = listening

    async def __aenter__(self) -> Listener:
        self._growth.forget_unheard(self._session_id)
        return await self._listening.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._listening.__aexit__(kind, error, trace)
        self._growth.forget_unheard(self._session_id)
