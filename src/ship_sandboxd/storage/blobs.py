"""Where layers and snapshots are kept, so that they outlive sandboxes, and other hosts on the same store can use them."""

import asyncio
import contextlib
import errno
import os
import shutil
import stat
from pathlib import Path
from typing import Protocol

from .. import durable
from ..errors import NotFound

_SCRATCH = ".new"


class BlobMissing(NotFound):
    """The store holds nothing under this key."""

    code = "blob_missing"


class Blobs(Protocol):
    """A store of blobs under keys like `layers/DIGEST.tar.zst`.

    A blob is there whole or not at all, and never changes but by `write`. Every call raises OSError when the store fails.
    """

    async def put(self, key: str, source: Path) -> None:
        """Keep a file's content. The file is given away: it may be moved."""

    async def fetch(self, key: str, target: Path) -> None:
        """Bring a blob into a new file, which must not be written to. Raises BlobMissing."""

    async def write(self, key: str, data: bytes) -> None:
        """Keep a small blob, in place of an earlier one."""

    async def read(self, key: str) -> bytes:
        """A small blob. Raises BlobMissing."""

    async def keys(self, prefix: str) -> dict[str, float]:
        """Every key that begins so, with the time that it was written, in seconds since 1970."""

    async def written(self, key: str) -> float | None:
        """The time that a blob was written, in seconds since 1970; None of one that is not there."""

    async def delete(self, key: str) -> None:
        """Forget a blob; one that is not there is none."""


class FolderBlobs:
    """Blobs as files of a folder, which several hosts may share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, key: str, source: Path) -> None:
        await asyncio.to_thread(self._put, key, source)

    def _put(self, key: str, source: Path) -> None:
        target = self._path(key)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        durable.sync(source)
        try:
            source.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            scratch = target.with_name(f"{target.name}.{os.getpid()}{_SCRATCH}")
            try:
                shutil.copyfile(source, scratch)
                durable.sync(scratch)
                scratch.replace(target)
            finally:
                scratch.unlink(missing_ok=True)
            source.unlink()
        durable.sync(target.parent)

    async def fetch(self, key: str, target: Path) -> None:
        await asyncio.to_thread(self._fetch, key, target)

    def _fetch(self, key: str, target: Path) -> None:
        try:
            try:
                target.hardlink_to(self._path(key))
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
                    raise
                shutil.copyfile(self._path(key), target)
        except FileNotFoundError as error:
            raise BlobMissing(f"the blob {key} is not in the store") from error

    async def write(self, key: str, data: bytes) -> None:
        await asyncio.to_thread(self._write, key, data)

    def _write(self, key: str, data: bytes) -> None:
        target = self._path(key)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch = target.with_name(f"{target.name}.{os.getpid()}{_SCRATCH}")
        try:
            scratch.write_bytes(data)
            durable.sync(scratch)
            scratch.replace(target)
        finally:
            scratch.unlink(missing_ok=True)
        durable.sync(target.parent)

    async def read(self, key: str) -> bytes:
        try:
            return await asyncio.to_thread(self._path(key).read_bytes)
        except FileNotFoundError as error:
            raise BlobMissing(f"the blob {key} is not in the store") from error

    async def keys(self, prefix: str) -> dict[str, float]:
        return await asyncio.to_thread(self._keys, prefix)

    def _keys(self, prefix: str) -> dict[str, float]:
        found = {}
        for path in (self._folder / prefix).parent.glob("**/*"):
            key = path.relative_to(self._folder).as_posix()
            if key.startswith(prefix) and not key.endswith(_SCRATCH):
                with contextlib.suppress(FileNotFoundError):  # deleted while we were looking
                    status = path.stat()
                    if stat.S_ISREG(status.st_mode):
                        found[key] = status.st_mtime
        return found

    async def written(self, key: str) -> float | None:
        try:
            return (await asyncio.to_thread(self._path(key).stat)).st_mtime
        except FileNotFoundError:
            return None

    async def delete(self, key: str) -> None:
        await asyncio.to_thread(self._path(key).unlink, missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / key
