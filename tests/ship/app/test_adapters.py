"""Which adapters the settings name, and what is refused before anything is started."""

import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from ship import config
from ship.app import adapters, storage
from ship.app.folder import DataFolder
from ship.blobs.folder import FolderBlobs
from ship.blobs.s3 import S3Blobs
from ship.bus import LocalBus
from ship.cli import run
from ship.cli.exits import Exit
from ship.errors import ConfigurationError, Unavailable
from ship.store.postgres import PostgresStore, membership
from ship.store.sqlite import SqliteStore

SHARED = {
    "SHIP_DATABASE": "postgresql://h/d",
    "SHIP_BUS": "nats://h",
    "SHIP_BLOBS": "s3://b",
    "SHIP_SANDBOX_API_URL": "http://h",
}


def test_what_a_node_lacks_to_share_its_database_is_named() -> None:
    assert adapters.lacking(config.load(None, SHARED)) == []
    assert adapters.lacking(config.load(None, {"SHIP_DATABASE": "postgresql://h/d"})) == [
        "bus",
        "blobs",
        "sandboxes.api_url",
    ]
    with pytest.raises(ConfigurationError) as refused:
        adapters.lacking(config.load(None, {"SHIP_BUS": "nats://h"}))
    assert refused.value.code == "cluster_incomplete"


async def test_the_embedding_model_is_loaded_only_where_it_is_wanted() -> None:
    """Neither it nor what it computes with is imported by a server without it, and a missing package is named."""
    code = (
        "import asyncio, sys; from ship import config; from ship.app import adapters, serve; import ship.cli.commands\n"
        "asyncio.run(adapters.open_embeddings(config.load(None, {})))\n"
        "print(sorted({'numpy', 'tokenizers', 'safetensors', 'wordllama'} & set(sys.modules)))\n"
        "sys.modules['numpy'] = None\n"
        "asyncio.run(adapters.open_embeddings(config.load(None, {'SHIP_SEMANTIC_SEARCH': 'true'})))"
    )
    ran = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await ran.communicate()
    assert out.decode().strip() == "[]"
    assert "ConfigurationError: search by meaning needs packages" in err.decode()


async def test_a_package_that_is_missing_is_named_when_ship_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    monkeypatch.delitem(sys.modules, "ship.embeddings.wordllama", raising=False)
    assert await asyncio.to_thread(run, ["up", "--semantic-search", "--data", str(tmp_path)]) == Exit.MACHINE
    assert "pip install 'ship-agents[semantic]'" in capfd.readouterr().err


async def test_half_a_cluster_is_refused(postgres_url: str, tmp_path: Path) -> None:
    """Whole nodes work side by side; one that shares nothing but the database works only by itself."""
    whole = config.load(None, {**SHARED, "SHIP_DATABASE": postgres_url})
    half = config.load(None, {"SHIP_DATABASE": postgres_url})
    folder = DataFolder(tmp_path)
    membership.WAIT_S, kept = 0.3, membership.WAIT_S
    try:
        async with AsyncExitStack() as stack:
            await adapters.open_store(whole, folder, stack)
            await adapters.open_store(whole, folder, stack)
            with pytest.raises(ConfigurationError) as refused:
                await adapters.open_store(half, folder, stack)
            assert refused.value.code == "data_in_use"
        async with AsyncExitStack() as stack:
            await adapters.open_store(half, folder, stack)
            for other in (half, whole):
                with pytest.raises(ConfigurationError) as refused:
                    await adapters.open_store(other, folder, stack)
                assert refused.value.code == "data_in_use"
    finally:
        membership.WAIT_S = kept


async def test_a_place_is_taken_again_when_its_connection_broke(postgres_url: str) -> None:
    place = membership.Membership(postgres_url)
    await place.take(alone=True)
    first = place._connection
    assert first
    first.terminate()
    async with asyncio.timeout(10):
        while place._connection is first:
            await asyncio.sleep(0.05)
    other = membership.Membership(postgres_url)
    other._call = "pg_try_advisory_lock_shared"
    assert not await other._try()
    await place.close()


async def test_the_url_names_the_adapter(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    assert isinstance(storage.store("", folder), SqliteStore)
    assert isinstance(storage.store("postgresql://h/d", folder), PostgresStore)
    with pytest.raises(ConfigurationError) as refused:
        storage.store("mysql://u:secret@h", folder)
    assert "secret" not in str(refused.value)
    async with AsyncExitStack() as stack:
        alone = config.load(None, {})
        assert isinstance(await adapters.open_bus(alone, b"x" * 32, stack), LocalBus)
        assert isinstance(await adapters.open_blobs(alone, folder), FolderBlobs)


async def test_a_signing_key_is_one_for_all_who_share_a_store(postgres_url: str, tmp_path: Path) -> None:
    keys = set()
    for node in ("one", "other"):
        async with AsyncExitStack() as stack:
            folder = DataFolder(tmp_path / node)
            store = await adapters.open_store(
                config.load(None, {**SHARED, "SHIP_DATABASE": postgres_url}), folder, stack
            )
            keys.add(await adapters.signing_key(store, folder))
            assert not (folder.path / adapters.SIGNING_KEY).exists()
    assert len(keys) == 1 and len(keys.pop()) >= 32


async def test_a_signing_key_stands_in_the_store_and_that_of_a_folder_from_before_goes_there(
    tmp_path: Path,
) -> None:
    folder = DataFolder(tmp_path)
    before = folder.secret(adapters.SIGNING_KEY)
    for _ in range(2):
        async with AsyncExitStack() as stack:
            store = await adapters.open_store(config.load(None, {}), folder, stack)
            assert (await adapters.signing_key(store, folder)).decode() == before
        (tmp_path / adapters.SIGNING_KEY).unlink(missing_ok=True)


async def test_a_database_that_is_not_there_is_said(tmp_path: Path) -> None:
    settings = config.load(None, {**SHARED, "SHIP_DATABASE": f"postgresql://u:secret@/d?host={tmp_path}"})
    async with AsyncExitStack() as stack:
        with pytest.raises(Unavailable) as refused:
            await adapters.open_store(settings, DataFolder(tmp_path), stack)
    assert "secret" not in str(refused.value)


async def test_a_bucket_is_opened_by_its_url(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        await adapters.open_blobs(config.load(None, {"SHIP_BLOBS": "ftp://b"}), DataFolder(tmp_path))
    assert refused.value.code == "blobs_url_invalid"
    assert S3Blobs("s3://b", tmp_path)
