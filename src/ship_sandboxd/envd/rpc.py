"""The Connect protocol in JSON: unary calls, server streams and client streams (https://connectrpc.com/docs/protocol).

A streamed message is `flags (1 byte), length (4 bytes, big endian), JSON`. Flag 2 marks the last one, which carries the
error, if there is one. Compression is not offered.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

from .http1 import CHUNKED, Exchange, frame, last_frame

Message = dict[str, Any]
Unary = Callable[["Call", Message], Awaitable[Message]]
ServerStream = Callable[["Call", Message], AsyncGenerator[Message, None]]
ClientStream = Callable[["Call", AsyncIterator[Message]], Awaitable[Message]]

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
KEEPALIVE_HEADER = "Keepalive-Ping-Interval"
_LAST = 2
_UNARY_TYPE, _STREAM_TYPE = "application/json", "application/connect+json"
_STATUS = {
    "canceled": 499,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 400,
    "unimplemented": 501,
    "internal": 500,
    "unauthenticated": 401,
}


class RpcError(Exception):
    """A call that failed; `code` is one of Connect's codes."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def body(self) -> Message:
        return {"code": self.code, "message": str(self)}


class Call:
    """What a method may know of its request: who asks, and how long the answer may take."""

    def __init__(self, exchange: Exchange) -> None:
        headers = exchange.request.headers
        self.username = basic_username(headers.get("authorization"))
        self.timeout_s = _seconds(headers.get("connect-timeout-ms"), 1000.0)
        self.keepalive_s = _seconds(headers.get(KEEPALIVE_HEADER), 1.0) or 90.0


def basic_username(authorization: str) -> str:
    """The user that `Authorization: Basic user:` names; an empty string when the field is absent."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(encoded, validate=True).decode("utf-8").partition(":")[0]
    except (binascii.Error, UnicodeDecodeError) as error:
        raise RpcError(
            "unauthenticated", "the Authorization header is not valid Basic authentication"
        ) from error


def _seconds(text: str, unit: float) -> float | None:
    return (
        int(text) / unit if text.isascii() and text.isdigit() and 0 < len(text) < 11 and int(text) else None
    )


def decode(data: bytes) -> Message:
    try:
        message = json.loads(data or b"{}")
    except ValueError as error:
        raise RpcError("invalid_argument", f"the message is not valid JSON: {error}") from error
    if not isinstance(message, dict):
        raise RpcError("invalid_argument", "the message is not a JSON object")
    return message


def encode(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def to_bytes(value: object) -> bytes:
    """A protobuf `bytes` field in JSON."""
    try:
        return base64.b64decode(str(value or ""), validate=False)
    except binascii.Error as error:
        raise RpcError("invalid_argument", "a bytes field is not valid base64") from error


async def serve_unary(exchange: Exchange, method: Unary) -> None:
    if not exchange.request.headers.get("content-type").startswith(_UNARY_TYPE):
        await exchange.respond(415)
        return
    try:
        call, message = Call(exchange), decode(await exchange.read_all(MAX_MESSAGE_BYTES))
        answer = await asyncio.wait_for(method(call, message), call.timeout_s)
    except asyncio.TimeoutError:
        await respond_error(exchange, RpcError("deadline_exceeded", "the call took longer than its timeout"))
    except RpcError as error:
        await respond_error(exchange, error)
    else:
        await exchange.respond(200, encode(answer), _UNARY_TYPE)


async def respond_error(exchange: Exchange, error: RpcError) -> None:
    await exchange.respond(_STATUS[error.code], encode(error.body()), _UNARY_TYPE)


async def serve_server_stream(exchange: Exchange, method: ServerStream) -> None:
    """Stream a method's messages; the method is cancelled when the client goes away."""
    if not _is_stream(exchange):
        await exchange.respond(415)
        return
    try:
        call, message = Call(exchange), await _single_message(exchange)
    except RpcError as error:
        await _send_head(exchange)
        await _send_end(exchange, {"error": error.body()})
        return
    sending = asyncio.ensure_future(_send_answers(exchange, method(call, message)))
    leaving = asyncio.ensure_future(exchange.connection.peer_closed())
    try:
        await asyncio.wait([sending, leaving], return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            await sending
        else:
            exchange.reusable = False
    finally:
        sending.cancel()
        leaving.cancel()
        await asyncio.gather(sending, leaving, return_exceptions=True)


async def _send_answers(exchange: Exchange, answers: AsyncGenerator[Message, None]) -> None:
    end: Message = {}
    try:
        await _send_head(exchange)
        async for answer in answers:
            await _send(exchange, answer)
    except RpcError as error:
        end = {"error": error.body()}
    finally:
        await answers.aclose()
    await _send_end(exchange, end)


async def serve_client_stream(exchange: Exchange, method: ClientStream) -> None:
    if not _is_stream(exchange):
        await exchange.respond(415)
        return
    end: Message = {}
    answer: Message | None = None
    try:
        call = Call(exchange)
        answer = await asyncio.wait_for(method(call, messages(exchange)), call.timeout_s)
    except asyncio.TimeoutError:
        end = {"error": RpcError("deadline_exceeded", "the call took longer than its timeout").body()}
    except RpcError as error:
        end = {"error": error.body()}
    if end:
        exchange.reusable = False
    await _send_head(exchange)
    if answer is not None:
        await _send(exchange, answer)
    await _send_end(exchange, end)


def _is_stream(exchange: Exchange) -> bool:
    return exchange.request.headers.get("content-type").startswith(_STREAM_TYPE)


async def _send_head(exchange: Exchange) -> None:
    await exchange.send_head(200, [("Content-Type", _STREAM_TYPE), ("Transfer-Encoding", "chunked")])


async def _send_end(exchange: Exchange, end: Message) -> None:
    await _send(exchange, end, _LAST)
    await exchange.connection.send(last_frame(CHUNKED))


async def _send(exchange: Exchange, message: Message, flags: int = 0) -> None:
    data = encode(message)
    await exchange.connection.send(frame(CHUNKED, struct.pack(">BI", flags, len(data)) + data))


async def _single_message(exchange: Exchange) -> Message:
    stream = messages(exchange)
    try:
        return await stream.__anext__()
    except StopAsyncIteration:
        raise RpcError("invalid_argument", "the request carries no message") from None
    finally:
        await stream.aclose()
        async for _ in exchange.body():
            pass  # what follows the one message of the request means nothing


async def messages(exchange: Exchange) -> AsyncGenerator[Message, None]:
    """The messages of a streamed request."""
    buffer = bytearray()
    async for piece in exchange.body():
        buffer += piece
        while len(buffer) >= 5:
            flags, size = struct.unpack_from(">BI", buffer)
            if flags & 1:
                raise RpcError("unimplemented", "compressed messages are not supported")
            if size > MAX_MESSAGE_BYTES:
                raise RpcError("resource_exhausted", f"a message is larger than {MAX_MESSAGE_BYTES} bytes")
            if len(buffer) < 5 + size:
                break
            data = bytes(buffer[5 : 5 + size])
            del buffer[: 5 + size]
            if flags & _LAST:
                return
            yield decode(data)
