"""A session's events over a WebSocket that comes back by itself."""

import asyncio
import contextlib
import random
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from ship import errors
from ship.events import Record, decode
from ship.events.frames import Delta

INVALID, SIGNED_OUT, UNKNOWN_SESSION, TOO_SLOW, ARCHIVED = 4400, 4401, 4404, 4408, 4409
TRY_AGAIN = 1013
HEARTBEAT_S = 10.0
START_HINT = "Start Ship with `ship up`, or say where it runs with --url."
SIGN_IN_HINT = "Make one with `ship token create`."
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
_CODE = re.compile(r"[a-z][a-z_]*")
_LARGEST_MESSAGE_BYTES = 32 * 1024 * 1024

_delta_decoder = msgspec.json.Decoder(Delta)


class _Head(msgspec.Struct, frozen=True):
    """What tells the messages of the stream apart; a record has no ``t``."""

    t: str | None = None
    head_seq: int = 0


_head_decoder = msgspec.json.Decoder(_Head)


class _Broken(Exception):
    """This connection is of no more use; another one continues after the last seq."""


class Events:
    """One reader's place in a session's stream.

    Args:
        url: the WebSocket's address, without a query.
        token: asked for the API token before each connection.
        after: the first record is the one after this seq.
        types: only these event types; empty means all. Deltas come in either case.
        patience_s: how long to try to come back before giving up.
        on_lost: called with the reason whenever the connection is lost and will be tried again.
        options: more arguments for ``websockets.connect``.
    """

    def __init__(
        self,
        url: str,
        token: Callable[[], str],
        *,
        after: int,
        types: tuple[str, ...],
        patience_s: float,
        on_lost: Callable[[str], None] | None,
        options: Mapping[str, Any],
    ) -> None:
        self._url = url
        self._token = token
        self._types = types
        self._patience_s = patience_s
        self._on_lost = on_lost
        self._options = options
        self.seq = after

    async def __aiter__(self) -> AsyncGenerator[Record | Delta, None]:
        """Records in order, each once, with the deltas between them, until the session is archived.

        Who leaves early closes the iterator (``contextlib.aclosing``), and the connection with it.

        Raises:
            Unauthenticated, Forbidden, NotFound, InvalidInput: said by the server.
            Unavailable: ``not_reachable``, after ``patience_s`` without a connection.
        """
        clock = asyncio.get_running_loop().time
        lost_at: float | None = None
        pause_s = FIRST_PAUSE_S
        while True:
            token = self._token()
            try:
                async with contextlib.aclosing(self._connection(token)) as items:
                    async for item in items:
                        lost_at, pause_s = None, FIRST_PAUSE_S
                        yield item
                return
            except (_Broken, OSError, InvalidHandshake, TimeoutError) as error:
                reason = str(error) or type(error).__name__
            except errors.Unauthenticated as error:
                if token == self._token():
                    raise
                reason = error.message
            lost_at = lost_at or clock()
            if clock() - lost_at > self._patience_s:
                raise errors.Unavailable(
                    f"the event stream does not come back: {reason}",
                    code="not_reachable",
                    hint=START_HINT,
                )
            if self._on_lost:
                self._on_lost(reason)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads reconnects, guards nothing
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _connection(self, token: str) -> AsyncGenerator[Record | Delta, None]:
        headers = {"Authorization": f"Bearer {token}"}
        query = f"?after={self.seq}" + (f"&types={','.join(self._types)}" if self._types else "")
        try:
            async with connect(
                self._url + query,
                additional_headers=headers,
                max_size=_LARGEST_MESSAGE_BYTES,
                **self._options,
            ) as socket:
                while (message := await _received(socket)) is not None:
                    item = self._read(message)
                    if item is not None:
                        yield item
        except InvalidStatus as answer:
            raise _refused(answer) from answer

    def _read(self, message: bytes) -> Record | Delta | None:
        head = _head_decoder.decode(message)
        if head.t == "delta":
            return _delta_decoder.decode(message)
        if head.t == "live":
            # With a filter the seqs have holes; this says that nothing below is still to come.
            self.seq = max(self.seq, head.head_seq)
        if head.t is not None:
            return None
        record = decode(message)
        if record.seq <= self.seq:
            return None
        if not self._types and record.seq != self.seq + 1:
            raise _Broken(f"event {record.seq} came after {self.seq}")
        self.seq = record.seq
        return record


async def _received(socket: ClientConnection) -> bytes | None:
    """The next message, None when the server has sent everything."""
    try:
        # Not wait_for: before Python 3.12 it loses a cancellation that comes together with a message.
        async with asyncio.timeout(3 * HEARTBEAT_S):
            return await socket.recv(decode=False)
    except ConnectionClosed as closed:
        if _ended(closed):
            return None
        reason = "the server asks to try again later" if _code(closed) == TRY_AGAIN else str(closed)
        raise _Broken(reason) from closed


def _code(closed: ConnectionClosed) -> int:
    return closed.rcvd.code if closed.rcvd else 0


def _ended(closed: ConnectionClosed) -> bool:
    """Whether the server has sent everything; raises what it said when it refused us."""
    code = _code(closed)
    if code == INVALID:
        reason = closed.rcvd.reason if closed.rcvd else ""
        raise errors.InvalidInput(
            f"the server refused the parameters of the event stream: {reason or code}",
            code=reason if _CODE.fullmatch(reason) else None,
        )
    if code == SIGNED_OUT:
        raise errors.Unauthenticated("the token is not known to this server", hint=SIGN_IN_HINT)
    if code == UNKNOWN_SESSION:
        raise errors.NotFound("no such session", code="session_not_found")
    return code == ARCHIVED


def _refused(answer: InvalidStatus) -> Exception:
    """What a refused handshake means."""
    status = answer.response.status_code
    if status == 401:
        return errors.Unauthenticated("the token is not known to this server", hint=SIGN_IN_HINT)
    if status == 403:
        return errors.Forbidden(
            "the event stream was refused (403)",
            code="http_403",
            hint="See whether --url names Ship itself, and whether a proxy before it lets WebSockets through.",
        )
    if status == 404:
        return errors.NotFound("no such session", code="session_not_found")
    return _Broken(str(answer))
