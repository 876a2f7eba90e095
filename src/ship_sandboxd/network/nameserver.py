"""The name server of a sandbox. Nothing of a question goes further than a lookup of the host's own, and that only for names
that the sandbox may reach; the answer is an address that stands for the name."""

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from . import dns
from .rules import Refused, Unreachable

if TYPE_CHECKING:
    from .egress import Egress

MAX_PENDING = 128
_IDLE_TIMEOUT_S = 10.0
_TOO_MANY = Refused(f"this sandbox has {MAX_PENDING} questions under way already", kind="limit")
_TOO_LONG = Refused(f"a query over UDP has at most {dns.MAX_QUERY_BYTES} bytes", kind="request")


class NameServer:
    def __init__(self, egress: "Egress") -> None:
        self._egress = egress

    async def answer(self, data: bytes) -> bytes:
        """The answer to one query; empty where it deserves none."""
        try:
            query = dns.parse(data)
        except dns.Malformed as malformed:
            self.refuse(Refused(str(malformed), kind="request"))
            return malformed.answer
        last = query.name.lower().rpartition(".")[2]
        if last == "arpa" or last.isdigit() or not last:
            return query.answer(dns.NO_SUCH_NAME)
        try:
            if query.kind != dns.A:
                self._egress.check_name(query.name)
                return query.answer(dns.NO_ERROR)
            name = await self._egress.check_lookup(query.name)
        except Refused as refusal:
            self._egress.refusals.record("DNS", query.name, refusal)
            return query.answer(_code(refusal))
        return query.answer(dns.NO_ERROR, self._egress.names.address_of(name))

    def refuse(self, refusal: Refused) -> None:
        """Write down that a query was refused whose name nobody knows."""
        self._egress.refusals.record("DNS", "unknown", refusal)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Queries over TCP, each after its length."""
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, OSError, TimeoutError):
                while True:
                    size = await asyncio.wait_for(reader.readexactly(2), _IDLE_TIMEOUT_S)
                    query = await asyncio.wait_for(
                        reader.readexactly(int.from_bytes(size, "big")), _IDLE_TIMEOUT_S
                    )
                    answer = await self.answer(query)
                    writer.write(len(answer).to_bytes(2, "big") + answer)
                    await writer.drain()
        finally:
            writer.transport.abort() if reader.exception() else writer.close()


class Datagrams(asyncio.DatagramProtocol):
    """Queries over UDP. Those that are too long, or come while too many are being answered, are dropped, as a network would."""

    def __init__(self, server: NameServer) -> None:
        self._server = server
        self._pending: set[asyncio.Task[None]] = set()
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None
        for task in self._pending:
            task.cancel()

    def datagram_received(self, data: bytes, sender: Any) -> None:
        if len(self._pending) >= MAX_PENDING:
            self._server.refuse(_TOO_MANY)
        elif len(data) > dns.MAX_QUERY_BYTES:
            self._server.refuse(_TOO_LONG)
        else:
            task = asyncio.create_task(self._answer(data, sender))
            self._pending.add(task)
            task.add_done_callback(self._pending.discard)

    async def _answer(self, data: bytes, sender: Any) -> None:
        answer = await self._server.answer(data)
        if answer and self._transport is not None:
            self._transport.sendto(answer, sender)


def _code(refusal: Refused) -> int:
    if isinstance(refusal, Unreachable):
        return dns.NO_SUCH_NAME if refusal.is_unknown else dns.SERVER_FAILURE
    return dns.NO_SUCH_NAME if refusal.kind == "request" else dns.REFUSED
