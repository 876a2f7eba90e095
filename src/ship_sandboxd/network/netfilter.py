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
from pathlib import Path

from ..pids import ProcessIdentity

MAX_TRACKED = 4096
_CLONE_NEWNET = 0x40000000
_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
_TIMEOUT_S = 5.0
# The kernel remembers a flow for as long, in seconds; by default for minutes, in memory that no cgroup accounts for.
_TIMEOUTS_S = {
    "nf_conntrack_tcp_timeout_syn_sent": 30,
    "nf_conntrack_tcp_timeout_time_wait": 2,
    "nf_conntrack_tcp_timeout_close": 1,
    "nf_conntrack_udp_timeout": 5,
    "nf_conntrack_udp_timeout_stream": 5,
}
_SETTINGS = Path("/proc/sys/net/netfilter")

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
_HOOK_OUTPUT = 3
_DROP, _ACCEPT, _RETURN = 0, 1, -5
_VERDICT, _REGISTER = 0, 1
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_KEY_L4_PROTOCOL, _KEY_STATE = 16, 0
_STATE_NEW = 8
_EQUAL, _NOT_EQUAL = 0, 1
_OVER = 1
_TABLE = "ship"

Message = tuple[int, int, bytes]


def redirect(process: ProcessIdentity, tcp_port: int, dns_port: int) -> None:
    """Lead what the network namespace of `process` sends elsewhere to two ports of its loopback: TCP to `tcp_port`, and
    TCP and UDP to port 53 to `dns_port`. To be called once a namespace, when its loopback is up; it ends with it.

    Raises OSError where the kernel refuses, or the process has ended.
    """

    def work() -> None:
        _enter(process)
        _exchange(_NETLINK_NETFILTER, _rules(tcp_port, dns_port))
        _exchange(_NETLINK_ROUTE, [_route_to_loopback()])
        for name, seconds in _TIMEOUTS_S.items():
            (_SETTINGS / name).write_text(str(seconds))

    _in_a_thread(work)


def is_available() -> bool:
    """Whether this process may do so, and the kernel has what it needs: tried on a namespace of its own."""

    def attempt() -> None:
        _check(_libc.unshare(_CLONE_NEWNET))
        _exchange(_NETLINK_NETFILTER, _rules(1, 1))

    try:
        _in_a_thread(attempt)
    except OSError:
        return False
    return True


def _in_a_thread(work: Callable[[], None]) -> None:
    """A thread of its own enters another namespace and ends there, so that nothing else ever runs in a wrong one."""
    failures: list[OSError] = []

    def attempt() -> None:
        try:
            work()
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=attempt, name="network-namespace")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _enter(process: ProcessIdentity) -> None:
    fd = os.open(f"/proc/{process.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Checked after it was opened: the pid may have come to mean another process.
        own = os.stat("/proc/thread-self/ns/net")  # noqa: PTH116 - a file of the kernel's, which never blocks
        if not process.alive or os.path.samestat(os.fstat(fd), own):
            raise ProcessLookupError(f"process {process.pid} has no network namespace of its own")
        _check(_libc.setns(fd, _CLONE_NEWNET))
    finally:
        os.close(fd)


def _exchange(protocol: int, messages: list[Message]) -> None:
    """Send messages (type, flags, payload) in one go, and wait until those that ask for it are acknowledged."""
    waiting = set()
    sent = b""
    for number, (kind, flags, payload) in enumerate(messages, 1):
        sent += struct.pack("=IHHII", 16 + len(payload), kind, flags | _REQUEST, number, 0) + payload
        if flags & _ACK:
            waiting.add(number)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as connection:
        connection.settimeout(_TIMEOUT_S)
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
        data = data[_aligned(max(size, 16)) :]
    return numbers


def _route_to_loopback() -> Message:
    """`ip route add local default dev lo`: what has no way out comes back in, where the rules catch it."""
    head = struct.pack("=8BI", socket.AF_INET, 0, 0, 0, _TABLE_LOCAL, _BOOT, _SCOPE_HOST, _LOCAL, 0)
    device = _attribute(_OUT_INTERFACE, struct.pack("=I", _LOOPBACK_INDEX))
    return _NEW_ROUTE, _ACK | _CREATE | _EXCLUSIVE, head + device


def _rules(tcp_port: int, dns_port: int) -> list[Message]:
    """In nft's words:

        table ip ship {
            chain track { type filter hook output priority -300; policy accept;
                th dport 53 return
                th sport { dns_port, tcp_port } return
                meta l4proto tcp ip daddr != 127.0.0.0/8 return
                notrack }
            chain out { type nat hook output priority -100; policy accept;
                udp dport 53 redirect to :dns_port
                tcp dport 53 redirect to :dns_port
                ip daddr 127.0.0.0/8 return
                meta l4proto tcp redirect to :tcp_port }
            chain bound { type filter hook output priority 0; policy accept;
                ct state new ct count over MAX_TRACKED drop } }

    Only what is redirected is tracked, and only so many flows of it: the table of them is the kernel's.
    """
    to_names = [_destination_port(53), *_redirect_to(dns_port)]
    on_loopback = _load(_NETWORK_HEADER, 16, 1)
    return [
        (_BATCH_BEGIN, 0, _family(0, _NFTABLES)),
        (_NEW_TABLE, _CREATE | _EXCLUSIVE | _ACK, _family() + _text(1, _TABLE)),
        _chain("track", "filter", -300),
        _rule("track", [_destination_port(53), _verdict(_RETURN)]),
        _rule("track", [_source_port(dns_port), _verdict(_RETURN)]),
        _rule("track", [_source_port(tcp_port), _verdict(_RETURN)]),
        _rule(
            "track",
            [_protocol(socket.IPPROTO_TCP), on_loopback, _compare(b"\x7f", _NOT_EQUAL), _verdict(_RETURN)],
        ),
        _rule("track", [_expression("notrack")]),
        _chain("out", "nat", -100),
        _rule("out", [_protocol(socket.IPPROTO_UDP), *to_names]),
        _rule("out", [_protocol(socket.IPPROTO_TCP), *to_names]),
        _rule("out", [on_loopback, _compare(b"\x7f"), _verdict(_RETURN)]),
        _rule("out", [_protocol(socket.IPPROTO_TCP), *_redirect_to(tcp_port)]),
        _chain("bound", "filter", 0),
        _rule("bound", [_is_new(), _count_over(MAX_TRACKED), _verdict(_DROP)]),
        (_BATCH_END, 0, _family(0, _NFTABLES)),
    ]


def _family(family: int = socket.AF_INET, resource: int = 0) -> bytes:
    return struct.pack("!BBH", family, 0, resource)


def _chain(name: str, kind: str, priority: int) -> Message:
    hook = _attribute(1, _u32(_HOOK_OUTPUT)) + _attribute(2, struct.pack("!i", priority))
    chain = _text(1, _TABLE) + _text(3, name) + _attribute(4 | _NESTED, hook)
    chain += _attribute(5, _u32(_ACCEPT)) + _text(7, kind)
    return _NEW_CHAIN, _CREATE | _EXCLUSIVE | _ACK, _family() + chain


def _rule(chain: str, expressions: list[bytes]) -> Message:
    rule = _text(1, _TABLE) + _text(2, chain) + _attribute(4 | _NESTED, b"".join(expressions))
    return _NEW_RULE, _CREATE | _APPEND | _ACK, _family() + rule


def _expression(name: str, *values: bytes) -> bytes:
    """One step of a rule; its attributes are numbered from 1."""
    data = b"".join(_attribute(number, value) for number, value in enumerate(values, 1))
    return _attribute(1 | _NESTED, _text(1, name) + _attribute(2 | _NESTED, data))


def _load(header: int, offset: int, size: int) -> bytes:
    return _expression("payload", _u32(_REGISTER), _u32(header), _u32(offset), _u32(size))


def _compare(value: bytes, operator: int = _EQUAL) -> bytes:
    return _expression("cmp", _u32(_REGISTER), _u32(operator), _attribute(1, value))


def _protocol(number: int) -> bytes:
    return _expression("meta", _u32(_REGISTER), _u32(_KEY_L4_PROTOCOL)) + _compare(bytes([number]))


def _source_port(port: int) -> bytes:
    return _load(_TRANSPORT_HEADER, 0, 2) + _compare(struct.pack("!H", port))


def _destination_port(port: int) -> bytes:
    return _load(_TRANSPORT_HEADER, 2, 2) + _compare(struct.pack("!H", port))


def _is_new() -> bytes:
    mask, nothing = _attribute(1, struct.pack("=I", _STATE_NEW)), bytes(4)
    register = _u32(_REGISTER)
    return (
        _expression("ct", register, _u32(_KEY_STATE))
        + _expression("bitwise", register, register, _u32(4), mask, _attribute(1, nothing))
        + _compare(nothing, _NOT_EQUAL)
    )


def _count_over(limit: int) -> bytes:
    return _expression("connlimit", _u32(limit), _u32(_OVER))


def _redirect_to(port: int) -> list[bytes]:
    value = _attribute(1, struct.pack("!H", port))
    return [_expression("immediate", _u32(_REGISTER), value), _expression("redir", _u32(_REGISTER))]


def _verdict(code: int) -> bytes:
    return _expression("immediate", _u32(_VERDICT), _attribute(2, _attribute(1, struct.pack("!i", code))))


def _u32(value: int) -> bytes:
    return struct.pack("!I", value)


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (_aligned(len(value)) - len(value))


def _aligned(size: int) -> int:
    return (size + 3) & ~3


_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
