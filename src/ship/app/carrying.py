"""Bringing tables up to date, and carrying everything from one store to another, for the command line."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from ship.app import adapters, export, storage
from ship.app.export import Progress
from ship.app.folder import DataFolder
from ship.config import Settings
from ship.errors import ConfigurationError, InvalidInput
from ship.ports.blobs import BlobStore
from ship.ports.store import Store


def bring_up_to_date(settings: Settings) -> None:
    """Make or change the tables as this Ship needs them; any number of nodes may do so at once. Raises as ``Store.open``."""

    async def run() -> None:
        async with _opened(settings.database, settings):
            pass

    asyncio.run(run())


def copy_to(settings: Settings, target: str, progress: Progress) -> Counter[str]:
    """Copy all rows of the settings' store into the empty one of ``target``, a URL as the setting ``database`` takes it, or
    ``sqlite``. Blobs stay where they are.

    Raises:
        Conflict: ``store_not_empty``.
        ConfigurationError: ``data_in_use``.
        InvalidInput: ``same_store``.
    """
    database = "" if target == "sqlite" else target
    if database == settings.database:
        raise InvalidInput("the source and the target are the same store", code="same_store")

    async def run() -> Counter[str]:
        async with (
            _opened(settings.database, settings, alone=True) as source,
            _opened(database, settings, alone=True) as into,
        ):
            return await export.copy(source, into, progress)

    return asyncio.run(run())


def export_to(settings: Settings, file: Path, progress: Progress) -> Counter[str]:
    """Write everything into the file, also while a server runs. Returns as ``export.export``."""

    async def run() -> Counter[str]:
        async with _opened(settings.database, settings, exclusive=False) as store:
            return await export.export(store, await _blobs(settings), file, progress)

    with _file_errors(file):
        return asyncio.run(run())


def import_from(settings: Settings, file: Path, progress: Progress) -> Counter[str]:
    """Take everything out of the file into the settings' store, which has to be empty. Raises as ``export.import_``."""

    async def run() -> Counter[str]:
        async with _opened(settings.database, settings, alone=True) as store:
            return await export.import_(file, store, await _blobs(settings), progress)

    with _file_errors(file):
        return asyncio.run(run())


@contextlib.asynccontextmanager
async def _opened(
    database: str, settings: Settings, *, exclusive: bool = True, alone: bool = False
) -> AsyncIterator[Store]:
    """``alone`` means that no node may work on it meanwhile: what it did then would be lost to the copy."""
    store = storage.store(database, DataFolder(settings.data_path), exclusive=exclusive)
    await store.open()
    try:
        if alone:
            await _keep_nodes_away(store)
        yield store
    finally:
        await store.close()


async def _keep_nodes_away(store: Store) -> None:
    try:
        await store.join(alone=True)
    except ConfigurationError as error:
        if error.code != "data_in_use":
            raise
        raise ConfigurationError(
            "a node works on this database",
            code="data_in_use",
            hint="Stop every node first; what one did meanwhile would not be carried. `ship export` may run beside them.",
        ) from error


async def _blobs(settings: Settings) -> BlobStore:
    return await adapters.open_blobs(settings, DataFolder(settings.data_path))


@contextlib.contextmanager
def _file_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}", code="export_file") from error
