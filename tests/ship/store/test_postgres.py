"""PostgreSQL as a store: what happens when it is away, full, read-only, or dies in the middle."""

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
import pytest
from tests.ship.store.commit_proxy import CommitProxy, Fault, commit_proxy
from tests.ship.store.small_disk import fill, small_disk

from ship.app.tokens import now_ms
from ship.bus import LocalBus
from ship.errors import ConfigurationError, InvalidInput, Unavailable
from ship.model import Actor, ActorKind, Repository
from ship.ports.store import Append, FirstAnswer, HeadMoved, NewAlarm, NewEvent, StoredToken
from ship.sessions.commands import CreateSession, PostMessage
from ship.sessions.ids import new_id
from ship.sessions.service import IdempotencyKey, Sessions
from ship.store.postgres import PostgresStore
from ship.testing.postgres_server import PostgresServer, fresh_database, postgres_server


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[PostgresStore]:
    async with opened(postgres_url) as store:
        yield store


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A server that may be killed."""
    with postgres_server() as server:
        yield server


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(url)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


def event(session_id: str, expected_head: int = 0, body: bytes = b"1") -> Append:
    return Append(session_id, expected_head, 1, [NewEvent("a", body)])


async def test_appends_that_come_together_share_a_transaction(
    store: PostgresStore, postgres_url: str
) -> None:
    await asyncio.gather(*(store.append(event(f"s{number}")) for number in range(100)))
    async with connected(postgres_url) as connection:
        assert await connection.fetchval("SELECT count(DISTINCT xmin::text) FROM events") == 1


async def test_what_another_node_is_claiming_is_left_to_it_and_holds_nobody_up(
    store: PostgresStore, postgres_url: str
) -> None:
    for number in (1, 2):
        session_id = f"s{number}"
        due = Append(
            session_id,
            0,
            1,
            [NewEvent("a", b"1")],
            effects=[(f"{session_id}:1", b"effect")],
            alarms=[NewAlarm("a", 1)],
        )
        await store.append(due)
    async with connected(postgres_url) as other, other.transaction(), asyncio.timeout(10):
        await other.fetch("SELECT 1 FROM outbox WHERE session_id = 's1' FOR UPDATE")
        await other.fetch("SELECT 1 FROM alarms WHERE session_id = 's1' FOR UPDATE")
        effects, alarms = await store.claim_effects(2, 100, 10), await store.claim_alarms(2, 100, 10)
    assert [effect.session_id for effect in effects] == [alarm.session_id for alarm in alarms] == ["s2"]
    assert [effect.session_id for effect in await store.claim_effects(2, 100, 10)] == ["s1"]


async def append_anew(store: PostgresStore, session_id: str) -> int:
    """Append at the head, wherever it is; returns how many attempts it took."""
    for attempt in itertools.count(1):
        with contextlib.suppress(HeadMoved):
            await store.append(event(session_id, await store.head(session_id)))
            return attempt
    raise AssertionError


async def test_a_node_that_never_pauses_is_not_always_first(store: PostgresStore, postgres_url: str) -> None:
    async def flood() -> None:
        while True:
            await append_anew(store, "s")

    await append_anew(store, "s")
    async with opened(postgres_url) as other, asyncio.TaskGroup() as group:
        floods = [group.create_task(flood()) for _ in range(4)]
        attempts = [await append_anew(other, "s") for _ in range(20)]
        for task in floods:
            task.cancel()
    assert sum(attempts) <= 45, attempts


async def test_commands_through_three_nodes_on_one_session_are_all_kept(postgres_url: str) -> None:
    actor = Actor(kind=ActorKind.USER, name="owner")
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened(postgres_url)) for _ in range(3)]
        nodes = [Sessions(store, LocalBus(), now_ms) for store in stores]
        create = CreateSession(title="t", repository=Repository(source="https://git.invalid/r"), model="m/m")
        session_id = (await nodes[0].create(create, actor)).session_id
        head = await nodes[0].head(session_id)

        async def post(node: Sessions, number: int) -> None:
            for count in range(10):
                key = IdempotencyKey("notes", f"{number}-{count}", "f")
                await node.post(session_id, PostMessage(message_id=new_id("msg"), text="n"), actor, key)

        await asyncio.gather(*(post(nodes[number % 3], number) for number in range(60)))
        assert await nodes[0].head(session_id) == head + 600
        rows = await nodes[1].events(session_id, head, 1_000)
        assert [seq for seq, _ in rows] == list(range(head + 1, head + 601))


async def test_many_nodes_that_start_at_once_make_the_tables_once(postgres_url: str) -> None:
    async with AsyncExitStack() as stack:
        stores = await asyncio.gather(*(stack.enter_async_context(opened(postgres_url)) for _ in range(6)))
        await asyncio.gather(*(store.append(event(f"s{number}")) for number, store in enumerate(stores)))
        assert len(await stores[0].heads([f"s{number}" for number in range(6)])) == 6


async def test_a_database_of_a_newer_ship_is_refused(store: PostgresStore, postgres_url: str) -> None:
    async with connected(postgres_url) as connection:
        await connection.execute("INSERT INTO schema_version VALUES (99)")
    with pytest.raises(ConfigurationError) as refused:
        await PostgresStore(postgres_url).open()
    assert refused.value.code == "data_newer"


async def test_what_postgresql_cannot_keep_is_refused_and_its_neighbours_are_not(
    store: PostgresStore,
) -> None:
    outcomes = await asyncio.gather(
        store.append(event("before")),
        store.append(event("a NUL\0")),
        store.append(event("half a character \ud800")),
        store.append(event("after")),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [type(None), InvalidInput, InvalidInput, type(None)]
    with pytest.raises(InvalidInput):
        await store.add_token(StoredToken("\0", "api", "x", 1, None))


async def test_a_deadlock_is_retried(
    store: PostgresStore, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.gather(store.append(event("a")), store.append(event("b")))
    lock = "SELECT seq FROM heads WHERE session_id = $1 FOR UPDATE"
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%FOR UPDATE%'"
    )
    async with connected(postgres_url) as other, connected(postgres_url) as watcher:
        await other.execute(
            "SET deadlock_timeout = '1min'"
        )  # so that the store's transaction is the one that is ended
        async with other.transaction():
            await other.fetchval(lock, "b")
            appending = asyncio.gather(store.append(event("a", 1)), store.append(event("b", 1)))
            async with asyncio.timeout(20):
                while not await watcher.fetchval(waiting):
                    await asyncio.sleep(0.01)
            assert await other.fetchval(lock, "a") == 1
        await appending
    assert "deadlock detected" in caplog.text
    assert await store.heads(["a", "b"]) == {"a": 2, "b": 2}


async def test_wrong_settings_are_said_and_a_server_that_is_away_is_another_thing(
    own_server: PostgresServer,
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        await PostgresStore(own_server.url("no_such_database")).open()
    assert refused.value.code == "database_refused"
    for garbled in ("postgresql://ship:pass#word@host/ship", "postgresql://ship:p@ss@[::1/ship"):
        with pytest.raises(ConfigurationError) as refused:
            await PostgresStore(garbled).open()
        assert refused.value.code == "database_refused"
        assert "pass" not in refused.value.message
    with pytest.raises(Unavailable) as away:
        await PostgresStore("postgresql://ship@127.0.0.1:1/ship").open()
    assert away.value.code == "store_unavailable"


@pytest.mark.parametrize("fault", ["answer_lost", "command_lost", "command_late"])
@pytest.mark.parametrize("crowded", [False, True], ids=["one statement", "a transaction"])
async def test_a_commit_whose_end_is_not_known_is_read_back(
    own_server: PostgresServer, crowded: bool, fault: Fault
) -> None:
    async with (
        fresh_database(own_server.url("postgres")) as direct,
        commit_proxy(own_server.socket) as proxy,
        opened(through(proxy, direct)) as store,
        opened(direct) as witness,
    ):
        await store.append(event("s", 0, b"first"))
        if crowded:
            with pytest.raises(HeadMoved):
                await store.append(event("s", 0, b"from another node, as it seems"))
        proxy.faults, proxy.command = [fault], b"COMMIT" if crowded else b"second"
        await asyncio.gather(store.append(event("s", 1, b"second")), store.append(event("t", 0, b"other")))
        assert proxy.broken == 1
        await store.append(event("s", 2, b"third"))
        assert [body for _, body in await witness.events("s", 0, 9)] == [b"first", b"second", b"third"]
        assert [body for _, body in await witness.events("t", 0, 9)] == [b"other"]
        was_kept = fault == "answer_lost" or (crowded and fault == "command_late")
        async with connected(direct) as connection:
            # What was taken back stays so: whoever wrote it writes no more.
            gone = await connection.fetchval("SELECT count(*) FROM writers WHERE batch > 1000")
            assert gone == (0 if was_kept else 1)


async def test_a_commit_that_cannot_be_read_back_is_said_to_be_unknown(own_server: PostgresServer) -> None:
    async with (
        fresh_database(own_server.url("postgres")) as direct,
        commit_proxy(own_server.socket) as proxy,
        opened(direct) as witness,
    ):
        store = PostgresStore(through(proxy, direct), read_back_s=0.3)
        await store.open()
        await store.append(event("s"))
        proxy.faults, proxy.command, proxy.refusing = ["answer_lost"], b"me", True
        answer = FirstAnswer("me", "key", "f", b"answer")
        with pytest.raises(Unavailable) as unknown:
            await store.append(event("s", 1)._replace(first_answer=answer))
        assert unknown.value.code == "outcome_unknown"
        proxy.refusing = False
        assert await store.first_answer("me", "key") == answer, "the same key finds out"
        await store.append(event("s", 2))
        assert await witness.head("s") == 3
        await store.close()


async def test_a_node_goes_on_after_a_commit_of_which_it_never_learned(own_server: PostgresServer) -> None:
    async with (
        fresh_database(own_server.url("postgres")) as direct,
        commit_proxy(own_server.socket) as proxy,
    ):
        store = PostgresStore(through(proxy, direct), read_back_s=0.0)
        await store.open()
        await store.append(event("s"))
        async with connected(direct) as connection:
            proxy.command = str(await connection.fetchval("SELECT id FROM writers")).encode()
        # The batch is lost, and the question for it is answered to nobody: it was taken back.
        proxy.faults = ["command_lost", "answer_lost"]
        with pytest.raises(Unavailable) as unknown:
            await store.append(event("s", 1, b"lost"))
        assert (unknown.value.code, proxy.broken) == ("outcome_unknown", 2)
        await store.append(event("s", 1, b"second"))
        assert [body for _, body in await store.events("s", 0, 9)] == [b"1", b"second"]
        await store.close()


async def test_nothing_acknowledged_is_lost_or_doubled_when_the_server_dies_under_load(
    own_server: PostgresServer,
) -> None:
    kept: dict[str, list[bytes]] = {f"s{number}": [] for number in range(12)}
    refused: set[str] = set()
    stop = asyncio.Event()

    async def write(store: PostgresStore, session_id: str) -> None:
        for attempt in itertools.count():
            if stop.is_set():
                return
            body = f"{session_id}:{len(kept[session_id])}:{attempt}".encode()
            try:
                await store.append(event(session_id, len(kept[session_id]), body))
            except Unavailable as error:
                refused.add(error.code)
            else:
                kept[session_id].append(body)

    async def more(count: int) -> None:
        wanted = sum(map(len, kept.values())) + count
        async with asyncio.timeout(60):
            while sum(map(len, kept.values())) < wanted:
                await asyncio.sleep(0.01)

    async with fresh_database_that_outlives(own_server) as url, opened(url) as store:
        writers = [asyncio.create_task(write(store, session_id)) for session_id in kept]
        for _ in range(3):
            await more(100)
            await asyncio.to_thread(own_server.stop, immediately=True)
            own_server.start()
            await asyncio.to_thread(own_server.wait)
        await more(100)
        stop.set()
        await asyncio.gather(*writers)
        assert refused <= {"store_unavailable"}
        for session_id, bodies in kept.items():
            stored = await store.events(session_id, 0, 9_999)
            assert [seq for seq, _ in stored] == list(range(1, len(stored) + 1))
            assert [body for _, body in stored] == bodies


async def test_a_read_only_database_is_said_and_passes(own_server: PostgresServer) -> None:
    async with fresh_database(own_server.url("postgres")) as url, opened(url) as store:
        await store.append(event("s"))
        await switch(url, "default_transaction_read_only", "on")
        calls = (
            lambda: store.append(event("s", 1)),
            lambda: store.set_alarm("s", NewAlarm("a", 1)),
            store.probe,
        )
        for call in calls:
            with pytest.raises(Unavailable) as refused:
                await call()
            assert refused.value.code == "store_read_only"
        assert await store.head("s") == 1
        await switch(url, "default_transaction_read_only", "off")
        await store.probe()
        await store.append(event("s", 1))
        assert await store.head("s") == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="a disk of a few megabytes is mounted as root only")
async def test_a_full_disk_is_said_and_passes_when_there_is_room(own_server: PostgresServer) -> None:
    with small_disk() as disk:
        data = disk / "data"
        data.mkdir()
        owner = own_server.folder.stat()
        os.chown(data, owner.st_uid, owner.st_gid)
        async with connected(own_server.url("postgres")) as admin:
            await admin.execute(f"CREATE TABLESPACE small LOCATION '{data}'")
            async with fresh_database(own_server.url("postgres") + "&default_tablespace=small") as url:
                async with opened(url) as store:
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
            await admin.execute("DROP TABLESPACE small")


def through(proxy: CommitProxy, url: str) -> str:
    schema = url.rpartition("search_path=")[2]
    return f"postgresql://ship@127.0.0.1:{proxy.port}/postgres?sslmode=disable&search_path={schema}"


@asynccontextmanager
async def fresh_database_that_outlives(server: PostgresServer) -> AsyncIterator[str]:
    """A schema whose making needs no connection that stays open: the server is killed meanwhile."""
    url = server.url("postgres")
    for statement in ("CREATE SCHEMA killed", "DROP SCHEMA killed CASCADE"):
        async with connected(url) as connection:
            await connection.execute(statement)
        if statement.startswith("CREATE"):
            yield f"{url}&search_path=killed"


async def switch(url: str, setting: str, value: str) -> None:
    async with connected(url) as connection:
        await connection.execute("SET default_transaction_read_only = off")
        await connection.execute(f"ALTER SYSTEM SET {setting} = {value}")
        await connection.execute("SELECT pg_reload_conf()")
    async with asyncio.timeout(20):
        while True:
            async with connected(url) as fresh:
                if await fresh.fetchval(f"SHOW {setting}") == value:
                    return
            await asyncio.sleep(0.01)
