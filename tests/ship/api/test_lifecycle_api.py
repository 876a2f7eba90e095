"""The routes of a session's life: queue, limits, pauses, checkpoints, forks, replay, children."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from tests.ship.api.conftest import Served
from tests.ship.api.runner_double import HandRunner
from tests.ship.api.test_runner_link import READY, events, sandboxed

from ship.api import schemas
from ship.cli.replaying import folded
from ship.client import Client
from ship.model import CheckpointReason, LimitsPatch, TaskStatus
from ship.sessions import views


async def until(served: Served, session_id: str, kind: str, count: int = 1) -> list[dict[str, Any]]:
    """The log as soon as it holds so many events of that kind."""
    async with asyncio.timeout(10):
        while True:
            log = await events(served, session_id)
            if sum(event["type"] == kind for event in log) >= count:
                return log
            await asyncio.sleep(0.01)


class Work:
    """A runner of a session that does what a test says."""

    def __init__(self, served: Served, session_id: str) -> None:
        self.runner = HandRunner(served, session_id)
        self.headers = {"Authorization": f"Bearer {self.runner.token}"}
        self.inside = httpx.AsyncClient(base_url=served.url, headers=self.headers)

    async def __aenter__(self) -> "Work":
        await self.runner.__aenter__()
        await self.runner.report("sandbox.ready", **READY)
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.inside.aclose()
        await self.runner.__aexit__(None, None, None)

    async def keep(self, checkpoint_id: str, task_id: str, parent_id: str = "") -> None:
        """Store a checkpoint's artifacts and report it."""
        for name in (f"diff-{checkpoint_id}", f"bundle-{checkpoint_id}", f"agent-{checkpoint_id}"):
            await self.inside.put(f"/runner/v1/artifacts/{name}", content=f"the {name}".encode())
        await self.runner.report_v(
            "checkpoint.created",
            2,
            checkpoint_id=checkpoint_id,
            task_id=task_id,
            commit=f"c-{checkpoint_id}",
            base_commit="c0",
            files=[{"path": "a.py", "status": "M", "additions": 2, "deletions": 1}],
            diff_artifact=f"diff-{checkpoint_id}",
            bundle_artifact=f"bundle-{checkpoint_id}",
            agent_artifact=f"agent-{checkpoint_id}",
            parent_id=parent_id,
            reason="task",
        )


@pytest.fixture
async def client(served: Served) -> Any:
    async with Client(served.url, served.token) as connected:
        yield connected


async def test_the_queue_is_edited_and_moved(served: Served, client: Client) -> None:
    session = await client.create_session("/r", prompt="first", limits=LimitsPatch(time_s=60, tokens=10))
    second = await client.add_task(session.id, "second", limits=LimitsPatch(tokens=20))
    third = await client.add_task(session.id, "third")
    await client.edit_task(session.id, third.task_id, prompt="third, better", limits=LimitsPatch(time_s=0))
    await client.move_task(session.id, third.task_id, before=second.task_id)
    await client.move_task(session.id, session.tasks[0].id)
    tasks = (await client.session(session.id)).tasks
    assert [task.prompt for task in tasks] == ["third, better", "second", "first"]
    assert [(task.limits.time_s, task.limits.tokens) for task in tasks] == [(0, 10), (60, 20), (60, 10)]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"limits": {"cost_usd": 1}}, "model_price_unknown"),
        ({"limits": {"time_s": -1}}, "invalid_input"),
        ({"model": "no/such"}, "model_unknown"),
        ({"prompt": " "}, "invalid_input"),
        ({"before": "tsk_9"}, "invalid_input"),
    ],
)
async def test_a_change_that_means_nothing_is_refused(
    served: Served, client: Client, body: dict[str, Any], code: str
) -> None:
    session = await client.create_session("/r", prompt="first")
    path = f"/api/v1/sessions/{session.id}/tasks/{session.tasks[0].id}"
    assert (await served.client.patch(path, json=body)).json()["code"] == code


async def test_a_session_is_paused_and_resumed(served: Served, client: Client) -> None:
    session = await sandboxed(served, prompt="do it")
    async with Work(served, session["id"]) as work:
        await work.runner.until("prompt")
        await client.pause(session["id"])
        wanted = await work.runner.until("checkpoint")
        assert wanted["reason"] == "pause"
        await work.keep(wanted["checkpoint_id"], session["tasks"][0]["id"])
        await until(served, session["id"], "sandbox.paused")
        (sandbox,) = served.host.sandboxes.values()
        assert sandbox.is_paused
        paused = await client.session(session["id"])
        assert (paused.status, paused.pause_reason, paused.tasks[0].status) == ("paused", "asked", "running")
        files = await served.client.get(f"/api/v1/sessions/{session['id']}/files")
        assert files.json()["code"] == "sandbox_not_running"
        await client.resume(session["id"])
        await until(served, session["id"], "sandbox.resumed")
    assert (await client.session(session["id"])).status == "running"
    assert not sandbox.is_paused


async def test_checkpoints_are_listed_shown_and_asked_for(served: Served, client: Client) -> None:
    session = await sandboxed(served, prompt="do it")
    async with Work(served, session["id"]) as work:
        task_id = (await work.runner.until("prompt"))["task_id"]
        await work.keep("ckp_1", task_id)
        await work.runner.report("task.completed", task_id=task_id)
        await until(served, session["id"], "task.completed")
        asked = await client.request_checkpoint(session["id"])
        wanted = await work.runner.until("checkpoint")
        assert (wanted["checkpoint_id"], wanted["reason"]) == (asked.checkpoint_id, CheckpointReason.ASKED)
        await work.keep(asked.checkpoint_id, "", parent_id="ckp_1")
        await until(served, session["id"], "checkpoint.created", 2)
        bootstrap = (await work.inside.get("/runner/v1/bootstrap")).json()
        schemas.BootstrapOut.model_validate(bootstrap)
    assert bootstrap["restore"] == {
        "checkpoint_id": asked.checkpoint_id,
        "bundles": ["bundle-ckp_1", f"bundle-{asked.checkpoint_id}"],
        "agent_artifact": f"agent-{asked.checkpoint_id}",
        "summary": "Person: do it",
        "lost_task": False,
    }
    first, second = await client.checkpoints(session["id"])
    assert (first.id, first.additions, first.task_id) == ("ckp_1", 2, task_id)
    assert second.parent_id == "ckp_1"
    assert await client.diff(session["id"], checkpoint_id="ckp_1") == b"the diff-ckp_1"
    unknown = await served.client.get(f"/api/v1/sessions/{session['id']}/diff?checkpoint=ckp_9")
    assert unknown.json()["code"] == "checkpoint_not_found"
    page = await served.client.get(f"/api/v1/sessions/{session['id']}/checkpoints")
    schemas.SavedPointPage.model_validate(page.json())


async def test_a_checkpoint_whose_bytes_are_lost_is_passed_over(
    served: Served, client: Client, tmp_path: Path
) -> None:
    session = await sandboxed(served, prompt="do it")
    async with Work(served, session["id"]) as work:
        task_id = (await work.runner.until("prompt"))["task_id"]
        for number, parent in ((1, ""), (2, "ckp_1")):
            await work.keep(f"ckp_{number}", task_id, parent)
        await until(served, session["id"], "checkpoint.created", 2)
        found = (await served.client.get(f"/api/v1/sessions/{session['id']}/artifacts")).json()["items"]
        (digest,) = (artifact["sha256"] for artifact in found if artifact["name"] == "bundle-ckp_2")
        (tmp_path / "blobs" / digest[:2] / digest).unlink()
        bootstrap = (await work.inside.get("/runner/v1/bootstrap")).json()
    assert (bootstrap["restore"]["checkpoint_id"], bootstrap["restore"]["bundles"]) == (
        "ckp_1",
        ["bundle-ckp_1"],
    )
    lost = await served.client.get(f"/api/v1/sessions/{session['id']}/artifacts/bundle-ckp_2")
    assert (lost.status_code, lost.json()["code"]) == (404, "blob_not_found")


async def test_a_fork_begins_where_a_checkpoint_was(served: Served, client: Client, tmp_path: Path) -> None:
    session = await sandboxed(served, prompt="do it", limits={"tokens": 99})
    nothing = await served.client.post(f"/api/v1/sessions/{session['id']}/fork", json={})
    assert nothing.json()["code"] == "no_checkpoint"
    async with Work(served, session["id"]) as work:
        task_id = (await work.runner.until("prompt"))["task_id"]
        for number, parent in ((1, ""), (2, "ckp_1"), (3, "ckp_2")):
            await work.keep(f"ckp_{number}", task_id, parent)
        await until(served, session["id"], "checkpoint.created", 3)
    fork = await client.fork(session["id"], checkpoint_id="ckp_2", prompt="go on", model="scripted/echo")
    assert fork.origin and (fork.origin.session_id, fork.origin.checkpoint_id) == (session["id"], "ckp_2")
    assert (fork.model, fork.tasks[0].model, fork.limits.tokens) == ("scripted/echo", "scripted/echo", 99)
    assert fork.checkpoint and [file.path for file in fork.checkpoint.files] == ["a.py"]
    assert [point.id for point in await client.checkpoints(fork.id)] == ["ckp_1", "ckp_2"]
    assert await client.artifact(fork.id, "bundle-ckp_1") == b"the bundle-ckp_1"
    state = await served.services.sessions.state(session["id"])
    digest = next(artifact.sha256 for artifact in state.artifacts if artifact.name == "bundle-ckp_3")
    (tmp_path / "blobs" / digest[:2] / digest).unlink()
    lost = await served.client.post(f"/api/v1/sessions/{session['id']}/fork", json={})
    assert (lost.status_code, lost.json()["code"]) == (409, "checkpoint_incomplete")
    async with HandRunner(served, fork.id) as runner:
        headers = {"Authorization": f"Bearer {runner.token}"}
        async with httpx.AsyncClient(base_url=served.url, headers=headers) as inside:
            bootstrap = (await inside.get("/runner/v1/bootstrap")).json()
            kept = await inside.get("/runner/v1/artifacts/agent-ckp_2")
    assert bootstrap["restore"]["bundles"] == ["bundle-ckp_1", "bundle-ckp_2"]
    assert bootstrap["restore"]["summary"] == "Person: do it", (
        "what its origin heard, and not what it is still to be told"
    )
    assert (bootstrap["base_commit"], kept.content) == ("c0", b"the agent-ckp_2")


async def test_every_state_of_the_past_can_be_seen_again(served: Served, client: Client) -> None:
    session = await sandboxed(served, prompt="do it")
    async with Work(served, session["id"]) as work:
        task_id = (await work.runner.until("prompt"))["task_id"]
        await work.runner.report("task.completed", task_id=task_id)
        log = await until(served, session["id"], "task.completed")
    for seq in range(1, len(log) + 1):
        there = (await served.client.get(f"/api/v1/sessions/{session['id']}", params={"at": seq})).json()
        assert there["head_seq"] == seq
        here = views.session(session["id"], await folded(client, session["id"], seq))
        assert msgspec.json.decode(msgspec.json.encode(here)) == there
    started = next(event["seq"] for event in log if event["type"] == "task.started")
    assert (await client.session(session["id"], at=started)).tasks[0].status is TaskStatus.RUNNING
    late = await served.client.get(f"/api/v1/sessions/{session['id']}", params={"at": 10_000})
    assert late.json()["code"] == "after_past_head"


async def test_an_agent_starts_a_session_and_reads_its_result(served: Served, client: Client) -> None:
    session = await sandboxed(served, prompt="do it")
    async with Work(served, session["id"]) as work:
        await work.runner.until("prompt")
        wanted, key = {"prompt": "Port the tests\nall of them"}, {"Idempotency-Key": "one"}
        started = await work.inside.post("/runner/v1/children", json=wanted, headers=key)
        assert started.status_code == 201
        child_id = started.json()["child_id"]
        again = await work.inside.post("/runner/v1/children", json=wanted, headers=key)
        assert again.json() == started.json(), "the answer was lost, not the child"
        reused = await work.inside.post("/runner/v1/children", json={"prompt": "other"}, headers=key)
        assert reused.json()["code"] == "idempotency_key_reused"
        (listed,) = (await work.inside.get("/runner/v1/children")).json()["items"]
        assert (listed["id"], listed["title"], listed["status"]) == (child_id, "Port the tests", "running")
        async with asyncio.timeout(10):
            while len(served.host.sandboxes) < 2:
                await asyncio.sleep(0.01)
        child = await client.session(child_id)
        assert child.parent and (child.parent.session_id, child.parent.depth) == (session["id"], 1)
        assert child.created_by == "agent"
        async with Work(served, child_id) as theirs:
            task_id = (await theirs.runner.until("prompt"))["task_id"]
            part = {"task_id": task_id, "message_id": "m", "part_id": "p"}
            await theirs.runner.report("text.finished", **part, text="All 12 are ported.")
            await theirs.keep("ckp_1", task_id)
            await theirs.runner.report("task.completed", task_id=task_id)
            await until(served, session["id"], "child.finished")
        result = (await work.inside.get(f"/runner/v1/children/{child_id}")).json()
        assert (result["status"], result["summary"]) == ("completed", "All 12 are ported.")
        assert (result["files_changed"], result["additions"]) == (1, 2)
        assert (await work.inside.get("/runner/v1/children/ses_x")).json()["code"] == "child_not_found"
    assert [one.id for one in await client.children(session["id"])] == [child_id]
    own = await client.start_child(session["id"], "Another one", title="Mine")
    (_, mine) = await client.children(session["id"])
    assert (mine.id, mine.title, mine.task_id) == (own.child_id, "Mine", "")
