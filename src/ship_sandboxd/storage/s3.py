"""Blobs in a bucket that speaks S3, by the library obstore, which is loaded only where a host is told to use one."""

import asyncio
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from ..errors import SetupError
from .blobs import BlobMissing

_PART_BYTES = 8 * 1024 * 1024
_PARTS_AT_ONCE = 4
# For one request with its body, so a link must carry the parts that are on their way in that time.
_REQUEST_S = 120
_RETRY_S = 5 * _REQUEST_S
_OPTIONS = frozenset({"endpoint", "region", "virtual_hosted_style_request"})


class S3Blobs:
    """`s3://bucket/prefix?endpoint=https://…&region=…`. Credentials come from the environment (`AWS_ACCESS_KEY_ID` and its
    like), or from the machine's role."""

    def __init__(self, url: str) -> None:
        """Raises SetupError `option_invalid`, or `obstore_missing`."""
        self._library = _library()
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query))
        unknown = set(options) - _OPTIONS
        if parts.scheme != "s3" or not parts.netloc or unknown:
            raise SetupError(
                f"--blobs {url} is not s3://BUCKET/PREFIX?endpoint=URL&region=NAME", "option_invalid", 2
            )
        self._store: Any = importlib.import_module("obstore.store").S3Store(
            parts.netloc,
            prefix=parts.path.strip("/") or None,
            config=options,
            client_options={
                "allow_http": options.get("endpoint", "").startswith("http://"),
                "connect_timeout": "5s",
                "timeout": timedelta(seconds=_REQUEST_S),
            },
            retry_config={"max_retries": 4, "retry_timeout": timedelta(seconds=_RETRY_S)},
        )

    async def put(self, key: str, source: Path) -> None:
        with self._translated(key):
            await self._library.put_async(
                self._store, key, source, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE
            )

    async def fetch(self, key: str, target: Path) -> None:
        """In parts: each has a time of its own, and one that fails is asked for again by itself."""
        with self._translated(key):
            size = (await self._library.head_async(self._store, key))["size"]
            with target.open("xb") as file:
                for start in range(0, size, _PARTS_AT_ONCE * _PART_BYTES):
                    end = min(start + _PARTS_AT_ONCE * _PART_BYTES, size)
                    piece = await self._library.get_range_async(self._store, key, start=start, end=end)
                    await asyncio.to_thread(file.write, piece)

    async def write(self, key: str, data: bytes) -> None:
        with self._translated(key):
            await self._library.put_async(self._store, key, data)

    async def read(self, key: str) -> bytes:
        with self._translated(key):
            answer = await self._library.get_async(self._store, key)
            return bytes(await answer.bytes_async())

    async def keys(self, prefix: str) -> dict[str, float]:
        with self._translated(prefix):
            found: dict[str, float] = {}
            async for page in self._library.list(self._store, prefix=prefix):
                found.update((each["path"], each["last_modified"].timestamp()) for each in page)
            return found

    async def written(self, key: str) -> float | None:
        try:
            with self._translated(key):
                facts = await self._library.head_async(self._store, key)
                return float(facts["last_modified"].timestamp())
        except BlobMissing:
            return None

    async def delete(self, key: str) -> None:
        try:
            with self._translated(key):
                await self._library.delete_async(self._store, key)
        except BlobMissing:
            return

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        errors = self._library.exceptions
        try:
            yield
        except (errors.NotFoundError, FileNotFoundError) as error:
            raise BlobMissing(f"the blob {key} is not in the store") from error
        except errors.BaseError as error:
            # Its text quotes whole answers of the server.
            raise OSError(f"the store of blobs failed on {key}: {str(error)[:500]}") from error


def _library() -> Any:
    try:
        importlib.import_module("obstore.exceptions")
        return importlib.import_module("obstore")
    except ImportError as error:
        raise SetupError(
            "--blobs s3://… needs the Python package obstore: pip install obstore", "obstore_missing"
        ) from error
