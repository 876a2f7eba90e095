"""Which adapters a node works with: by the URLs in its settings, or the data folder and this process where there are none.

Nodes that share a database share everything: a bus, blobs and a sandbox host that each of them reaches. One that does not has
the database for itself.
"""

import asyncio
import contextlib
import secrets

from ship.app import storage
from ship.app.folder import DataFolder
from ship.blobs.folder import FolderBlobs
from ship.bus import LocalBus
from ship.config import Settings
from ship.errors import ConfigurationError
from ship.ports.blobs import BlobStore
from ship.ports.bus import Bus
from ship.ports.embeddings import EmbeddingModel
from ship.ports.store import Store

SIGNING_KEY = "signing.key"


def lacking(settings: Settings) -> list[str]:
    """What a node must have set, too, to share its database with others.

    Raises:
        ConfigurationError: ``cluster_incomplete``: a bus, and no database.
    """
    if settings.bus and not settings.database:
        raise ConfigurationError(
            "a bus connects nodes that share a database, and there is none",
            code="cluster_incomplete",
            hint="Set `database`, or leave `bus` away.",
        )
    there = settings.sandboxes
    named = {
        "bus": settings.bus,
        "blobs": settings.blobs,
        "sandboxes.api_url": there.api_url or there.api_key,
    }
    return [name for name, value in named.items() if not value]


async def open_store(settings: Settings, folder: DataFolder, stack: contextlib.AsyncExitStack) -> Store:
    """The store, open as long as the stack is: for this node alone when it shares nothing else.

    Raises:
        ConfigurationError: the URL is wrong, another process has the store, or a newer Ship wrote it.
        Unavailable: it does not answer.
    """
    alone = bool(lacking(settings))
    store = storage.store(settings.database, folder)
    await store.open()
    stack.push_async_callback(store.close)
    await store.join(alone=alone)
    return store


async def signing_key(store: Store, folder: DataFolder) -> bytes:
    """What session tokens are signed with: in the store, so that each node knows the others' tokens, and it goes where the logs go.
    The key of a data folder from before goes on being used."""
    known = (folder.path / SIGNING_KEY).exists()
    fresh = folder.secret(SIGNING_KEY) if known else secrets.token_hex(32)
    return (await store.secret(SIGNING_KEY, fresh)).encode()


async def open_bus(settings: Settings, secret: bytes, stack: contextlib.AsyncExitStack) -> Bus:
    """The bus, open as long as the stack is; the nodes know each other by the secret.

    Raises:
        ConfigurationError: ``bus_url_invalid``, ``bus_refused``.
    """
    if not settings.bus:
        return LocalBus()
    from ship.bus.nats import NatsBus

    bus = NatsBus(settings.bus, secret)
    await bus.open()
    stack.push_async_callback(bus.close)
    return bus


async def open_embeddings(settings: Settings) -> EmbeddingModel | None:
    """The embedding model, where sessions are to be found by meaning. Only then it is imported.

    Raises:
        ConfigurationError: ``semantic_search_missing``, ``semantic_search_broken``.
    """
    if not settings.semantic_search:
        return None
    return await asyncio.to_thread(_embeddings)


def _embeddings() -> EmbeddingModel:
    try:
        from ship.embeddings.wordllama import WordLlama
    except ImportError as error:
        raise ConfigurationError(
            f"search by meaning needs packages that are not installed: {error}",
            code="semantic_search_missing",
            hint="pip install 'ship-agents[semantic]', or switch semantic_search off.",
        ) from error
    return WordLlama()


async def open_blobs(settings: Settings, folder: DataFolder) -> BlobStore:
    """The blobs.

    Raises:
        ConfigurationError: ``blobs_url_invalid``, ``blobs_refused``.
    """
    if not settings.blobs:
        return FolderBlobs(folder.blobs)
    from ship.blobs.s3 import S3Blobs

    blobs = S3Blobs(settings.blobs, folder.spool)
    await blobs.open()
    return blobs
