"""A whole Ship in one file, whatever store it is in: rows and blobs, in order, compressed, with a checksum over all of it.
As it holds the key that session tokens are signed with, only its owner may read it.

The file is a gzip stream of msgpack values, each behind its length and its CRC-32 in four bytes each: a ``Header``, ``Page`` of every row, then each blob
as ``Piece`` after ``Piece``, then ``End``. What lacks its end, or has another checksum, is refused; nothing of it is kept then.
"""

import asyncio
import errno
import struct
import zlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import msgspec

from ship.errors import InvalidInput, NotFound
from ship.ports.blobs import BlobStore
from ship.ports.store import Page, Store
from ship.sessions.packing import NAMED_BLOB, named_in_pack
from ship.store.tables import TABLES

FORMAT = "ship-export-1"
LARGEST_BLOB_BYTES = 1 << 50
READ_BYTES = 1 << 20
LARGEST_VALUE_BYTES = 1 << 30
ROWS_BYTES = 1 << 26
"""Rows are written together until they have so much."""
_FRAME = struct.Struct(">II")

Row = tuple[Any, ...]
Progress = Callable[[str, int], None]
"""Is told after each page: of what, and how many so far."""


class Header(msgspec.Struct, tag="header", array_like=True):
    """The first value."""

    format: str


class Rows(msgspec.Struct, tag="rows", array_like=True):
    """Some rows of one table, as ``ship.store.tables`` names their columns."""

    table: str
    rows: list[Row]


class Piece(msgspec.Struct, tag="piece", array_like=True):
    """The next bytes of a blob; the last one is empty."""

    sha256: str
    body: bytes


class End(msgspec.Struct, tag="end", array_like=True):
    """The last value. ``checksum`` is the SHA-256 of all before it, in hex."""

    counts: dict[str, int]
    checksum: str


_decoder = msgspec.msgpack.Decoder(Header | Rows | Piece | End)


async def export(store: Store, blobs: BlobStore, file: Path, progress: Progress) -> Counter[str]:
    """Write everything into the file, which appears when it is complete. Returns how many rows of which table, ``blobs`` and
    ``missing blobs``: those that are named in a log, and are not there.

    Raises:
        OSError: the file cannot be written, or is a device, a pipe or a folder, which would be replaced.
    """
    file = _ordinary(file)
    aside = file.with_name(file.name + ".partial")
    aside.unlink(missing_ok=True)
    try:
        aside.touch(0o600, exist_ok=False)
        with aside.open("wb") as out:
            counts = await _write(_Writer(out), store, blobs, progress)
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)
    return counts


async def import_(file: Path, store: Store, blobs: BlobStore, progress: Progress) -> Counter[str]:
    """Take everything out of the file into an empty store. Returns what ``export`` returned.

    Raises:
        Conflict: ``store_not_empty``.
        InvalidInput: ``export_damaged``, ``export_unknown``.
        OSError: the file cannot be read.
    """
    counts: Counter[str] = Counter()
    with file.open("rb") as source:
        await store.fill(_pages(_Reader(source), blobs, counts, progress))
    return counts


async def copy(source: Store, target: Store, progress: Progress) -> Counter[str]:
    """Everything of a store into an empty one. Raises Conflict (``store_not_empty``)."""
    counts: Counter[str] = Counter()

    async def pages() -> AsyncGenerator[Page, None]:
        async for page in source.dump():
            yield page
            _count(counts, page.table, len(page.rows), progress)

    await target.fill(pages())
    return counts


def _ordinary(file: Path) -> Path:
    """The file itself: a link to it stays."""
    if file.exists() and not file.is_file():
        raise FileExistsError(errno.EEXIST, "it is there already, and not a file")
    return file.resolve()


async def _write(out: "_Writer", store: Store, blobs: BlobStore, progress: Progress) -> Counter[str]:
    counts: Counter[str] = Counter()
    named: set[bytes] = set()
    await out.put(Header(FORMAT))
    async for table, rows in store.dump():
        for some in _portions(rows):
            await out.put(Rows(table, some))
        if table == "packed":
            for _, _, digest, pages in rows:
                named.update(map(bytes.fromhex, (str(digest), *named_in_pack(pages))))
        for row in rows:
            named.update(
                bytes.fromhex(found.decode())
                for body in row
                if isinstance(body, bytes)
                for found in NAMED_BLOB.findall(body)
            )
        _count(counts, table, len(rows), progress)
    for digest in sorted(named):
        try:
            async for body in blobs.get(digest.hex()):
                await out.put(Piece(digest.hex(), body))
        except NotFound:
            _count(counts, "missing blobs", 1, progress)
            continue
        await out.put(Piece(digest.hex(), b""))
        _count(counts, "blobs", 1, progress)
    await out.end(counts)
    return counts


def _portions(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """The rows, as many at a time as a value may hold."""
    some: list[Row] = []
    size = 0
    for row in rows:
        row_size = sum(len(body) for body in row if isinstance(body, bytes | str))
        if some and size + row_size > ROWS_BYTES:
            yield some
            some, size = [], 0
        some.append(row)
        size += row_size
    if some:
        yield some


async def _pages(
    values: "_Reader", blobs: BlobStore, counts: Counter[str], progress: Progress
) -> AsyncGenerator[Page, None]:
    """The rows of the file; the blobs are stored on the way. Raises before its end when the file is not whole."""
    first = await values.take()
    if not isinstance(first, Header) or first.format != FORMAT:
        raise InvalidInput("this is no export that this Ship knows", code="export_unknown")
    checksum = values.checksum
    while not isinstance(value := await values.take(), End):
        match value:
            case Rows(table, rows) if table in TABLES:
                yield Page(table, rows)
                _count(counts, table, len(rows), progress)
            case Piece(sha256=digest):
                stored = await blobs.put(_body(values, value), LARGEST_BLOB_BYTES)
                if stored.sha256 != digest:
                    raise _damaged(f"blob {digest} has other bytes")
                _count(counts, "blobs", 1, progress)
            case _:
                raise InvalidInput("this export holds what this Ship does not know", code="export_unknown")
        checksum = values.checksum
    if value.checksum != checksum or any(
        value.counts.get(name, 0) != count for name, count in counts.items()
    ):
        raise _damaged("its checksum is wrong")
    counts.update({name: count for name, count in value.counts.items() if name not in counts})


async def _body(values: "_Reader", first: Piece) -> AsyncIterator[bytes]:
    piece: Any = first
    while piece.body:
        yield piece.body
        piece = await values.take()
        if not isinstance(piece, Piece) or piece.sha256 != first.sha256:
            raise _damaged(f"blob {first.sha256} has no end")


class _Writer:
    """Values, compressed."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._packer = zlib.compressobj(1, wbits=31)
        self._digest = sha256()

    async def put(self, value: msgspec.Struct) -> None:
        await asyncio.to_thread(self._put, value)

    async def end(self, counts: Counter[str]) -> None:
        await self.put(End(dict(counts), self._digest.hexdigest()))
        self._out.write(self._packer.flush())
        self._out.flush()

    def _put(self, value: msgspec.Struct) -> None:
        body = msgspec.msgpack.encode(value)
        framed = _FRAME.pack(len(body), zlib.crc32(body)) + body
        self._digest.update(framed)
        self._out.write(self._packer.compress(framed))


class _Reader:
    """Values out of a compressed file; ``checksum`` is that of all that were taken."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._unpacker = zlib.decompressobj(wbits=31)
        self._ahead = bytearray()
        self._digest = sha256()

    @property
    def checksum(self) -> str:
        return self._digest.hexdigest()

    async def take(self) -> Header | Rows | Piece | End:
        return await asyncio.to_thread(self._take)

    def _take(self) -> Header | Rows | Piece | End:
        try:
            frame = self._read(_FRAME.size)
            length, checksum = _FRAME.unpack(frame)
            if length > LARGEST_VALUE_BYTES:
                raise _damaged("a value is too large")
            body = self._read(length)
            if zlib.crc32(body) != checksum:
                raise _damaged("the checksum of a value is wrong")
            self._digest.update(frame + body)
            value: Header | Rows | Piece | End = _decoder.decode(body)
        except (zlib.error, msgspec.MsgspecError) as error:
            raise _damaged(str(error)) from error
        return value

    def _read(self, size: int) -> bytes:
        while len(self._ahead) < size:
            packed = self._unpacker.unconsumed_tail or self._source.read(READ_BYTES)
            if not packed:
                raise _damaged("it ends too early")
            self._ahead += self._unpacker.decompress(packed, READ_BYTES)
        taken = bytes(self._ahead[:size])
        del self._ahead[:size]
        return taken


def _count(counts: Counter[str], name: str, more: int, progress: Progress) -> None:
    counts[name] += more
    progress(name, counts[name])


def _damaged(why: str) -> InvalidInput:
    return InvalidInput(f"the export is damaged: {why}", code="export_damaged", hint="Make another one.")
