"""Blobs in a bucket that speaks S3: one object each, by digest."""

import asyncio
import errno
import hashlib
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from ship.errors import ConfigurationError, NotFound, ShipError, TooLarge, Unavailable
from ship.ports.blobs import StoredBlob

PIECE_BYTES = 1 << 20
PART_BYTES = 8 << 20
"""What is larger travels in parts of this size."""
RETRY_S = 20
_AT_ONCE = 4
_OPTIONS = frozenset({"endpoint", "region", "virtual_hosted_style_request"})


class S3Blobs:
    """A ``BlobStore`` in the bucket of ``s3://[KEY:SECRET@]BUCKET[/PREFIX][?endpoint=URL&region=NAME]``.

    Without credentials in the URL they come from the environment (``AWS_ACCESS_KEY_ID`` and its like) or the machine's role. What
    is stored passes through a file without a name in ``spool``, and is sent when its digest is known.
    """

    def __init__(self, url: str, spool: Path) -> None:
        """Raises ConfigurationError (``blobs_url_invalid``)."""
        self._spool = spool
        self._store = _store(url)

    async def open(self) -> None:
        """See that the bucket takes writes, by storing the blob that is empty.

        Raises:
            ConfigurationError: ``blobs_refused``: there is no such bucket, or the credentials are wrong.
        """
        try:
            await self.put(_nothing(), 0)
        except ShipError as error:
            raise ConfigurationError(
                f"the bucket of blobs cannot be used: {error.message}",
                code="blobs_refused",
                hint="Look at the bucket, the endpoint and the credentials of the setting `blobs`.",
            ) from error

    async def put(self, pieces: AsyncIterator[bytes], limit_bytes: int) -> StoredBlob:
        """As the port says."""
        import obstore

        digest = hashlib.sha256()
        size_bytes = 0
        with _disk_errors(), tempfile.TemporaryFile(dir=self._spool) as file:
            async for piece in pieces:
                size_bytes += len(piece)
                if size_bytes > limit_bytes:
                    raise TooLarge(f"more than {limit_bytes} bytes", code="blob_too_large")
                digest.update(piece)
                await asyncio.to_thread(file.write, piece)
            await asyncio.to_thread(file.flush)
            with _translated():
                await obstore.put_async(
                    self._store,
                    _key(digest.hexdigest()),
                    _path(file),
                    chunk_size=PART_BYTES,
                    max_concurrency=_AT_ONCE,
                )
        return StoredBlob(digest.hexdigest(), size_bytes)

    async def read(self, sha256: str, offset: int, size: int) -> bytes:
        """As the port says."""
        import obstore

        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise NotFound("no such blob", code="blob_not_found")
        with _translated():
            return bytes(await obstore.get_range_async(self._store, _key(sha256), start=offset, length=size))

    async def get(self, sha256: str) -> AsyncIterator[bytes]:
        """As the port says."""
        import obstore

        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise NotFound("no such blob", code="blob_not_found")
        with _translated():
            found = await obstore.get_async(self._store, _key(sha256))
            async for chunk in found.stream(min_chunk_size=PIECE_BYTES):
                whole = memoryview(chunk)
                for start in range(0, len(whole), PIECE_BYTES):
                    yield bytes(whole[start : start + PIECE_BYTES])


def _store(url: str) -> Any:
    """The library's own store; it is loaded only where a bucket is named."""
    from obstore.store import S3Store

    invalid = ConfigurationError(
        "the bucket of blobs is named by a URL like s3://BUCKET/PREFIX?endpoint=URL&region=NAME",
        code="blobs_url_invalid",
        hint="docs/configuration.md has its parts.",
    )
    try:
        parts = urlsplit(url)
    except ValueError:
        raise invalid from None
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    credentials, _, bucket = parts.netloc.rpartition("@")
    key, _, secret = credentials.partition(":")
    if parts.scheme != "s3" or not bucket or set(options) - _OPTIONS or bool(key) != bool(secret):
        raise invalid
    if key:
        options |= {"access_key_id": unquote(key), "secret_access_key": unquote(secret)}
    in_clear = options.get("endpoint", "").startswith("http://")
    return S3Store(
        bucket,
        prefix=parts.path.strip("/") or None,
        config=options,  # type: ignore[arg-type]  # the keys were looked at above
        client_options={"allow_http": in_clear, "connect_timeout": "5s", "timeout": "15m"},
        retry_config={"max_retries": 4, "retry_timeout": timedelta(seconds=RETRY_S)},
    )


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield


def _key(sha256: str) -> str:
    return f"{sha256[:2]}/{sha256}"


def _path(file: IO[bytes]) -> Path:
    """A way to open a file without a name anew: a crash leaves nothing of it."""
    return Path(f"/proc/self/fd/{file.fileno()}")


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise Unavailable(
            f"the blob could not be kept on its way: {error.strerror or error}",
            code="disk_full" if full else "blobs_unavailable",
            hint="Free some space on the disk of the data folder." if full else "",
        ) from error


@contextmanager
def _translated() -> Iterator[None]:
    """The library's errors in our words: its own quote whole answers of the server."""
    from obstore import exceptions

    try:
        yield
    except (exceptions.NotFoundError, FileNotFoundError) as error:
        raise NotFound("no such blob", code="blob_not_found") from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise Unavailable(
            "the bucket refuses our credentials",
            code="blobs_unavailable",
            hint="Look at the credentials of the setting `blobs`, and at what they may do.",
        ) from error
    except exceptions.BaseError as error:
        raise Unavailable(
            f"the store of blobs does not answer as it should ({type(error).__name__})",
            code="blobs_unavailable",
            hint="Try again.",
        ) from error
