"""The SQLite store: durable group commit, isolation of jobs, one owner."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from importlib import resources
from pathlib import Path

import pytest
from tests.ship.store.small_disk import fill, small_disk

from ship import words
from ship.errors import ConfigurationError, Unavailable
from ship.ports.store import Append, FirstAnswer, HeadMoved, NewEvent, Search
from ship.store.sqlite import SqliteStore, database


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "ship.db")
    await opened.open()
    yield opened
    await opened.close()


def event(session_id: str, expected_head: int = 0, body: bytes = b"1") -> Append:
    return Append(session_id, expected_head, 1, [NewEvent("a", body)])


async def test_an_append_that_is_refused_leaves_its_neighbours_in_the_same_commit_alone(
    store: SqliteStore,
) -> None:
    outcomes = await asyncio.gather(
        *(store.append(event(f"s{n}")) for n in range(20)),
        store.append(event("s1", 7)),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [type(None)] * 20 + [HeadMoved]
    assert await store.heads([f"s{n}" for n in range(21)]) == {f"s{n}": 1 for n in range(20)}


async def test_a_second_owner_is_refused_and_a_visitor_is_not(store: SqliteStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        await SqliteStore(tmp_path / "ship.db").open()
    assert refused.value.code == "data_in_use"
    visitor = SqliteStore(tmp_path / "ship.db", exclusive=False)
    await visitor.open()
    await visitor.append(event("s"))
    await visitor.close()
    assert await store.head("s") == 1


async def test_a_damaged_file_is_named_as_that_at_the_start_and_later(tmp_path: Path) -> None:
    path = tmp_path / "ship.db"
    store = SqliteStore(path)
    await store.open()
    await asyncio.gather(*(store.append(event(f"s{n}", body=b"x" * 9_000)) for n in range(200)))
    await store.close()
    whole = path.read_bytes()
    sound = 64 * 4_096
    assert len(whole) > 4 * sound
    path.write_bytes(whole[:sound] + os.urandom(len(whole) - sound))
    store = SqliteStore(path)
    await store.open()
    for damaged in (store.events("s150", 0, 9), store.append(event("s150", 1))):
        with pytest.raises(Unavailable) as refused:
            await damaged
        assert refused.value.code == "store_damaged"
    await store.close()
    path.write_bytes(os.urandom(sound))
    with pytest.raises(Unavailable) as refused:
        await SqliteStore(path).open()
    assert refused.value.code == "store_damaged"


async def test_who_appends_hears_it_when_the_file_is_damaged_from_its_start_on(tmp_path: Path) -> None:
    path = tmp_path / "ship.db"
    store = SqliteStore(path)
    await store.open()
    await store.append(event("s"))
    wal = path.with_name("ship.db-wal")
    for file in (path, wal):
        with file.open("r+b") as opened:
            opened.write(os.urandom(file.stat().st_size))
    store._db._write_connection.execute("PRAGMA shrink_memory")  # else it goes by what it has read already
    async with asyncio.timeout(10):
        with pytest.raises(Unavailable) as refused:
            await store.append(event("s", 1))
    assert refused.value.code == "store_damaged"
    await store.close()


async def test_a_file_of_a_newer_ship_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "ship.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ConfigurationError) as refused:
        await SqliteStore(tmp_path / "ship.db").open()
    assert refused.value.code == "data_newer"


async def test_what_waited_in_a_file_of_an_older_ship_waits_in_this_one(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "ship.db", isolation_level=None)
    older = sorted(resources.files("ship.store.sqlite").joinpath("sql").iterdir(), key=lambda item: item.name)
    for script in older[:5]:
        connection.executescript(script.read_text())
    connection.execute("PRAGMA user_version = 5")
    connection.execute("INSERT INTO idempotency VALUES ('scope', 'late', 'f', x'01', 20)")
    connection.execute("INSERT INTO idempotency VALUES ('scope', 'never', 'f', x'02', 10)")
    connection.execute("INSERT INTO sessions VALUES ('s', 'ready', 1, x'00', '/r')")
    connection.execute("INSERT INTO unindexed VALUES ('s', 2, 'a needle')")
    connection.close()

    store = SqliteStore(tmp_path / "ship.db")
    await store.open()
    await store.forget_answers(20)
    assert await store.first_answer("scope", "never") is None
    assert await store.first_answer("scope", "late") == FirstAnswer("scope", "late", "f", b"\x01")
    assert await store.index(10) == 1
    assert [found.seq for found in await store.search(Search(words.parse("needle")), 0, 10)] == [2]
    await store.close()


async def test_a_full_disk_is_an_error_with_a_name_and_passes_when_there_is_room(store: SqliteStore) -> None:
    def limit(connection: sqlite3.Connection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")

    await store._db.write(limit)
    with pytest.raises(Unavailable) as refused:
        await store.append(event("s", body=bytes(100_000)))
    assert refused.value.code == "disk_full"
    await store._db.write(lambda c: c.execute("PRAGMA max_page_count = 1000000") and None)
    await store.append(event("s", body=bytes(100_000)))


WRITER = """
import asyncio, sys
from pathlib import Path
from ship.ports.store import Append, NewEvent
from ship.store.sqlite import SqliteStore, database

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    await store.open()
    async def one(session):
        for head in range(10_000):
            await store.append(Append(session, head, 1, [NewEvent("a", b"x")]))
            print(session, head + 1, flush=True)
    await asyncio.gather(*(one(f"s{n}") for n in range(8)))

asyncio.run(main())
"""


def test_what_was_acknowledged_is_there_after_kill_9(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "ship.db")], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        acknowledged: dict[str, int] = {}
        for count, line in enumerate(writer.stdout):
            session, head = line.split()
            acknowledged[session] = int(head)
            if count == 400:
                os.kill(writer.pid, signal.SIGKILL)
                break
        for line in writer.stdout:
            if len(words := line.split()) == 2 and line.endswith("\n"):
                acknowledged[words[0]] = int(words[1])

    async def heads() -> dict[str, int]:
        store = SqliteStore(tmp_path / "ship.db")
        await store.open()
        found = {
            session: [seq for seq, _ in await store.events(session, 0, 20_000)] for session in acknowledged
        }
        await store.close()
        for seqs in found.values():
            assert seqs == list(range(1, len(seqs) + 1))
        return {session: len(seqs) for session, seqs in found.items()}

    stored = asyncio.run(heads())
    assert len(acknowledged) == 8
    assert all(stored[session] >= head for session, head in acknowledged.items())


async def test_a_read_only_file_is_said_and_passes(store: SqliteStore) -> None:
    writer = store._db
    await writer.write(lambda c: c.execute("PRAGMA query_only = ON") and None)
    for call in (lambda: store.append(event("s")), store.probe):
        with pytest.raises(Unavailable) as refused:
            await call()
        assert refused.value.code == "store_read_only"
    assert await store.head("s") == 0
    # PRAGMA query_only cannot be set inside the transaction that it refuses
    writer._write_connection.execute("PRAGMA query_only = OFF")
    await store.probe()
    await store.append(event("s"))


@pytest.mark.skipif(os.geteuid() != 0, reason="a disk of a few megabytes is mounted as root only")
async def test_a_disk_that_fills_up_is_said_and_passes_when_there_is_room() -> None:
    with small_disk() as disk:
        store = SqliteStore(disk / "ship.db")
        await store.open()
        await store.append(event("s"))
        ballast = disk / "ballast"
        fill(ballast)
        body = os.urandom(300_000)
        with pytest.raises(Unavailable) as refused:
            await store.append(event("s", 1, body))
        assert refused.value.code == "disk_full"
        assert await store.head("s") == 1
        ballast.unlink()
        await store.append(event("s", 1, body))
        assert await store.head("s") == 2
        await store.close()


def test_a_second_server_on_the_folder_is_refused(tmp_path: Path) -> None:
    holder = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, tmp_path / "ship.lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as first:
        assert first.stdout is not None
        first.stdout.readline()
        second = subprocess.run(
            [sys.executable, "-m", "ship.cli", "up", "--data", tmp_path, "--listen", "127.0.0.1:0"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        first.communicate()
    assert second.returncode != 0
    assert "another Ship uses the data folder" in second.stderr


async def test_the_write_ahead_log_is_written_again_from_its_start_while_appends_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it has so many frames, however many commits that takes."""
    frames = 1_024
    monkeypatch.setattr(database, "CHECKPOINT_COMMITS", 32)
    monkeypatch.setattr(database, "CHECKPOINT_FRAMES", frames)
    store = SqliteStore(tmp_path / "ship.db")
    await store.open()
    for head in range(3_000):
        await store.append(event("s", head))
    size = (tmp_path / "ship.db-wal").stat().st_size
    # Some appends come while it is brought home.
    assert frames * 4_096 * 0.7 < size < frames * 4_096 * 1.7
    assert await store.head("s") == 3_000
    await store.close()


async def test_a_reader_that_stays_holds_no_append_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an export, whose snapshot keeps the write-ahead log from being written anew."""
    monkeypatch.setattr(database, "LONGEST_LOG_FRAMES", 8)
    monkeypatch.setattr(database, "CHECKPOINT_COMMITS", 4)
    monkeypatch.setattr(database, "CHECKPOINT_FRAMES", 8)
    store = SqliteStore(tmp_path / "ship.db")
    await store.open()
    await store.append(event("before"))
    with closing(sqlite3.connect(tmp_path / "ship.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchone()
        async with asyncio.timeout(5):
            for number in range(40):
                await store.append(event(f"s{number}"))
        reader.execute("COMMIT")
    size = (tmp_path / "ship.db-wal").stat().st_size
    for number in range(100):
        await store.append(event(f"t{number}"))
    assert (tmp_path / "ship.db-wal").stat().st_size < size * 1.5, "it is written from its start again"
    await store.close()
