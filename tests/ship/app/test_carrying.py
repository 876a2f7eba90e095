"""Everything goes from one store to the other and back, or not at all."""

import asyncio
import gzip
import json
import os
import sqlite3
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ship.app import carrying, export, storage
from ship.app.folder import DataFolder
from ship.blobs.folder import FolderBlobs
from ship.cli import run
from ship.config import Settings
from ship.errors import ConfigurationError, InvalidInput
from ship.ports.store import (
    Append,
    FirstAnswer,
    NewAlarm,
    NewEvent,
    Said,
    Search,
    Snapshot,
    Store,
    StoredToken,
    Summary,
)
from ship.sessions import packing
from ship.sessions.logs import Logs
from ship.store.postgres import membership
from ship.store.tables import TABLES
from ship.words import parse

BLOB = b"\x00\xffdiff" * 700_000
BUNDLE = b"a repository"


@asynccontextmanager
async def opened(database: str, folder: Path) -> AsyncIterator[Store]:
    store = storage.store(database, DataFolder(folder))
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def a_life(store: Store, blobs: FolderBlobs) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield BLOB

    async def bundle() -> AsyncIterator[bytes]:
        yield BUNDLE

    stored = await blobs.put(pieces(), 1 << 30)
    uploaded = await blobs.put(bundle(), 1 << 30)
    source = b'{"data":{"repository":{"source":"upload:%s"}}}' % uploaded.sha256.encode()
    for number in range(30):
        session_id = f"ses_{number}"
        body = b'{"data":{"sha256":"%s"}}' % stored.sha256.encode()
        await store.append(
            Append(
                session_id,
                0,
                number,
                events=[NewEvent("artifact.stored", body), *[NewEvent("x", b"\xff" * 100)] * 40],
                said=[Said(1, b"said", "said")],
                summary=Summary("ready", number, b"summary", f"title {number}", "/r"),
                snapshot=Snapshot(41, 1, b"state"),
                effects=[(f"{session_id}:1", b"effect")],
                alarms=[NewAlarm("wake", 99)],
                first_answer=FirstAnswer("me", session_id, "f", b"answer"),
            )
        )
    await store.append(
        Append("ses_0", 41, 1, [NewEvent("artifact.stored", b'{"sha256":"' + b"0" * 64 + b'"}')])
    )
    await store.append(Append("ses_upload", 0, 1, [NewEvent("session.created", source)]))
    body = b'{"type":"artifact.stored","sha256":"%s"}' % (b"1" * 64)
    await store.append(Append("ses_old", 0, 1, [NewEvent("artifact.stored", body)] * 3))
    await packing.pack(store, blobs, "ses_old", Snapshot(3, 1, b"state"))
    await store.add_token(StoredToken("digest", "api", "laptop", 1, None))
    await store.secret("signing.key", "secret")


async def contents(store: Store) -> dict[str, list[Any]]:
    rows: dict[str, list[Any]] = {}
    while await store.index(100):
        pass
    async for table, page in store.dump():
        rows.setdefault(table, []).extend(map(tuple, page))
    return {table: sorted(found) for table, found in rows.items()}


NOT_CARRIED = {
    "heads": "counted from the events",
    "texts": "carried as all_texts, and indexed anew",
    "unindexed": "carried as all_texts",
    "text_words": "the index of texts",
    "meanings": "made anew from the texts",
    "writers": "of the nodes that write there now",
    "schema_version": "of the tables themselves",
}
"""Every other table is carried, with all its columns."""
ORDER = {("idempotency", "id")}
"""Columns that say only in which order rows came."""


async def columns_of_sqlite(tmp_path: Path) -> set[tuple[str, str]]:
    async with opened("", tmp_path):
        with closing(sqlite3.connect(tmp_path / "ship.db")) as connection:
            return set(
                connection.execute(
                    "SELECT t.name, c.name FROM sqlite_schema t, pragma_table_info(t.name) c "
                    "WHERE t.type IN ('table', 'view') AND t.name NOT GLOB 'text_words_*'"
                )
            )


async def columns_of_postgres(url: str, tmp_path: Path) -> set[tuple[str, str]]:
    async with opened(url, tmp_path):
        connection = await asyncpg.connect(url)
        rows = await connection.fetch(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = current_schema()"
        )
        await connection.close()
        return {(row["table_name"], row["column_name"]) for row in rows}


async def test_every_table_is_carried_or_said_not_to_be(postgres_url: str, tmp_path: Path) -> None:
    carried = {(table, column) for table, columns in TABLES.items() for column in columns}
    for there in (await columns_of_sqlite(tmp_path), await columns_of_postgres(postgres_url, tmp_path)):
        assert {(table, column) for table, column in there if table not in NOT_CARRIED} - ORDER == carried


def nothing(name: str, count: int) -> None:
    """Nobody watches."""


async def test_large_rows_are_written_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "ROWS_BYTES", 5_000)
    monkeypatch.setattr(export, "LARGEST_VALUE_BYTES", 10_000)
    async with opened("", tmp_path / "0") as first:
        for number in range(20):
            event = NewEvent("x", b"x" * 3_000)
            await first.append(Append(f"ses_{number}", 0, 1, [event]))
        before = await contents(first)
        await export.export(first, FolderBlobs(tmp_path / "0" / "blobs"), tmp_path / "there", nothing)
    async with opened("", tmp_path / "1") as second:
        await export.import_(tmp_path / "there", second, FolderBlobs(tmp_path / "1" / "blobs"), nothing)
        assert await contents(second) == before


async def test_there_and_back_again(postgres_url: str, tmp_path: Path) -> None:
    blobs = [FolderBlobs(tmp_path / f"{number}" / "blobs") for number in range(3)]
    async with opened("", tmp_path / "0") as first:
        await a_life(first, blobs[0])
        before = await contents(first)
        counts = await export.export(first, blobs[0], tmp_path / "there", nothing)
    assert counts["events"] == 30 * 41 + 2
    assert (tmp_path / "there").stat().st_mode & 0o777 == 0o600, "it holds the signing key"
    assert (counts["blobs"], counts["missing blobs"]) == (3, 2), "also those that a packed log names"
    async with opened(postgres_url, tmp_path / "1") as second:
        assert await export.import_(tmp_path / "there", second, blobs[1], nothing) == counts
        assert await contents(second) == before
        assert await second.secret("signing.key", "another") == "secret"
        found = await second.search(Search(parse("title 17")), 0, 9)
        assert [one.session_id for one in found] == ["ses_17"]
        assert await second.heads(["ses_0", "ses_1"]) == {"ses_0": 42, "ses_1": 41}
        assert len(await Logs(second, blobs[1]).events("ses_old", 0, 9)) == await second.head("ses_old") == 3
        await second.append(Append("ses_1", 41, 1, [NewEvent("x", b"goes on")]))
        await export.export(second, blobs[1], tmp_path / "back", nothing)
        after = await contents(second)
    async with opened("", tmp_path / "2") as third:
        await export.import_(tmp_path / "back", third, blobs[2], nothing)
        assert await contents(third) == after
        assert await third.head("ses_1") == 42
        assert await third.secret("signing.key", "another") == "secret"
    for body in (BLOB, BUNDLE):
        kept = blobs[2].get(sha256(body).hexdigest())
        assert b"".join([piece async for piece in kept]) == body


async def test_an_export_replaces_a_file_and_nothing_else(tmp_path: Path) -> None:
    target, link, pipe = tmp_path / "file", tmp_path / "link", tmp_path / "pipe"
    target.write_bytes(b"before")
    link.symlink_to(target)
    os.mkfifo(pipe)
    async with opened("", tmp_path / "data") as store:
        blobs = FolderBlobs(tmp_path / "data" / "blobs")
        await export.export(store, blobs, link, nothing)
        for other in (pipe, tmp_path):
            with pytest.raises(FileExistsError):
                await export.export(store, blobs, other, nothing)
    assert link.is_symlink()
    assert target.read_bytes() != b"before"
    assert pipe.is_fifo()


async def test_nothing_is_copied_out_of_a_database_that_a_node_works_on(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "WAIT_S", 0.0)
    settings = Settings(data=str(tmp_path / "data"), database=postgres_url)
    async with opened(postgres_url, tmp_path) as node:
        await node.join(alone=False)
        with pytest.raises(ConfigurationError) as refused:
            await asyncio.to_thread(carrying.copy_to, settings, "sqlite", nothing)
        assert refused.value.code == "data_in_use"
        await asyncio.to_thread(carrying.export_to, settings, tmp_path / "export", nothing)
    assert await asyncio.to_thread(carrying.copy_to, settings, "sqlite", nothing) == {}


@pytest.mark.parametrize("damage", ["cut", "flipped", "swapped", "not an export"])
async def test_a_damaged_file_leaves_nothing_behind(damage: str, postgres_url: str, tmp_path: Path) -> None:
    file = tmp_path / "export"
    async with opened("", tmp_path / "source") as source:
        await a_life(source, FolderBlobs(tmp_path / "source" / "blobs"))
        await export.export(source, FolderBlobs(tmp_path / "source" / "blobs"), file, nothing)
    whole = file.read_bytes()
    plain = bytearray(gzip.decompress(whole))
    if damage == "cut":
        file.write_bytes(whole[: len(whole) - 100])
    elif damage == "flipped":
        file.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    elif damage == "swapped":
        place = plain.index(b"ses_17")
        plain[place + 4 : place + 6] = b"99"
        file.write_bytes(gzip.compress(bytes(plain)))
    else:
        file.write_bytes(b"something else")
    for database, data in ((postgres_url, tmp_path / "a"), ("", tmp_path / "b")):
        async with opened(database, data) as target:
            with pytest.raises(InvalidInput) as refused:
                await export.import_(file, target, FolderBlobs(data / "blobs"), nothing)
            assert refused.value.code == "export_damaged"
            assert await contents(target) == {}


async def test_a_large_store_needs_little_memory(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    async with opened("", tmp_path / "large") as store:
        body = b"x" * 20_000
        for number in range(40):
            await store.append(Append(f"ses_{number}", 0, 1, [NewEvent("x", body)] * 100))
        tracemalloc.start()
        await export.export(store, blobs, tmp_path / "export", nothing)
        async with opened("", tmp_path / "other") as other:
            await export.import_(tmp_path / "export", other, blobs, nothing)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak_bytes < 40 * 1024**2, "80 MB went through"


def test_the_commands(
    postgres_url_of_a_command: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SHIP_DATABASE", raising=False)
    data = ("--data", str(tmp_path / "data"))
    assert run(["token", "create", "--name", "ci", *data]) == 0
    assert run(["migrate", *data]) == 0
    assert run(["migrate", "--to", "sqlite", *data]) == 2
    capfd.readouterr()
    assert run(["migrate", "--to", postgres_url_of_a_command, "--json", *data]) == 0
    assert json.loads(capfd.readouterr().out) == {"tokens": 1}
    assert run(["migrate", "--to", postgres_url_of_a_command, *data]) == 5
    assert "not empty" in capfd.readouterr().err
    monkeypatch.setenv("SHIP_DATABASE", postgres_url_of_a_command)
    assert run(["export", str(tmp_path / "file"), *data]) == 0
    assert "1 tokens" in capfd.readouterr().err
    assert run(["import", str(tmp_path / "file"), *data]) == 5
    monkeypatch.setenv("SHIP_DATABASE", "")
    other = ("--data", str(tmp_path / "other"))
    assert run(["import", str(tmp_path / "file"), *other]) == 0
    capfd.readouterr()
    assert run(["token", "ls", *other]) == 0
    assert "ci" in capfd.readouterr().out
    assert run(["import", str(tmp_path / "no such file"), *other]) == 3
    monkeypatch.setenv("SHIP_DATABASE", "mysql://x/y")
    assert run(["migrate", *data]) == 3


@pytest.fixture
def postgres_url_of_a_command(postgres_address: str) -> str:
    """An empty place for commands that run an event loop of their own."""

    async def make() -> str:
        connection = await asyncpg.connect(postgres_address)
        await connection.execute("DROP SCHEMA IF EXISTS commands CASCADE")
        await connection.execute("CREATE SCHEMA commands")
        await connection.close()
        return f"{postgres_address}{'&' if '?' in postgres_address else '?'}search_path=commands"

    return asyncio.run(make())
