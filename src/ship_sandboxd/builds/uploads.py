"""The files of COPY steps: archives that a client uploads before a build, each named by the hash of what is in it.

A client cannot prove that an archive is what its hash says, so what one tenant has uploaded is never used for another. The
link to upload to carries a signature instead of an API key, as the SDK sends none there; it holds for an hour.
"""

import asyncio
import contextlib
import hashlib
import hmac
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from .. import durable
from ..errors import ApiError, BadRequest, Unauthorized
from ..quotas import Quotas

MAX_UPLOAD_BYTES = 2 * 1024**3
MAX_STORED_BYTES = 20 * 1024**3
_LINK_S = 3600.0
_HASH = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1024 * 1024
_SCRATCH = ".new"


class TooLarge(ApiError):
    """An upload past the bound."""

    status = 413
    code = "upload_too_large"


class Uploads:
    """The archives, in one folder for each tenant."""

    def __init__(self, folder: Path, quotas: Quotas) -> None:
        self._folder = folder
        self._quotas = quotas
        self._secret = secrets.token_bytes(32)
        folder.mkdir(mode=0o700, exist_ok=True)
        for half_made in folder.glob(f"*/*{_SCRATCH}"):
            half_made.unlink()

    def path(self, tenant: str, files_hash: str) -> Path:
        """Where an archive is, or would be. Raises BadRequest."""
        if not _HASH.fullmatch(files_hash):
            raise BadRequest("the hash of files is 64 hexadecimal digits")
        return self._folder / hashlib.sha256(tenant.encode()).hexdigest()[:32] / f"{files_hash}.tar"

    def query(self, template_id: str, files_hash: str) -> dict[str, str]:
        """What makes the link to upload an archive to a valid one."""
        expires = str(int(time.time() + _LINK_S))
        return {"expires": expires, "signature": self._sign(template_id, files_hash, expires)}

    def check(self, template_id: str, files_hash: str, query: dict[str, str]) -> None:
        """Raises Unauthorized when a link was not made by `query`, or is too old."""
        expires, signature = query.get("expires", ""), query.get("signature", "")
        wanted = self._sign(template_id, files_hash, expires)
        if not hmac.compare_digest(signature.encode(), wanted.encode()):
            raise Unauthorized("the signature of the upload link is wrong")
        if not (
            expires.isascii() and expires.isdigit() and len(expires) < 12 and int(expires) >= time.time()
        ):
            raise Unauthorized("the upload link has expired: ask for a new one")

    def _sign(self, *facts: str) -> str:
        return hmac.new(self._secret, "\n".join(facts).encode(), "sha256").hexdigest()

    async def store(self, tenant: str, files_hash: str, body: AsyncIterator[bytes]) -> None:
        """Keep an archive, in place of an earlier one of this hash. Raises TooLarge, QuotaExceeded, DiskFull, OSError when
        the disk is full."""
        quota = self._quotas.of(tenant)
        path = self.path(tenant, files_hash)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        scratch = path.with_name(f"{files_hash}.{secrets.token_hex(8)}{_SCRATCH}")
        size = 0
        try:
            with await asyncio.to_thread(scratch.open, "xb") as file:
                buffer = bytearray()
                async for piece in body:
                    size += len(piece)
                    if size > MAX_UPLOAD_BYTES:
                        raise TooLarge(f"an upload holds at most {MAX_UPLOAD_BYTES} bytes")
                    buffer += piece
                    if len(buffer) >= _CHUNK:
                        quota.check("upload_mb", 0, _mb(size))
                        self._quotas.check_room()
                        await asyncio.to_thread(file.write, bytes(buffer))
                        buffer.clear()
                await asyncio.to_thread(file.write, bytes(buffer))
            await asyncio.to_thread(self._make_room, tenant, path, size)
            # Nobody sends again what is there: it must be whole, also after a loss of power.
            await asyncio.to_thread(durable.sync, scratch)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
        await asyncio.to_thread(self._trim, path)

    def _make_room(self, tenant: str, path: Path, size: int) -> None:
        """See to it that a tenant keeps to its quota: what it uploaded longest ago goes, but nothing that the build for
        which this comes may need. Raises QuotaExceeded."""
        quota = self._quotas.of(tenant)
        if quota.upload_mb is None:
            return
        others = [other for other in _archives(path.parent, "*.tar") if other.path != path]
        while others and _mb(size + sum(other.size for other in others)) > quota.upload_mb:
            if others[-1].time > time.time() - _LINK_S:
                break
            others.pop().path.unlink(missing_ok=True)
        quota.check("upload_mb", _mb(sum(other.size for other in others)), _mb(size))

    def _trim(self, kept: Path) -> None:
        """Once all archives together are too much, forget the oldest of the tenant that has most."""
        found = _archives(self._folder, "*/*.tar")
        while found and sum(each.size for each in found) > MAX_STORED_BYTES:
            sizes: Counter[Path] = Counter()
            for each in found:
                sizes[each.path.parent] += each.size
            largest = sizes.most_common(1)[0][0]
            oldest = next(each for each in reversed(found) if each.path.parent == largest)
            found.remove(oldest)
            if oldest.path != kept:
                oldest.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Archive:
    """`time` is when it was uploaded, in seconds since 1970."""

    time: float
    size: int
    path: Path


def _archives(folder: Path, pattern: str) -> list[_Archive]:
    """Newest first."""
    found = []
    for path in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):  # another upload has just trimmed it
            status = path.stat()
            found.append(_Archive(status.st_mtime, status.st_size, path))
    return sorted(found, key=lambda archive: archive.time, reverse=True)


def _mb(size_bytes: int) -> int:
    return -(-size_bytes // (1024 * 1024))
