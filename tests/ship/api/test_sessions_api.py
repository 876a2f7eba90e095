"""The HTTP interface as a client sees it."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from tests.ship.api.conftest import Served

from ship.api import inputs, schemas
from ship.events import Record, encode, facts
from ship.model import SYSTEM
from ship.ports.store import Append, NewEvent

REPOSITORY = {"source": "https://example.com/a.git", "branch": "main"}


async def begun(served: Served, **fields: Any) -> dict[str, Any]:
    answer = await served.client.post("/api/v1/sessions", json={"repository": REPOSITORY, **fields})
    assert answer.status_code == 201, answer.text
    session: dict[str, Any] = answer.json()
    return session


async def test_answers_fit_their_documented_shapes(served: Served) -> None:
    session = await begun(served, prompt="Fix it\nplease")
    assert schemas.SessionOut.model_validate(session).title == "Fix it"
    path = f"/api/v1/sessions/{session['id']}"
    task = (await served.client.post(f"{path}/tasks", json={"prompt": "more"})).json()
    schemas.TaskAccepted.model_validate(task)
    cancelled = await served.client.post(f"{path}/tasks/{task['task_id']}/cancel")
    schemas.Accepted.model_validate(cancelled.json())
    schemas.MessageOut.model_validate(
        (await served.client.post(f"{path}/messages", json={"text": "hi"})).json()
    )
    shapes: dict[str, type[inputs.Schema]] = {
        path: schemas.SessionOut,
        "/api/v1/sessions": schemas.SessionPage,
        f"{path}/messages": schemas.MessagePage,
        f"{path}/events": schemas.RecordPage,
        f"{path}/artifacts": schemas.ArtifactPage,
        "/api/v1/models": schemas.ModelPage,
        "/api/v1/me": schemas.MeOut,
    }
    for url, shape in shapes.items():
        answer = await served.client.get(url)
        assert answer.status_code == 200
        shape.model_validate_json(answer.content)
    said = (await served.client.get(f"{path}/messages")).json()["items"]
    assert [message["kind"] for message in said] == ["prompt", "prompt", "note"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/api/v1/sessions", {}, 400, "invalid_input"),
        ("POST", "/api/v1/sessions", {"repository": REPOSITORY, "surprise": 1}, 400, "invalid_input"),
        ("POST", "/api/v1/sessions", {"repository": {"source": "ftp://x"}}, 400, "repository_invalid"),
        ("POST", "/api/v1/sessions", {"repository": REPOSITORY, "model": "x/y"}, 400, "model_unknown"),
        (
            "POST",
            "/api/v1/sessions",
            {"repository": REPOSITORY, "prompt": "x" * 10_001},
            413,
            "prompt_too_large",
        ),
        ("GET", "/api/v1/sessions?cursor=%00", None, 400, "cursor_invalid"),
        ("GET", "/api/v1/sessions?limit=0", None, 400, "invalid_input"),
        ("GET", "/api/v1/sessions/ses_none", None, 404, "session_not_found"),
        (
            "GET",
            "/api/v1/sessions?cursor=WzEwMDAwMDAwMDAwMDAwMDAwMDAwMDAwLCJhIl0=",
            None,
            400,
            "cursor_invalid",
        ),
        ("GET", f"/api/v1/sessions/ses_none/messages?before={10**30}", None, 400, "invalid_input"),
        ("GET", f"/api/v1/sessions/ses_none/events?after={10**30}", None, 400, "invalid_input"),
        (
            "POST",
            "/api/v1/sessions",
            {"repository": {**REPOSITORY, "branch": "a\x00b"}},
            400,
            "invalid_input",
        ),
        ("GET", "/api/v1/sessions/ses_none/events", None, 404, "session_not_found"),
        ("GET", "/api/v1/sessions/ses_none/messages", None, 404, "session_not_found"),
        ("POST", "/api/v1/sessions/ses_none/archive", None, 404, "session_not_found"),
        ("GET", "/api/v1/nothing", None, 404, "route_not_found"),
        ("DELETE", "/api/v1/sessions", None, 405, "method_not_allowed"),
    ],
)
async def test_bad_requests_say_what_is_wrong(
    served: Served, method: str, path: str, body: Any, status: int, code: str
) -> None:
    answer = await served.client.request(method, path, json=body)
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert problem["detail"]


async def test_the_list_pages_without_a_repeat(served: Served) -> None:
    ids = [(await begun(served, prompt=f"{n}"))["id"] for n in range(5)]
    seen: list[str] = []
    cursor = None
    while True:
        params = {"limit": "2", **({"cursor": cursor} if cursor else {})}
        page = (await served.client.get("/api/v1/sessions", params=params)).json()
        seen += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ids[::-1]
    await served.client.post(f"/api/v1/sessions/{ids[0]}/archive")
    archived = (await served.client.get("/api/v1/sessions?status=archived")).json()["items"]
    assert [item["id"] for item in archived] == [ids[0]]


async def test_a_repeated_key_gets_the_first_answer(served: Served) -> None:
    body = {"repository": REPOSITORY, "prompt": "once"}
    headers = {"Idempotency-Key": "k1"}
    first = await served.client.post("/api/v1/sessions", json=body, headers=headers)
    again = await served.client.post("/api/v1/sessions", json=body, headers=headers)
    assert first.content == again.content
    other = await served.client.post("/api/v1/sessions", json={**body, "prompt": "two"}, headers=headers)
    assert other.json()["code"] == "idempotency_key_reused"
    assert len((await served.client.get("/api/v1/sessions")).json()["items"]) == 1


async def test_a_steer_that_becomes_a_task_has_the_limits_that_came_with_it(served: Served) -> None:
    session = await begun(served)
    path = f"/api/v1/sessions/{session['id']}"
    steer = {"prompt": "go on", "mode": "steer", "limits": {"tokens": 7}}
    queued = (await served.client.post(f"{path}/tasks", json=steer)).json()
    tasks = {task["id"]: task for task in (await served.client.get(path)).json()["tasks"]}
    assert tasks[queued["task_id"]]["limits"]["tokens"] == 7


async def test_messages_page_backwards(served: Served) -> None:
    session = await begun(served)
    path = f"/api/v1/sessions/{session['id']}/messages"
    for n in range(5):
        await served.client.post(path, json={"text": f"{n}"})
    page = (await served.client.get(path, params={"limit": 2})).json()
    assert [message["text"] for message in page["items"]] == ["3", "4"]
    assert page["has_more"]
    before = page["items"][0]["seq"]
    page = (await served.client.get(path, params={"limit": 3, "before": before})).json()
    assert [message["text"] for message in page["items"]] == ["0", "1", "2"]
    assert not page["has_more"]


async def test_pages_of_large_messages_are_bounded_and_lead_to_all_of_them(served: Served) -> None:
    session = await begun(served)
    path = f"/api/v1/sessions/{session['id']}/messages"
    texts = [f"{n} ".ljust(19_000, "x") for n in range(120)]
    for text in texts:
        assert (await served.client.post(path, json={"text": text})).status_code == 201
    told: list[str] = []
    query: dict[str, int] = {"limit": 500}
    has_more = True
    while has_more:
        answer = await served.client.get(path, params=query)
        assert len(answer.content) < 1_200_000
        has_more, items = answer.json()["has_more"], answer.json()["items"]
        told[:0] = [message["text"] for message in items]
        query["before"] = items[0]["seq"]
    assert told == texts


async def test_artifacts_come_back_inert(served: Served) -> None:
    session = await begun(served)
    path = f"/api/v1/sessions/{session['id']}/artifacts"
    page = b"<script>alert(1)</script>"
    stored = await served.client.put(f"{path}/page.html", content=page, headers={"content-type": "text/html"})
    assert stored.status_code == 201
    answer = await served.client.get(f"{path}/page.html")
    assert answer.content == page
    assert answer.headers["content-disposition"] == "attachment"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    too_large = await served.client.put(f"{path}/big", content=b"x" * 1_000_001)
    assert too_large.json()["code"] == "body_too_large"
    assert (await served.client.put(f"{path}/a%20b", content=b"x")).json()["code"] == "artifact_name_invalid"
    assert (await served.client.get(f"{path}/none")).json()["code"] == "artifact_not_found"


async def test_files_need_a_running_sandbox_and_stay_inside(served: Served) -> None:
    session = await begun(served)
    path = f"/api/v1/sessions/{session['id']}/files"
    assert (await served.client.get(path)).json()["code"] == "sandbox_not_running"
    diff = await served.client.get(f"/api/v1/sessions/{session['id']}/diff")
    assert (diff.status_code, diff.content) == (200, b"")


async def test_a_body_is_counted_before_anybody_reads_it(served: Served) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(1_000):
            yield b"x" * 100_000

    async with httpx.AsyncClient(base_url=served.url) as stranger:
        with contextlib.suppress(httpx.WriteError, httpx.ReadError):
            answer = await stranger.post("/api/v1/sessions", content=endless())
            assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    lone = await served.client.post(
        "/api/v1/sessions", content=b'{"repository":{"source":"/r"},"prompt":"\\ud800"}'
    )
    assert lone.status_code == 400


async def test_who_is_not_signed_in_is_told_how(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.url) as stranger:
        for path in ("/api/v1/me", "/api/v1/sessions", "/api/v1/sessions/stream"):
            answer = await stranger.get(path)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
            assert "login-link" in answer.json()["hint"]
        wrong = await stranger.get("/api/v1/me", headers={"Authorization": "Bearer ship_wrong"})
        assert wrong.status_code == 401
        for open_path in ("/healthz", "/readyz", "/metrics"):
            assert (await stranger.get(open_path)).status_code == 200


async def test_a_sign_in_link_works_once_and_its_cookie_only_from_our_own_pages(served: Served) -> None:
    login = await served.services.tokens.create_login("owner")
    async with httpx.AsyncClient(base_url=served.url) as browser:
        answer = await browser.get("/login", params={"token": login})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert (await browser.get("/api/v1/me")).json()["name"] == "owner"
        body = {"repository": REPOSITORY}
        for origin in (None, "https://evil.example"):
            headers = {"Origin": origin} if origin else {}
            refused = await browser.post("/api/v1/sessions", json=body, headers=headers)
            assert refused.json()["code"] == "origin_refused"
        own = await browser.post("/api/v1/sessions", json=body, headers={"Origin": served.url})
        assert own.status_code == 201
        browser.cookies.clear()
        again = await browser.get("/login", params={"token": login})
        assert again.json()["code"] == "login_spent"
        assert (
            await browser.get("/api/v1/me", headers={"Authorization": f"Bearer {login}"})
        ).status_code == 401


async def test_the_list_streams_what_changes(served: Served) -> None:
    async with served.client.stream("GET", "/api/v1/sessions/stream") as stream:
        lines = stream.aiter_lines()
        assert (await anext(lines)).startswith(":")
        session = await begun(served, prompt="look")
        async for line in lines:
            if line.startswith("data: "):
                summary = json.loads(line.removeprefix("data: "))
                schemas.SessionSummaryOut.model_validate(summary)
                assert summary["id"] == session["id"]
                break


async def test_a_log_that_a_newer_node_wrote_is_this_nodes_fault(served: Served) -> None:
    newer = NewEvent("of.tomorrow", encoded(type="of.tomorrow"))
    await served.services.sessions._store.append(Append("ses_newer", 0, 1, [newer]))
    answer = await served.client.get("/api/v1/sessions/ses_newer")
    assert (answer.status_code, answer.json()["code"]) == (500, "event_unknown")
    assert "upgrade" in answer.json()["hint"]


def encoded(**changes: Any) -> bytes:
    """A record with other fields than this Ship would write."""
    record = Record(seq=1, at_ms=1, actor=SYSTEM, fact=facts.SessionArchived())
    return json.dumps({**json.loads(encode(record)), **changes}).encode()
