"""Whole logs, wherever they are: in the store's rows, or packed into a blob when their session is long over.

A packed log is a row of frames, each a compressed page of events or messages. ``Pages`` says where each frame lies, and what is in it, so
that a page is read without the rest. A frame is packed by zlib: it is in every Python, takes logs to a tenth, and unpacks a frame in
a millisecond, which is less than the blob's way takes.
"""

import asyncio
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import msgspec

from ship.errors import Unavailable
from ship.model import Value
from ship.ports.blobs import BlobStore
from ship.ports.store import PAGE_BYTES, Packed

FRAMES_KEPT = 8

Entry = tuple[int, str, bytes]
"""seq, type (empty for a message), body."""


class Frame(Value, frozen=True, array_like=True):
    """Some neighbouring entries: from which seq to which, where, and of which types."""

    first_seq: int
    last_seq: int
    offset: int
    size_bytes: int
    types: tuple[str, ...]


class Pages(Value, frozen=True, array_like=True):
    """What lies where in a packed log. ``blobs`` are those that its events name, by their digests."""

    events: tuple[Frame, ...]
    messages: tuple[Frame, ...]
    blobs: tuple[str, ...]


class LogRows(Protocol):
    """What is read of a store here."""

    async def events(
        self, session_id: str, after: int, limit: int, types: Sequence[str] = (), up_to: int | None = None
    ) -> list[tuple[int, bytes]]:
        """As ``LogStore`` says."""
        ...

    async def messages(self, session_id: str, before: int | None, limit: int) -> list[tuple[int, bytes]]:
        """As ``LogStore`` says."""
        ...

    async def packed(self, session_id: str) -> Packed | None:
        """As ``LogStore`` says."""
        ...


class Logs:
    """Reads what ``LogStore`` has or had. The rows are asked first: a log leaves them at once and for good."""

    def __init__(self, store: LogRows, blobs: BlobStore | None) -> None:
        self._store = store
        self._blobs = blobs
        self._frames: OrderedDict[tuple[str, int], list[Entry]] = OrderedDict()

    async def events(
        self, session_id: str, after: int, limit: int, types: Sequence[str] = (), up_to: int | None = None
    ) -> list[tuple[int, bytes]]:
        """As ``LogStore.events``.

        Raises:
            NotFound: ``blob_not_found``: the blob of a packed log has been lost.
        """
        rows = await self._store.events(session_id, after, limit, types, up_to)
        if rows or (packed := await self._store.packed(session_id)) is None:
            return rows
        wanted = frozenset(types)
        found: list[tuple[int, bytes]] = []
        for frame in unpacked_pages(packed).events:
            if len(found) >= limit or (up_to is not None and frame.first_seq > up_to):
                break
            if frame.last_seq <= after or (wanted and wanted.isdisjoint(frame.types)):
                continue
            found += [
                (seq, body)
                for seq, kind, body in await self._read(packed.sha256, frame)
                if seq > after and (up_to is None or seq <= up_to) and (not wanted or kind in wanted)
            ]
            if len(page := _page(found)) < len(found):
                found = page
                break
        return found[:limit]

    async def messages(self, session_id: str, before: int | None, limit: int) -> list[tuple[int, bytes]]:
        """As ``LogStore.messages``. Raises as ``events``."""
        rows = await self._store.messages(session_id, before, limit)
        if rows or (packed := await self._store.packed(session_id)) is None:
            return rows
        found: list[tuple[int, bytes]] = []
        for frame in reversed(unpacked_pages(packed).messages):
            if len(found) >= limit:
                break
            if before is None or frame.first_seq < before:
                entries = await self._read(packed.sha256, frame)
                found[:0] = [(seq, body) for seq, _, body in entries if before is None or seq < before]
                if len(page := _page(found[::-1])[::-1]) < len(found):
                    found = page
                    break
        return found[-limit:]

    async def _read(self, sha256: str, frame: Frame) -> list[Entry]:
        place = (sha256, frame.offset)
        if place not in self._frames:
            if self._blobs is None:
                raise Unavailable(
                    "this log is in a blob, and there is no store of blobs", code="blobs_unavailable"
                )
            body = await self._blobs.read(sha256, frame.offset, frame.size_bytes)
            self._frames[place] = await asyncio.to_thread(unpacked_frame, body)
            if len(self._frames) > FRAMES_KEPT:
                self._frames.popitem(last=False)
        entries = self._frames[place]
        self._frames.move_to_end(place)
        return entries


def _page(found: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """As many of these as a page of the store would have."""
    room = PAGE_BYTES
    for place, (_, body) in enumerate(found, start=1):
        room -= len(body)
        if room <= 0:
            return found[:place]
    return found


def packed_frame(entries: Sequence[Entry]) -> bytes:
    """A page, compressed; the same entries give the same bytes."""
    return zlib.compress(msgspec.msgpack.encode(entries), 6)


def unpacked_frame(body: bytes) -> list[Entry]:
    """What ``packed_frame`` was given."""
    return msgspec.msgpack.decode(zlib.decompress(body), type=list[Entry])


def unpacked_pages(packed: Packed) -> Pages:
    """What lies where."""
    return msgspec.msgpack.decode(packed.pages, type=Pages)
