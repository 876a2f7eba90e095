"""Which destinations a sandbox may reach. Decisions only: nothing is looked up or opened here.

reserved names          always, on their port
special addresses       only where the operator allows them, and the sandbox does not deny them
the public internet     unless the sandbox denies it; what it allows beats what it denies
"""

import ipaddress
import re
from dataclasses import dataclass

from .addresses import Address, Network, is_own, is_public, wrapped

MAX_NAME_LENGTH = 253
EVERYTHING = "0.0.0.0/0"
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")


class Refused(Exception):
    """The rules do not let this through; `status` is what the proxy answers, `kind` what the counters call it."""

    def __init__(self, message: str, status: int = 403, kind: str = "rule") -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


class Unreachable(Refused):
    """Nothing forbids it, but it cannot be reached. `is_unknown` says that a name does not exist."""

    def __init__(self, message: str, is_unknown: bool = False) -> None:
        super().__init__(message, 502, "unreachable")
        self.is_unknown = is_unknown


def canonical(host: str) -> str:
    """A host name as it is compared: lower case, in ASCII (punycode), without the root's dot. Raises ValueError."""
    name = host.removesuffix(".")
    if not name.isascii():
        try:
            name = name.encode("idna").decode()
        except UnicodeError as error:
            raise ValueError(f"{host[:80]!r} is not a host name") from error
    name = name.lower()
    if len(name) > MAX_NAME_LENGTH or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise ValueError(f"{host[:80]!r} is not a host name")
    return name


@dataclass(frozen=True)
class Upstream:
    """A reserved name that every sandbox reaches. `nodes` are the (host, port) where the host finds it, best first; any will
    do."""

    name: str
    port: int
    nodes: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Block:
    """Addresses, on one port or on all: `10.0.0.0/8`, `1.1.1.1:443`, `[2001:db8::/32]:443`."""

    network: Network
    port: int | None = None

    def matches(self, address: Address, port: int | None) -> bool:
        """Whether it covers an address; `port` None asks for any port."""
        if port is not None and self.port not in (None, port):
            return False
        return self.is_everything or address in self.network

    @property
    def is_everything(self) -> bool:
        """`0.0.0.0/0` means all traffic, that of IPv6 too."""
        return self.network.prefixlen == 0


@dataclass(frozen=True)
class Pattern:
    """Host names, on one port or on all: `example.com`, `*.example.com` (every name below it), `*`."""

    name: str
    port: int | None = None

    def matches(self, host: str, port: int | None) -> bool:
        """Whether it covers a canonical name; `port` None asks for any port."""
        if port is not None and self.port not in (None, port):
            return False
        if self.name.startswith("*"):
            return host.endswith(self.name[1:]) and host != self.name[1:]
        return host == self.name


def parse_entry(text: str) -> Block | Pattern:
    """One entry of a list of destinations. ValueError says what is wrong with it."""
    block = _block(text, None)
    if block is not None:
        return block
    target, colon, port_text = text.rpartition(":")
    port = None
    if colon:
        port = _port(port_text, text)
        if target.startswith("[") and target.endswith("]"):
            target = target[1:-1]
        block = _block(target, port)
        if block is not None:
            return block
    else:
        target = text
    return _pattern(target, port, text)


def parse_private(text: str) -> Block:
    """What the operator lets sandboxes reach beside the internet: a special network, with its port or without. ValueError
    says what is wrong with it."""
    entry = parse_entry(text)
    if not isinstance(entry, Block):
        raise ValueError(f"{text} is not CIDR or CIDR:PORT")
    if is_public(entry.network[0]) or is_public(entry.network[-1]) or entry.network.prefixlen < 7:
        raise ValueError(
            f"{text} holds addresses of the public internet: name the private networks one by one"
        )
    return entry


def _block(text: str, port: int | None) -> Block | None:
    try:
        return Block(ipaddress.ip_network(text, strict=False), port)
    except ValueError:
        return None


def _port(text: str, whole: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536):
        raise ValueError(f"{whole[:80]!r} has no port from 1 to 65535 after its colon")
    return int(text)


def _pattern(target: str, port: int | None, whole: str) -> Pattern:
    rest = target.removeprefix("*.")
    if target == "*":
        return Pattern(target, port)
    try:
        name = canonical(rest)
    except ValueError:
        name = ""
    if not name or name.rpartition(".")[2].isdigit():
        raise ValueError(
            f"{whole[:80]!r} is neither an address, a block of addresses, a host name nor *.name, each with :port or without"
        )
    return Pattern(f"*.{name}" if rest != target else name, port)


@dataclass(frozen=True)
class Rules:
    """What one sandbox may reach. `private` is what the operator allows beside the public internet."""

    upstreams: tuple[Upstream, ...] = ()
    private: tuple[Block, ...] = ()
    allow: tuple[Block | Pattern, ...] = ()
    deny: tuple[Block, ...] = ()

    def upstream(self, host: str, port: int) -> Upstream | None:
        for upstream in self.upstreams:
            if (upstream.name, upstream.port) == (host, port):
                return upstream
        return None

    def is_reserved(self, host: str) -> bool:
        return any(upstream.name == host for upstream in self.upstreams)

    @property
    def is_closed(self) -> bool:
        """Whether all traffic is denied but what is allowed. Names that are not allowed are then not looked up either:
        a lookup tells its name to whoever serves it."""
        return any(block.is_everything and block.port is None for block in self.deny)

    def check_name(self, host: str, port: int | None) -> None:
        """Whether a canonical name may be looked up, for this port or any. Raises Refused."""
        if self.is_reserved(host):
            raise Refused(f"{host} is a reserved name, and this port of it is not offered", kind="reserved")
        if self.is_closed and not self._allows_name(host, port):
            if not self.allow:
                raise Refused("this sandbox has no access to the internet")
            raise Refused(f"{shown(host, port)} is not among what this sandbox may reach")

    def check_address(self, address: Address, port: int, host: str = "") -> None:
        """Whether an address may be connected to; `host` is the canonical name that it was found by. Raises Refused."""
        inner = wrapped(address)
        target = shown(str(address), port)
        self._check_special(address, port)
        if self._allows_name(host, port) or _any(self.allow, address, port):
            return
        if any(_any(self.deny, form, port) for form in (address, inner) if form is not None):
            raise Refused(f"{target} is denied to this sandbox")

    def check(self, host: str, address: Address, port: int) -> None:
        """Both checks; `host` is empty where an address was asked for. Raises Refused."""
        if host:
            self.check_name(host, port)
        self.check_address(address, port, host)

    def check_found(self, addresses: list[Address]) -> None:
        """Whether any of the addresses of a name may be told of, whatever the port. Raises Refused."""
        refusals = []
        for address in addresses:
            try:
                self._check_special(address, None)
            except Refused as refusal:
                refusals.append(refusal)
        if refusals and len(refusals) == len(addresses):
            raise refusals[0]

    def _check_special(self, address: Address, port: int | None) -> None:
        """What is not of the internet is for the operator to allow. An address of this machine needs to be named on its own: a block of the network around does not do."""
        own = is_own(address)
        if is_public(address) and not own:
            return
        for block in self.private:
            if block.matches(address, port) and (block.network.num_addresses == 1 or not own):
                return
        raise Refused(f"{address} is not an address of the public internet", kind="address")

    def _allows_name(self, host: str, port: int | None) -> bool:
        return bool(host) and any(
            isinstance(entry, Pattern) and entry.matches(host, port) for entry in self.allow
        )


def _any(entries: tuple[Block | Pattern, ...] | tuple[Block, ...], address: Address, port: int) -> bool:
    return any(isinstance(entry, Block) and entry.matches(address, port) for entry in entries)


def shown(host: str, port: int | None) -> str:
    """A name or an address, with its port where there is one."""
    if port is None:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
