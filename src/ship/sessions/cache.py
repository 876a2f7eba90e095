"""The folded states of the sessions that were used lately."""

import asyncio
from collections import OrderedDict
from typing import NamedTuple, Protocol

import msgspec

from ship.errors import NotFound
from ship.events import decode
from ship.ports.store import LogStore
from ship.sessions.fold import fold
from ship.sessions.logs import Logs
from ship.sessions.state import SessionState

CACHED_STATES = 1_000
CACHED_BYTES = 128 * 1024**2
"""As JSON. In memory text has as much, or up to four times that where few characters of it are beyond ASCII."""
STATE_SHAPE = 4
"""The version of ``SessionState``'s form; kept snapshots of another one are ignored."""

_PAGE = 500
_ROOM_BYTES = 16 * 1024
"""How much is appended to a state of any size before it is measured again."""


class CachedStore(LogStore, Protocol):
    """What the cache needs of a store."""

    shared: bool


class _Kept(NamedTuple):
    """A state, and about how large it is: the ``measured_bytes`` of its JSON, and in ``size_bytes`` all that was appended since, too."""

    state: SessionState
    size_bytes: int
    measured_bytes: int

    def grown(self, state: SessionState, appended_bytes: int) -> "_Kept":
        """A newer state. What was appended is not all in it: it is measured again when that is as much as it had."""
        size_bytes = self.size_bytes + appended_bytes
        if size_bytes > 2 * self.measured_bytes + _ROOM_BYTES:
            return _measured(state)
        return _Kept(state, size_bytes, self.measured_bytes)


def _measured(state: SessionState) -> _Kept:
    size_bytes = len(msgspec.json.encode(state))
    return _Kept(state, size_bytes, size_bytes)


class StateCache:
    """Only what is on disk. In a shared store other nodes append, too: ``newest`` looks, ``known`` believes what was heard."""

    def __init__(self, store: CachedStore, logs: Logs) -> None:
        self._store = store
        self._logs = logs
        self._states: OrderedDict[str, _Kept] = OrderedDict()
        self._size_bytes = 0
        self._heard: dict[str, int] = {}
        self._reading: dict[str, asyncio.Task[SessionState]] = {}

    async def newest(self, session_id: str) -> SessionState:
        """The state as it is on disk now.

        Raises:
            NotFound: ``session_not_found``.
        """
        if self._store.shared:
            return await self._read(session_id)
        return await self.known(session_id)

    async def known(self, session_id: str) -> SessionState:
        """The state with all that this node has committed or heard of. Raises as ``newest``."""
        while (state := self.peek(session_id)) is None or state.head_seq < self._heard.get(session_id, 0):
            # All whose commands were refused together come here together: they share one look.
            reading = self._reading.get(session_id)
            if reading is None or reading.done():
                reading = self._reading[session_id] = asyncio.create_task(self._look(session_id))
                reading.add_done_callback(lambda done: done.cancelled() or done.exception())
            await asyncio.shield(reading)
        self._states.move_to_end(session_id)
        return state

    def peek(self, session_id: str) -> SessionState | None:
        """The state if it is at hand, without looking."""
        kept = self._states.get(session_id)
        return kept.state if kept else None

    def keep(self, session_id: str, state: SessionState, appended_bytes: int) -> None:
        """This state is on disk; what was appended since the one that was known has so many bytes."""
        kept = self._states.get(session_id)
        if kept is None or kept.state.head_seq < state.head_seq:
            newer = kept.grown(state, appended_bytes) if kept else _measured(state)
            self._states[session_id] = newer
            self._size_bytes += newer.size_bytes - (kept.size_bytes if kept else 0)
        self._states.move_to_end(session_id)
        if self._heard.get(session_id, 0) <= state.head_seq:
            self._heard.pop(session_id, None)
        while len(self._states) > CACHED_STATES or (
            self._size_bytes > CACHED_BYTES and len(self._states) > 1
        ):
            self.forget(next(iter(self._states)))

    def heard(self, session_id: str, seq: int) -> None:
        """The log has grown to this seq."""
        state = self.peek(session_id)
        if state and state.head_seq < seq:
            self._heard[session_id] = max(seq, self._heard.get(session_id, 0))

    def forget(self, session_id: str) -> None:
        """Know nothing of it any more."""
        if kept := self._states.pop(session_id, None):
            self._size_bytes -= kept.size_bytes
        self._heard.pop(session_id, None)

    async def _look(self, session_id: str) -> SessionState:
        try:
            return await self._read(session_id)
        finally:  # not when the task is done: who comes in between would not wait, nor let anybody else come
            self._reading.pop(session_id, None)

    async def _read(self, session_id: str) -> SessionState:
        """What is known, and what came after."""
        heard = self._heard.get(session_id, 0)
        state = self.peek(session_id) or await self._snapshot(session_id)
        appended_bytes = 0
        while rows := await self._logs.events(session_id, state.head_seq if state else 0, _PAGE):
            state = fold((decode(body) for _, body in rows), state)
            appended_bytes += sum(len(body) for _, body in rows)
        if state is None:
            raise NotFound("no such session", code="session_not_found")
        self.keep(session_id, state, appended_bytes)
        if self._heard.get(session_id, 0) == heard:
            self._heard.pop(session_id, None)
        return self._states[session_id].state

    async def _snapshot(self, session_id: str) -> SessionState | None:
        kept = await self._store.snapshot(session_id, STATE_SHAPE)
        return msgspec.json.decode(kept.body, type=SessionState) if kept else None
