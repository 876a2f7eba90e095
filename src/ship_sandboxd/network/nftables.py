"""Rules for packets, as messages to nf_tables (linux/netfilter/nf_tables.h)."""

import socket
import struct

from .netlink import ACK, APPEND, CREATE, EXCLUSIVE, NESTED, Message, attribute, text, u32

LOG_GROUP = 1
TOLD_BYTES = 64  # of each packet: its addresses and ports
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NFTABLES = 10
_NEW_TABLE, _NEW_CHAIN, _NEW_RULE, _DELETE_RULE = (_NFTABLES << 8 | number for number in (0, 3, 6, 8))
HOOK_PREROUTING, HOOK_INPUT, _HOOK_OUTPUT = 0, 1, 3
DROP, _ACCEPT, JUMP, GOTO, RETURN = 0, 1, -3, -4, -5
_VERDICT, _REGISTER = 0, 1
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2
_KEY_IN_INTERFACE, _KEY_L4_PROTOCOL, _KEY_STATE = 4, 16, 0
STATE_ESTABLISHED, STATE_RELATED, STATE_NEW = 2, 4, 8
_EQUAL, NOT_EQUAL = 0, 1
OVER = 1
_UNREACHABLE, RESET = 0, 1
_PORT_UNREACHABLE: dict[int, int] = {socket.AF_INET: 3, socket.AF_INET6: 4}
_TABLE = "ship"


def batch(changes: list[Message]) -> list[Message]:
    """Changes of which the kernel carries out all or nothing."""
    return [
        (_BATCH_BEGIN, 0, header(0, _NFTABLES)),
        *changes,
        (_BATCH_END, 0, header(0, _NFTABLES)),
    ]


def header(family: int = socket.AF_INET, resource: int = 0) -> bytes:
    """What every message to this part of the kernel begins with."""
    return struct.pack("!BBH", family, 0, resource)


def table(family: int = socket.AF_INET) -> Message:
    """The table that all chains lie in, one for each family."""
    return _NEW_TABLE, CREATE | EXCLUSIVE | ACK, header(family) + text(1, _TABLE)


def chain(
    name: str, kind: str = "", priority: int = 0, hook: int = _HOOK_OUTPUT, family: int = socket.AF_INET
) -> Message:
    """A chain that packets pass at a hook; without a kind, one that rules lead to."""
    described = text(1, _TABLE) + text(3, name)
    if kind:
        place = attribute(1, u32(hook)) + attribute(2, struct.pack("!i", priority))
        described += attribute(4 | NESTED, place) + attribute(5, u32(_ACCEPT)) + text(7, kind)
    return _NEW_CHAIN, CREATE | EXCLUSIVE | ACK, header(family) + described


def rule(
    chain: str, expressions: list[bytes], family: int = socket.AF_INET, *, first: bool = False
) -> Message:
    described = text(1, _TABLE) + text(2, chain) + attribute(4 | NESTED, b"".join(expressions))
    return _NEW_RULE, CREATE | ACK | (0 if first else APPEND), header(family) + described


def without_rules(chain: str) -> Message:
    return _DELETE_RULE, ACK, header() + text(1, _TABLE) + text(2, chain)


def expression(name: str, *values: bytes) -> bytes:
    """One step of a rule; its attributes are numbered from 1."""
    data = b"".join(attribute(number, value) for number, value in enumerate(values, 1))
    return attribute(1 | NESTED, text(1, name) + attribute(2 | NESTED, data))


def load(header: int, offset: int, size: int) -> bytes:
    return expression("payload", u32(_REGISTER), u32(header), u32(offset), u32(size))


def compare(value: bytes, operator: int = _EQUAL) -> bytes:
    return expression("cmp", u32(_REGISTER), u32(operator), attribute(1, value))


def protocol(number: int) -> bytes:
    return expression("meta", u32(_REGISTER), u32(_KEY_L4_PROTOCOL)) + compare(bytes([number]))


def in_interface(index: int) -> bytes:
    return expression("meta", u32(_REGISTER), u32(_KEY_IN_INTERFACE)) + compare(struct.pack("=I", index))


def source_port(port: int) -> bytes:
    return load(TRANSPORT_HEADER, 0, 2) + compare(struct.pack("!H", port))


def destination_port(port: int) -> bytes:
    return load(TRANSPORT_HEADER, 2, 2) + compare(struct.pack("!H", port))


def in_state(state: int) -> bytes:
    return expression("ct", u32(_REGISTER), u32(_KEY_STATE)) + has(struct.pack("=I", state))


def has(bits: bytes) -> bytes:
    """Whether any of these is set in what was loaded."""
    return masked(bits) + compare(bytes(len(bits)), NOT_EQUAL)


def masked(bits: bytes) -> bytes:
    register, nothing = u32(_REGISTER), bytes(len(bits))
    masked = (register, register, u32(len(bits)), attribute(1, bits), attribute(1, nothing))
    return expression("bitwise", *masked)


def count_over(limit: int) -> bytes:
    return expression("connlimit", u32(limit), u32(OVER))


def limit(packets: int, seconds: int, at_once: int, flags: int = 0) -> bytes:
    """Goes on for as many packets, or with `OVER` for those beyond them."""
    rate = struct.pack("!Q", packets), struct.pack("!Q", seconds)
    return expression("limit", *rate, u32(at_once), u32(0), u32(flags))


def log_packet(prefix: str) -> bytes:
    return expression("log", struct.pack("!H", LOG_GROUP), prefix.encode() + b"\0", u32(TOLD_BYTES))


def reject(family: int) -> bytes:
    return expression("reject", u32(_UNREACHABLE), bytes([_PORT_UNREACHABLE[family]]))


def redirect_to(port: int) -> list[bytes]:
    value = attribute(1, struct.pack("!H", port))
    return [expression("immediate", u32(_REGISTER), value), expression("redir", u32(_REGISTER))]


def verdict(code: int, chain: str = "") -> bytes:
    verdict = attribute(1, struct.pack("!i", code)) + (text(2, chain) if chain else b"")
    return expression("immediate", u32(_VERDICT), attribute(2, verdict))
