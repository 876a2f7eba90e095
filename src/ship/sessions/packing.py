"""Packs the log of a session that is over into one blob, and lets its rows go.

First the blob is durable and read back, then one transaction changes the rows for it. Whoever dies before leaves a blob that the next
try finds, for the same log packs to the same bytes; whoever dies after has nothing left to do.
"""

import re
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Any

import msgspec

from ship.errors import Unavailable
from ship.ports.blobs import BlobStore
from ship.ports.store import LogStore, Packed, Snapshot
from ship.sessions.logs import Entry, Frame, Pages, packed_frame, unpacked_frame

FRAME = 500
FRAME_BYTES = 4 * 1024**2
LARGEST_LOG_BYTES = 1 << 40
NAMED_BLOB = re.compile(rb'"(?:[a-z0-9_]*sha256":"|upload:)([0-9a-f]{64})"')
"""How an event names a blob, or the uploaded repository that is kept as one."""


async def pack(store: LogStore, blobs: BlobStore, session_id: str, snapshot: Snapshot) -> None:
    """Pack the whole log, which ends where the snapshot was taken; done before, nothing happens.

    Raises:
        HeadMoved: the log does not end there.
        Unavailable: the store or the blobs do not work; the rows stay.
    """
    if await store.packed(session_id) is not None:
        return
    packing = _Packing(store, session_id)
    stored = await blobs.put(packing.pieces(), LARGEST_LOG_BYTES)
    pages = packing.pages()
    await _read_back(blobs, stored.sha256, pages, packing.digest())
    await store.pack(session_id, Packed(snapshot.seq, stored.sha256, msgspec.msgpack.encode(pages)), snapshot)


def named_in_pack(pages: Any) -> tuple[str, ...]:
    """The digests of the blobs that the events of a packed log name. ``pages`` is that of ``Packed``."""
    return msgspec.msgpack.decode(pages, type=Pages).blobs


class _Packing:
    """The frames of a log while they are made."""

    def __init__(self, store: LogStore, session_id: str) -> None:
        self._store = store
        self._session_id = session_id
        self._events: list[Frame] = []
        self._messages: list[Frame] = []
        self._named: set[str] = set()
        self._offset = 0
        self._digest = sha256()

    async def pieces(self) -> AsyncIterator[bytes]:
        async for entries in self._event_pages():
            self._named.update(found.decode() for _, _, body in entries for found in NAMED_BLOB.findall(body))
            yield self._frame(entries, self._events)
        async for entries in self._message_pages():
            yield self._frame(entries, self._messages)

    def pages(self) -> Pages:
        return Pages(tuple(self._events), tuple(self._messages), tuple(sorted(self._named)))

    def digest(self) -> str:
        """Of all entries, in order."""
        return self._digest.hexdigest()

    async def _event_pages(self) -> AsyncIterator[list[Entry]]:
        """Each with its types, which the rows are asked for by the records themselves."""
        after = 0
        while rows := await self._store.events(self._session_id, after, FRAME):
            after = rows[-1][0]
            for entries in _bounded([(seq, _type(body), body) for seq, body in rows]):
                yield entries

    async def _message_pages(self) -> AsyncIterator[list[Entry]]:
        pages: list[list[int]] = []
        before: int | None = None
        while rows := await self._store.messages(self._session_id, before, FRAME):
            before = rows[0][0]
            pages.append([rows[0][0], rows[-1][0]])
        for _, last in reversed(pages):
            rows = await self._store.messages(self._session_id, last + 1, FRAME)
            for entries in _bounded([(seq, "", body) for seq, body in rows]):
                yield entries

    def _frame(self, entries: list[Entry], frames: list[Frame]) -> bytes:
        body = packed_frame(entries)
        types = tuple(sorted({kind for _, kind, _ in entries}))
        frames.append(Frame(entries[0][0], entries[-1][0], self._offset, len(body), types))
        self._offset += len(body)
        for entry in entries:
            self._digest.update(repr(entry).encode())
        return body


def _bounded(entries: list[Entry]) -> list[list[Entry]]:
    """Cut where a frame would become too large to be unpacked in passing."""
    cut: list[list[Entry]] = [[]]
    size_bytes = 0
    for entry in entries:
        size_bytes += len(entry[2])
        if size_bytes > FRAME_BYTES and cut[-1]:
            cut.append([])
            size_bytes = len(entry[2])
        cut[-1].append(entry)
    return [part for part in cut if part]


def _type(body: bytes) -> str:
    return msgspec.json.decode(body, type=_Typed).type


class _Typed(msgspec.Struct):
    type: str


async def _read_back(blobs: BlobStore, digest_of_blob: str, pages: Pages, digest: str) -> None:
    """The rows are the only other copy: they go when this one has been read."""
    found, expected_seq = sha256(), 1
    for frame in (*pages.events, *pages.messages):
        entries = unpacked_frame(await blobs.read(digest_of_blob, frame.offset, frame.size_bytes))
        for entry in entries:
            found.update(repr(entry).encode())
    for frame in pages.events:
        if frame.first_seq != expected_seq:
            raise Unavailable("the log has a gap", code="log_damaged")
        expected_seq = frame.last_seq + 1
    if found.hexdigest() != digest:
        raise Unavailable("the packed log reads other than it was written", code="blobs_unavailable")
