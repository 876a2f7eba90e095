"""The messages of the domain name system that a small server needs (RFC 1035): one question, answers with addresses."""

import ipaddress
import struct
from dataclasses import dataclass

A, AAAA, PTR = 1, 28, 12
NO_ERROR, FORMAT_ERROR, SERVER_FAILURE, NO_SUCH_NAME, NOT_IMPLEMENTED, REFUSED = range(6)
MAX_QUERY_BYTES = 4096
TTL_S = 60
_INTERNET = 1
_HEAD = struct.Struct("!6H")
_RESPONSE, _OPCODE, _RECURSION_DESIRED, _RECURSION_AVAILABLE = 0x8000, 0x7800, 0x0100, 0x0080
_POINTER_TO_QUESTION = 0xC000 | _HEAD.size


class Malformed(Exception):
    """Not a query that can be answered with anything but an error code, `code`; `answer` is that answer, or empty where even
    the head is missing."""

    def __init__(self, code: int, answer: bytes = b"") -> None:
        super().__init__(f"the query is malformed (code {code})")
        self.code = code
        self.answer = answer


@dataclass(frozen=True)
class Query:
    """`name` as it was asked, without the root's dot; `question` are the bytes that an answer repeats."""

    id: int
    flags: int
    name: str
    kind: int
    question: bytes

    def answer(self, code: int, address: ipaddress.IPv4Address | None = None) -> bytes:
        """The answer, with one address or none."""
        flags = _RESPONSE | self.flags & (_OPCODE | _RECURSION_DESIRED) | _RECURSION_AVAILABLE | code
        head = _HEAD.pack(self.id, flags, 1 if self.question else 0, 0 if address is None else 1, 0, 0)
        if address is None:
            return head + self.question
        record = struct.pack("!HHHIH", _POINTER_TO_QUESTION, A, _INTERNET, TTL_S, 4) + address.packed
        return head + self.question + record


def parse(data: bytes) -> Query:
    """The question of a query. Additional records (EDNS) are not looked at. Raises Malformed."""
    if len(data) < _HEAD.size:
        raise Malformed(FORMAT_ERROR)
    number, flags, questions, _, _, _ = _HEAD.unpack_from(data)
    bare = Query(number, flags, "", 0, b"")
    if flags & _RESPONSE:
        raise Malformed(FORMAT_ERROR)
    if flags & _OPCODE:
        raise Malformed(NOT_IMPLEMENTED, bare.answer(NOT_IMPLEMENTED))
    try:
        labels, end = _labels(data, _HEAD.size)
        kind, kind_of_network = struct.unpack_from("!HH", data, end)
        if questions != 1 or kind_of_network != _INTERNET:
            raise ValueError("not one question about the internet")
    except (ValueError, IndexError, struct.error) as error:
        raise Malformed(FORMAT_ERROR, bare.answer(FORMAT_ERROR)) from error
    return Query(number, flags, ".".join(labels), kind, data[_HEAD.size : end + 4])


def _labels(data: bytes, at: int) -> tuple[list[str], int]:
    labels, length = [], 0
    while size := data[at]:
        length += size + 1
        if size > 63 or length > 254:
            raise ValueError("a label or a name is too long, or compressed")
        label = data[at + 1 : at + 1 + size]
        if len(label) < size:
            raise ValueError("a label is cut short")
        # A dot or another odd byte within a label must not look like two labels.
        labels.append(label.decode("latin-1") if b"." not in label else "?")
        at += size + 1
    return labels, at + 1
