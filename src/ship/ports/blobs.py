"""Blobs: bytes that are too large for the log."""

from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol


class StoredBlob(NamedTuple):
    """A blob is known by the SHA-256 of its bytes, in hex."""

    sha256: str
    size_bytes: int


class BlobStore(Protocol):
    """Content-addressed, immutable blobs. Storing the same bytes twice is one blob."""

    async def put(self, pieces: AsyncIterator[bytes], limit_bytes: int) -> StoredBlob:
        """Store the bytes; returns when they are durable.

        Raises:
            TooLarge: ``blob_too_large`` past ``limit_bytes``; nothing is kept.
            Unavailable: ``disk_full`` or ``blobs_unavailable``.
        """
        ...

    async def read(self, sha256: str, offset: int, size: int) -> bytes:
        """A piece of it: ``size`` bytes from ``offset``, which has to be within the blob; fewer where it ends.

        Raises:
            NotFound: ``blob_not_found``.
            Unavailable: ``blobs_unavailable``.
        """
        ...

    def get(self, sha256: str) -> AsyncIterator[bytes]:
        """The bytes in pieces of at most 1 MiB.

        Raises:
            NotFound: ``blob_not_found``.
        """
        ...
