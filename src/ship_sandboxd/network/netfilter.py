"""A sandbox's network namespace, changed from outside by netlink messages (linux/netfilter/nf_tables.h, rtnetlink):
every TCP connection that does not go to loopback, and every question to a name server, wherever that is said to be, is
led to listeners on loopback. Other packets that do not go to loopback are refused, and told (`packets`). Where a kernel of
the sandbox's own sends all this, it comes over a wire, to listeners at its other end.

A message costs microseconds, the `nft` and `ip` programs cost milliseconds each and would have to be installed.
"""

import contextlib
import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable
from functools import cache
from io import FileIO
from pathlib import Path
from typing import TypeVar

from ..pids import ProcessIdentity

MAX_TRACKED = 4096
REFUSED, FULL, MORE = "refused", "full", "more"
"""The prefixes of packets that are told: of what may not pass, of a flow too many, and of one that stands for others, which
come too fast for each to be told."""
_CLONE_NEWNET = 0x40000000
_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
_TIMEOUT_S = 5.0
# The kernel remembers a flow for as long, in seconds; by default for minutes, in memory that no cgroup accounts for.
TIMEOUTS_S = {
    "nf_conntrack_tcp_timeout_syn_sent": 30,
    "nf_conntrack_tcp_timeout_time_wait": 2,
    "nf_conntrack_tcp_timeout_close": 1,
    # A question to a name server: its answer may come as late as `egress.LOOKUP_TIMEOUT_S`.
    "nf_conntrack_udp_timeout": 12,
    "nf_conntrack_udp_timeout_stream": 5,
}
_SETTINGS = Path("/proc/sys/net/netfilter")

_REQUEST, _ACK, _CREATE, _EXCLUSIVE, _APPEND = 0x1, 0x4, 0x400, 0x200, 0x800
_ERROR = 2
_NESTED = 0x8000

_LOG_CONFIG = 4 << 8 | 1
_BIND, _COPY_PACKET = 1, 2
_LOG_GROUP = 1
_TOLD_BYTES = 64  # of each packet: its addresses and ports
_TOLD_A_SECOND, _TOLD_AT_ONCE = 50, 250
_TOLD_WITHIN_S = 0.1
_LOG_BUFFER_BYTES = 128 * 1024

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
_DROP, _ACCEPT, _JUMP, _GOTO, _RETURN = 0, 1, -3, -4, -5
_VERDICT, _REGISTER = 0, 1
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_KEY_IN_INTERFACE, _KEY_L4_PROTOCOL, _KEY_STATE = 4, 16, 0
_STATE_ESTABLISHED, _STATE_RELATED, _STATE_NEW = 2, 4, 8
_EQUAL, _NOT_EQUAL = 0, 1
_OVER = 1
_ECHO_REQUEST = b"\x08"
_UNREACHABLE, _RESET = 0, 1
_PORT_UNREACHABLE: dict[int, int] = {socket.AF_INET: 3, socket.AF_INET6: 4}
_LOCALHOST_6 = bytes(15) + b"\1"
_TABLE = "ship"

Message = tuple[int, int, bytes]
_T = TypeVar("_T")


def redirect(
    process: ProcessIdentity, tcp_port: int, dns_port: int, *, refuses: bool
) -> socket.socket | None:
    """Lead what the network namespace of `process` sends elsewhere to two ports of its loopback: TCP to `tcp_port`, and
    TCP and UDP to port 53 to `dns_port`. If it `refuses`, other packets are refused at once, and told to the socket that
    is answered: see `listen`. To be called once a namespace, when its loopback is up; it ends with it.

    Raises OSError where the kernel refuses, or the process has ended.
    """

    def work() -> socket.socket | None:
        _enter(process)
        with contextlib.ExitStack() as undone:
            told = undone.enter_context(_listen()) if refuses else None
            _exchange(_NETLINK_NETFILTER, _rules(tcp_port, dns_port, refuses=refuses))
            _exchange(_NETLINK_ROUTE, [_route_to_loopback()])
            if refuses:
                with contextlib.suppress(OSError):  # a kernel without IPv6 has no packets of it either
                    _exchange(_NETLINK_ROUTE, [_route_to_loopback(socket.AF_INET6)])
            _forget_flows_soon()
            undone.pop_all()
        return told

    return _in_a_thread(work)


def listen(process: ProcessIdentity) -> socket.socket:
    """A socket that is told of the refused packets of the namespace of `process`, for `packets`; it holds the namespace for
    as long as it is open. What is refused while there is none is told to nobody. Raises OSError as `redirect` does."""

    return within(process, _listen)


def within(process: ProcessIdentity, work: Callable[[], _T]) -> _T:
    """What `work` makes of the network namespace of `process`. Raises OSError where that has ended, and what `work`
    raises."""

    def enter_and_work() -> _T:
        _enter(process)
        return work()

    return _in_a_thread(enter_and_work)


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


def redirect_wire(
    process: ProcessIdentity, tcp_port: int, dns_port: int, *, refuses: bool
) -> socket.socket | None:
    """As `redirect`, for what comes over the wire of the namespace of `process`, which has taken its end: to ports of the
    other one."""

    def work() -> socket.socket | None:
        _enter(process)
        with contextlib.ExitStack() as undone:
            told = undone.enter_context(_listen()) if refuses else None
            _exchange(_NETLINK_NETFILTER, _wire_rules(tcp_port, dns_port, refuses=refuses))
            _exchange(_NETLINK_ROUTE, _wire_joined())
            _forget_flows_soon()
            undone.pop_all()
        return told

    return _in_a_thread(work)


def refuse_on_wire(process: ProcessIdentity) -> None:
    """From now on, what comes over the wire of the namespace of `process` is refused where nobody listens; else it would
    wait. Of one that has no wire: nothing happens. Raises OSError."""

    def work() -> None:
        _enter(process)
        with contextlib.suppress(FileNotFoundError):
            _exchange(_NETLINK_NETFILTER, _batch([_without_rules("wait")]))

    _in_a_thread(work)


def is_available() -> bool:
    """Whether this process may do so, and the kernel has what it needs: tried on a namespace of its own."""
    return _obstacle(lambda: _exchange(_NETLINK_NETFILTER, _rules(1, 1, refuses=False))) is None


def can_wire() -> bool:
    """As `is_available`, for `wired` and `redirect_wire`."""

    def attempt() -> None:
        _exchange(_NETLINK_ROUTE, _wire())
        _exchange(_NETLINK_NETFILTER, _wire_rules(1, 1, refuses=False))

    return _obstacle(attempt) is None


def refusing_obstacle() -> OSError | None:
    """Why the rest of what `redirect` does if it `refuses` cannot be done here; None if it can."""

    def attempt() -> None:
        _exchange(_NETLINK_NETFILTER, _rules(1, 1, refuses=True))
        _listen().close()

    return _obstacle(attempt)


def _obstacle(attempt: Callable[[], None]) -> OSError | None:
    """What an attempt fails of in a namespace of its own."""

    def work() -> None:
        _check(_libc.unshare(_CLONE_NEWNET))
        attempt()

    try:
        _in_a_thread(work)
    except OSError as error:
        return error
    return None


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
    for name, seconds in TIMEOUTS_S.items():
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
    with _connect(protocol) as connection:
        _send(connection, messages)


def _connect(protocol: int) -> socket.socket:
    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    connection.settimeout(_TIMEOUT_S)
    return connection


def _send(connection: socket.socket, messages: list[Message]) -> None:
    waiting = set()
    sent = b""
    for number, (kind, flags, payload) in enumerate(messages, 1):
        sent += struct.pack("=IHHII", 16 + len(payload), kind, flags | _REQUEST, number, 0) + payload
        if flags & _ACK:
            waiting.add(number)
    connection.send(sent)
    while waiting:
        waiting -= _acknowledged(connection.recv(65536))


def _listen() -> socket.socket:
    """A socket that the rules log to (linux/netfilter/nfnetlink_log.h). The kernel gathers packets for a moment, and what
    its buffer does not hold is lost."""
    connection = _connect(_NETLINK_NETFILTER)
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LOG_BUFFER_BYTES)
        config = _attribute(1, bytes([_BIND])) + _attribute(2, struct.pack("!IBx", _TOLD_BYTES, _COPY_PACKET))
        config += _attribute(4, _u32(int(_TOLD_WITHIN_S * 100)))
        _send(connection, [(_LOG_CONFIG, _ACK, _family(socket.AF_UNSPEC, _LOG_GROUP) + config)])
        connection.setblocking(False)
    except BaseException:
        connection.close()
        raise
    return connection


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


def _route_to_loopback(family: int = socket.AF_INET, table: int = _TABLE_LOCAL) -> Message:
    """`ip route add local default dev lo`: what has no way out comes back in, where the rules catch it."""
    head = struct.pack("=8BI", family, 0, 0, 0, table, _BOOT, _SCOPE_HOST, _LOCAL, 0)
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
        _route_to_loopback(table=_TABLE_MAIN),
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


@cache
def _rules(tcp_port: int, dns_port: int, *, refuses: bool) -> list[Message]:
    """One batch, of which the kernel carries out all or nothing."""
    refusing = _refusing_rules(dns_port) if refuses else []
    return _batch([*_redirecting_rules(tcp_port, dns_port), *refusing])


def _batch(changes: list[Message]) -> list[Message]:
    return [
        (_BATCH_BEGIN, 0, _family(0, _NFTABLES)),
        *changes,
        (_BATCH_END, 0, _family(0, _NFTABLES)),
    ]


def _redirecting_rules(tcp_port: int, dns_port: int) -> list[Message]:
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
            chain full { drop }
            chain bound { type filter hook output priority -150; policy accept;
                ct state new ct count over MAX_TRACKED goto full } }

    Only what is redirected is tracked, and only so many flows of it: the table of them is the kernel's.
    """
    to_names = [_destination_port(53), *_redirect_to(dns_port)]
    on_loopback = _load(_NETWORK_HEADER, 16, 1)
    return [
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
        _chain("full"),
        _rule("full", [_verdict(_DROP)]),
        # Before they are redirected: what is told of them shows where they were meant to go.
        _chain("bound", "filter", -150),
        _rule("bound", [_is(_STATE_NEW), _count_over(MAX_TRACKED), _verdict(_GOTO, "full")]),
    ]


def _refusing_rules(dns_port: int) -> list[Message]:
    """In nft's words, beside `_redirecting_rules`:

        table ip ship {
            chain more { limit rate 1/minute burst 1 packets log prefix "more" group 1 }
            chain tell-full { limit rate over _TOLD_A_SECOND/second burst _TOLD_AT_ONCE packets goto more
                              log prefix "full" group 1 }
            chain tell-refused { the same, with the prefix "refused" }
            chain full { jump tell-full; drop }
            chain refused { jump tell-refused; reject }
            chain in { type filter hook input priority 0; policy accept;
                ip daddr 127.0.0.0/8 return
                ip daddr 224.0.0.0/4 return
                meta l4proto tcp return
                icmp type != echo-request return
                ct state established return
                ip saddr 127.0.0.1 udp sport dns_port return
                goto refused } }
        table ip6 ship {
            chain more, tell-refused: the same
            chain refused { jump tell-refused; meta l4proto tcp reject with tcp reset; reject }
            chain in { type filter hook input priority 0; policy accept;
                ip6 daddr { ::1, ff00::/8 } return
                goto refused } }

    They refuse what comes in again by the route to loopback: there the sender hears of it as from a network, while a packet
    that is stopped on its way out makes the very call fail. By then TCP over IPv4 and questions for names are redirected,
    so what is left of them are answers. Multicast is for those who listen to it in the sandbox.
    """
    six = socket.AF_INET6
    answers = [_load(_NETWORK_HEADER, 12, 4), _compare(socket.inet_aton("127.0.0.1")), _source_port(dns_port)]
    return [
        *_refusing_chains(),
        _rule("in", [_load(_NETWORK_HEADER, 16, 1), _compare(b"\x7f"), _verdict(_RETURN)]),
        _rule("in", [_protocol(socket.IPPROTO_TCP), _verdict(_RETURN)]),
        _rule("in", [_is(_STATE_ESTABLISHED), _verdict(_RETURN)]),
        _rule("in", [_protocol(socket.IPPROTO_UDP), *answers, _verdict(_RETURN)]),
        _rule("in", [_verdict(_GOTO, "refused")]),
        (_NEW_TABLE, _CREATE | _EXCLUSIVE | _ACK, _family(six) + _text(1, _TABLE)),
        *_telling_chains((REFUSED,), six),
        _chain("refused", family=six),
        _rule("refused", [_verdict(_JUMP, "tell-refused")], six),
        _rule("refused", [_protocol(socket.IPPROTO_TCP), _expression("reject", _u32(_RESET))], six),
        _rule("refused", [_reject(six)], six),
        _chain("in", "filter", 0, _HOOK_INPUT, six),
        _rule("in", [_load(_NETWORK_HEADER, 24, 16), _compare(_LOCALHOST_6), _verdict(_RETURN)], six),
        _rule("in", [_load(_NETWORK_HEADER, 24, 1), _compare(b"\xff"), _verdict(_RETURN)], six),
        _rule("in", [_verdict(_GOTO, "refused")], six),
    ]


def _refusing_chains() -> list[Message]:
    not_echo = [_load(_TRANSPORT_HEADER, 0, 1), _compare(_ECHO_REQUEST, _NOT_EQUAL)]
    return [
        *_telling_chains((FULL, REFUSED)),
        _rule("full", [_verdict(_JUMP, "tell-full")], first=True),
        _chain("refused"),
        _rule("refused", [_verdict(_JUMP, "tell-refused")]),
        _rule("refused", [_reject(socket.AF_INET)]),
        _chain("in", "filter", 0, _HOOK_INPUT),
        _rule("in", [_load(_NETWORK_HEADER, 16, 1), _masked(b"\xf0"), _compare(b"\xe0"), _verdict(_RETURN)]),
        _rule("in", [_protocol(socket.IPPROTO_ICMP), *not_echo, _verdict(_RETURN)]),
    ]


@cache
def _wire_rules(tcp_port: int, dns_port: int, *, refuses: bool) -> list[Message]:
    """In nft's words, with `_refusing_chains` if it `refuses`:

        table ip ship {
            chain track { type filter hook prerouting priority -450; policy accept;
                iif eth0 drop
                ip frag-off & 0x3fff != 0 drop
                meta l4proto tcp return
                udp dport 53 return
                notrack
                meta l4proto icmp drop   # unless it refuses
                }
            chain full { drop }
            chain bound { type filter hook prerouting priority -150; policy accept;
                ct state new ct count over MAX_TRACKED goto full }
            chain out { type nat hook prerouting priority -100; policy accept;
                udp dport 53 redirect to :dns_port
                tcp dport 53 redirect to :dns_port
                meta l4proto tcp redirect to :tcp_port }
            chain in { type filter hook input priority 0; policy accept;   # if it refuses
                ip daddr 224.0.0.0/4 return
                icmp type != echo-request return
                ct state { new, established } return
                goto refused }
            chain wait { type filter hook output priority 0; policy accept;
                tcp sequence 0 drop
                ct state related drop } }

    What the sandbox's kernel is to read comes to this kernel as well. Pieces of packets would be kept, in memory that no
    cgroup accounts for. The last chain drops what this kernel answers where nobody listens: whoever gets no answer while the
    host is started anew asks again.
    """
    to_names = [_destination_port(53), *_redirect_to(dns_port)]
    udp, tcp = _protocol(socket.IPPROTO_UDP), _protocol(socket.IPPROTO_TCP)
    refusing = [
        *_refusing_chains(),
        _rule("in", [_is(_STATE_NEW | _STATE_ESTABLISHED), _verdict(_RETURN)]),
        _rule("in", [_verdict(_GOTO, "refused")]),
    ]
    rules = [
        (_NEW_TABLE, _CREATE | _EXCLUSIVE | _ACK, _family() + _text(1, _TABLE)),
        _chain("track", "filter", -450, _HOOK_PREROUTING),
        _rule("track", [_in_interface(_SANDBOX_INDEX), _verdict(_DROP)]),
        _rule("track", [_load(_NETWORK_HEADER, 6, 2), _has(b"\x3f\xff"), _verdict(_DROP)]),
        _rule("track", [tcp, _verdict(_RETURN)]),
        _rule("track", [udp, _destination_port(53), _verdict(_RETURN)]),
        _rule("track", [_expression("notrack")]),
        _chain("full"),
        _rule("full", [_verdict(_DROP)]),
        _chain("bound", "filter", -150, _HOOK_PREROUTING),
        _rule("bound", [_is(_STATE_NEW), _count_over(MAX_TRACKED), _verdict(_GOTO, "full")]),
        _chain("out", "nat", -100, _HOOK_PREROUTING),
        _rule("out", [udp, *to_names]),
        _rule("out", [tcp, *to_names]),
        _rule("out", [tcp, *_redirect_to(tcp_port)]),
        _chain("wait", "filter", 0),
        _rule("wait", [tcp, _load(_TRANSPORT_HEADER, 4, 4), _compare(bytes(4)), _verdict(_DROP)]),
        _rule("wait", [_is(_STATE_RELATED), _verdict(_DROP)]),
    ]
    no_echo = [_rule("track", [_protocol(socket.IPPROTO_ICMP), _verdict(_DROP)])]
    return _batch([*rules, *(refusing if refuses else no_echo)])


def _telling_chains(prefixes: tuple[str, ...], family: int = socket.AF_INET) -> list[Message]:
    chains = [
        _chain("more", family=family),
        _rule("more", [_limit(1, 60, 1), _log_packet(MORE)], family),
    ]
    too_fast = _limit(_TOLD_A_SECOND, 1, _TOLD_AT_ONCE, _OVER)
    for prefix in prefixes:
        chains += [
            _chain(f"tell-{prefix}", family=family),
            _rule(f"tell-{prefix}", [too_fast, _verdict(_GOTO, "more")], family),
            _rule(f"tell-{prefix}", [_log_packet(prefix)], family),
        ]
    return chains


def _family(family: int = socket.AF_INET, resource: int = 0) -> bytes:
    return struct.pack("!BBH", family, 0, resource)


def _chain(
    name: str, kind: str = "", priority: int = 0, hook: int = _HOOK_OUTPUT, family: int = socket.AF_INET
) -> Message:
    """A chain that packets pass at a hook; without a kind, one that rules lead to."""
    chain = _text(1, _TABLE) + _text(3, name)
    if kind:
        place = _attribute(1, _u32(hook)) + _attribute(2, struct.pack("!i", priority))
        chain += _attribute(4 | _NESTED, place) + _attribute(5, _u32(_ACCEPT)) + _text(7, kind)
    return _NEW_CHAIN, _CREATE | _EXCLUSIVE | _ACK, _family(family) + chain


def _rule(
    chain: str, expressions: list[bytes], family: int = socket.AF_INET, *, first: bool = False
) -> Message:
    rule = _text(1, _TABLE) + _text(2, chain) + _attribute(4 | _NESTED, b"".join(expressions))
    return _NEW_RULE, _CREATE | _ACK | (0 if first else _APPEND), _family(family) + rule


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


def _protocol(number: int) -> bytes:
    return _expression("meta", _u32(_REGISTER), _u32(_KEY_L4_PROTOCOL)) + _compare(bytes([number]))


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
    return _masked(bits) + _compare(bytes(len(bits)), _NOT_EQUAL)


def _masked(bits: bytes) -> bytes:
    register, nothing = _u32(_REGISTER), bytes(len(bits))
    masked = (register, register, _u32(len(bits)), _attribute(1, bits), _attribute(1, nothing))
    return _expression("bitwise", *masked)


def _count_over(limit: int) -> bytes:
    return _expression("connlimit", _u32(limit), _u32(_OVER))


def _limit(packets: int, seconds: int, at_once: int, flags: int = 0) -> bytes:
    """Goes on for as many packets, or with `_OVER` for those beyond them."""
    rate = struct.pack("!Q", packets), struct.pack("!Q", seconds)
    return _expression("limit", *rate, _u32(at_once), _u32(0), _u32(flags))


def _log_packet(prefix: str) -> bytes:
    return _expression("log", struct.pack("!H", _LOG_GROUP), prefix.encode() + b"\0", _u32(_TOLD_BYTES))


def _reject(family: int) -> bytes:
    return _expression("reject", _u32(_UNREACHABLE), bytes([_PORT_UNREACHABLE[family]]))


def _redirect_to(port: int) -> list[bytes]:
    value = _attribute(1, struct.pack("!H", port))
    return [_expression("immediate", _u32(_REGISTER), value), _expression("redir", _u32(_REGISTER))]


def _verdict(code: int, chain: str = "") -> bytes:
    verdict = _attribute(1, struct.pack("!i", code)) + (_text(2, chain) if chain else b"")
    return _expression("immediate", _u32(_VERDICT), _attribute(2, verdict))


def _u32(value: int) -> bytes:
    return struct.pack("!I", value)


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (aligned(len(value)) - len(value))


def aligned(size: int) -> int:
    """How many bytes a message or an attribute takes with the padding after it."""
    return (size + 3) & ~3


_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
