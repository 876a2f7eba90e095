"""A sandbox's network namespace, changed from outside by netlink messages (linux/netfilter/nf_tables.h, rtnetlink):
every TCP connection that does not go to loopback, and every question to a name server, wherever that is said to be, is
led to listeners on loopback. Where a kernel of the sandbox's own makes the connections, they come over a wire, to listeners
at its other end.

A message costs microseconds, the `nft` and `ip` programs cost milliseconds each and would have to be installed.
"""

import contextlib
import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import TypeVar

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

_NEW_LINK, _NEW_ADDRESS, _NEW_ROUTE, _NEW_NEIGHBOUR = 16, 20, 24, 28
_TABLE_MAIN, _TABLE_LOCAL, _BOOT, _SCOPE_HOST, _UNICAST, _LOCAL = 254, 255, 3, 254, 1, 2
_OUT_INTERFACE, _GATEWAY = 4, 5
_LINK_ADDRESS, _LINK_NAME, _LINK_INFO = 1, 3, 18
_UP = 1
_PERMANENT = 0x80
_LOOPBACK_INDEX = 1  # the first interface of every network namespace
_SANDBOX_INDEX, _HOST_INDEX = 2, 3
# Of a block for such pairs (RFC 6333), which no other machine has.
_SANDBOX_ADDRESS, _HOST_ADDRESS = "192.0.0.2", "192.0.0.1"
_SANDBOX_LINK, _HOST_LINK = b"\x02\0\0\0\0\x02", b"\x02\0\0\0\0\x01"
_PREFIX_BITS = 30

_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NFTABLES = 10
_NEW_TABLE, _NEW_CHAIN, _NEW_RULE, _DELETE_RULE = (_NFTABLES << 8 | number for number in (0, 3, 6, 8))
_HOOK_PREROUTING, _HOOK_INPUT, _HOOK_OUTPUT = 0, 1, 3
_DROP, _ACCEPT, _RETURN = 0, 1, -5
_VERDICT, _REGISTER = 0, 1
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_KEY_IN_INTERFACE, _KEY_L4_PROTOCOL, _KEY_STATE = 4, 16, 0
_STATE_RELATED, _STATE_NEW = 4, 8
_EQUAL, _NOT_EQUAL = 0, 1
_OVER = 1
_TABLE = "ship"

Message = tuple[int, int, bytes]
_T = TypeVar("_T")


def redirect(process: ProcessIdentity, tcp_port: int, dns_port: int) -> None:
    """Lead what the network namespace of `process` sends elsewhere to two ports of its loopback: TCP to `tcp_port`, and
    TCP and UDP to port 53 to `dns_port`. To be called once a namespace, when its loopback is up; it ends with it.

    Raises OSError where the kernel refuses, or the process has ended.
    """

    def work() -> None:
        _enter(process)
        _exchange(_NETLINK_NETFILTER, _rules(tcp_port, dns_port))
        _exchange(_NETLINK_ROUTE, [_route_to_loopback()])
        _forget_flows_soon()

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


def wired() -> FileIO:
    """A network namespace for a sandbox's own kernel: it takes one end of a wire, and what it finds there, for its own, and
    drives it. The other end lies in the same namespace and is cut off until `redirect_wire`, so that it finds nothing else.

    All ends with whoever uses the namespace last: the kernel, this descriptor, sockets that were opened there.
    Raises OSError where this machine has no such thing.
    """

    def work() -> FileIO:
        _check(_libc.unshare(_CLONE_NEWNET))
        with contextlib.suppress(FileNotFoundError):  # no IPv6 on this machine
            Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
        _exchange(_NETLINK_ROUTE, _wire())
        return FileIO("/proc/thread-self/ns/net")

    return _in_a_thread(work)


def redirect_wire(process: ProcessIdentity, tcp_port: int, dns_port: int) -> None:
    """As `redirect`, for what comes over the wire of the namespace of `process`, which has taken its end."""

    def work() -> None:
        _enter(process)
        _exchange(_NETLINK_NETFILTER, _wire_rules(tcp_port, dns_port))
        _exchange(_NETLINK_ROUTE, _wire_joined())
        _forget_flows_soon()

    _in_a_thread(work)


def refuse_on_wire(process: ProcessIdentity) -> None:
    """From now on, what comes over the wire of the namespace of `process` is refused where nobody listens; else it would
    wait. Of one that has no wire: nothing happens. Raises OSError."""

    def work() -> None:
        _enter(process)
        with contextlib.suppress(FileNotFoundError):
            _exchange(_NETLINK_NETFILTER, _batch([_without_rules("wait")]))

    _in_a_thread(work)


def can_wire() -> bool:
    """As `is_available`, for `wired` and `redirect_wire`."""

    def attempt() -> None:
        _check(_libc.unshare(_CLONE_NEWNET))
        _exchange(_NETLINK_ROUTE, _wire())
        _exchange(_NETLINK_NETFILTER, _wire_rules(1, 1))

    try:
        _in_a_thread(attempt)
    except OSError:
        return False
    return True


def within(process: ProcessIdentity, work: Callable[[], _T]) -> _T:
    """What `work` makes of the network namespace of `process`. Raises OSError where that has ended, and what `work`
    raises."""

    def enter_and_work() -> _T:
        _enter(process)
        return work()

    return _in_a_thread(enter_and_work)


def _in_a_thread(work: Callable[[], _T]) -> _T:
    """A thread of its own enters another namespace and ends there, so that nothing else ever runs in a wrong one."""
    results: list[_T] = []
    failures: list[OSError] = []

    def attempt() -> None:
        try:
            results.append(work())
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=attempt, name="network-namespace")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def _forget_flows_soon() -> None:
    for name, seconds in _TIMEOUTS_S.items():
        (_SETTINGS / name).write_text(str(seconds))


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


def _route_to_loopback(table: int = _TABLE_LOCAL) -> Message:
    """`ip route add local default dev lo`: what has no way out comes back in, where the rules catch it."""
    head = struct.pack("=8BI", socket.AF_INET, 0, 0, 0, table, _BOOT, _SCOPE_HOST, _LOCAL, 0)
    device = _attribute(_OUT_INTERFACE, struct.pack("=I", _LOOPBACK_INDEX))
    return _NEW_ROUTE, _ACK | _CREATE | _EXCLUSIVE, head + device


def _wire() -> list[Message]:
    """In ip's words:

        link add eth0 address 02:00:00:00:00:02 type veth peer name host address 02:00:00:00:00:01
        link set lo up
        link set eth0 up
        addr add 192.0.0.2/30 dev eth0
        route add default via 192.0.0.1

    What is up and has an address is what the sandbox's kernel takes.
    """
    peer = _link(_HOST_INDEX, "host", _HOST_LINK)
    kind = _text(1, "veth") + _attribute(2 | _NESTED, _attribute(1 | _NESTED, peer))
    pair = _link(_SANDBOX_INDEX, "eth0", _SANDBOX_LINK) + _attribute(_LINK_INFO | _NESTED, kind)
    head = struct.pack("=8BI", socket.AF_INET, 0, 0, 0, _TABLE_MAIN, _BOOT, 0, _UNICAST, 0)
    gateway = _attribute(_GATEWAY, socket.inet_aton(_HOST_ADDRESS))
    return [
        (_NEW_LINK, _ACK | _CREATE | _EXCLUSIVE, pair),
        _up(_LOOPBACK_INDEX),
        _up(_SANDBOX_INDEX),
        _has_address(_SANDBOX_INDEX, _SANDBOX_ADDRESS),
        (_NEW_ROUTE, _ACK | _CREATE | _EXCLUSIVE, head + gateway),
    ]


def _wire_joined() -> list[Message]:
    """In ip's words:

        addr add 192.0.0.1/30 dev host
        link set host up
        neigh add 192.0.0.2 lladdr 02:00:00:00:00:02 dev host nud permanent
        route add local default dev lo

    The table of neighbours is one for the whole machine, and small; what is permanent does not count. The last route is
    not as near as that to the other end, so it is in another table than where everything is local.
    """
    neighbour = struct.pack("=BxxxiHBB", socket.AF_INET, _HOST_INDEX, _PERMANENT, 0, _UNICAST)
    neighbour += _attribute(1, socket.inet_aton(_SANDBOX_ADDRESS)) + _attribute(2, _SANDBOX_LINK)
    return [
        _has_address(_HOST_INDEX, _HOST_ADDRESS),
        _up(_HOST_INDEX),
        (_NEW_NEIGHBOUR, _ACK | _CREATE | _EXCLUSIVE, neighbour),
        _route_to_loopback(_TABLE_MAIN),
    ]


def _link(index: int, name: str, address: bytes) -> bytes:
    head = struct.pack("=BxHiII", 0, 0, index, 0, 0)
    return head + _text(_LINK_NAME, name) + _attribute(_LINK_ADDRESS, address)


def _up(index: int) -> Message:
    return _NEW_LINK, _ACK, struct.pack("=BxHiII", 0, 0, index, _UP, _UP)


def _has_address(index: int, address: str) -> Message:
    head = struct.pack("=4BI", socket.AF_INET, _PREFIX_BITS, 0, 0, index)
    packed = socket.inet_aton(address)
    return _NEW_ADDRESS, _ACK | _CREATE | _EXCLUSIVE, head + _attribute(2, packed) + _attribute(1, packed)


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
        _rule("bound", [_is(_STATE_NEW), _count_over(MAX_TRACKED), _verdict(_DROP)]),
        (_BATCH_END, 0, _family(0, _NFTABLES)),
    ]


def _wire_rules(tcp_port: int, dns_port: int) -> list[Message]:
    """In nft's words:

        table ip ship {
            chain track { type filter hook prerouting priority -450; policy accept;
                iif eth0 drop
                ip frag-off & 0x3fff != 0 drop
                udp dport 53 return
                meta l4proto udp notrack return
                meta l4proto != tcp drop }
            chain out { type nat hook prerouting priority -100; policy accept;
                udp dport 53 redirect to :dns_port
                tcp dport 53 redirect to :dns_port
                meta l4proto tcp redirect to :tcp_port }
            chain bound { type filter hook input priority 0; policy accept;
                ct state new ct count over MAX_TRACKED drop }
            chain wait { type filter hook output priority 0; policy accept;
                tcp sequence 0 drop
                ct state related drop } }

    What the sandbox's kernel is to read comes to this kernel as well. Pieces of packets would be kept, in memory that no
    cgroup accounts for. The last chain drops what this kernel answers where nobody listens: whoever gets no answer while the
    host is started anew asks again.
    """
    to_names = [_destination_port(53), *_redirect_to(dns_port)]
    udp, tcp = _protocol(socket.IPPROTO_UDP), _protocol(socket.IPPROTO_TCP)
    rules = [
        (_NEW_TABLE, _CREATE | _EXCLUSIVE | _ACK, _family() + _text(1, _TABLE)),
        _chain("track", "filter", -450, _HOOK_PREROUTING),
        _rule("track", [_in_interface(_SANDBOX_INDEX), _verdict(_DROP)]),
        _rule("track", [_load(_NETWORK_HEADER, 6, 2), _has(b"\x3f\xff"), _verdict(_DROP)]),
        _rule("track", [udp, _destination_port(53), _verdict(_RETURN)]),
        _rule("track", [udp, _expression("notrack"), _verdict(_RETURN)]),
        _rule("track", [_protocol(socket.IPPROTO_TCP, _NOT_EQUAL), _verdict(_DROP)]),
        _chain("out", "nat", -100, _HOOK_PREROUTING),
        _rule("out", [udp, *to_names]),
        _rule("out", [tcp, *to_names]),
        _rule("out", [tcp, *_redirect_to(tcp_port)]),
        _chain("bound", "filter", 0, _HOOK_INPUT),
        _rule("bound", [_is(_STATE_NEW), _count_over(MAX_TRACKED), _verdict(_DROP)]),
        _chain("wait", "filter", 0),
        _rule("wait", [tcp, _load(_TRANSPORT_HEADER, 4, 4), _compare(bytes(4)), _verdict(_DROP)]),
        _rule("wait", [_is(_STATE_RELATED), _verdict(_DROP)]),
    ]
    return _batch(rules)


def _batch(changes: list[Message]) -> list[Message]:
    return [
        (_BATCH_BEGIN, 0, _family(0, _NFTABLES)),
        *changes,
        (_BATCH_END, 0, _family(0, _NFTABLES)),
    ]


def _family(family: int = socket.AF_INET, resource: int = 0) -> bytes:
    return struct.pack("!BBH", family, 0, resource)


def _chain(name: str, kind: str, priority: int, hook_number: int = _HOOK_OUTPUT) -> Message:
    hook = _attribute(1, _u32(hook_number)) + _attribute(2, struct.pack("!i", priority))
    chain = _text(1, _TABLE) + _text(3, name) + _attribute(4 | _NESTED, hook)
    chain += _attribute(5, _u32(_ACCEPT)) + _text(7, kind)
    return _NEW_CHAIN, _CREATE | _EXCLUSIVE | _ACK, _family() + chain


def _rule(chain: str, expressions: list[bytes]) -> Message:
    rule = _text(1, _TABLE) + _text(2, chain) + _attribute(4 | _NESTED, b"".join(expressions))
    return _NEW_RULE, _CREATE | _APPEND | _ACK, _family() + rule


def _without_rules(chain: str) -> Message:
    return _DELETE_RULE, _ACK, _family() + _text(1, _TABLE) + _text(2, chain)


def _expression(name: str, *values: bytes) -> bytes:
    """One step of a rule; its attributes are numbered from 1."""
    data = b"".join(_attribute(number, value) for number, value in enumerate(values, 1))
    return _attribute(1 | _NESTED, _text(1, name) + _attribute(2 | _NESTED, data))


def _load(header: int, offset: int, size: int) -> bytes:
    return _expression("payload", _u32(_REGISTER), _u32(header), _u32(offset), _u32(size))


def _compare(value: bytes, operator: int = _EQUAL) -> bytes:
    return _expression("cmp", _u32(_REGISTER), _u32(operator), _attribute(1, value))


def _protocol(number: int, operator: int = _EQUAL) -> bytes:
    return _expression("meta", _u32(_REGISTER), _u32(_KEY_L4_PROTOCOL)) + _compare(bytes([number]), operator)


def _in_interface(index: int) -> bytes:
    return _expression("meta", _u32(_REGISTER), _u32(_KEY_IN_INTERFACE)) + _compare(struct.pack("=I", index))


def _source_port(port: int) -> bytes:
    return _load(_TRANSPORT_HEADER, 0, 2) + _compare(struct.pack("!H", port))


def _destination_port(port: int) -> bytes:
    return _load(_TRANSPORT_HEADER, 2, 2) + _compare(struct.pack("!H", port))


def _is(state: int) -> bytes:
    return _expression("ct", _u32(_REGISTER), _u32(_KEY_STATE)) + _has(struct.pack("=I", state))


def _has(bits: bytes) -> bytes:
    """Whether any of these is set in what was loaded."""
    register, nothing = _u32(_REGISTER), bytes(len(bits))
    masked = (register, register, _u32(len(bits)), _attribute(1, bits), _attribute(1, nothing))
    return _expression("bitwise", *masked) + _compare(nothing, _NOT_EQUAL)


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
