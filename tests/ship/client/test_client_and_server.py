"""The client against the real API: both read `docs/protocol.md` the same way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from tests.ship.api.conftest import Served, served  # noqa: F401 - pytest finds the fixture by its name here

from ship import errors
from ship.client import Client
from ship.events import Record
from ship.model import Approval, SessionStatus, TaskStatus

SOURCE = "https://example.com/repo.git"


@pytest.fixture
async def client(served: Served) -> AsyncIterator[Client]:  # noqa: F811 - the fixture itself
    async with Client(served.url, served.token) as connected:
        yield connected


async def test_a_session_lives_and_ends_by_the_clients_words(client: Client) -> None:
    session = await client.create_session(
        SOURCE, branch="main", prompt="do it", title="T", approval=Approval.ASK
    )
    assert (session.title, session.repository.branch, session.approval) == ("T", "main", Approval.ASK)
    assert session.tasks[0].status is TaskStatus.QUEUED
    accepted = await client.add_task(session.id, "and that")
    note = await client.post_message(session.id, "a note")
    assert accepted.seq < note.seq
    assert [message.text for message in (await client.messages(session.id)).items] == [
        "do it",
        "and that",
        "a note",
    ]
    await client.cancel_task(session.id, accepted.task_id)
    assert (await client.session(session.id)).tasks[1].status is TaskStatus.CANCELLED
    assert [one.id async for one in client.all_sessions()] == [session.id]
    assert (await client.add_task(session.id, "this way", steer=True)).steer_id in (None, "")
    await client.archive(session.id)
    with pytest.raises(errors.Conflict):
        await client.add_task(session.id, "too late")
    assert (await client.session(session.id)).status is SessionStatus.ARCHIVED
    records = [item async for item in client.events(session.id) if isinstance(item, Record)]
    assert [record.seq for record in records] == list(range(1, len(records) + 1))
    assert records[-1].fact.TYPE == "session.archived"
    assert (await client.event_page(session.id)).items == tuple(records)


async def test_blobs_models_and_the_callers_name(client: Client, tmp_path: Path) -> None:
    session = await client.create_session(SOURCE)
    await client.put_artifact(session.id, "shot.png", b"\x89PNG", "image/png")
    assert await client.artifact(session.id, "shot.png") == b"\x89PNG"
    assert [(one.name, one.media_type) for one in await client.artifacts(session.id)] == [
        ("shot.png", "image/png")
    ]
    assert [model.id for model in (await client.models()).items] == ["scripted/demo", "scripted/echo"]
    assert await client.me() == "me"
    assert await client.ready()
    assert "# HELP" in await client.metrics()
    bundle = tmp_path / "bundle"
    bundle.write_bytes(b"content")
    assert await client.upload(bundle) == "upload:" + "a" * 64


async def test_the_list_is_watched_live(client: Client) -> None:
    async with asyncio.timeout(10), aclosing(client.watch_sessions()) as changes:
        first = asyncio.ensure_future(anext(changes))
        while not first.done():
            # Whoever listens hears of the next change; the listening itself is not announced.
            session = await client.create_session(SOURCE, title="watched")
            await asyncio.wait({first}, timeout=0.2)
        assert (await first).title == session.title


async def test_errors_keep_their_code_and_their_hint(client: Client, served: Served) -> None:  # noqa: F811 - the fixture itself
    with pytest.raises(errors.NotFound):
        await client.session("ses_none")
    with pytest.raises(errors.NotFound):
        await anext(aiter(client.events("ses_none")))
    with pytest.raises(errors.InvalidInput) as invalid:
        await client.create_session("ftp://nowhere")
    assert invalid.value.code == "repository_invalid"
    with pytest.raises(errors.ShipError) as large:
        await client.create_session(SOURCE, prompt="x" * 20_000)
    assert large.value.status in (400, 413)
    async with Client(served.url, "ship_wrong") as stranger:
        with pytest.raises(errors.Unauthenticated):
            await stranger.me()
        with pytest.raises(errors.Unauthenticated):
            await anext(aiter(stranger.events("ses_none")))
