"""Packets that a sandbox's kernel has refused, as it tells them (linux/netfilter/nfnetlink_log.h). What is in them comes from
the sandbox: nothing of it is believed."""

import asyncio
import ipaddress
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from . import netfilter
from .netlink import aligned
from .refusals import Refusals
from .rules import Refused, shown

MAX_DIFFERENT = 256
_SUMMED_UP_EACH_S = 60.0
_PACKET = 4 << 8
_PAYLOAD, _PREFIX = 9, 10
_MAX_BYTES = 65536
_NAMES = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP", 136: "UDP-Lite"}
_WITH_PORTS = {6, 17, 132, 136}
_FRAGMENT = 0x1FFF

_OVER_IPV4 = Refused("only TCP and questions to name servers (port 53) pass: use TCP", kind="protocol")
_OVER_IPV6 = Refused("of IPv6 nothing passes but through the proxy: use that, or IPv4", kind="protocol")
_FULL = Refused(
    f"the kernel remembers {netfilter.MAX_TRACKED} flows of this sandbox already: use fewer, or wait some seconds",
    kind="limit",
)
_MORE = Refused("packets are refused faster than each can be told: more than these were", kind="limit")
_REASONS = {
    prefix.encode() + b"\0": why for prefix, why in ((netfilter.FULL, _FULL), (netfilter.MORE, _MORE))
}


@dataclass(frozen=True)
class Packet:
    """One that was refused: its protocol, where it was meant to go as far as it tells, and why."""

    method: str
    target: str
    refusal: Refused


class RefusedPackets:
    """Writes down what a socket of `netfilter.listen` tells, which is closed with it. Of the same packets the first is written
    down at once, and later how many more there were."""

    def __init__(self, connection: socket.socket, refusals: Refusals) -> None:
        self._connection = connection
        self._refusals = refusals
        self._more: Counter[Packet] = Counter()
        self._minutes_end: asyncio.TimerHandle | None = None
        asyncio.get_running_loop().add_reader(connection, self._read)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._connection)
        self._connection.close()
        self._sum_up()

    def _read(self) -> None:
        """One message, of a few dozen packets, each time: what else the loop has to do comes in between."""
        try:
            data, (sender, _) = self._connection.recvfrom(_MAX_BYTES)
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: its buffer was full
            self._tell(Packet("IP", "unknown", _MORE))
            return
        if sender == 0:  # the kernel
            for packet in packets(data):
                self._tell(packet)

    def _tell(self, packet: Packet) -> None:
        if packet in self._more:
            self._more[packet] += 1
            return
        if len(self._more) >= MAX_DIFFERENT:
            self._sum_up()
        if self._minutes_end is None:
            self._minutes_end = asyncio.get_running_loop().call_later(_SUMMED_UP_EACH_S, self._sum_up)
        self._more[packet] = 0
        self._refusals.record(packet.method, packet.target, packet.refusal)

    def _sum_up(self) -> None:
        if self._minutes_end is not None:
            self._minutes_end.cancel()
            self._minutes_end = None
        for packet, more in self._more.items():
            if more:
                refusal = Refused(f"{packet.refusal} ({more} more of the same)", kind=packet.refusal.kind)
                self._refusals.record(packet.method, packet.target, refusal, more)
        self._more.clear()


def packets(data: bytes) -> Iterator[Packet]:
    """The packets that a message tells of; what makes no sense is left out, or shown as far as it does."""
    while len(data) >= 16:
        size, kind = struct.unpack_from("=IH", data)
        if not 16 <= size <= len(data):
            return
        if kind == _PACKET and size >= 20:
            yield _packet(data[16], dict(_attributes(data[20:size])))
        data = data[aligned(size) :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        size, kind = struct.unpack_from("=HH", data)
        if not 4 <= size <= len(data):
            return
        yield kind, data[4:size]
        data = data[aligned(size) :]


def _packet(family: int, attributes: dict[int, bytes]) -> Packet:
    method, target = _destination(family, attributes.get(_PAYLOAD, b""))
    refused = _OVER_IPV6 if family == socket.AF_INET6 else _OVER_IPV4
    return Packet(method, target, _REASONS.get(attributes.get(_PREFIX, b""), refused))


def _destination(family: int, packet: bytes) -> tuple[str, str]:
    """The protocol and the target by a packet's first bytes; `unknown` where they do not tell."""
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    if family == socket.AF_INET and len(packet) >= 20:
        protocol, address = packet[9], ipaddress.IPv4Address(packet[16:20])
        is_first = not int.from_bytes(packet[6:8], "big") & _FRAGMENT
        rest = packet[(packet[0] & 15) * 4 :] if is_first else b""
    elif family == socket.AF_INET6 and len(packet) >= 40:
        protocol, address, rest = packet[6], ipaddress.IPv6Address(packet[24:40]), packet[40:]
    else:
        return "IP", "unknown"
    has_port = protocol in _WITH_PORTS and len(rest) >= 4
    port = int.from_bytes(rest[2:4], "big") if has_port else None
    return _NAMES.get(protocol, f"IP {protocol}"), shown(str(address), port)
