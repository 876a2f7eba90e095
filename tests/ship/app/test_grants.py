"""What a session token allows follows from the session's tasks."""

from pathlib import Path

import pytest

from ship.accounts.sandbox_tokens import SandboxTokens
from ship.app.grants import AFTERWARDS_MS, SessionGrants
from ship.bus import LocalBus
from ship.errors import StaleGeneration
from ship.events import Cursor, facts
from ship.model import SYSTEM, Actor, ActorKind, LimitsPatch, Repository, Usage
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
