"""Search as people use it: over HTTP, by the Python client and on the command line."""

import asyncio
import json
from typing import Any

import pytest
from tests.ship.api.conftest import Served

from ship.api import schemas
from ship.cli import run
from ship.client import Client
from ship.errors import InvalidInput
from ship.model import SessionStatus


async def begun(served: Served, title: str, *notes: str) -> str:
    body = {"repository": {"source": f"https://example.com/{title.split()[0]}.git"}, "title": title}
    session_id = str((await served.client.post("/api/v1/sessions", json=body)).json()["id"])
    for note in notes:
        await served.client.post(f"/api/v1/sessions/{session_id}/messages", json={"text": note})
    return session_id


async def found(served: Served, query: str, expected: int, **narrowed: Any) -> list[dict[str, Any]]:
    """What is found once all of it was indexed, which happens behind the answers."""
    async with asyncio.timeout(10):
        while True:
            answer = await served.client.get("/api/v1/search", params={"q": query, **narrowed})
            assert answer.status_code == 200, answer.text
            items: list[dict[str, Any]] = answer.json()["items"]
            if len(items) == expected:
                schemas.FoundPage.model_validate(answer.json())
                return items
            await asyncio.sleep(0.02)


async def test_what_was_said_is_found(served: Served) -> None:
    alpha = await begun(served, "alpha repairs", "the parser drops the last line", "nothing to see")
    beta = await begun(served, "beta notes", "parser parser parser")
    both = await found(served, "parser", 2)
    assert {one["session"]["id"] for one in both} == {alpha, beta}
    (one,) = await found(served, '"last line" -nothing', 1)
    assert one["session"]["title"] == "alpha repairs"
    assert one["matches"] == 1
    marked = "".join(f"[{mark['text']}]" if mark["match"] else mark["text"] for mark in one["snippet"])
    assert marked == "the parser drops the [last] [line]"
    messages = (await served.client.get(f"/api/v1/sessions/{alpha}/messages")).json()["items"]
    assert [message["text"] for message in messages if message["seq"] == one["seq"]] == [
        "the parser drops the last line"
    ]
    assert [one["seq"] for one in await found(served, "repair*", 1)] == [0]

    await served.client.post(f"/api/v1/sessions/{alpha}/archive")
    (one,) = await found(served, "parser", 1, status="archived")
    assert one["session"]["status"] == "archived"
    (one,) = await found(served, "parser", 1, repository="https://example.com/beta.git")
    assert one["session"]["id"] == beta


async def test_pages_follow_each_other_and_bad_queries_are_named(served: Served) -> None:
    for number in range(5):
        await begun(served, f"paged number {number}")
    await found(served, "paged", 5)
    seen: list[str] = []
    async with Client(served.url, lambda: served.token) as client:
        page = await client.search("paged", limit=2)
        while True:
            seen += [one.session.id for one in page.items]
            if not page.next_cursor:
                break
            page = await client.search("paged", limit=2, cursor=page.next_cursor)
        assert len(set(seen)) == len(seen) == 5
        assert (await client.search("paged", status=SessionStatus.ARCHIVED)).items == ()
        with pytest.raises(InvalidInput) as refused:
            await client.search("-paged ...")
        assert refused.value.code == "search_empty"
    for wrong in (
        {"q": "a", "cursor": "-1"},
        {"q": "a", "cursor": "x"},
        {"q": "a", "cursor": "9" * 5_000},
        {"q": " ".join("a" * 40)},
    ):
        assert (await served.client.get("/api/v1/search", params=wrong)).status_code == 400
    assert (await served.client.get("/api/v1/search")).status_code == 400
    assert (await served.client.get("/api/v1/search", params={"q": "a", "mode": "guess"})).status_code == 400


async def test_a_server_that_knows_no_meanings_says_so(
    served: Served, capfd: pytest.CaptureFixture[str]
) -> None:
    assert (await served.client.get("/api/v1/me")).json() == {"name": "me", "search_modes": ["words"]}
    answer = await served.client.get("/api/v1/search", params={"q": "parser", "mode": "meaning"})
    assert (answer.status_code, answer.json()["code"]) == (409, "semantic_search_off")
    there = ("--url", served.url, "--token", served.token)
    assert await asyncio.to_thread(run, ["search", "parser", "--by-meaning", *there]) != 0
    assert "--semantic-search" in capfd.readouterr().err


async def test_the_command_shows_where_it_was_said(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    session_id = await begun(served, "gamma", "look into the flaky \x1b[31mtest of the queue")
    await found(served, "flaky", 1)
    there = ("--url", served.url, "--token", served.token)

    def search(*arguments: str) -> tuple[int, str, str]:
        code = run(["search", *arguments, *there])
        return code, *capfd.readouterr()

    code, out, _ = await asyncio.to_thread(search, "flaky queue")
    assert (code, session_id in out, "look into the flaky" in out, "\x1b[31m" in out) == (
        0,
        True,
        True,
        False,
    )
    code, out, _ = await asyncio.to_thread(search, "flaky", "--json", "--status", "ready")
    assert (code, json.loads(out)) == (0, [])
    code, out, _ = await asyncio.to_thread(search, "unheard")
    assert (code, "Nothing was found" in out) == (0, True)
    code, _, err = await asyncio.to_thread(search, "flaky", "--status", "asleep")
    assert (code, "asleep" in err) == (2, True)
