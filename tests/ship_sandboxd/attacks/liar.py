"""A daemon that lies, in every way that is defined here. Run as `python3 liar.py FOLDER`: it listens on FOLDER/NAME for each lie,
and says so by one line once it does."""

import contextlib
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

Lie = Iterator[bytes]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/connect+json\r\n"
CHUNKS = OK + b"Transfer-Encoding: chunked\r\n\r\n"
LIES: dict[str, Callable[[], Lie]] = {}


def lie(function: Callable[[], Lie]) -> Callable[[], Lie]:
    LIES[function.__name__] = function
    return function


def message(data: bytes) -> bytes:
    return struct.pack(">BI", 0, len(data)) + data


def without_end(piece: bytes) -> Lie:
    while True:
        yield piece


def wait() -> Lie:
    threading.Event().wait()
    yield b""


@lie
def silence() -> Lie:
    yield from wait()


@lie
def one_byte_a_minute() -> Lie:
    yield b"H"
    yield from wait()


@lie
def endless_head() -> Lie:
    yield b"HTTP/1.1 200 OK\r\n"
    yield from without_end(b"X-Field: value\r\n" * 4096)


@lie
def endless_interim_answers() -> Lie:
    yield from without_end(b"HTTP/1.1 102 Processing\r\n\r\n" * 4096)


@lie
def endless_body() -> Lie:
    yield OK + b"\r\n"
    yield from without_end(b"x" * 65536)


@lie
def another_type() -> Lie:
    yield b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 12\r\n\r\n<html>\xff\xfe\x00\x01\x02\r"


@lie
def no_http() -> Lie:
    yield b"SSH-2.0-OpenSSH_9.2\r\n\r\n"


@lie
def huge_message() -> Lie:
    yield OK + b"\r\n" + message(b'{"event": {"data": {"stdout": "' + b"A" * (64 << 20) + b'"}}}')


@lie
def wide_messages() -> Lie:
    yield OK + b"\r\n"
    yield from without_end(message(b'{"event": {"x": [' + b"{}," * 400_000 + b"{}]}}"))


@lie
def deep_message() -> Lie:
    yield OK + b"\r\n" + message(b"[" * 100_000 + b"]" * 100_000)


@lie
def message_of_4_gib() -> Lie:
    yield OK + b"\r\n" + struct.pack(">BI", 0, 0xFFFFFFFF)
    yield from without_end(b"x" * 65536)


@lie
def cut_in_a_message() -> Lie:
    yield OK + b"\r\n" + struct.pack(">BI", 0, 100) + b'{"event"'


@lie
def cut_in_a_chunk() -> Lie:
    yield CHUNKS + b"ff\r\nx"


@lie
def flood_of_messages() -> Lie:
    yield OK + b"\r\n"
    yield from without_end(message(b"{}") * 8192)


@lie
def flood_of_chunks() -> Lie:
    yield CHUNKS
    yield from without_end(b"1\r\n\0\r\n" * 8192)


@lie
def flood_of_output() -> Lie:
    yield OK + b"\r\n"
    yield from without_end(message(b'{"event": {"data": {"stdout": "Cg=="}}}') * 2048)


@lie
def endless_trailers() -> Lie:
    yield CHUNKS + b"0\r\n"
    yield from without_end(b"X: y\r\n" * 8192)


def serve(listener: socket.socket, said: Callable[[], Lie]) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection, said), daemon=True).start()


def answer(connection: socket.socket, said: Callable[[], Lie]) -> None:
    with contextlib.suppress(OSError), connection:
        connection.recv(1)
        for piece in said():
            connection.sendall(piece)


def main() -> None:
    for name, said in LIES.items():
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(Path(sys.argv[1], name)))
        listener.listen()
        threading.Thread(target=serve, args=(listener, said), daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
