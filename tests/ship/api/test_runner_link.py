"""The runner link: frames become events once, instructions come again, strangers are refused."""

import asyncio
import json
from typing import Any

import httpx
import pytest
import websockets
from tests.ship.api.conftest import Served
from tests.ship.api.runner_double import HandRunner
from tests.ship.api.test_sessions_api import begun

from ship.api import runner as runner_api
from ship.api import schemas
from ship.model import Actor
from ship.sessions import commands
from ship.sessions.service import Outcome

READY = {"generation": 1, "base_commit": "c0", "work_branch": "ship/x"}


async def sandboxed(served: Served, **fields: Any) -> dict[str, Any]:
    session = await begun(served, **fields)
    async with asyncio.timeout(10):
        while not served.host.sandboxes:
            await asyncio.sleep(0.01)
    return session


async def replaced(served: Served) -> None:
    """The first sandbox is gone, and the next one is there."""
    async with asyncio.timeout(10):
        while [each.metadata["ship.generation"] for each in served.host.sandboxes.values()] != ["2"]:
            await asyncio.sleep(0.01)


async def events(served: Served, session_id: str) -> list[dict[str, Any]]:
    page = (await served.client.get(f"/api/v1/sessions/{session_id}/events")).json()
    items: list[dict[str, Any]] = page["items"]
    return items


async def test_a_task_goes_from_prompt_to_diff(served: Served) -> None:
    session = await sandboxed(served, prompt="do it")
    path = f"/api/v1/sessions/{session['id']}"
    async with HandRunner(served, session["id"]) as runner:
        await runner.report("sandbox.ready", **READY)
        prompt = await runner.until("prompt")
        assert (prompt["text"], prompt["model"], prompt["agent"]) == ("do it", "scripted/demo", "build")
        part = {"task_id": prompt["task_id"], "message_id": "m1", "part_id": "p1"}
        await runner.report("text.finished", **part, text="hello")
        headers = {"Authorization": f"Bearer {runner.token}"}
        async with httpx.AsyncClient(base_url=served.url, headers=headers) as inside:
            stored = await inside.put("/runner/v1/artifacts/diff-1.patch", content=b"the diff")
            assert stored.status_code == 201
            assert (await inside.get("/runner/v1/artifacts/diff-1.patch")).content == b"the diff"
            bootstrap = (await inside.get("/runner/v1/bootstrap")).json()
            schemas.BootstrapOut.model_validate(bootstrap)
            assert bootstrap["repository"]["clone_url"] == "http://ship.internal/git/repo.git"
            assert (await inside.get("/api/v1/me")).status_code == 401
        changed = {"path": "a.py", "status": "M", "additions": 1, "deletions": 0}
        await runner.report(
            "checkpoint.created",
            checkpoint_id="c1",
            task_id=prompt["task_id"],
            commit="c1",
            base_commit="c0",
            files=[changed],
            diff_artifact="diff-1.patch",
        )
        await runner.report("task.completed", task_id=prompt["task_id"])
        while (await runner.until("ack"))["n"] < 4:
            pass
    state = (await served.client.get(path)).json()
    assert state["status"] == "ready"
    assert state["tasks"][0]["status"] == "completed"
    assert (await served.client.get(f"{path}/diff")).content == b"the diff"
    served.host.sandboxes.clear()  # it is gone, and nobody has noticed
    live = await served.client.get(f"{path}/diff", params={"live": "true"})
    assert (live.status_code, live.content) == (200, b"the diff")
    summary = (await served.client.get("/api/v1/sessions")).json()["items"][0]
    assert (summary["files_changed"], summary["additions"]) == (1, 1)


async def test_the_log_says_why_a_sandbox_was_lost_in_the_words_of_its_host(served: Served) -> None:
    session = await sandboxed(served)
    path = f"/api/v1/sessions/{session['id']}"
    async with HandRunner(served, session["id"]) as runner:
        await runner.report("sandbox.ready", **READY)
        await runner.until("ack")
        served.host.sandboxes.clear()
        assert (await served.client.post(f"{path}/pause")).is_success
        async with asyncio.timeout(10):
            lost: list[dict[str, Any]] = []
            while not lost:
                await asyncio.sleep(0.01)
                lost = [
                    each for each in await events(served, session["id"]) if each["type"] == "sandbox.lost"
                ]
    assert lost[0]["data"]["reason"] == "the sandbox is gone"


async def test_a_reconnecting_runner_resumes_and_hears_everything_again(served: Served) -> None:
    session = await sandboxed(served, prompt="do it")
    async with HandRunner(served, session["id"]) as runner:
        await runner.report("sandbox.ready", **READY)
        prompt = await runner.until("prompt")
        await runner.report(
            "request.asked", task_id=prompt["task_id"], request_id="r1", kind="permission", title="bash"
        )
        await runner.until("ack")
    path = f"/api/v1/sessions/{session['id']}"
    await served.client.post(f"{path}/tasks", json={"prompt": "also this", "mode": "steer"})
    await served.client.post(f"{path}/requests/r1/answer", json={"reply": "once"})
    async with HandRunner(served, session["id"]) as runner:
        assert runner.acked == 2
        heard = {(await runner.receive())["t"] for _ in range(3)}
        assert heard == {"prompt", "steer", "answer"}
        await runner.report("request.withdrawn", n=1, request_id="r1")
        await runner.report(
            "reasoning.finished", n=3, task_id=prompt["task_id"], message_id="m", part_id="p", text="t"
        )
        while (await runner.until("ack"))["n"] < 3:
            pass
        await served.client.post(f"{path}/tasks/{prompt['task_id']}/cancel")
        assert (await runner.until("cancel"))["task_id"] == prompt["task_id"]
        await runner.report("task.cancelled", task_id=prompt["task_id"])
        await runner.until("ack")
    types = [record["type"] for record in await events(served, session["id"])]
    assert types.count("reasoning.finished") == 1
    assert "request.withdrawn" not in types


async def test_growing_text_reaches_the_watchers(served: Served) -> None:
    session = await sandboxed(served, prompt="do it")
    url = f"{served.url.replace('http', 'ws')}/api/v1/sessions/{session['id']}/events/ws"
    headers = {"Authorization": f"Bearer {served.token}"}
    async with (
        HandRunner(served, session["id"]) as runner,
        websockets.connect(url, additional_headers=headers, proxy=None) as socket,
    ):
        await runner.report("sandbox.ready", **READY)
        prompt = await runner.until("prompt")
        delta = {"task_id": prompt["task_id"], "message_id": "m", "part_id": "p", "kind": "text"}
        await runner.send({"t": "delta", **delta, "offset": 0, "text": "Hel"})
        async with asyncio.timeout(10):
            async for text in socket:
                frame = json.loads(text)
                if frame.get("t") == "delta":
                    assert frame["text"] == "Hel"
                    break


async def refusal(served: Served, session_id: str, token: str) -> str:
    url = f"{served.url.replace('http', 'ws')}/runner/v1/link"
    headers = {"Authorization": f"Bearer {token}"}
    async with websockets.connect(url, additional_headers=headers, proxy=None) as socket:
        code: str = json.loads(await socket.recv())["code"]
    return code


async def test_strangers_and_replaced_runners_are_refused(served: Served) -> None:
    session = await sandboxed(served)
    tokens = served.services.sandbox_tokens
    genuine = tokens.issue(session["id"], 1)
    assert await refusal(served, session["id"], genuine[:-1] + "x") == "session_token_invalid"
    assert await refusal(served, session["id"], served.token) == "session_token_invalid"
    assert await refusal(served, session["id"], tokens.issue(session["id"], 2)) == "stale_generation"
    async with HandRunner(served, session["id"]) as runner:
        await served.client.post(f"/api/v1/sessions/{session['id']}/archive")
        assert (await runner.until("refused"))["code"] == "stale_generation"


async def test_a_runner_that_breaks_the_protocol_loses_its_sandbox(served: Served) -> None:
    session = await sandboxed(served)
    async with HandRunner(served, session["id"]) as runner:
        await runner.send({"t": "event", "n": 1, "at_ms": 1, "type": "made.up", "v": 1, "data": {}})
        await replaced(served)
    lost = [each for each in await events(served, session["id"]) if each["type"] == "sandbox.lost"]
    assert "made.up" in lost[0]["data"]["reason"]


@pytest.mark.parametrize(
    "frame",
    [
        b"binary",
        '{"t":"event","n":-5,"at_ms":1,"type":"text.finished","v":1,"data":{}}',
        '{"t":"event","n":1,"at_ms":1,"type":"tool.started","v":1,"data":'
        + "[" * 30_000
        + "]" * 30_000
        + "}",
        '{"t":"event","n":1,"at_ms":1,"type":"text.finished","v":1,"data":"' + "x" * 1_100_000 + '"}',
    ],
)
async def test_a_frame_that_nobody_should_send_costs_the_sandbox_and_nothing_else(
    served: Served, frame: str | bytes
) -> None:
    session = await sandboxed(served)
    async with HandRunner(served, session["id"]) as runner:
        await runner._socket.send(frame)
        await replaced(served)
    state = (await served.client.get(f"/api/v1/sessions/{session['id']}")).json()
    assert (state["status"], state["sandbox"]["generation"]) == ("provisioning", 2)


async def test_a_flood_of_deltas_does_not_starve_the_others(served: Served) -> None:
    session = await sandboxed(served, prompt="do it")
    async with HandRunner(served, session["id"]) as runner:
        await runner.report("sandbox.ready", **READY)
        prompt = await runner.until("prompt")
        part = {"t": "delta", "task_id": prompt["task_id"], "message_id": "m", "part_id": "p", "kind": "text"}

        async def flood() -> None:
            for n in range(20_000):
                await runner.send({**part, "offset": n, "text": "x"})

        flooding = asyncio.create_task(flood())
        while not flooding.done():
            async with asyncio.timeout(5):
                assert (await served.client.get("/api/v1/me")).status_code == 200
        flooding.result()
    assert len(served.services.sessions._growth.ask(session["id"])[0]) < 20_000


async def test_files_of_the_workspace_are_served_while_the_sandbox_runs(served: Served) -> None:
    session = await sandboxed(served)
    async with HandRunner(served, session["id"]) as runner:
        await runner.report("sandbox.ready", **READY)
        await runner.until("ack")
    (sandbox,) = served.host.sandboxes.values()
    sandbox.files["/workspace/repo/src/a.py"] = b"print(1)\n"
    sandbox.files["/workspace/repo/.git/config"] = b"x"
    path = f"/api/v1/sessions/{session['id']}/files"
    listed = (await served.client.get(path)).json()
    schemas.FilePage.model_validate(listed)
    assert [item["name"] for item in listed["items"]] == ["src"]
    inner = (await served.client.get(path, params={"path": "src"})).json()["items"]
    assert [item["path"] for item in inner] == ["src/a.py"]
    content = await served.client.get(f"{path}/content", params={"path": "src/a.py"})
    assert content.content == b"print(1)\n"
    assert content.headers["content-type"] == "application/octet-stream"
    for wrong in ("/etc/passwd", "../../etc/passwd"):
        refused = await served.client.get(f"{path}/content", params={"path": wrong})
        assert refused.json()["code"] == "path_invalid"
    missing = await served.client.get(f"{path}/content", params={"path": "none"})
    assert (missing.status_code, missing.json()["code"]) == (404, "file_not_found")


async def test_the_link_of_a_runner_that_ends_a_task_says_that_it_is_there(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_api, "HEARTBEAT_S", 0.02)
    vouched = 0
    execute = served.services.sessions.execute

    async def heard(session_id: str, command: commands.Command, actor: Actor, *more: Any) -> Outcome:
        nonlocal vouched
        vouched += isinstance(command, commands.ReportEnding)
        return await execute(session_id, command, actor, *more)

    monkeypatch.setattr(served.services.sessions, "execute", heard)
    session = await sandboxed(served, prompt="do it")
    async with HandRunner(served, session["id"]) as runner, asyncio.timeout(10):
        await runner.report("sandbox.ready", **READY)
        prompt = await runner.until("prompt")
        await asyncio.sleep(0.1)
        assert vouched == 0, "nothing is ended"
        await served.client.post(f"/api/v1/sessions/{session['id']}/tasks/{prompt['task_id']}/cancel")
        await runner.until("cancel")
        while not vouched:
            await asyncio.sleep(0.01)
        await runner.report("task.cancelled", task_id=prompt["task_id"])
        before = -1
        while before != vouched:
            before = vouched
            await asyncio.sleep(0.1)
