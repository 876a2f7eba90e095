"""What a session token allows follows from the session's tasks."""

from pathlib import Path

import pytest

from ship.accounts.sandbox_tokens import SandboxTokens
from ship.app.grants import AFTERWARDS_MS, SessionGrants
from ship.bus import LocalBus
from ship.errors import StaleGeneration
from ship.events import Cursor, facts
from ship.model import (
    AGENT,
    SYSTEM,
    Actor,
    ActorKind,
    LimitKind,
    LimitsPatch,
    Parent,
    Repository,
    Usage,
)
from ship.sessions import commands
from ship.sessions.service import Sessions
from ship.store.sqlite import SqliteStore

ME = Actor(kind=ActorKind.USER, name="me")


async def test_a_token_is_good_for_model_calls_from_a_tasks_start_to_a_minute_after_its_end(
    tmp_path: Path,
) -> None:
    now_ms = 1_000_000
    store = SqliteStore(tmp_path / "ship.db")
    await store.open()
    sessions = Sessions(store, LocalBus(), lambda: now_ms)
    tokens = SandboxTokens(b"k" * 32)
    create = commands.CreateSession(
        title="t",
        repository=Repository(source="/r"),
        model="p/m",
        prompt="do",
        task_id="tsk_1",
        limits=LimitsPatch(cost_usd=1.0),
    )
    session_id = (await sessions.create(create, ME)).session_id
    grants, token = SessionGrants(sessions, tokens), tokens.issue(session_id, 1)
    assert not (await grants.authorize(token)).at_work
    reports = (
        facts.SandboxReady(generation=1, base_commit="c", work_branch="b"),
        facts.TaskCompleted(task_id="tsk_1"),
    )
    for n, fact in enumerate(reports, start=1):
        frame = commands.ReportFrame(at=Cursor(generation=1, n=n), fact=fact)
        await sessions.execute(session_id, frame, SYSTEM)
        grant = await grants.authorize(token)
        assert (grant.at_work, grant.cost_limited, grant.limit) == (True, True, None)
        assert grant.task_id == "tsk_1", "what is called after its end counts for it"
    call = facts.ModelCalled(
        task_id="tsk_1", provider="p", model="m", status=200, took_ms=1, usage=Usage(model_calls=1)
    )
    for call_id in ("one", "one", "two"):
        await grants.model_called(grant, call, call_id)
    assert (await sessions.state(session_id)).usage.model_calls == 2
    now_ms += AFTERWARDS_MS
    assert not (await grants.authorize(token)).at_work
    with pytest.raises(StaleGeneration):
        await grants.authorize(tokens.issue(session_id, 2))
    await store.close()


def called(task_id: str, tokens: int) -> facts.ModelCalled:
    usage = Usage(model_calls=1, output_tokens=tokens)
    return facts.ModelCalled(task_id=task_id, provider="p", model="m", status=200, took_ms=1, usage=usage)


async def test_children_that_work_at_once_use_what_their_parent_has_left_together(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "ship.db")
    await store.open()
    sessions = Sessions(store, LocalBus(), lambda: 1_000_000)
    tokens = SandboxTokens(b"k" * 32)
    grants = SessionGrants(sessions, tokens)

    async def at_work(session_id: str, parent: Parent | None = None) -> str:
        """A session whose task runs with a limit of 100 tokens; its token."""
        create = commands.CreateSession(
            title="t",
            repository=Repository(source="/r"),
            model="p/m",
            prompt="do",
            task_id=f"tsk_{session_id}",
            limits=LimitsPatch(tokens=100),
            parent=parent,
        )
        await sessions.execute(session_id, create, ME)
        ready = facts.SandboxReady(generation=1, base_commit="c", work_branch="b")
        await reported(session_id, ready)
        return tokens.issue(session_id, 1)

    async def reported(session_id: str, fact: facts.Fact) -> None:
        n = (await sessions.state(session_id)).cursor.n + 1
        frame = commands.ReportFrame(at=Cursor(generation=1, n=n), fact=fact)
        await sessions.execute(session_id, frame, SYSTEM)

    async def child(parent_id: str, child_id: str) -> str:
        start = commands.StartChild(child_id=child_id, title="c", prompt="do")
        await sessions.execute(parent_id, start, AGENT)
        return await at_work(child_id, Parent(session_id=parent_id, task_id=f"tsk_{parent_id}", depth=1))

    async def limits() -> list[LimitKind | None]:
        return [(await grants.authorize(token)).limit for token in everybody]

    everybody = [await at_work("top"), await child("top", "one"), await child("top", "two")]
    everybody.append(await child("two", "deep"))
    await sessions.execute("top", commands.StartChild(child_id="not_yet", title="c", prompt="do"), AGENT)
    for token, session_id in zip(everybody, ("top", "one", "two", "deep"), strict=True):
        assert await limits() == [None] * 4
        await grants.model_called(await grants.authorize(token), called(f"tsk_{session_id}", 25), session_id)
    assert await limits() == [LimitKind.TOKENS] * 4
    await reported("top", facts.TaskCompleted(task_id="tsk_top"))
    assert await limits() == [LimitKind.TOKENS, None, None, None], "its limits end with it"
    await store.close()
