"""The log as pages and as a live stream, over WebSocket and Server-Sent Events."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from ship.api import asked, hot, inputs, schemas
from ship.api.dependencies import Caller, Serving
from ship.model import SessionStatus
from ship.ports.bus import HEAD, Bus
from ship.sessions.feeds import HEARTBEAT_S, check_after
from ship.sessions.heads import SUMMARIES

router = APIRouter(prefix="/api/v1", tags=["events"])

SEND_TIMEOUT_S = 30.0
"""A client that takes nothing for this long is told to come back and resume."""


@router.get("/sessions/{session_id}/events", response_model=schemas.RecordPage)
async def list_events(
    session_id: str, serving: Serving, actor: Caller, query: Annotated[inputs.RecordsQuery, Query()]
) -> Response:
    """A page of the log past ``after``, oldest first."""
    return await hot.list_events(hot.Asker(serving, actor), session_id, query)


@router.get("/sessions/stream", response_class=StreamingResponse)
async def stream_summaries(serving: Serving, actor: Caller) -> Response:
    """The line of every session that changes, as Server-Sent Events."""
    return _server_sent(_summaries(serving.sessions.bus))


@router.get("/sessions/{session_id}/events/stream", response_class=StreamingResponse)
async def stream_events(
    session_id: str,
    serving: Serving,
    actor: Caller,
    query: Annotated[inputs.StreamQuery, Query()],
    last_event_id: Annotated[int | None, Header(ge=0, le=inputs.MAX_SEQ)] = None,
) -> Response:
    """The log past ``after`` (or ``Last-Event-ID``), then live, as Server-Sent Events."""
    state = await serving.sessions.state(session_id)
    start = last_event_id if last_event_id is not None else query.after
    check_after(start, await serving.sessions.head(session_id))
    if state.status is SessionStatus.ARCHIVED and start >= state.head_seq:
        return Response(status_code=204)  # what tells an EventSource not to come back
    return _server_sent(_events(serving.sessions.follow(session_id, start, asked.event_types(query.types))))


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
