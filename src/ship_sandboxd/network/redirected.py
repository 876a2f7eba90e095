"""Connections of programs that know of no proxy, led to us by the rules of the sandbox's network namespace."""

import asyncio
import socket
import struct
from typing import TYPE_CHECKING

from ..envd.http1 import BrokenStreamError, Connection
from ..envd.relay import relay
from .rules import Refused

if TYPE_CHECKING:
    from .egress import Egress

_ORIGINAL_DESTINATION = 80  # SO_ORIGINAL_DST of linux/netfilter_ipv4.h
_ADDRESS = struct.Struct("!2xH4s8x")


class Redirected:
    def __init__(self, egress: "Egress") -> None:
        self._egress = egress

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Tie a connection to where it was meant to go, or break it off."""
        client = Connection(reader, writer)
        target = "unknown"
        try:
            host, port = _original_destination(writer)
            target = f"{host}:{port}"
            host = self._egress.behind(host)
            target = f"{host}:{port}"
            server = Connection(*await self._egress.open(host, port))
            _break_when_closed(writer, True)
            try:
                await relay(client, server)
            finally:
                await server.close()
            _break_when_closed(writer, False)
        except Refused as refusal:
            self._egress.refusals.record("TCP", target, refusal)
            client.abort()
        except (OSError, BrokenStreamError):
            client.abort()
        except asyncio.CancelledError:
            client.abort()
            raise
        finally:
            await client.close()


def _break_when_closed(writer: asyncio.StreamWriter, breaks: bool) -> None:
    """What the kernel does with a connection that is closed: a host that dies must not seem to have ended it properly."""
    writer.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", breaks, 0)
    )


def _original_destination(writer: asyncio.StreamWriter) -> tuple[str, int]:
    """The (address, port) that a redirected connection was meant for."""
    try:
        value = writer.get_extra_info("socket").getsockopt(
            socket.SOL_IP, _ORIGINAL_DESTINATION, _ADDRESS.size
        )
    except OSError as error:
        raise Refused(
            "this port is for connections that were meant to go elsewhere", kind="request"
        ) from error
    port, address = _ADDRESS.unpack(value)
    return socket.inet_ntoa(address), port
