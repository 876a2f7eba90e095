"""The SQLite store: durable group commit, isolation of jobs, one owner."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ship.errors import ConfigurationError, Unavailable
from ship.store import idempotency, log, outbox
from ship.store.sqlite import Database


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(tmp_path / "ship.db")
    await opened.open()
    yield opened
    await opened.close()


async def test_appends_continue_at_the_head_or_not_at_all(database: Database) -> None:
    await database.write(lambda c: log.append(c, "s", 0, [("a", b"1"), ("b", b"2")]))
    with pytest.raises(log.HeadMoved):
        await database.write(lambda c: log.append(c, "s", 1, [("c", b"3")]))
    assert await database.read(lambda c: log.page(c, "s", 0, 10)) == [(1, b"1"), (2, b"2")]
    assert await database.read(lambda c: log.page(c, "s", 0, 10, ["b"])) == [(2, b"2")]
    assert await database.read(lambda c: log.head(c, "none")) == 0


async def test_a_job_that_fails_leaves_its_neighbours_in_the_same_commit_alone(database: Database) -> None:
    def failing(connection: sqlite3.Connection) -> None:
        log.append(connection, "bad", 0, [("a", b"1")])
        raise ValueError("on purpose")

    outcomes = await asyncio.gather(
        *(database.write(lambda c, n=n: log.append(c, f"s{n}", 0, [("a", b"1")])) for n in range(20)),
        database.write(failing),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [type(None)] * 20 + [ValueError]
    assert await database.read(lambda c: log.head(c, "bad")) == 0
    assert await database.read(lambda c: log.head(c, "s19")) == 1


async def test_a_second_owner_is_refused_and_a_visitor_is_not(database: Database, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        await Database(tmp_path / "ship.db").open()
    assert refused.value.code == "data_in_use"
    visitor = Database(tmp_path / "ship.db", exclusive=False)
    await visitor.open()
    await visitor.write(lambda c: log.append(c, "s", 0, [("a", b"1")]))
    await visitor.close()
    assert await database.read(lambda c: log.head(c, "s")) == 1


async def test_a_file_of_a_newer_ship_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "ship.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ConfigurationError) as refused:
        await Database(tmp_path / "ship.db").open()
    assert refused.value.code == "data_newer"


async def test_a_full_disk_is_an_error_with_a_name_and_passes_when_there_is_room(
    database: Database,
) -> None:
    def limit(connection: sqlite3.Connection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")

    await database.write(limit)
    with pytest.raises(Unavailable) as refused:
        await database.write(lambda c: log.append(c, "s", 0, [("a", bytes(100_000))]))
    assert refused.value.code == "disk_full"
    await database.write(lambda c: c.execute("PRAGMA max_page_count = 1000000") and None)
    await database.write(lambda c: log.append(c, "s", 0, [("a", bytes(100_000))]))


async def test_effects_are_claimed_once_until_their_lease_runs_out(database: Database) -> None:
    await database.write(lambda c: outbox.add(c, "s", 100, [("e1", b"x")]))
    await database.write(lambda c: outbox.add(c, "s", 100, [("e1", b"y")]))
    first = await database.write(lambda c: outbox.claim(c, 100, 50, 9))
    assert [(effect.body, effect.attempts) for effect in first] == [(b"x", 1)]
    assert await database.write(lambda c: outbox.claim(c, 149, 50, 9)) == []
    again = await database.write(lambda c: outbox.claim(c, 150, 50, 9))
    assert [effect.attempts for effect in again] == [2]
    await database.write(lambda c: outbox.finish(c, "e1"))
    assert await database.read(outbox.next_due_ms) is None


async def test_an_alarm_that_was_set_anew_while_it_fired_stays(database: Database) -> None:
    await database.write(lambda c: outbox.set_alarm(c, "s", "a", 100))
    (alarm,) = await database.write(lambda c: outbox.claim_alarms(c, 100, 50, 9))
    await database.write(lambda c: outbox.set_alarm(c, "s", "a", 500))
    await database.write(lambda c: outbox.finish_alarm(c, alarm))
    assert await database.read(outbox.next_due_ms) == 500


async def test_a_key_stands_for_one_request(database: Database) -> None:
    await database.write(lambda c: idempotency.keep(c, "me", "k", "f", b"answer", 1))
    assert await database.read(lambda c: idempotency.find(c, "me", "k", "f")) == b"answer"
    assert await database.read(lambda c: idempotency.find(c, "you", "k", "f")) is None
    with pytest.raises(Exception, match="another request"):
        await database.read(lambda c: idempotency.find(c, "me", "k", "other"))


WRITER = """
import asyncio, sys
from pathlib import Path
from ship.store import log
from ship.store.sqlite import Database

async def main():
    database = Database(Path(sys.argv[1]))
    await database.open()
    async def one(session):
        for head in range(10_000):
            await database.write(lambda c: log.append(c, session, head, [("a", b"x")]))
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
        database = Database(tmp_path / "ship.db")
        await database.open()
        found = {
            session: [seq for seq, _ in await database.read(lambda c, s=session: log.page(c, s, 0, 20_000))]
            for session in acknowledged
        }
        await database.close()
        for seqs in found.values():
            assert seqs == list(range(1, len(seqs) + 1))
        return {session: len(seqs) for session, seqs in found.items()}

    stored = asyncio.run(heads())
    assert len(acknowledged) == 8
    assert all(stored[session] >= head for session, head in acknowledged.items())
