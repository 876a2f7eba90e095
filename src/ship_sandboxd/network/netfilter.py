"""A sandbox's network namespace, changed from outside: every TCP connection that does not go to loopback, and every question to a name
server, wherever that is said to be, is led to listeners on loopback. Other packets that do not go to loopback are refused, and told
(`packets`). For a sandbox whose kernel is its own: `wire`.
"""

import contextlib
import socket
import struct
from functools import cache
from pathlib import Path

from ..pids import ProcessIdentity
from . import namespaces, netlink, routes
from . import nftables as nft

MAX_TRACKED = 4096
REFUSED, FULL, MORE = "refused", "full", "more"
"""The prefixes of packets that are told: of what may not pass, of a flow too many, and of one that stands for others, which
come too fast for each to be told."""
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
_LOG_CONFIG = 4 << 8 | 1
_BIND, _COPY_PACKET = 1, 2
_TOLD_A_SECOND, _TOLD_AT_ONCE = 50, 250
_TOLD_WITHIN_S = 0.1
_LOG_BUFFER_BYTES = 128 * 1024
_ECHO_REQUEST = b"\x08"
_LOCALHOST_6 = bytes(15) + b"\1"


def redirect(
    process: ProcessIdentity, tcp_port: int, dns_port: int, *, refuses: bool
) -> socket.socket | None:
    """Lead what the network namespace of `process` sends elsewhere to two ports of its loopback: TCP to `tcp_port`, and
    TCP and UDP to port 53 to `dns_port`. If it `refuses`, other packets are refused at once, and told to the socket that
    is answered: see `listen`. To be called once a namespace, when its loopback is up; it ends with it.

    Raises OSError where the kernel refuses, or the process has ended.
    """

    def work() -> socket.socket | None:
        told = install(_rules(tcp_port, dns_port, refuses=refuses), [routes.to_loopback()], refuses=refuses)
        if refuses:
            with contextlib.suppress(OSError):  # a kernel without IPv6 has no packets of it either
                netlink.exchange(netlink.ROUTE, [routes.to_loopback(socket.AF_INET6)])
        return told

    return namespaces.within(process, work)


def install(
    rules: list[netlink.Message], ways: list[netlink.Message], *, refuses: bool
) -> socket.socket | None:
    """Rules, and the routes that they need, in this thread's network namespace. Answers what `redirect` does."""
    with contextlib.ExitStack() as undone:
        told = undone.enter_context(log_socket()) if refuses else None
        netlink.exchange(netlink.NETFILTER, rules)
        netlink.exchange(netlink.ROUTE, ways)
        for name, seconds in TIMEOUTS_S.items():
            (_SETTINGS / name).write_text(str(seconds))
        undone.pop_all()
    return told


def listen(process: ProcessIdentity) -> socket.socket:
    """A socket that is told of the refused packets of the namespace of `process`, for `packets`; it holds the namespace for
    as long as it is open. What is refused while there is none is told to nobody. Raises OSError as `redirect` does."""

    return namespaces.within(process, log_socket)


def is_available() -> bool:
    """Whether this process may do so, and the kernel has what it needs: tried on a namespace of its own."""
    rules = _rules(1, 1, refuses=False)
    return namespaces.obstacle(lambda: netlink.exchange(netlink.NETFILTER, rules)) is None


def refusing_obstacle() -> OSError | None:
    """Why the rest of what `redirect` does if it `refuses` cannot be done here; None if it can."""

    def attempt() -> None:
        netlink.exchange(netlink.NETFILTER, _rules(1, 1, refuses=True))
        log_socket().close()

    return namespaces.obstacle(attempt)


def log_socket() -> socket.socket:
    """A socket that the rules of this thread's network namespace log to (linux/netfilter/nfnetlink_log.h). The kernel gathers packets for a moment, and what
    its buffer does not hold is lost."""
    connection = netlink.connect(netlink.NETFILTER)
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LOG_BUFFER_BYTES)
        config = netlink.attribute(1, bytes([_BIND]))
        config += netlink.attribute(2, struct.pack("!IBx", nft.TOLD_BYTES, _COPY_PACKET))
        config += netlink.attribute(4, netlink.u32(int(_TOLD_WITHIN_S * 100)))
        head = nft.header(socket.AF_UNSPEC, nft.LOG_GROUP)
        netlink.send(connection, [(_LOG_CONFIG, netlink.ACK, head + config)])
        connection.setblocking(False)
    except BaseException:
        connection.close()
        raise
    return connection


@cache
def _rules(tcp_port: int, dns_port: int, *, refuses: bool) -> list[netlink.Message]:
    """One batch, of which the kernel carries out all or nothing."""
    refusing = _refusing_rules(dns_port) if refuses else []
    return nft.batch([*_redirecting_rules(tcp_port, dns_port), *refusing])


def _redirecting_rules(tcp_port: int, dns_port: int) -> list[netlink.Message]:
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
    to_names = [nft.destination_port(53), *nft.redirect_to(dns_port)]
    on_loopback = nft.load(nft.NETWORK_HEADER, 16, 1)
    return [
        nft.table(),
        nft.chain("track", "filter", -300),
        nft.rule("track", [nft.destination_port(53), nft.verdict(nft.RETURN)]),
        nft.rule("track", [nft.source_port(dns_port), nft.verdict(nft.RETURN)]),
        nft.rule("track", [nft.source_port(tcp_port), nft.verdict(nft.RETURN)]),
        nft.rule(
            "track",
            [
                nft.protocol(socket.IPPROTO_TCP),
                on_loopback,
                nft.compare(b"\x7f", nft.NOT_EQUAL),
                nft.verdict(nft.RETURN),
            ],
        ),
        nft.rule("track", [nft.expression("notrack")]),
        nft.chain("out", "nat", -100),
        nft.rule("out", [nft.protocol(socket.IPPROTO_UDP), *to_names]),
        nft.rule("out", [nft.protocol(socket.IPPROTO_TCP), *to_names]),
        nft.rule("out", [on_loopback, nft.compare(b"\x7f"), nft.verdict(nft.RETURN)]),
        nft.rule("out", [nft.protocol(socket.IPPROTO_TCP), *nft.redirect_to(tcp_port)]),
        nft.chain("full"),
        nft.rule("full", [nft.verdict(nft.DROP)]),
        # Before they are redirected: what is told of them shows where they were meant to go.
        nft.chain("bound", "filter", -150),
        nft.rule(
            "bound", [nft.in_state(nft.STATE_NEW), nft.count_over(MAX_TRACKED), nft.verdict(nft.GOTO, "full")]
        ),
    ]


def _refusing_rules(dns_port: int) -> list[netlink.Message]:
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
    answers = [
        nft.load(nft.NETWORK_HEADER, 12, 4),
        nft.compare(socket.inet_aton("127.0.0.1")),
        nft.source_port(dns_port),
    ]
    return [
        *refusing_chains(),
        nft.rule("in", [nft.load(nft.NETWORK_HEADER, 16, 1), nft.compare(b"\x7f"), nft.verdict(nft.RETURN)]),
        nft.rule("in", [nft.protocol(socket.IPPROTO_TCP), nft.verdict(nft.RETURN)]),
        nft.rule("in", [nft.in_state(nft.STATE_ESTABLISHED), nft.verdict(nft.RETURN)]),
        nft.rule("in", [nft.protocol(socket.IPPROTO_UDP), *answers, nft.verdict(nft.RETURN)]),
        nft.rule("in", [nft.verdict(nft.GOTO, "refused")]),
        nft.table(six),
        *_telling_chains((REFUSED,), six),
        nft.chain("refused", family=six),
        nft.rule("refused", [nft.verdict(nft.JUMP, "tell-refused")], six),
        nft.rule(
            "refused",
            [nft.protocol(socket.IPPROTO_TCP), nft.expression("reject", netlink.u32(nft.RESET))],
            six,
        ),
        nft.rule("refused", [nft.reject(six)], six),
        nft.chain("in", "filter", 0, nft.HOOK_INPUT, six),
        nft.rule(
            "in",
            [nft.load(nft.NETWORK_HEADER, 24, 16), nft.compare(_LOCALHOST_6), nft.verdict(nft.RETURN)],
            six,
        ),
        nft.rule(
            "in", [nft.load(nft.NETWORK_HEADER, 24, 1), nft.compare(b"\xff"), nft.verdict(nft.RETURN)], six
        ),
        nft.rule("in", [nft.verdict(nft.GOTO, "refused")], six),
    ]


def refusing_chains() -> list[netlink.Message]:
    not_echo = [nft.load(nft.TRANSPORT_HEADER, 0, 1), nft.compare(_ECHO_REQUEST, nft.NOT_EQUAL)]
    return [
        *_telling_chains((FULL, REFUSED)),
        nft.rule("full", [nft.verdict(nft.JUMP, "tell-full")], first=True),
        nft.chain("refused"),
        nft.rule("refused", [nft.verdict(nft.JUMP, "tell-refused")]),
        nft.rule("refused", [nft.reject(socket.AF_INET)]),
        nft.chain("in", "filter", 0, nft.HOOK_INPUT),
        nft.rule(
            "in",
            [
                nft.load(nft.NETWORK_HEADER, 16, 1),
                nft.masked(b"\xf0"),
                nft.compare(b"\xe0"),
                nft.verdict(nft.RETURN),
            ],
        ),
        nft.rule("in", [nft.protocol(socket.IPPROTO_ICMP), *not_echo, nft.verdict(nft.RETURN)]),
    ]


def _telling_chains(prefixes: tuple[str, ...], family: int = socket.AF_INET) -> list[netlink.Message]:
    chains = [
        nft.chain("more", family=family),
        nft.rule("more", [nft.limit(1, 60, 1), nft.log_packet(MORE)], family),
    ]
    too_fast = nft.limit(_TOLD_A_SECOND, 1, _TOLD_AT_ONCE, nft.OVER)
    for prefix in prefixes:
        chains += [
            nft.chain(f"tell-{prefix}", family=family),
            nft.rule(f"tell-{prefix}", [too_fast, nft.verdict(nft.GOTO, "more")], family),
            nft.rule(f"tell-{prefix}", [nft.log_packet(prefix)], family),
        ]
    return chains
