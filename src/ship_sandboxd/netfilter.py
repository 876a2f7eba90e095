"""A sandbox's network namespace, changed from outside by netlink messages (linux/netfilter/nf_tables.h, rtnetlink):
every TCP connection that does not go to loopback, and every question to a name server, wherever that is said to be, is
led to listeners on loopback.

A message costs microseconds, the `nft` and `ip` programs cost milliseconds each and would have to be installed.
"""

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import ExitStack

from .pids import ProcessIdentity

_CLONE_NEWNET = 0x40000000
_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
_TIMEOUT_S = 5.0

_REQUEST, _ACK, _CREATE, _EXCLUSIVE, _APPEND = 0x1, 0x4, 0x400, 0x200, 0x800
_ERROR = 2
_NESTED = 0x8000

_NEW_ROUTE = 24
_TABLE_LOCAL, _BOOT, _SCOPE_HOST, _LOCAL = 255, 3, 254, 2
_OUT_INTERFACE = 4
_LOOPBACK_INDEX = 1  # the first interface of every network namespace

_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NFTABLES = 10
_NEW_TABLE, _NEW_CHAIN, _NEW_RULE = (_NFTABLES << 8 | number for number in (0, 3, 6))
_HOOK_OUTPUT, _PRIORITY_NAT = 3, -100
_ACCEPT, _RETURN = 1, -5
_VERDICT, _REGISTER = 0, 1
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_KEY_L4_PROTOCOL = 16
_EQUAL = 0
_TABLE, _CHAIN = "ship", "out"


def redirect(process: ProcessIdentity, tcp_port: int, dns_port: int) -> None:
    """Lead what the network namespace of `process` sends elsewhere to two ports of its loopback: TCP to `tcp_port`, and
    TCP and UDP to port 53 to `dns_port`. To be called once a namespace, when its loopback is up; it ends with it.

    Raises OSError where the kernel refuses, or the process has ended.
    """
    route, netfilter = _sockets_in(process)
    with route, netfilter:
        _exchange(netfilter, _rules(tcp_port, dns_port))
        _exchange(route, [_route_to_loopback()])


def is_available() -> bool:
    """Whether this process may do so, and the kernel has what it needs: tried on a namespace of its own."""
    outcome: list[bool] = []

    def attempt() -> None:
        try:
            if _libc.unshare(_CLONE_NEWNET) == 0:
                with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netfilter:
                    _exchange(netfilter, _rules(1, 1))
                    outcome.append(True)
        except OSError:
            pass  # then it is not

    _in_a_thread(attempt)
    return bool(outcome)


def _sockets_in(process: ProcessIdentity) -> tuple[socket.socket, socket.socket]:
    """Netlink sockets of a process's network namespace. A thread of its own enters it and ends there, so that nothing
    else ever runs in a wrong namespace."""
    made: list[socket.socket] = []
    failures: list[OSError] = []

    def enter() -> None:
        try:
            with ExitStack() as stack:
                fd = os.open(f"/proc/{process.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                # Checked after it was opened: the pid may have come to mean another process.
                if not process.alive or os.path.sameopenfile(fd, _own_namespace(stack)):
                    raise ProcessLookupError(f"process {process.pid} has no network namespace of its own")
                if _libc.setns(fd, _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "cannot enter the network namespace")
                for protocol in (_NETLINK_ROUTE, _NETLINK_NETFILTER):
                    made.append(
                        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
                    )
        except OSError as error:
            failures.append(error)

    _in_a_thread(enter)
    if failures:
        for item in made:
            item.close()
        raise failures[0]
    return made[0], made[1]


def _in_a_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work, name="network-namespace")
    thread.start()
    thread.join()


def _own_namespace(stack: ExitStack) -> int:
    fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def _exchange(connection: socket.socket, messages: list[tuple[int, int, bytes]]) -> None:
    """Send messages (type, flags, payload) in one go, and wait until those that ask for it are acknowledged."""
    connection.settimeout(_TIMEOUT_S)
    waiting = set()
    sent = b""
    for number, (kind, flags, payload) in enumerate(messages, 1):
        sent += struct.pack("=IHHII", 16 + len(payload), kind, flags | _REQUEST, number, 0) + payload
        if flags & _ACK:
            waiting.add(number)
    connection.send(sent)
    while waiting:
        data = connection.recv(65536)
        while len(data) >= 20:
            size, kind, _, number, _, error = struct.unpack_from("=IHHIIi", data)
            if kind == _ERROR:
                if error:
                    raise OSError(-error, f"the kernel refuses: {os.strerror(-error)}")
                waiting.discard(number)
            data = data[_aligned(max(size, 16)) :]


def _route_to_loopback() -> tuple[int, int, bytes]:
    """`ip route add local default dev lo`: what has no way out comes back in, where the rules catch it."""
    head = struct.pack("=8BI", socket.AF_INET, 0, 0, 0, _TABLE_LOCAL, _BOOT, _SCOPE_HOST, _LOCAL, 0)
    device = _attribute(_OUT_INTERFACE, struct.pack("=I", _LOOPBACK_INDEX))
    return _NEW_ROUTE, _ACK | _CREATE | _EXCLUSIVE, head + device


def _rules(tcp_port: int, dns_port: int) -> list[tuple[int, int, bytes]]:
    """In nft's words:

    table ip ship { chain out { type nat hook output priority -100; policy accept;
        ip daddr 127.0.0.0/8 return
        udp dport 53 redirect to :dns_port
        tcp dport 53 redirect to :dns_port
        meta l4proto tcp redirect to :tcp_port } }
    """
    hook = _attribute(1, _u32(_HOOK_OUTPUT)) + _attribute(2, struct.pack("!i", _PRIORITY_NAT))
    chain = _text(1, _TABLE) + _text(3, _CHAIN) + _attribute(4 | _NESTED, hook)
    chain += _attribute(5, _u32(_ACCEPT)) + _text(7, "nat")
    to_names = [_port_53(), *_redirect_to(dns_port)]
    rules = [
        [*_protocol(socket.IPPROTO_UDP), *to_names],
        [*_protocol(socket.IPPROTO_TCP), *to_names],
        [_load(_NETWORK_HEADER, 16, 1), _compare(b"\x7f"), _leave()],
        [*_protocol(socket.IPPROTO_TCP), *_redirect_to(tcp_port)],
    ]
    return [
        (_BATCH_BEGIN, 0, _family(0, _NFTABLES)),
        (_NEW_TABLE, _CREATE | _EXCLUSIVE | _ACK, _family() + _text(1, _TABLE)),
        (_NEW_CHAIN, _CREATE | _EXCLUSIVE | _ACK, _family() + chain),
        *((_NEW_RULE, _CREATE | _APPEND | _ACK, _family() + _rule(rule)) for rule in rules),
        (_BATCH_END, 0, _family(0, _NFTABLES)),
    ]


def _family(family: int = socket.AF_INET, resource: int = 0) -> bytes:
    return struct.pack("!BBH", family, 0, resource)


def _rule(expressions: list[bytes]) -> bytes:
    return _text(1, _TABLE) + _text(2, _CHAIN) + _attribute(4 | _NESTED, b"".join(expressions))


def _expression(name: str, data: bytes) -> bytes:
    return _attribute(1 | _NESTED, _text(1, name) + _attribute(2 | _NESTED, data))


def _load(header: int, offset: int, size: int) -> bytes:
    return _expression(
        "payload",
        b"".join(_attribute(n, _u32(v)) for n, v in enumerate((_REGISTER, header, offset, size), 1)),
    )


def _compare(value: bytes) -> bytes:
    data = _attribute(3 | _NESTED, _attribute(1, value))
    return _expression("cmp", _attribute(1, _u32(_REGISTER)) + _attribute(2, _u32(_EQUAL)) + data)


def _protocol(number: int) -> list[bytes]:
    key = _attribute(1, _u32(_REGISTER)) + _attribute(2, _u32(_KEY_L4_PROTOCOL))
    return [_expression("meta", key), _compare(bytes([number]))]


def _port_53() -> bytes:
    return _load(_TRANSPORT_HEADER, 2, 2) + _compare(struct.pack("!H", 53))


def _redirect_to(port: int) -> list[bytes]:
    value = _attribute(2 | _NESTED, _attribute(1, struct.pack("!H", port)))
    return [
        _expression("immediate", _attribute(1, _u32(_REGISTER)) + value),
        _expression("redir", _attribute(1, _u32(_REGISTER))),
    ]


def _leave() -> bytes:
    verdict = _attribute(2 | _NESTED, _attribute(1, struct.pack("!i", _RETURN)))
    return _expression("immediate", _attribute(1, _u32(_VERDICT)) + _attribute(2 | _NESTED, verdict))


def _u32(value: int) -> bytes:
    return struct.pack("!I", value)


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (_aligned(len(value)) - len(value))


def _aligned(size: int) -> int:
    return (size + 3) & ~3


_libc = ctypes.CDLL(None, use_errno=True)
