"""The service over a real store: concurrency, idempotency, streams without a gap, effects."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from ship.bus import LocalBus
from ship.errors import Conflict, InvalidInput, NotFound, ShipError, Unavailable
from ship.events import Cursor, facts
from ship.events.frames import Delta
from ship.model import Actor, ActorKind, Repository, SessionStatus
from ship.ports.store import Append, HeadMoved
from ship.sessions import commands, feeds, service
from ship.sessions.cache import CACHED_BYTES, StateCache
from ship.sessions.logs import Logs
from ship.sessions.machine import decide
from ship.sessions.service import IdempotencyKey, Sessions
from ship.store.sqlite import SqliteStore

ME = Actor(kind=ActorKind.USER, name="me")


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


class FailsOnce(SqliteStore):
    """A store whose next commit fails with ``error``, after some turns."""

    error: ShipError | None = None

    def append(self, append: Append) -> "asyncio.Future[None]":
        if self.error is None:
            return super().append(append)
        append.break_chain()
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.01, failed.set_exception, self.error)
        self.error = None
        return failed


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FailsOnce]:
    opened = FailsOnce(tmp_path / "ship.db")
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def sessions(store: SqliteStore) -> Sessions:
    return Sessions(store, LocalBus(), Clock())


BEGIN = commands.CreateSession(title="t", repository=Repository(source="/r"), model="p/m")


async def begun(sessions: Sessions) -> str:
    return (await sessions.create(BEGIN, ME)).session_id


def note(text: str) -> commands.PostMessage:
    return commands.PostMessage(message_id=text, text=text)


async def test_two_nodes_on_one_store_append_without_a_gap(store: SqliteStore, sessions: Sessions) -> None:
    other = Sessions(store, LocalBus(), Clock())
    session_id = await begun(sessions)
    await asyncio.gather(
        *(node.execute(session_id, note(f"{n}"), ME) for n in range(100) for node in (sessions, other))
    )
    rows = await sessions.events(session_id, 0, 1_000)
    assert [seq for seq, _ in rows] == list(range(1, 203))
    assert [json.loads(body)["seq"] for _, body in rows] == list(range(1, 203))
    fresh = Sessions(store, LocalBus(), Clock())
    assert (await fresh.state(session_id)).head_seq == 202


async def test_a_repeated_create_gets_its_first_answer_also_when_the_store_says_that_the_head_moved(
    store: FailsOnce, sessions: Sessions
) -> None:
    key = IdempotencyKey("me", "k", "f")
    command = commands.CreateSession(title="t", repository=Repository(source="/r"), model="p/m")
    first = await sessions.create(command, ME, key)
    store.error = HeadMoved("a batch that was tried again")
    again = await sessions.create(command, ME, key)
    assert (again.session_id, again.repeated) == (first.session_id, True)


async def test_what_changes_nothing_is_told_only_when_what_it_was_decided_on_is_kept(
    store: FailsOnce, sessions: Sessions
) -> None:
    session_id = await begun(sessions)
    store.error = Unavailable("the disk is full")
    archive = commands.ArchiveSession()
    first, second = await asyncio.gather(
        *(sessions.execute(session_id, archive, ME) for _ in range(2)), return_exceptions=True
    )
    assert isinstance(first, Unavailable)
    assert not isinstance(second, BaseException)
    assert second.state.status is SessionStatus.ARCHIVED
    assert (await sessions.state(session_id)).status is SessionStatus.ARCHIVED
    assert await store.head(session_id) == second.answer["seq"]


async def test_who_comes_when_a_shared_look_at_the_log_ends_looks_again(
    store: SqliteStore, sessions: Sessions
) -> None:
    session_id = await begun(sessions)
    gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    class LogsThatGrow(Logs):
        async def events(
            self, session_id: str, after: int, limit: int, types: Sequence[str] = (), up_to: int | None = None
        ) -> list[tuple[int, bytes]]:
            rows = await super().events(session_id, after, limit, types, up_to)
            if not rows and coming and not gate.done():
                await sessions.execute(session_id, note("later"), ME)
                cache.heard(session_id, await store.head(session_id))
                gate.set_result(None)  # wakes who waits before anybody hears that this look has ended
            return rows

    coming: list[asyncio.Task[int]] = []
    cache = StateCache(store, LogsThatGrow(store, None))
    await cache.known(session_id)

    async def come() -> int:
        await gate
        return (await cache.known(session_id)).head_seq

    coming.append(asyncio.create_task(come()))
    await sessions.execute(session_id, note("first"), ME)
    cache.heard(session_id, await store.head(session_id))
    known = await cache.known(session_id)
    assert await coming[0] == known.head_seq == await store.head(session_id)


def test_large_states_leave_the_cache_before_small_ones_would(store: SqliteStore) -> None:
    cache = StateCache(store, Logs(store, None))
    small = decide(None, BEGIN, ME, 1).state
    full = decide(small, commands.QueueTask(task_id="tsk_2", prompt="x" * (CACHED_BYTES // 9)), ME, 2).state
    cache.keep("small", small, 0)
    for number in range(8):
        cache.keep(f"{number}", full, 0)
    assert cache.peek("small") and cache.peek("0")
    cache.keep("grows", small, 0)
    cache.keep("grows", full, CACHED_BYTES // 9)
    assert [cache.peek(name) is not None for name in ("small", "0", "1", "grows")] == [
        False,
        False,
        True,
        True,
    ]


def test_what_a_state_does_not_keep_takes_no_room_in_the_cache(store: SqliteStore) -> None:
    cache = StateCache(store, Logs(store, None))
    state = decide(None, BEGIN, ME, 1).state
    cache.keep("other", state, 0)
    for number in range(9):
        state = decide(state, note(f"{number}"), ME, 2).state
        cache.keep("talks", state, CACHED_BYTES // 4)
    assert cache.peek("other") and cache.peek("talks") is state


async def test_a_repeated_key_gets_the_first_answer_also_when_both_come_at_once(sessions: Sessions) -> None:
    session_id = await begun(sessions)
    key = IdempotencyKey("me", "k", "f")
    outcomes = await asyncio.gather(*(sessions.post(session_id, note(f"n{n}"), ME, key) for n in range(10)))
    assert len({json.dumps(outcome.answer) for outcome in outcomes}) == 1
    assert sum(not outcome.repeated for outcome in outcomes) == 1
    assert len(await sessions.messages(session_id, None, 50)) == 1
    with pytest.raises(Conflict):
        await sessions.post(session_id, note("other"), ME, IdempotencyKey("me", "k", "another"))


async def test_a_node_alone_remembers_nothing_of_what_it_told(sessions: Sessions) -> None:
    await begun(sessions)
    assert not sessions._heads._told


async def test_a_refused_command_keeps_nothing(sessions: Sessions) -> None:
    session_id = await begun(sessions)
    head = await sessions.head(session_id)
    with pytest.raises(NotFound):
        await sessions.execute(session_id, commands.CancelTask(task_id="none"), ME)
    assert await sessions.head(session_id) == head
    with pytest.raises(NotFound):
        await sessions.state("ses_none")


async def test_a_follower_sees_everything_once_while_others_append(sessions: Sessions) -> None:
    session_id = await begun(sessions)

    async def follow() -> list[int]:
        return [seq async for seq, _, _ in sessions.follow(session_id, 0) if seq]

    followers = [asyncio.create_task(follow()) for _ in range(5)]
    for n in range(300):
        await sessions.execute(session_id, note(f"{n}"), ME)
    await sessions.execute(session_id, commands.ArchiveSession(), ME)
    async with asyncio.timeout(10):
        seen = await asyncio.gather(*followers)
    head = await sessions.head(session_id)
    assert seen == [list(range(1, head + 1))] * 5


async def test_a_follower_whose_buffer_overflowed_reads_the_log(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ship.bus.local.BUFFER", 8)
    session_id = await begun(sessions)
    stream = sessions.follow(session_id, 0)
    seen = [(await anext(stream))[0] for _ in range(3)]
    await asyncio.gather(*(sessions.execute(session_id, note(f"{n}"), ME) for n in range(100)))
    await sessions.execute(session_id, commands.ArchiveSession(), ME)
    async with asyncio.timeout(10):
        seen += [seq async for seq, _, _ in stream]
    assert [seq for seq in seen if seq] == list(range(1, await sessions.head(session_id) + 1))


async def test_an_append_by_another_node_is_seen_at_the_next_heartbeat(
    store: SqliteStore, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "HEARTBEAT_S", 0.02)
    session_id = await begun(sessions)
    other = Sessions(store, LocalBus(), Clock())
    stream = sessions.follow(session_id, await sessions.head(session_id))
    assert (await anext(stream))[1] == "live"
    await other.execute(session_id, note("from afar"), ME)
    async with asyncio.timeout(10):
        async for seq, _, body in stream:
            if seq:
                assert json.loads(body)["data"]["text"] == "from afar"
                break
    await stream.aclose()


async def running(sessions: Sessions) -> str:
    """A session with the running task ``tsk_1``."""
    command = commands.CreateSession(
        title="t", repository=Repository(source="/r"), model="p/m", prompt="go", task_id="tsk_1"
    )
    session_id = (await sessions.create(command, ME)).session_id
    ready = facts.SandboxReady(generation=1, base_commit="c", work_branch="b")
    frame = commands.ReportFrame(at=Cursor(generation=1, n=1), fact=ready)
    await sessions.execute(session_id, frame, ME)
    return session_id


def delta(offset: int, text: str, task_id: str = "tsk_1") -> Delta:
    return Delta(task_id=task_id, message_id="m", part_id="p", kind="text", offset=offset, text=text)


async def test_who_joins_in_mid_stream_gets_the_text_so_far(sessions: Sessions) -> None:
    session_id = await running(sessions)
    for grown in (delta(0, "Hel"), delta(3, "lo"), delta(3, "lo"), delta(99, "lost"), delta(5, "!", "tsk_2")):
        await sessions.grow(session_id, grown)
    stream = sessions.follow(session_id, 0)
    async for _, kind, body in stream:
        if kind == "delta":
            assert json.loads(body)["text"] == "Hello"
            assert json.loads(body)["offset"] == 0
            break
    await stream.aclose()


async def test_nothing_grows_when_no_task_runs(sessions: Sessions) -> None:
    session_id = await running(sessions)
    await sessions.grow(session_id, delta(0, "Hello"))
    await sessions.execute(session_id, commands.ArchiveSession(), ME)
    await sessions.grow(session_id, delta(5, "again"))
    assert sessions._growth.ask(session_id) == []


async def test_a_place_past_the_end_of_the_log_is_refused(sessions: Sessions) -> None:
    session_id = await begun(sessions)
    with pytest.raises(InvalidInput) as refused:
        await anext(sessions.follow(session_id, 99))
    assert refused.value.code == "after_past_head"


@pytest.mark.parametrize(
    ("seq", "code"), [(-1, "invalid_input"), (0, "invalid_input"), (99, "after_past_head")]
)
async def test_a_state_that_never_was_is_refused(sessions: Sessions, seq: int, code: str) -> None:
    session_id = await begun(sessions)
    with pytest.raises(InvalidInput) as refused:
        async with asyncio.timeout(5):
            await sessions.state_at(session_id, seq)
    assert refused.value.code == code


async def test_who_leaves_while_a_command_is_on_its_way_leaves_it_whole(sessions: Sessions) -> None:
    session_id = await begun(sessions)
    stream = sessions.follow(session_id, await sessions.head(session_id))
    assert (await anext(stream))[1] == "live"
    asking = asyncio.create_task(sessions.execute(session_id, note("still said"), ME))
    async with asyncio.timeout(10):
        while not sessions._chains:
            await asyncio.sleep(0)
        asking.cancel()
        seq, kind, _ = await anext(stream)
    assert asking.cancelled() or asking.cancelling()
    assert (kind, seq) == ("message.posted", await sessions.head(session_id))
    await stream.aclose()


async def test_only_the_chosen_types_are_streamed(sessions: Sessions) -> None:
    session_id = await begun(sessions)
    for n in range(3):
        await sessions.execute(session_id, note(f"{n}"), ME)
    await sessions.execute(session_id, commands.ArchiveSession(), ME)
    kinds = [
        json.loads(body)["type"]
        async for seq, _, body in sessions.follow(session_id, 0, ["message.posted"])
        if seq
    ]
    assert kinds == ["message.posted"] * 3


async def test_a_snapshot_of_another_shape_is_ignored(
    store: SqliteStore, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id = await begun(sessions)
    for n in range(service.SNAPSHOT_EVERY):
        await sessions.execute(session_id, note(f"{n}"), ME)
    state = await sessions.state(session_id)
    assert await store.snapshot(session_id, service.STATE_SHAPE)
    assert await Sessions(store, LocalBus(), Clock()).state(session_id) == state
    monkeypatch.setattr(service, "STATE_SHAPE", service.STATE_SHAPE + 1)
    assert await Sessions(store, LocalBus(), Clock()).state(session_id) == state
