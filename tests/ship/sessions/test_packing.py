"""A session that is over is packed into a blob, and nobody who reads it notices; whoever dies meanwhile loses nothing."""

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from ship.blobs.folder import FolderBlobs
from ship.bus import LocalBus
from ship.errors import Unavailable
from ship.events import Cursor, facts
from ship.model import AGENT, SYSTEM, Actor, ActorKind, ChangedFile, CheckpointReason, Repository
from ship.ports.store import PAGE_BYTES, Append, NewEvent, Snapshot, Store
from ship.sessions import commands, forks, packing
from ship.sessions.cache import STATE_SHAPE
from ship.sessions.effects import Effects, RunnerSettings
from ship.sessions.policy import Policy
from ship.sessions.service import Sessions
from ship.sessions.worker import Worker
from ship.store.postgres import PostgresStore
from ship.store.sqlite import SqliteStore
from ship.testing.postgres_server import fresh_database
from ship.testing.sandbox_hosts import PretendSandboxHost

ME = Actor(kind=ActorKind.USER, name="me")
NOTES = 1_200


@pytest.fixture(params=["sqlite", "postgres"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    async with AsyncExitStack() as stack:
        opened: Store = SqliteStore(tmp_path / "ship.db")
        if request.param == "postgres":
            address = request.getfixturevalue("postgres_address")
            opened = PostgresStore(await stack.enter_async_context(fresh_database(address)))
        await opened.open()
        stack.push_async_callback(opened.close)
        yield opened


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def ended(sessions: Sessions) -> str:
    """A session with a long past."""
    command = commands.CreateSession(title="t", repository=Repository(source="/r"), model="p/m")
    session_id = (await sessions.create(command, ME)).session_id
    digest = "ab" * 32
    stored = commands.StoreArtifact(name="a", sha256=digest, size_bytes=1, media_type="text/plain")
    await sessions.execute(session_id, stored, ME)
    notes = (commands.PostMessage(message_id=f"{number}", text=f"note {number}") for number in range(NOTES))
    await asyncio.gather(*(sessions.execute(session_id, note, ME) for note in notes))
    await sessions.execute(session_id, commands.ArchiveSession(), ME)
    return session_id


async def all_that_is_read(sessions: Sessions, session_id: str) -> list[Any]:
    head = await sessions.head(session_id)
    read: list[Any] = [head, await sessions.state(session_id)]
    for after, limit in ((0, 10), (0, 5_000), (498, 4), (NOTES, 9), (head - 1, 5), (head, 5)):
        read.append(await sessions.events(session_id, after, limit))
    read += [
        await sessions.events(session_id, 0, 5, ["message.posted"]),
        await sessions.events(session_id, 0, 5, ["artifact.stored", "session.archived"]),
        await sessions.events(session_id, 0, 5, ["no.such"]),
        await sessions.events(session_id, 490, 5_000, ["message.posted"], 510),
        await sessions.events(session_id, 490, 5_000, (), 510),
    ]
    for before, limit in ((None, 3), (None, 5_000), (700, 600), (4, 9), (1, 9)):
        read.append(await sessions.messages(session_id, before, limit))
    read.append([item async for item in sessions.follow(session_id, 0)])
    read.append([item async for item in sessions.follow(session_id, 1_000, ["message.posted"])])
    return read


async def test_a_packed_session_reads_as_before(store: Store, tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    sessions = Sessions(store, LocalBus(), now_ms, blobs=blobs)
    session_id, other_id = await ended(sessions), await ended(sessions)
    before = await all_that_is_read(sessions, session_id)
    await sessions.pack(session_id)
    assert await store.events(session_id, 0, 1) == []
    assert await all_that_is_read(sessions, session_id) == before
    fresh = Sessions(store, LocalBus(), now_ms, blobs=blobs)
    assert await all_that_is_read(fresh, session_id) == before
    await sessions.execute(session_id, commands.ArchiveSession(), ME)
    assert len(await store.events(other_id, 0, 9)) == 9

    packed = await store.packed(session_id)
    assert packed
    assert packing.named_in_pack(packed.pages) == ("ab" * 32,)
    size_bytes = sum(file.stat().st_size for file in (tmp_path / "blobs").rglob("*") if file.is_file())
    logged_bytes = sum(len(body) for _, body in before[3])
    assert size_bytes < logged_bytes / 5


async def test_what_was_said_last_is_as_long_where_the_messages_are_large(
    store: Store, tmp_path: Path
) -> None:
    sessions = Sessions(store, LocalBus(), now_ms, blobs=FolderBlobs(tmp_path / "blobs"))
    command = commands.CreateSession(title="t", repository=Repository(source="/r"), model="p/m")
    session_id = (await sessions.create(command, ME)).session_id
    for number in range(5):
        note = commands.PostMessage(message_id=f"{number}", text=f"{number}" * (PAGE_BYTES // 2))
        await sessions.execute(session_id, note, ME)
    await sessions.execute(session_id, commands.ArchiveSession(), ME)
    page, said = await sessions.messages(session_id, None, 9), await sessions.last_said(session_id, None, 4)
    assert (len(page), len(said)) == (2, 4)
    await sessions.pack(session_id)
    assert await sessions.messages(session_id, None, 9) == page
    assert await sessions.last_said(session_id, None, 4) == said
    assert len(await sessions.last_said(session_id, None, 9)) == 5


async def worked(sessions: Sessions) -> str:
    """A session that was archived with two checkpoints, which are not on one page of its log."""
    command = commands.CreateSession(
        title="t", repository=Repository(source="/r"), model="p/m", prompt="do", task_id="tsk"
    )
    session_id = (await sessions.create(command, ME)).session_id
    created = facts.SandboxCreated(generation=1, sandbox_id="one")
    await sessions.execute(session_id, commands.ReportProgress(generation=1, fact=created), SYSTEM)
    reported: list[facts.Fact] = [facts.SandboxReady(generation=1, base_commit="c", work_branch="b")]
    reported += [checkpoint("ckp_1", ""), checkpoint("ckp_2", "ckp_1"), facts.TaskCompleted(task_id="tsk")]
    for n, fact in enumerate(reported, start=1):
        if isinstance(fact, facts.CheckpointCreated):
            stored = commands.StoreArtifact(
                name=fact.bundle_artifact, sha256=f"{n}" * 64, size_bytes=1, media_type="x/y"
            )
            await sessions.execute(session_id, stored, AGENT)
        frame = commands.ReportFrame(at=Cursor(generation=1, n=n), fact=fact)
        await sessions.execute(session_id, frame, AGENT)
        notes = (commands.PostMessage(message_id=f"{n}-{note}", text="note") for note in range(300))
        await asyncio.gather(*(sessions.execute(session_id, note, ME) for note in notes))
    await sessions.execute(session_id, commands.ArchiveSession(), ME)
    return session_id


def checkpoint(checkpoint_id: str, parent_id: str) -> facts.CheckpointCreated:
    return facts.CheckpointCreated(
        checkpoint_id=checkpoint_id,
        task_id="tsk",
        commit=f"c-{checkpoint_id}",
        base_commit="c",
        files=(ChangedFile(path=f"{checkpoint_id}.py", status="M", additions=1, deletions=2),),
        diff_artifact="",
        bundle_artifact=f"bundle-{checkpoint_id}",
        agent_artifact="",
        parent_id=parent_id,
        reason=CheckpointReason.TASK,
    )


async def all_that_is_made_of_it(sessions: Sessions, session_id: str) -> list[Any]:
    """Its checkpoints, the states of its past, and what forks of it begin with."""
    state = await sessions.state(session_id)
    made: list[Any] = [state.checkpoints]
    for point in state.checkpoints:
        seqs = (1, point.seq - 1, point.seq, 500, 501, state.head_seq)
        made += [await sessions.state_at(session_id, seq) for seq in seqs]
        command = commands.CreateSession(
            title="fork", repository=state.repository, model="p/m", prompt="more", task_id="tsk_2"
        )
        made.append(await forks.from_checkpoint(sessions, session_id, point.id, command, is_there))
    return made


async def is_there(name: str) -> bool:
    return True


async def test_a_packed_session_is_forked_and_replayed_as_before(store: Store, tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    sessions = Sessions(store, LocalBus(), now_ms, blobs=blobs)
    session_id = await worked(sessions)
    before = await all_that_is_made_of_it(sessions, session_id)
    assert [point.id for point in before[0]] == ["ckp_1", "ckp_2"]
    await sessions.pack(session_id)
    assert await store.events(session_id, 0, 1) == []
    fresh = Sessions(store, LocalBus(), now_ms, blobs=blobs)
    for reader in (sessions, fresh):
        assert await all_that_is_made_of_it(reader, session_id) == before
    fork = await fresh.state((await fresh.create(before[-1], ME)).session_id)
    assert fork.origin and fork.origin.checkpoint_id == "ckp_2"
    assert [point.id for point in fork.checkpoints] == ["ckp_1", "ckp_2"]
    assert fork.checkpoint and fork.checkpoint.files[0].path == "ckp_2.py"


async def test_a_state_of_another_form_is_folded_from_the_blob(store: Store, tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    sessions = Sessions(store, LocalBus(), now_ms, blobs=blobs)
    session_id = await ended(sessions)
    state = await sessions.state(session_id)
    await packing.pack(
        store, blobs, session_id, Snapshot(state.head_seq, STATE_SHAPE + 1, b"of a newer Ship")
    )
    assert await Sessions(store, LocalBus(), now_ms, blobs=blobs).state(session_id) == state


async def test_a_log_that_is_packed_while_it_is_followed_arrives_whole(store: Store, tmp_path: Path) -> None:
    sessions = Sessions(store, LocalBus(), now_ms, blobs=FolderBlobs(tmp_path / "blobs"))
    session_id = await ended(sessions)
    seqs = []
    async for seq, _, _ in sessions.follow(session_id, 0):
        seqs += [seq] if seq else []
        if seq == 600:
            await sessions.pack(session_id)
    assert seqs == list(range(1, await sessions.head(session_id) + 1))


async def test_the_worker_packs_when_the_time_has_come(store: Store, tmp_path: Path) -> None:
    ahead_ms = 0
    sessions = Sessions(
        store,
        LocalBus(),
        lambda: now_ms() + ahead_ms,
        Policy(pack_after_s=3_600),
        FolderBlobs(tmp_path / "blobs"),
    )
    session_id = await ended(sessions)
    settings = RunnerSettings("base", "http://ship.internal", lambda session, n: f"{session}.{n}")
    host = PretendSandboxHost()
    work = Worker(store, sessions, Effects(sessions, host, settings)).run()
    working = asyncio.create_task(work)
    async with asyncio.timeout(20):
        while (due_ms := await store.next_due_ms()) is None or due_ms < sessions.now_ms() + 3_000_000:
            await asyncio.sleep(0.01)
        assert await store.packed(session_id) is None
        ahead_ms += 3_601_000
        await sessions.check_soon("another session", 0)  # wakes the worker, which knows another clock
        while await store.packed(session_id) is None:
            await asyncio.sleep(0.01)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    assert len(await sessions.events(session_id, 0, 9)) == 9


class BrokenBlobs(FolderBlobs):
    """Says that it has stored what it has not."""

    async def read(self, sha256: str, offset: int, size: int) -> bytes:
        raise Unavailable("the disk is broken", code="blobs_unavailable")


async def test_rows_stay_until_the_blob_can_be_read(store: Store, tmp_path: Path) -> None:
    sessions = Sessions(store, LocalBus(), now_ms, blobs=BrokenBlobs(tmp_path / "blobs"))
    session_id = await ended(sessions)
    await sessions.pack(session_id)
    assert await store.packed(session_id) is None
    assert len(await sessions.events(session_id, 0, 9)) == 9
    assert await store.next_due_ms() is not None, "it is tried again"


DYING = """
import asyncio, os, sys
from pathlib import Path
from ship.blobs.folder import FolderBlobs
from ship.ports.store import Snapshot
from ship.sessions import packing
from ship.store.sqlite import SqliteStore, log

folder, point = Path(sys.argv[1]), sys.argv[2]

def die(*_):
    os._exit(9)

class Blobs(FolderBlobs):
    async def put(self, pieces, limit_bytes):
        async def cut():
            async for piece in pieces:
                yield piece
                if point == "in the blob":
                    die()
        stored = await super().put(cut(), limit_bytes)
        if point == "after the blob":
            die()
        return stored

async def main():
    store = SqliteStore(folder / "ship.db")
    await store.open()
    if point == "in the transaction":
        log.save_snapshots = die
    await packing.pack(store, Blobs(folder / "blobs"), "s", Snapshot(1200, 1, b"state"))
    die()

asyncio.run(main())
"""


@pytest.mark.parametrize("point", ["in the blob", "after the blob", "in the transaction", "after it all"])
async def test_whoever_dies_while_packing_loses_nothing(point: str, tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "ship.db")
    await store.open()
    bodies = [b'{"type":"x","n":%d}' % number for number in range(1_200)]
    await store.append(Append("s", 0, 1, [NewEvent("x", body) for body in bodies]))
    await store.close()
    died = subprocess.run([sys.executable, "-c", DYING, tmp_path, point], check=False)
    assert died.returncode == 9
    await store_is_whole(tmp_path, bodies, packed=point == "after it all")
    again = subprocess.run([sys.executable, "-c", DYING, tmp_path, "after it all"], check=False)
    assert again.returncode == 9
    await store_is_whole(tmp_path, bodies, packed=True)
    blobs = [
        file for file in (tmp_path / "blobs").rglob("*") if file.is_file() and ".incoming" not in file.name
    ]
    assert len(blobs) == 1, "the second try made the same blob"
    shutil.rmtree(tmp_path / "blobs")


async def store_is_whole(folder: Path, bodies: list[bytes], *, packed: bool) -> None:
    store = SqliteStore(folder / "ship.db")
    await store.open()
    sessions = Sessions(store, LocalBus(), now_ms, blobs=FolderBlobs(folder / "blobs"))
    assert (await store.packed("s") is not None) is packed
    assert await store.head("s") == 1_200
    assert await sessions.events("s", 0, 9_999) == list(enumerate(bodies, start=1))
    await store.close()
