"""One connection to a NATS broker, as much of it as a bus needs: publish, subscribe, ping.

Source: https://docs.nats.io/reference/reference-protocols/nats-protocol
"""

import asyncio
import json
from collections import deque
from collections.abc import Callable
from typing import Any

from ship.bus.nats_address import BrokerAddress

BUFFER_BYTES = 8 * 1024**2
"""What may wait for the socket; what comes on top is not sent."""

_LINE_BYTES = 1024**2
_YIELD_EVERY = 100


class BrokerRefused(Exception):
    """The broker said no, in its own words."""


class BrokerConnection:
    """An open connection. Writing never waits; ``read`` runs until it breaks."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._pongs: deque[asyncio.Future[None]] = deque()
        self.largest_bytes = 0
        """The longest payload that this broker takes."""

    @classmethod
    async def open(cls, address: BrokerAddress, host: str, port: int) -> "BrokerConnection":
        """Connect and sign in.

        Raises:
            OSError: it does not answer as a broker does.
            BrokerRefused: it does not let us in.
        """
        reader, writer = await asyncio.open_connection(host, port, limit=_LINE_BYTES)
        connection = cls(reader, writer)
        try:
            await connection._greet(address, host)
        except BaseException:
            connection.abort()
            raise
        return connection

    async def _greet(self, address: BrokerAddress, host: str) -> None:
        verb, _, told = (await self._line()).partition(b" ")
        if verb != b"INFO":
            raise ConnectionError("this is not a NATS broker")
        info: dict[str, Any] = json.loads(told)
        self.largest_bytes = int(info.get("max_payload", _LINE_BYTES))
        if address.tls:
            if not (info.get("tls_required") or info.get("tls_available")):
                raise BrokerRefused("the broker offers no TLS, and credentials do not travel in clear")
            await self._writer.start_tls(address.tls, server_hostname=host)
        elif info.get("tls_required"):
            raise BrokerRefused("the broker asks for TLS: name it by a tls:// URL")
        options = {
            "name": "ship",
            "lang": "python",
            "version": "1",
            "protocol": 1,
            "verbose": False,
            "pedantic": False,
            "echo": False,
            "tls_required": address.tls is not None,
            **({"auth_token": address.token} if address.token else {}),
            **({"user": address.user, "pass": address.password} if address.user else {}),
        }
        self._writer.write(b"CONNECT %s\r\nPING\r\n" % json.dumps(options).encode())
        while (answer := await self._line()) != b"PONG":
            if answer.startswith(b"-ERR"):
                raise BrokerRefused(answer[4:].strip(b" '").decode(errors="replace"))

    def publish(self, subject: str, payload: bytes) -> bool:
        """Send it; False when it was not, because the connection is gone or too much waits."""
        transport = self._writer.transport
        if transport.is_closing() or transport.get_write_buffer_size() > BUFFER_BYTES:
            return False
        self._writer.write(b"PUB %s %d\r\n%s\r\n" % (subject.encode(), len(payload), payload))
        return True

    def subscribe(self, subject: str, number: int) -> "asyncio.Future[None]":
        """Ask for what is published on the subject; done when the broker has taken it, or the connection is gone."""
        self._write(b"SUB %s %d\r\n" % (subject.encode(), number))
        return self.ping()

    def unsubscribe(self, number: int) -> None:
        """No more of that subscription."""
        self._write(b"UNSUB %d\r\n" % number)

    def ping(self) -> "asyncio.Future[None]":
        """Done when the broker has answered, which it does in order; or when the connection is gone."""
        pong: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pongs.append(pong)
        self._write(b"PING\r\n")
        return pong

    async def read(self, hear: Callable[[int, bytes], None]) -> None:
        """Call ``hear`` with (subscription, payload) of each message.

        Raises:
            OSError: the connection broke, or what came is not NATS.
            BrokerRefused: the broker ended it.
        """
        heard = 0
        try:
            while True:
                line = await self._line()
                verb = line[:4].upper()
                if verb == b"MSG ":
                    *_, number, size = _numbers(line)
                    if size > max(self.largest_bytes, _LINE_BYTES):
                        raise ConnectionError("the broker sent a message over its own limit")
                    payload = await self._exactly(size + 2)
                    hear(number, payload[:-2])
                    heard += 1
                    if heard % _YIELD_EVERY == 0:
                        await asyncio.sleep(0)  # a full buffer would keep the event loop to itself
                elif verb == b"PING":
                    self._write(b"PONG\r\n")
                elif verb == b"PONG" and self._pongs:
                    _settle(self._pongs.popleft())
                elif verb == b"-ERR" and b"permissions violation" not in line.lower():
                    raise BrokerRefused(line[4:].strip(b" '").decode(errors="replace"))
        finally:
            self.abort()

    def abort(self) -> None:
        """Drop the connection; whoever waits for an answer goes on without."""
        self._writer.transport.abort()
        while self._pongs:
            _settle(self._pongs.popleft())

    def _write(self, data: bytes) -> None:
        if not self._writer.transport.is_closing():
            self._writer.write(data)

    async def _line(self) -> bytes:
        try:
            return (await self._reader.readuntil(b"\r\n"))[:-2]
        except asyncio.IncompleteReadError as error:
            raise ConnectionResetError("the broker hung up") from error
        except asyncio.LimitOverrunError as error:
            raise ConnectionError("this is not NATS") from error

    async def _exactly(self, size: int) -> bytes:
        try:
            return await self._reader.readexactly(size)
        except asyncio.IncompleteReadError as error:
            raise ConnectionResetError("the broker hung up") from error


def _numbers(line: bytes) -> tuple[int, int]:
    """(subscription, size) of ``MSG subject subscription [reply] size``."""
    fields = line.split()
    try:
        return int(fields[2]), int(fields[-1])
    except (ValueError, IndexError) as error:
        raise ConnectionError("this is not NATS") from error


def _settle(pong: "asyncio.Future[None]") -> None:
    if not pong.done():
        pong.set_result(None)
