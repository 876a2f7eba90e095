"""What an IP address means on this machine: the internet, or something nearer that a sandbox must not reach."""

import errno
import ipaddress
import socket

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# The WireServer of Azure: its metadata, at an address of the internet.
_METADATA = ipaddress.IPv4Address("168.63.129.16")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def address_of(text: str) -> Address:
    """The address that a text stands for, an IPv4 one where it is only mapped into IPv6. Raises ValueError."""
    address = ipaddress.ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def wrapped(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 one leads to: mapped, 6to4, Teredo or NAT64."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
    if inner is None and address in _NAT64:
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return inner


def is_public(address: Address) -> bool:
    """Whether an address belongs to the internet: not this machine, not a private or special network, and not such an
    address wrapped into IPv6."""
    inner = wrapped(address)
    if inner is not None:
        return is_public(inner)
    is_special = address.is_multicast or address.is_reserved or address == _METADATA
    return address.is_global and not is_special


def is_own(address: Address) -> bool:
    """Whether an address is one of this machine's: then its services are as near as on loopback. Raises OSError where that
    cannot be found out."""
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        probe = socket.socket(family, socket.SOCK_DGRAM)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:  # a kernel without IPv6 has no such address
            return False
        raise
    with probe:
        try:
            # Sends nothing: it only looks up the way, which for an own address begins at that address.
            probe.connect((str(address), 9))
        except OSError:
            return False
        return bool(probe.getsockname()[0] == str(address))
