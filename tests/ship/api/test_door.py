"""The door: what comes by the shorter way is answered as the application answers, and what is unusual gets there."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from tests.ship.api.conftest import Served
from tests.ship.api.test_sessions_api import begun

from ship.accounts import tokens
from ship.api import door, hot, server
from ship.api.application import create_api
from ship.errors import Unauthenticated
from ship.testing.serving import serving

Answer = tuple[int, dict[str, Any]]


async def talk(served: Served, data: bytes, answers: int) -> list[Answer]:
    """Sends bytes on one connection; (status, body) of so many answers."""
    host, _, port = served.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    found: list[Answer] = []
    async with asyncio.timeout(20):
        for _ in range(answers):
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            found.append((int(head[9:12]), json.loads(await reader.readexactly(length))))
    writer.close()
    return found


def request(served: Served, session_id: str, body: bytes, *more: str, length: bool = True) -> bytes:
    head = [f"POST /api/v1/sessions/{session_id}/messages HTTP/1.1", "Host: x", *more]
    head += [f"Authorization: Bearer {served.token}", "Content-Type: application/json"]
    if length:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


async def test_requests_behind_one_another_are_answered_in_their_order(served: Served) -> None:
    session_id = (await begun(served))["id"]
    path = f"/api/v1/sessions/{session_id}/messages"
    page = f"GET {path}?limit=5 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.token}\r\n\r\n".encode()
    said = [request(served, session_id, b'{"text":"%d"}' % n) for n in range(3)]
    answers = await talk(served, said[0] + said[1] + page + said[2] + page, 5)
    assert [status for status, _ in answers] == [201, 201, 200, 201, 200]
    assert [answers[at][1]["text"] for at in (0, 1, 3)] == ["0", "1", "2"]
    assert [item["text"] for item in answers[2][1]["items"]][-2:] == ["0", "1"]
    assert [item["text"] for item in answers[4][1]["items"]][-3:] == ["0", "1", "2"]


async def test_a_body_in_pieces_is_a_body(served: Served) -> None:
    session_id = (await begun(served))["id"]
    pieces = b'9\r\n{"text":"\r\n7\r\nwhole"}\r\n0\r\n\r\n'
    head = request(served, session_id, b"", "Transfer-Encoding: chunked", length=False)
    ((status, answer),) = await talk(served, head + pieces, 1)
    assert (status, answer["text"]) == (201, "whole")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_input"),
        (b'{"text": ""}', 400, "invalid_input"),
        (b'{"text": "x", "more": 1}', 400, "invalid_input"),
        (b'{"text": "\\ud800"}', 400, "invalid_input"),
        (b'{"text": "' + b"x" * door.BODY_BYTES + b'"}', 400, "invalid_input"),
        (b'{"text": "' + b"x" * 5 * 1024**2 + b'"}', 413, "body_too_large"),
    ],
)
async def test_what_a_schema_refuses_is_said_by_the_application(
    served: Served, body: bytes, status: int, code: str
) -> None:
    session_id = (await begun(served))["id"]
    ((found, problem),) = await talk(served, request(served, session_id, body), 1)
    assert (found, problem["code"]) == (status, code)
    assert set(problem) == {"type", "title", "status", "code", "detail", "hint"}


async def test_errors_of_the_service_are_the_same_problems(served: Served) -> None:
    answer = await served.client.post("/api/v1/sessions/ses_none/messages", json={"text": "x"})
    assert (answer.status_code, answer.json()["code"]) == (404, "session_not_found")
    assert answer.headers["content-type"] == "application/problem+json"
    stranger = {"Authorization": "Bearer no"}
    answer = await served.client.post("/api/v1/sessions/x/messages", json={"text": "x"}, headers=stranger)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    long_key = {"Idempotency-Key": "k" * 201}
    session_id = (await begun(served))["id"]
    path = f"/api/v1/sessions/{session_id}/messages"
    answer = await served.client.post(path, json={"text": "x"}, headers=long_key)
    assert (answer.status_code, answer.json()["code"]) == (400, "idempotency_key_invalid")


@pytest.mark.parametrize("stranger", [False, True])
async def test_the_application_alone_answers_the_same(served: Served, stranger: bool) -> None:
    session_id = (await begun(served, prompt="Fix it"))["id"]
    there = f"/api/v1/sessions/{session_id}"
    bodies: list[tuple[str, Any]] = [
        ("/api/v1/sessions", {"repository": {"source": "https://example.org/a.git"}, "prompt": "x"}),
        ("/api/v1/sessions", {"repository": {"source": "elsewhere"}}),
        ("/api/v1/sessions", {"repository": {"source": "/x"}, "model": "scripted/none"}),
        (f"{there}/tasks", {"prompt": "more", "limits": {"tokens": 5}}),
        (f"{there}/tasks", {"prompt": "more", "limits": {"tokens": -5}}),
        (f"{there}/messages", {"text": "hello"}),
        (f"{there}/messages", {}),
        ("/api/v1/sessions/ses_none/messages", {"text": "hello"}),
    ]
    pages = [
        *(
            "messages",
            "messages?limit=2&more=1",
            "messages?before=3",
            "messages?limit=501",
            "messages?before=x",
        ),
        *("events", "events?after=2&limit=3", "events?types=task.queued,message.posted", "events?types=none"),
        *("events?after=-1", "events?limit=", "events?limit=1&limit=2", "events?after=%32"),
    ]
    headers = {"Authorization": "Bearer no"} if stranger else {}
    app = create_api()
    app.state.services = served.services
    async with serving(app) as url:
        for number, (path, body) in enumerate(bodies):
            once = {**headers, "Idempotency-Key": f"k{number}"}
            hot, cold = [
                await served.client.post(f"{base}{path}", json=body, headers=once)
                for base in (served.url, url)
            ]
            assert _told(hot) == _told(cold), path
        for page in pages:
            hot, cold = [
                await served.client.get(f"{base}{there}/{page}", headers=headers)
                for base in (served.url, url)
            ]
            assert _told(hot) == _told(cold), page


def _told(answer: httpx.Response) -> tuple[int, str, bytes]:
    return answer.status_code, answer.headers["content-type"], answer.content


def test_every_hot_route_is_one_of_the_application() -> None:
    routes = {
        (method.upper(), path)
        for path, methods in create_api().openapi()["paths"].items()
        for method in methods
    }
    assert {(route.method, route.path) for route in hot.ROUTES} <= routes


async def test_pages_of_messages_stay_true_while_notes_come(served: Served) -> None:
    session_id = (await begun(served))["id"]
    path = f"/api/v1/sessions/{session_id}/messages"
    for n in range(300):
        await served.client.post(path, json={"text": f"{n}"})
        if n % 7 == 0:
            page = (await served.client.get(path, params={"limit": 5})).json()
            said = [item["text"] for item in page["items"] if item["kind"] == "note"]
            assert said == [f"{m}" for m in range(max(0, n - 4), n + 1)][-len(said) :]
            assert said
    whole = (await served.client.get(path, params={"limit": 500})).json()["items"]
    assert [item["text"] for item in whole if item["kind"] == "note"] == [f"{n}" for n in range(300)]


async def test_a_connection_that_idles_is_closed_and_one_that_asks_is_not(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IDLE_S", 1)
    session_id = (await begun(served))["id"]
    post = request(served, session_id, b'{"text":"x"}')
    page = f"GET /api/v1/sessions/{session_id} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.token}\r\n\r\n"

    async def answer(reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        return head[9:12]

    app = create_api()
    app.state.services = served.services
    async with asyncio.timeout(20), serving(app, served.services) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        asking, idling = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
        for hot in (True, False):  # the door's own answers, then the application's
            for reader, writer in (asking, idling):
                writer.write(post if hot else page.encode())
                assert await answer(reader) in (b"201", b"200")
        asking[1].write(post[:40])
        assert await idling[0].read() == b""
        again = await asyncio.open_connection(host, int(port))
        again[1].write(post)
        await answer(again[0])
        assert await again[0].read() == b""  # twice the time has passed
        asking[1].write(post[40:])
        assert await answer(asking[0]) == b"201"
        assert await asking[0].read() == b""
        for _, writer in (asking, idling, again):
            writer.close()


async def holds(there: tokens.Tokens, secret: str) -> bool:
    try:
        await there.authenticate(secret)
    except Unauthenticated:
        return False
    return True


async def test_a_token_that_is_revoked_elsewhere_ends_within_its_time(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = served.services.sessions._store
    here, elsewhere = (tokens.Tokens(store, served.services.sessions.now_ms) for _ in range(2))  # type: ignore[arg-type]  # a whole store
    monkeypatch.setattr(tokens, "BELIEVED_MS", 300)
    secret = await here.create("guest")
    assert (await here.authenticate(secret)).name == "guest"
    await elsewhere.revoke("guest")
    async with asyncio.timeout(10):
        while await holds(here, secret):
            await asyncio.sleep(0.01)
    secret = await here.create("guest")
    assert await holds(here, secret)
    await here.revoke("guest")
    assert not await holds(here, secret)
