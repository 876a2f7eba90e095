"""What a process has written: kept in a bounded memory, read by any number of subscribers from its start."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

KEPT_BYTES = 4 * 1024 * 1024
LAG_BYTES = KEPT_BYTES // 2
JOINED_BYTES = 64 * 1024
PIECE_BYTES = 200
"""What a piece takes of the memory besides its bytes."""

Piece = tuple[str, bytes]


class Output:
    """The pieces (`stdout`, `stderr` or `pty`, bytes) of one process.

    Pieces older than the last 4 MiB are dropped, so a command that nobody watches runs on in bounded memory. While a
    subscriber is more than 2 MiB behind, `congested` is true and the process is not read from: what is being watched
    is never dropped under the watcher. What comes bit by bit is joined into larger pieces.
    """

    def __init__(self) -> None:
        self._pieces: deque[tuple[str, bytearray]] = deque()
        self._first = 0
        self._dropped_bytes = 0
        self._total_bytes = 0
        self._subscribers: list[Subscriber] = []
        self.closed = False
        self.on_relief: Callable[[], None] = lambda: None

    @property
    def kept_bytes(self) -> int:
        """The memory that it takes."""
        return self._total_bytes - self._dropped_bytes

    @property
    def congested(self) -> bool:
        return any(self._total_bytes - subscriber.read_bytes > LAG_BYTES for subscriber in self._subscribers)

    def append(self, kind: str, data: bytes) -> None:
        last_kind, last = self._pieces[-1] if self._pieces else ("", bytearray())
        if kind == last_kind and len(last) + len(data) <= JOINED_BYTES:
            last += data
        else:
            self._pieces.append((kind, bytearray(data)))
            self._total_bytes += PIECE_BYTES
        self._total_bytes += len(data)
        while self.kept_bytes > KEPT_BYTES:
            self._dropped_bytes += PIECE_BYTES + len(self._pieces.popleft()[1])
            self._first += 1
        self._wake()

    def close(self) -> None:
        self.closed = True
        self._wake()

    def subscribe(self) -> Subscriber:
        subscriber = Subscriber(self, self._first, self._dropped_bytes)
        self._subscribers.append(subscriber)
        return subscriber

    def _wake(self) -> None:
        for subscriber in self._subscribers:
            subscriber.changed.set()

    def rest(self, index: int, start: int) -> tuple[int, int, Piece | None]:
        """What is kept of the piece at `index` from `start` on, or else of the next one, if there is one; with its index and
        start."""
        if index < self._first:
            index, start = self._first, 0
        position = index - self._first
        if position + 1 < len(self._pieces) and start == len(self._pieces[position][1]):
            index, position, start = index + 1, position + 1, 0
        if position == len(self._pieces) or start == len(self._pieces[position][1]):
            return index, start, None
        kind, data = self._pieces[position]
        return index, start, (kind, bytes(data[start:]))

    def leave(self, subscriber: Subscriber) -> None:
        self._subscribers.remove(subscriber)
        self.on_relief()


class Subscriber:
    """A reader's place in an Output; close it when done."""

    def __init__(self, output: Output, index: int, read_bytes: int) -> None:
        self._output = output
        self._index, self._start = index, 0
        self.read_bytes = read_bytes
        self.changed = asyncio.Event()

    async def next(self, timeout_s: float) -> Piece | None:
        """The next piece; None when the output is over. Raises asyncio.TimeoutError when nothing comes in time."""
        while True:
            self._index, self._start, piece = self._output.rest(self._index, self._start)
            if piece is not None:
                self.read_bytes += len(piece[1]) + (0 if self._start else PIECE_BYTES)
                self._start += len(piece[1])
                self._output.on_relief()
                return piece
            if self._output.closed:
                return None
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), timeout_s)

    def close(self) -> None:
        self._output.leave(self)
