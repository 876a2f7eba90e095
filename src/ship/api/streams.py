"""The log as pages and as a live stream, over WebSocket and Server-Sent Events."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from ship.api import schemas
from ship.api.answers import page
from ship.api.services import Caller, Serving
from ship.errors import InvalidInput
from ship.events import FACTS
from ship.model import SessionStatus
from ship.ports.bus import HEAD, Bus
from ship.sessions.feeds import HEARTBEAT_S, check_after
from ship.sessions.heads import SUMMARIES

router = APIRouter(prefix="/api/v1", tags=["events"])

MAX_SEQ = 2**53
SEND_TIMEOUT_S = 30.0
"""A client that takes nothing for this long is told to come back and resume."""

_KNOWN_TYPES = frozenset(fact.TYPE for fact in FACTS)

After = Annotated[int, Query(ge=0, le=MAX_SEQ)]
Types = Annotated[str, Query(description="Event types, parted by commas; empty means all.")]


@router.get("/sessions/{session_id}/events", response_model=schemas.RecordPage)
async def list_events(
    session_id: str,
    serving: Serving,
    actor: Caller,
    after: After = 0,
    types: Types = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 500,
) -> Response:
    """A page of the log past ``after``, oldest first."""
    head = await serving.sessions.head(session_id)
    rows = await serving.sessions.events(session_id, after, limit, chosen_types(types))
    return page([body for _, body in rows], head_seq=head)


@router.get("/sessions/stream", response_class=StreamingResponse)
async def stream_summaries(serving: Serving, actor: Caller) -> Response:
    """The line of every session that changes, as Server-Sent Events."""
    return _server_sent(_summaries(serving.sessions.bus))


@router.get("/sessions/{session_id}/events/stream", response_class=StreamingResponse)
async def stream_events(
    session_id: str,
    serving: Serving,
    actor: Caller,
    after: After = 0,
    types: Types = "",
    last_event_id: Annotated[int | None, Header(ge=0, le=MAX_SEQ)] = None,
) -> Response:
    """The log past ``after`` (or ``Last-Event-ID``), then live, as Server-Sent Events."""
    state = await serving.sessions.state(session_id)
    start = last_event_id if last_event_id is not None else after
    check_after(start, await serving.sessions.head(session_id))
    if state.status is SessionStatus.ARCHIVED and start >= state.head_seq:
        return Response(status_code=204)  # what tells an EventSource not to come back
    return _server_sent(_events(serving.sessions.follow(session_id, start, chosen_types(types))))


def stream_place(text: str) -> int:
    """The seq that a stream's ``after`` means. Raises InvalidInput (``after_invalid``)."""
    if not (text.isascii() and text.isdecimal()) or int(text[:20]) > MAX_SEQ:
        raise InvalidInput("`after` is the last seq that you have seen", code="after_invalid")
    return int(text)


def _server_sent(stream: AsyncIterator[bytes]) -> Response:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return _ServerSent(stream, media_type="text/event-stream", headers=headers)


class _ServerSent(StreamingResponse):
    """A stream whose client must take what is sent, or lose it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def timed(message: Message) -> None:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await send(message)

        with contextlib.suppress(TimeoutError):
            await super().__call__(scope, receive, timed)


async def _events(stream: AsyncIterator[tuple[int, str, bytes]]) -> AsyncIterator[bytes]:
    async for seq, kind, body in stream:
        yield (
            b"id: %d\ndata: %s\n\n" % (seq, body)
            if seq
            else b"event: %s\ndata: %s\n\n"
            % (
                kind.encode(),
                body,
            )
        )


async def _summaries(bus: Bus) -> AsyncIterator[bytes]:
    async with bus.listen(SUMMARIES) as listener:
        yield b": listening\n\n"
        while True:
            notices = await listener.take(HEARTBEAT_S)
            lines = [notice.body for notice in notices if notice.kind != HEAD]
            newest = {msgspec.json.decode(body, type=_Named).id: body for body in lines}
            for body in newest.values():
                yield b"data: %s\n\n" % body
            if listener.lagged or len(lines) < len(notices):
                return  # who comes back reads the list anew
            if not notices:
                yield b": still here\n\n"


class _Named(msgspec.Struct):
    id: str


def chosen_types(types: str) -> list[str]:
    """The event types that a query names, parted by commas. Raises InvalidInput (``event_type_unknown``)."""
    chosen = [name for name in types.split(",") if name]
    if unknown := [name for name in chosen if name not in _KNOWN_TYPES]:
        raise InvalidInput(f"there is no event type {unknown[0]}", code="event_type_unknown")
    return chosen
