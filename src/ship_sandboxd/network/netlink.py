"""Messages to the kernel and its acknowledgements (linux/netlink.h).

A message costs microseconds, the `nft` and `ip` programs cost milliseconds each and would have to be installed.
"""

import os
import socket
import struct

ROUTE, NETFILTER = 0, 12
_TIMEOUT_S = 5.0
_REQUEST, ACK, CREATE, EXCLUSIVE, APPEND = 0x1, 0x4, 0x400, 0x200, 0x800
_ERROR = 2
NESTED = 0x8000
Message = tuple[int, int, bytes]
"""Its type, its flags and its payload."""


def exchange(protocol: int, messages: list[Message]) -> None:
    """Send messages in one go, and wait until those that ask for it are acknowledged."""
    with connect(protocol) as connection:
        send(connection, messages)


def connect(protocol: int) -> socket.socket:
    """A socket for `send`, in the network namespace of this thread."""
    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    connection.settimeout(_TIMEOUT_S)
    return connection


def send(connection: socket.socket, messages: list[Message]) -> None:
    """As `exchange`, on a socket that stays open. Raises OSError where the kernel refuses one."""
    waiting = set()
    sent = b""
    for number, (kind, flags, payload) in enumerate(messages, 1):
        sent += struct.pack("=IHHII", 16 + len(payload), kind, flags | _REQUEST, number, 0) + payload
        if flags & ACK:
            waiting.add(number)
    connection.send(sent)
    while waiting:
        waiting -= _acknowledged(connection.recv(65536))


def _acknowledged(data: bytes) -> set[int]:
    """The numbers of the messages that the kernel has carried out. Raises OSError for one that it refuses."""
    numbers = set()
    while len(data) >= 20:
        size, kind, _, number, _, error = struct.unpack_from("=IHHIIi", data)
        if kind == _ERROR:
            if error:
                raise OSError(-error, f"the kernel refuses: {os.strerror(-error)}")
            numbers.add(number)
        data = data[aligned(max(size, 16)) :]
    return numbers


def u32(value: int) -> bytes:
    return struct.pack("!I", value)


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (aligned(len(value)) - len(value))


def aligned(size: int) -> int:
    """How many bytes a message or an attribute takes with the padding after it."""
    return (size + 3) & ~3
