"""Cheap clients for measurements: HTTP in a closed loop or at a fixed rate, and thousands of WebSockets, on one epoll each.

They run in processes of their own, on the cores that are not the server's, and know just enough of HTTP and of WebSockets to count,
to time and to check what comes: a client that did more would measure itself.
"""

import contextlib
import itertools
import json
import math
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import NamedTuple

RECEIVE_BYTES = 1 << 18
DEADLINE_S = 60.0
TEXT = 0x81
"""A WebSocket's frame that holds a whole text; pings and closes are passed over."""
POSTED = b'"type":"message.posted"'


class Target(NamedTuple):
    """The ports of equal servers, which many clients take in turn, and the token that they know."""

    ports: tuple[int, ...]
    token: str

    def request(self, method: str, path: str, body: bytes = b"", key: str = "") -> bytes:
        """One HTTP request."""
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {self.token}\r\n"
        if key:
            head += f"Idempotency-Key: {key}\r\n"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return head.encode() + b"\r\n" + body

    def note(self, session_id: str, text: str, key: str) -> bytes:
        """A request that posts a message."""
        body = b'{"text":"%s"}' % text.encode()
        return self.request("POST", f"/api/v1/sessions/{session_id}/messages", body, key)

    def follow(self, session_id: str, after: int) -> bytes:
        """A WebSocket's handshake."""
        return (
            f"GET /api/v1/sessions/{session_id}/events/ws?after={after} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Authorization: Bearer {self.token}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ).encode()


@dataclass
class Load:
    """What a client saw: one latency for each answer, and its own share of a core."""

    latencies_ms: list[float] = field(default_factory=list)
    took_s: float = 0.0
    cpu_share: float = 0.0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies_ms) / self.took_s


@contextlib.contextmanager
def timed(load: Load) -> Iterator[None]:
    """Fills in how long it took, and the processor's time in it."""
    began, used = time.perf_counter(), time.process_time()
    yield
    load.took_s = time.perf_counter() - began
    load.cpu_share = (time.process_time() - used) / load.took_s


def connected(port: int) -> socket.socket:
    """A connection that sends at once."""
    made = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def ask(target: Target, request: bytes) -> tuple[int, bytes]:
    """One request on a connection of its own: (status, body)."""
    with connected(target.ports[0]) as made:
        made.sendall(request)
        answer = b""
        while (found := _answer(answer)) is None:
            piece = made.recv(RECEIVE_BYTES)
            if not piece:
                raise ConnectionError("the server closed the connection")
            answer += piece
        return found


def _answer(data: bytes) -> tuple[int, bytes] | None:
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    at = data.lower().find(b"content-length:", 0, end)
    length = int(data[at + 15 : data.find(b"\r\n", at)])
    body = data[end + 4 :]
    return (int(data[9:12]), body) if len(body) >= length else None


def closed_loop(target: Target, plans: Sequence[Iterator[bytes]], seconds: float = math.inf) -> Load:
    """One connection for each plan: its next request goes out when the answer to the last has come, until the time is over or the plan
    ends. Ends early when the server goes away.
    """
    load, waiting = Load(), select.epoll()
    open_: dict[int, tuple[socket.socket, Iterator[bytes]]] = {}
    received: dict[int, bytes] = {}
    sent_at: dict[int, float] = {}
    clock, latencies = time.perf_counter, load.latencies_ms
    with timed(load), contextlib.suppress(ConnectionError):
        ends = clock() + seconds

        def go_on(number: int) -> None:
            made, plan = open_[number]
            request = next(plan, None) if clock() < ends else None
            if request is None:
                del open_[number]
                made.close()
                return
            received[number] = b""
            sent_at[number] = clock()
            made.sendall(request)

        for plan, port in zip(plans, itertools.cycle(target.ports)):
            made = connected(port)
            open_[made.fileno()] = (made, plan)
            waiting.register(made.fileno(), select.EPOLLIN)
        for number in list(open_):
            go_on(number)
        while open_:
            for number, _ in waiting.poll(DEADLINE_S):
                piece = open_[number][0].recv(RECEIVE_BYTES)
                if not piece:
                    raise ConnectionResetError("the server went away")
                received[number] += piece
                if (found := _answer(received[number])) is None:
                    continue
                assert found[0] in (200, 201, 202), found
                latencies.append((clock() - sent_at[number]) * 1000)
                go_on(number)
    for made, _ in open_.values():
        made.close()
    return load


def at_rate(target: Target, session_id: str, rate: float, seconds: float, key: str) -> tuple[Load, int]:
    """Notes at a fixed rate, each with the moment at which it was due as its text; (load, the last one's seq)."""
    load, last = Load(), 0
    with timed(load), connected(target.ports[0]) as made:
        began = time.monotonic_ns()
        for number in range(int(rate * seconds)):
            due = began + int(number / rate * 1e9)
            time.sleep(max(0.0, (due - time.monotonic_ns()) / 1e9))
            made.sendall(target.note(session_id, str(due), f"{key}-{number}"))
            answer = b""
            while (found := _answer(answer)) is None:
                answer += made.recv(RECEIVE_BYTES)
            assert found[0] == 201, found
            last = json.loads(found[1])["seq"]
            load.latencies_ms.append((time.monotonic_ns() - due) / 1e6)
    return load, last


class Socket:
    """One WebSocket of ours: what it has seen."""

    __slots__ = ("after", "buffer", "live", "made", "missed", "posted", "repeated", "session_id", "upgraded")

    def __init__(self, session_id: str, after: int) -> None:
        self.session_id = session_id
        self.after = after
        self.buffer = b""
        self.upgraded = self.live = False
        self.posted = self.missed = self.repeated = 0
        self.made: socket.socket


class Listeners:
    """Many WebSockets on one epoll. ``count`` only counts, otherwise each record's seq is checked and its age taken."""

    def __init__(self, target: Target, session_ids: list[str], after: int, *, count: bool = False) -> None:
        self._target = target
        self._waiting = select.epoll()
        self._by_number: dict[int, Socket] = {}
        self._read = self._count if count else self._check
        self.sockets = [Socket(session_id, after) for session_id in session_ids]
        self.ages_ms: list[float] = []

    def connect(self) -> float:
        """All at once; returns the seconds until each one is live."""
        began = time.perf_counter()
        ports = itertools.cycle(self._target.ports)
        for number, socket_ in enumerate(self.sockets):
            made = socket.socket()
            made.setblocking(False)
            made.connect_ex(("127.0.0.1", next(ports)))
            socket_.made, socket_.buffer = made, b""
            socket_.upgraded = socket_.live = False
            self._by_number[made.fileno()] = socket_
            self._waiting.register(made.fileno(), select.EPOLLOUT)
            if number % 64 == 63:
                self._turn(0)
        self.until(lambda: all(socket_.live for socket_ in self.sockets))
        return time.perf_counter() - began

    def drop(self) -> None:
        """Every connection, without a word."""
        for socket_ in self.sockets:
            socket_.made.close()
        self._by_number.clear()

    def until(self, over: Callable[[], bool], also: Connection | None = None) -> None:
        """Read until it is over, or something comes on the other connection."""
        deadline = time.monotonic() + DEADLINE_S
        if also is not None:
            self._waiting.register(also.fileno(), select.EPOLLIN)
        while not over():
            if also is not None and also.poll():
                break
            assert time.monotonic() < deadline, "what was waited for did not come"
            self._turn(0.05)
        if also is not None:
            self._waiting.unregister(also.fileno())

    def _turn(self, timeout_s: float) -> None:
        for number, event in self._waiting.poll(timeout_s):
            socket_ = self._by_number.get(number)
            if socket_ is None:
                continue
            if event & select.EPOLLOUT:
                socket_.made.send(self._target.follow(socket_.session_id, socket_.after))
                self._waiting.modify(number, select.EPOLLIN)
                continue
            piece = socket_.made.recv(RECEIVE_BYTES)
            assert piece, "the server closed a WebSocket"
            if not socket_.upgraded:
                piece = socket_.buffer + piece
                head, blank, piece = piece.partition(b"\r\n\r\n")
                if not blank:
                    socket_.buffer = head
                    continue
                assert head.startswith(b"HTTP/1.1 101"), head
                socket_.upgraded, socket_.buffer = True, b""
            self._read(socket_, piece)

    def _count(self, socket_: Socket, piece: bytes) -> None:
        data = socket_.buffer + piece
        socket_.posted += data.count(POSTED)
        if not socket_.live:
            socket_.live = b'{"t":"live"' in data
        socket_.buffer = data[-len(POSTED) + 1 :]

    def _check(self, socket_: Socket, piece: bytes) -> None:
        data = socket_.buffer + piece
        at, size = 0, len(data)
        now = time.monotonic_ns()
        while size - at >= 4:
            length, start = data[at + 1], at + 2
            if length == 126:
                length, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            elif length == 127:
                length, start = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
            if size < start + length:
                break
            if data[at] == TEXT:
                self._frame(socket_, data, start, start + length, now)
            at = start + length
        socket_.buffer = data[at:]

    def _frame(self, socket_: Socket, data: bytes, start: int, end: int, now: int) -> None:
        if data.startswith(b'{"t":', start):
            socket_.live = socket_.live or data.startswith(b'{"t":"live"', start)
            return
        assert data.startswith(b'{"seq":', start), data[start:end]
        seq = int(data[start + 7 : data.index(b",", start)])
        if seq <= socket_.after:
            socket_.repeated += 1
            return
        socket_.missed += seq - socket_.after - 1
        socket_.after = seq
        at = data.find(b'"text":"', start, end)
        if at >= 0:
            socket_.posted += 1
            self.ages_ms.append((now - int(data[at + 8 : data.index(b'"', at + 8)])) / 1e6)


def pin(cores: list[int]) -> None:
    """Keep this process to those cores."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, cores)
