"""Blobs in a folder: one file each, by digest, written aside and moved into place."""

import asyncio
import errno
import hashlib
import os
import re
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

from ship.errors import NotFound, TooLarge, Unavailable
from ship.ports.blobs import StoredBlob

PIECE_BYTES = 1 << 20


class FolderBlobs:
    """A ``BlobStore`` below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def put(self, pieces: AsyncIterator[bytes], limit_bytes: int) -> StoredBlob:
        """As the port says."""
        digest = hashlib.sha256()
        size_bytes = 0
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".incoming-", delete=False) as file:
            try:
                async for piece in pieces:
                    size_bytes += len(piece)
                    if size_bytes > limit_bytes:
                        raise TooLarge(f"more than {limit_bytes} bytes", code="blob_too_large")
                    digest.update(piece)
                    await asyncio.to_thread(file.write, piece)
                await asyncio.to_thread(self._settle, file, digest.hexdigest())
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                raise Unavailable(
                    f"the blob could not be stored: {error.strerror}",
                    code="disk_full" if full else "blobs_unavailable",
                    hint="Free some space on the disk of the data folder." if full else "",
                ) from error
            finally:
                await asyncio.to_thread(Path(file.name).unlink, missing_ok=True)
        return StoredBlob(digest.hexdigest(), size_bytes)

    async def read(self, sha256: str, offset: int, size: int) -> bytes:
        """As the port says."""
        with self._open(sha256) as file:
            return await asyncio.to_thread(os.pread, file.fileno(), size, offset)

    async def get(self, sha256: str) -> AsyncIterator[bytes]:
        """As the port says."""
        with self._open(sha256) as file:
            while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
                yield piece

    def _open(self, sha256: str) -> IO[bytes]:
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise NotFound("no such blob", code="blob_not_found")
        try:
            return self._path(sha256).open("rb")
        except FileNotFoundError as error:
            raise NotFound("no such blob", code="blob_not_found") from error

    def _path(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / sha256

    def _settle(self, file: IO[bytes], sha256: str) -> None:
        file.flush()
        os.fsync(file.fileno())
        target = self._path(sha256)
        target.parent.mkdir(exist_ok=True, mode=0o700)
        Path(file.name).replace(target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
