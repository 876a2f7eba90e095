"""The network namespace of a sandbox whose kernel is its own: that drives one end of a pair of interfaces, and what it sends is led
to listeners at the other end, or refused, by rules like those of `netfilter`.
"""

import contextlib
import socket
from functools import cache
from io import FileIO
from pathlib import Path

from ..pids import ProcessIdentity
from . import namespaces, netfilter, netlink, routes
from . import nftables as nft

_SANDBOX_END, _HOST_END = 2, 3
# Of a block for such pairs (RFC 6333), which no other machine has.
_SANDBOX_ADDRESS, _HOST_ADDRESS = "192.0.0.2", "192.0.0.1"
_PREFIX_BITS = 30
_SANDBOX_LINK, _HOST_LINK = b"\x02\0\0\0\0\x02", b"\x02\0\0\0\0\x01"


def laid() -> FileIO:
    """A network namespace for a sandbox's own kernel: it takes one end of a wire, and what it finds there, for its own, and
    drives it. The other end lies in the same namespace and is cut off until `redirect`, so that it finds nothing else.

    All ends with whoever uses the namespace last: the kernel, this descriptor, sockets that were opened there.
    Raises OSError where this machine has no such thing.
    """

    def work() -> FileIO:
        with contextlib.suppress(FileNotFoundError):  # no IPv6 on this machine
            Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
        netlink.exchange(netlink.ROUTE, _wire())
        return FileIO("/proc/thread-self/ns/net")

    return namespaces.within_new(work)


def redirect(
    process: ProcessIdentity, tcp_port: int, dns_port: int, *, refuses: bool
) -> socket.socket | None:
    """As `netfilter.redirect`, for what comes over the wire of the namespace of `process`, which has taken its end: to ports of the
    other one."""

    rules = _rules(tcp_port, dns_port, refuses=refuses)
    return namespaces.within(process, lambda: netfilter.install(rules, _joined(), refuses=refuses))


def refuse(process: ProcessIdentity) -> None:
    """From now on, what comes over the wire of the namespace of `process` is refused where nobody listens; else it would
    wait. Of one that has no wire: nothing happens. Raises OSError."""

    def work() -> None:
        with contextlib.suppress(FileNotFoundError):
            netlink.exchange(netlink.NETFILTER, nft.batch([nft.without_rules("wait")]))

    namespaces.within(process, work)


def is_available() -> bool:
    """As `netfilter.is_available`, for `laid` and `redirect`."""

    def attempt() -> None:
        netlink.exchange(netlink.ROUTE, _wire())
        netlink.exchange(netlink.NETFILTER, _rules(1, 1, refuses=False))

    return namespaces.obstacle(attempt) is None


def _wire() -> list[netlink.Message]:
    """What is up and has an address is what the sandbox's kernel takes."""
    sandboxs = routes.interface(_SANDBOX_END, "eth0", _SANDBOX_LINK)
    hosts = routes.interface(_HOST_END, "host", _HOST_LINK)
    return [
        routes.pair(sandboxs, hosts),
        routes.up(routes.LOOPBACK),
        routes.up(_SANDBOX_END),
        routes.has_address(_SANDBOX_END, _SANDBOX_ADDRESS, _PREFIX_BITS),
        routes.by_gateway(_HOST_ADDRESS),
    ]


def _joined() -> list[netlink.Message]:
    """The table of neighbours is one for the whole machine, and small; what is permanent does not count. The last route is
    not as near as that to the other end, so it is in another table than where everything is local."""
    return [
        routes.has_address(_HOST_END, _HOST_ADDRESS, _PREFIX_BITS),
        routes.up(_HOST_END),
        routes.has_neighbour(_HOST_END, _SANDBOX_ADDRESS, _SANDBOX_LINK),
        routes.to_loopback(table=routes.TABLE_MAIN),
    ]


@cache
def _rules(tcp_port: int, dns_port: int, *, refuses: bool) -> list[netlink.Message]:
    """In nft's words, with `netfilter.refusing_chains` if it `refuses`:

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
    to_names = [nft.destination_port(53), *nft.redirect_to(dns_port)]
    udp, tcp = nft.protocol(socket.IPPROTO_UDP), nft.protocol(socket.IPPROTO_TCP)
    refusing = [
        *netfilter.refusing_chains(),
        nft.rule("in", [nft.in_state(nft.STATE_NEW | nft.STATE_ESTABLISHED), nft.verdict(nft.RETURN)]),
        nft.rule("in", [nft.verdict(nft.GOTO, "refused")]),
    ]
    rules = [
        nft.table(),
        nft.chain("track", "filter", -450, nft.HOOK_PREROUTING),
        nft.rule("track", [nft.in_interface(_SANDBOX_END), nft.verdict(nft.DROP)]),
        nft.rule("track", [nft.load(nft.NETWORK_HEADER, 6, 2), nft.has(b"\x3f\xff"), nft.verdict(nft.DROP)]),
        nft.rule("track", [tcp, nft.verdict(nft.RETURN)]),
        nft.rule("track", [udp, nft.destination_port(53), nft.verdict(nft.RETURN)]),
        nft.rule("track", [nft.expression("notrack")]),
        nft.chain("full"),
        nft.rule("full", [nft.verdict(nft.DROP)]),
        nft.chain("bound", "filter", -150, nft.HOOK_PREROUTING),
        nft.rule(
            "bound",
            [
                nft.in_state(nft.STATE_NEW),
                nft.count_over(netfilter.MAX_TRACKED),
                nft.verdict(nft.GOTO, "full"),
            ],
        ),
        nft.chain("out", "nat", -100, nft.HOOK_PREROUTING),
        nft.rule("out", [udp, *to_names]),
        nft.rule("out", [tcp, *to_names]),
        nft.rule("out", [tcp, *nft.redirect_to(tcp_port)]),
        nft.chain("wait", "filter", 0),
        nft.rule(
            "wait", [tcp, nft.load(nft.TRANSPORT_HEADER, 4, 4), nft.compare(bytes(4)), nft.verdict(nft.DROP)]
        ),
        nft.rule("wait", [nft.in_state(nft.STATE_RELATED), nft.verdict(nft.DROP)]),
    ]
    no_echo = [nft.rule("track", [nft.protocol(socket.IPPROTO_ICMP), nft.verdict(nft.DROP)])]
    return nft.batch([*rules, *(refusing if refuses else no_echo)])
