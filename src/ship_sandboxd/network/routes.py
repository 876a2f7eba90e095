"""Interfaces, addresses and routes, as messages of rtnetlink (linux/rtnetlink.h). Interfaces are named by their numbers."""

import socket
import struct

from .netlink import ACK, CREATE, EXCLUSIVE, NESTED, Message, attribute, text

LOOPBACK = 1  # the first interface of every network namespace
TABLE_MAIN, TABLE_LOCAL = 254, 255
_NEW_LINK, _NEW_ADDRESS, _NEW_ROUTE, _NEW_NEIGHBOUR = 16, 20, 24, 28
_BOOT, _SCOPE_ANYWHERE, _SCOPE_HOST, _UNICAST, _LOCAL = 3, 0, 254, 1, 2
_OUT_INTERFACE, _GATEWAY = 4, 5
_LINK_ADDRESS, _LINK_NAME, _LINK_INFO = 1, 3, 18
_UP = 1
_PERMANENT = 0x80
_NEW = ACK | CREATE | EXCLUSIVE


def pair(one: bytes, other: bytes) -> Message:
    """`ip link add … type veth peer …`: two interfaces, each of which takes in what is sent to the other; see `interface`."""
    kind = text(1, "veth") + attribute(2 | NESTED, attribute(1 | NESTED, other))
    return _NEW_LINK, _NEW, one + attribute(_LINK_INFO | NESTED, kind)


def interface(index: int, name: str, link_address: bytes) -> bytes:
    """What an interface is going to be."""
    return _interface(index, 0) + text(_LINK_NAME, name) + attribute(_LINK_ADDRESS, link_address)


def up(index: int) -> Message:
    """`ip link set … up`"""
    return _NEW_LINK, ACK, _interface(index, _UP)


def has_address(index: int, address: str, prefix_bits: int) -> Message:
    """`ip addr add …`"""
    head = struct.pack("=4BI", socket.AF_INET, prefix_bits, 0, 0, index)
    packed = socket.inet_aton(address)
    return _NEW_ADDRESS, _NEW, head + attribute(2, packed) + attribute(1, packed)


def has_neighbour(index: int, address: str, link_address: bytes) -> Message:
    """`ip neigh add … nud permanent`"""
    head = struct.pack("=BxxxiHBB", socket.AF_INET, index, _PERMANENT, 0, _UNICAST)
    return _NEW_NEIGHBOUR, _NEW, head + attribute(1, socket.inet_aton(address)) + attribute(2, link_address)


def by_gateway(address: str) -> Message:
    """`ip route add default via …`"""
    head = _route(socket.AF_INET, TABLE_MAIN, _SCOPE_ANYWHERE, _UNICAST)
    return _NEW_ROUTE, _NEW, head + attribute(_GATEWAY, socket.inet_aton(address))


def to_loopback(family: int = socket.AF_INET, table: int = TABLE_LOCAL) -> Message:
    """`ip route add local default dev lo`: what has no way out comes back in, where the rules catch it."""
    head = _route(family, table, _SCOPE_HOST, _LOCAL)
    return _NEW_ROUTE, _NEW, head + attribute(_OUT_INTERFACE, struct.pack("=I", LOOPBACK))


def _interface(index: int, flags: int) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, flags, flags)


def _route(family: int, table: int, scope: int, kind: int) -> bytes:
    return struct.pack("=8BI", family, 0, 0, 0, table, _BOOT, scope, kind, 0)
