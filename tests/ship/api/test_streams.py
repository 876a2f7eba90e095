"""The live streams: replay, then live, over both transports."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import websockets
from tests.ship.api.conftest import Served
from tests.ship.api.test_sessions_api import begun


async def frames(socket: websockets.ClientConnection) -> AsyncIterator[dict[str, Any]]:
    """What comes until the server closes."""
    with contextlib.suppress(websockets.ConnectionClosedError):
        async with asyncio.timeout(10):
            async for text in socket:
                yield json.loads(text)


def connect(served: Served, session_id: str, query: str = "") -> websockets.connect:
    url = f"{served.url.replace('http', 'ws')}/api/v1/sessions/{session_id}/events/ws?{query}"
    headers = {"Authorization": f"Bearer {served.token}"}
    return websockets.connect(url, additional_headers=headers, proxy=None)


async def note(served: Served, session_id: str, text: str) -> None:
    await served.client.post(f"/api/v1/sessions/{session_id}/messages", json={"text": text})


async def test_a_socket_replays_goes_live_and_ends_with_the_session(served: Served) -> None:
    session_id = (await begun(served))["id"]
    for n in range(3):
        await note(served, session_id, f"{n}")
    seen: list[int] = []
    async with connect(served, session_id, "after=1") as socket:
        async for frame in frames(socket):
            if frame.get("t") == "live":
                await note(served, session_id, "live")
                await served.client.post(f"/api/v1/sessions/{session_id}/archive")
            elif "seq" in frame:
                seen.append(frame["seq"])
        assert socket.close_code == 4409
    head = (await served.client.get(f"/api/v1/sessions/{session_id}")).json()["head_seq"]
    assert seen == list(range(2, head + 1))


@pytest.mark.parametrize(
    ("session_id", "query", "token", "code"),
    [
        ("ses_none", "", True, 4404),
        ("ses_none", "", False, 4401),
        (None, "after=x", True, 4400),
        (None, "after=-1", True, 4400),
        (None, "after=99999", True, 4400),
        (None, "types=no.such", True, 4400),
    ],
)
async def test_a_socket_that_cannot_be_served_is_closed_with_the_reason(
    served: Served, session_id: str | None, query: str, token: bool, code: int
) -> None:
    session_id = session_id or (await begun(served))["id"]
    url = f"{served.url.replace('http', 'ws')}/api/v1/sessions/{session_id}/events/ws?{query}"
    headers = {"Authorization": f"Bearer {served.token}"} if token else {}
    async with websockets.connect(url, additional_headers=headers, proxy=None) as socket:
        assert [frame async for frame in frames(socket)] == []
        assert socket.close_code == code


async def test_server_sent_events_resume_by_their_last_id(served: Served) -> None:
    session_id = (await begun(served))["id"]
    for n in range(3):
        await note(served, session_id, f"{n}")
    head = (await served.client.get(f"/api/v1/sessions/{session_id}")).json()["head_seq"]
    path = f"/api/v1/sessions/{session_id}/events/stream"
    async with served.client.stream("GET", path, headers={"Last-Event-ID": f"{head - 2}"}) as stream:
        ids: list[int] = []
        async for line in stream.aiter_lines():
            if line.startswith("id: "):
                ids.append(int(line.removeprefix("id: ")))
            if line == "event: live":
                break
    assert ids[:2] == [head - 1, head]  # the sandbox is on its way: more may come


async def test_an_event_source_that_has_seen_the_end_is_told_not_to_come_back(served: Served) -> None:
    session_id = (await begun(served))["id"]
    await served.client.post(f"/api/v1/sessions/{session_id}/archive")
    path = f"/api/v1/sessions/{session_id}/events/stream"
    first = await served.client.get(path)
    last = first.text.rpartition("id: ")[2].partition("\n")[0]
    assert (await served.client.get(path, headers={"Last-Event-ID": last})).status_code == 204


async def test_types_are_chosen_in_pages_and_streams(served: Served) -> None:
    session_id = (await begun(served))["id"]
    await note(served, session_id, "only me")
    query = {"types": "message.posted"}
    page = (await served.client.get(f"/api/v1/sessions/{session_id}/events", params=query)).json()
    assert [record["type"] for record in page["items"]] == ["message.posted"]
    async with connect(served, session_id, "types=message.posted") as socket:
        first = await anext(frames(socket))
    assert first["type"] == "message.posted"


async def test_a_thousand_pages_of_a_long_log_are_whole(served: Served) -> None:
    session_id = (await begun(served))["id"]
    async with httpx.AsyncClient(base_url=served.url, headers=served.client.headers) as client:
        path = f"/api/v1/sessions/{session_id}/messages"
        for _ in range(12):
            await asyncio.gather(*(client.post(path, json={"text": "x"}) for _ in range(50)))
    head = (await served.client.get(f"/api/v1/sessions/{session_id}")).json()["head_seq"]
    seen = []
    async with connect(served, session_id) as socket:
        async for frame in frames(socket):
            if frame.get("t") == "live":
                break
            seen.append(frame["seq"])
    assert seen == list(range(1, head + 1))
