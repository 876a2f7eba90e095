"""The log as pages and as a live stream, over WebSocket and Server-Sent Events."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from fastapi import APIRouter, Header, Query, Response, WebSocket
from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from ship.api import schemas
from ship.api.answers import page
from ship.api.services import Caller, Serving, caller, services
from ship.errors import Forbidden, InvalidInput, NotFound, ShipError, Unauthenticated
from ship.events import FACTS
from ship.model import SessionStatus
from ship.ports.bus import HEAD, Bus
from ship.sessions.heads import SUMMARIES
from ship.sessions.service import HEARTBEAT_S, check_after

router = APIRouter(prefix="/api/v1", tags=["events"])

MAX_SEQ = 2**53
SEND_TIMEOUT_S = 30.0
"""A client that takes nothing for this long is told to come back and resume."""

CLOSE_TIMEOUT_S = 1.0

CLOSE_INVALID, CLOSE_UNAUTHENTICATED, CLOSE_NOT_FOUND = 4400, 4401, 4404
CLOSE_TOO_SLOW, CLOSE_ARCHIVED, CLOSE_RETRY = 4408, 4409, 1013

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
    rows = await serving.sessions.events(session_id, after, limit, _chosen(types))
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
    return _server_sent(_events(serving.sessions.follow(session_id, start, _chosen(types))))


@router.websocket("/sessions/{session_id}/events/ws")
async def follow_events(socket: WebSocket, session_id: str) -> None:
    """The log past ``after``, then live, as a WebSocket."""
    await socket.accept()
    serving = services(socket)
    try:
        await caller(socket, serving)
        after = _seq(socket.query_params.get("after", "0"))
        types = _chosen(socket.query_params.get("types", ""))
        check_after(after, await serving.sessions.head(session_id))
        stream = serving.sessions.follow(session_id, after, types)
    except ShipError as error:
        await socket.close(_close_code(error), error.code)
        return
    sending = asyncio.create_task(_send(socket, stream))
    gone = asyncio.create_task(_gone(socket))
    try:
        await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (sending, gone):
            task.cancel()
        await asyncio.gather(sending, gone, return_exceptions=True)
        await stream.aclose()


def _close_code(error: ShipError) -> int:
    if isinstance(error, NotFound):
        return CLOSE_NOT_FOUND
    if isinstance(error, InvalidInput):
        return CLOSE_INVALID
    return CLOSE_UNAUTHENTICATED if isinstance(error, Unauthenticated | Forbidden) else CLOSE_RETRY


def _seq(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_SEQ:
        raise InvalidInput("`after` is the last seq that you have seen", code="after_invalid")
    return int(text)


async def _send(socket: WebSocket, stream: AsyncIterator[tuple[int, str, bytes]]) -> None:
    try:
        async for _, _, body in stream:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await socket.send_text(body.decode())
    except TimeoutError:
        # The close frame waits behind what the client does not take; the connection goes either way.
        with contextlib.suppress(TimeoutError, RuntimeError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await socket.close(CLOSE_TOO_SLOW, "too_slow")
    except (WebSocketDisconnect, RuntimeError):
        return
    else:
        await socket.close(CLOSE_ARCHIVED, "archived")


async def _gone(socket: WebSocket) -> None:
    """Returns when the client has gone; what it sends is dropped."""
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        while (await socket.receive())["type"] != "websocket.disconnect":
            pass


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


def _chosen(types: str) -> list[str]:
    chosen = [name for name in types.split(",") if name]
    known = {fact.TYPE for fact in FACTS}
    if unknown := [name for name in chosen if name not in known]:
        raise InvalidInput(f"there is no event type {unknown[0]}", code="event_type_unknown")
    return chosen
