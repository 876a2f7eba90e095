"""What a stream's WebSocket is made of (RFC 6455): the handshake, the frames that we write, and just as much of what comes.

The client of a stream says nothing but control frames. What else it sends is passed over without being kept.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ship.ports.bus import Notice

TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA
_DATA = frozenset({0x0, 0x1, 0x2})
_FINAL, _RESERVED, _MASKED = 0x80, 0x70, 0x80
CONTROL_BYTES = 125
PROTOCOL_ERROR, NO_STATUS = 1002, 1005
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def accept(headers: Mapping[str, str]) -> bytes | None:
    """The answer to a handshake; None when it is not one of version 13."""
    key = headers.get("sec-websocket-key", "")
    if headers.get("sec-websocket-version") != "13" or len(key) != 24:
        return None
    accepted = base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %s\r\n\r\n" % accepted
    )


def _head(opcode: int, size: int) -> bytes:
    first = _FINAL | opcode
    if size <= CONTROL_BYTES:
        return bytes((first, size))
    if size < 1 << 16:
        return b"%c\x7e%b" % (first, size.to_bytes(2, "big"))
    return b"%c\x7f%b" % (first, size.to_bytes(8, "big"))


_SHORT = [_head(TEXT, size) for size in range(2048)]
"""The heads of most texts, made once."""


def texts(notices: Sequence[Notice]) -> bytes:
    """Each body as a text message, all in one piece."""
    parts = []
    for _, _, body in notices:
        size = len(body)
        parts.append(_SHORT[size] if size < 2048 else _head(TEXT, size))
        parts.append(body)
    return b"".join(parts)


def control(opcode: int, payload: bytes = b"") -> bytes:
    """A control frame."""
    return _head(opcode, len(payload)) + payload


def closing(code: int, reason: str) -> bytes:
    """A close frame."""
    return control(CLOSE, code.to_bytes(2, "big") + reason.encode()[: CONTROL_BYTES - 2])


class Malformed(Exception):
    """Not a client's frame."""


class Control(NamedTuple):
    """A control frame of the client."""

    opcode: int
    payload: bytes


class ClientFrames:
    """Reads the client's control frames and passes over all else. Keeps no more than one frame's head or one control frame."""

    __slots__ = ("_kept", "_skip")

    def __init__(self) -> None:
        self._kept = b""
        self._skip = 0

    def read(self, data: bytes) -> Iterator[Control]:
        """The control frames that are whole now.

        Raises:
            Malformed: what came is not a frame that a client may send.
        """
        data = self._kept + data
        self._kept = b""
        while data:
            if self._skip:
                passed = min(self._skip, len(data))
                self._skip -= passed
                data = data[passed:]
                continue
            size = _size(data)
            if size is None or len(data) < size.head:
                break
            if size.opcode in _DATA:
                self._skip = size.payload
                data = data[size.head :]
                continue
            end = size.head + size.payload
            if len(data) < end:
                break
            mask = data[size.head - 4 : size.head] * (size.payload // 4 + 1)
            yield Control(
                size.opcode, bytes(a ^ b for a, b in zip(data[size.head : end], mask, strict=False))
            )
            data = data[end:]
        self._kept = data


class _Size(NamedTuple):
    opcode: int
    head: int
    payload: int


def _size(data: bytes) -> _Size | None:
    """What the frame at the beginning is; None while its head is not whole."""
    if len(data) < 2:
        return None
    opcode, length = data[0] & 0x0F, data[1] & 0x7F
    is_control = opcode in (CLOSE, PING, PONG)
    if data[0] & _RESERVED or not data[1] & _MASKED or not (is_control or opcode in _DATA):
        raise Malformed(f"a frame of kind {data[0]:#x} {data[1]:#x}")
    if is_control and (length > CONTROL_BYTES or not data[0] & _FINAL):
        raise Malformed("a control frame in pieces, or a long one")
    more = {126: 2, 127: 8}.get(length, 0)
    if len(data) < 2 + more:
        return None
    payload = int.from_bytes(data[2 : 2 + more], "big") if more else length
    return _Size(opcode, 2 + more + 4, payload)
