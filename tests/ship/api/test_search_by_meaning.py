"""Search by meaning with the real model: over HTTP, by the Python client and on the command line."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.ship.api.conftest import Served
from tests.ship.api.test_search_api import begun, found

from ship.cli import run
from ship.client import Client
from ship.errors import InvalidInput
from ship.model import SearchMode
from ship.ports.embeddings import EmbeddingModel
from ship.ports.store import Append, NewEvent, Said, Search, Summary
from ship.sessions.indexing import keep_indexed
from ship.store.sqlite import SqliteStore
from ship.words import parse, passages, words

pytest.importorskip("wordllama", reason="it has no wheel for this machine")

LOGIN = "Fix the login form: users cannot authenticate"
TRASH = "Remove stale documents"
CAR = "The automobile dealer wants a catalogue"


@pytest.fixture(autouse=True)
def embeddings() -> EmbeddingModel:
    from ship.embeddings.wordllama import WordLlama

    return WordLlama()


async def by_meaning(served: Served, query: str, expected: str, **narrowed: str) -> list[str]:
    """The ids that are found, the nearest first, once the expected one is: vectors are made behind the answers."""
    async with asyncio.timeout(20):
        while True:
            asked = {"q": query, "mode": "meaning", **narrowed}
            answer = await served.client.get("/api/v1/search", params=asked)
            assert answer.status_code == 200, answer.text
            ids = [one["session"]["id"] for one in answer.json()["items"]]
            if expected in ids:
                return ids
            await asyncio.sleep(0.02)


async def test_what_means_the_same_is_found_without_a_word_in_common(served: Served) -> None:
    assert (await served.client.get("/api/v1/me")).json()["search_modes"] == ["words", "meaning"]
    login, trash, car = [await begun(served, title) for title in (LOGIN, TRASH, CAR)]
    for query, text, expected in (
        ("people are unable to sign in", LOGIN, login),
        ("delete old files", TRASH, trash),
        ("cars", CAR, car),
    ):
        assert not set(words(query)) & set(words(text))
        assert (await by_meaning(served, query, expected))[0] == expected
        await found(served, query, 0)


async def test_the_passage_that_is_nearest_is_shown_also_when_the_session_is_over(served: Served) -> None:
    lines = [f"Line {number} of this report counts the commits of the week." for number in range(40)]
    lines[30] = (
        "\nThe dog chased a kitten up the tree, where it stayed until the fire brigade brought it back.\n"
    )
    session_id = await begun(served, "Weekly report", "\n".join(lines), "Nothing else to say about commits.")
    await served.client.post(f"/api/v1/sessions/{session_id}/archive")
    assert await by_meaning(served, "a puppy and a cat", session_id, status="archived") == [session_id]
    narrowed = {"q": "a puppy and a cat", "mode": "meaning", "status": "archived"}
    (one,) = (await served.client.get("/api/v1/search", params=narrowed)).json()["items"]
    shown = "".join(mark["text"] for mark in one["snippet"])
    assert "kitten" in shown, "the passage, not the beginning of the text"
    assert await by_meaning(served, "commits", session_id) == [session_id]
    answer = await served.client.get(
        "/api/v1/search", params={**narrowed, "repository": "https://example.com/other.git"}
    )
    assert answer.json()["items"] == []


async def test_pages_follow_each_other_the_nearest_first(served: Served) -> None:
    ids = [await begun(served, f"Repair the car, part {number}") for number in range(5)]
    for session_id in ids:
        await by_meaning(served, "automobile", session_id)
    seen: list[str] = []
    async with Client(served.url, lambda: served.token) as client:
        cursor = ""
        while True:
            page = await client.search("automobile", mode=SearchMode.MEANING, limit=2, cursor=cursor)
            seen += [one.session.id for one in page.items]
            if not (cursor := page.next_cursor or ""):
                break
        assert sorted(seen) == sorted(ids)
        with pytest.raises(InvalidInput) as refused:
            await client.search("?!", mode=SearchMode.MEANING)
        assert refused.value.code == "search_empty"


async def test_what_was_said_before_it_was_switched_on_is_found(
    tmp_path: Path, embeddings: EmbeddingModel
) -> None:
    """Also what was left undone by a process that is gone."""

    async def read(store: SqliteStore) -> int:
        return sum([len(page.places) async for page in store.meanings(embeddings.name)])

    said = [Said(seq, b"", f"{number} cars") for seq, number in enumerate(range(100), start=2)]
    summary = Summary("ready", 1, b"{}", CAR, "/r")
    for model in (None, embeddings, embeddings):
        store = SqliteStore(tmp_path / "ship.db")
        await store.open()
        if model is None:
            await store.append(Append("ses", 0, 1, [NewEvent("a", b"{}")] * 101, said=said, summary=summary))
        indexing = asyncio.create_task(keep_indexed(store, model))
        async with asyncio.timeout(20):
            while not await store.search(Search(parse("99 cars")), 0, 1) or (
                model and await read(store) < 101
            ):
                await asyncio.sleep(0.01)
        indexing.cancel()
        await asyncio.gather(indexing, return_exceptions=True)
        assert await read(store) == (101 if model else 0)
        await store.close()


async def test_the_command_searches_by_meaning(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    session_id = await begun(served, TRASH)
    await by_meaning(served, "delete old files", session_id)

    def search(*arguments: str) -> tuple[int, str]:
        code = run(["search", *arguments, "--url", served.url, "--token", served.token])
        return code, capfd.readouterr().out

    code, out = await asyncio.to_thread(search, "delete old files", "--by-meaning", "--json")
    assert (code, [one["session"]["id"] for one in json.loads(out)]) == (0, [session_id])
    code, out = await asyncio.to_thread(search, "football results", "--by-meaning")
    assert (code, "means something like it" in out) == (0, True)


def test_a_text_is_as_near_as_its_nearest_passage(embeddings: EmbeddingModel) -> None:
    long = "We talked about the weather all day long.\n" * 20 + "\nThe invoice was never paid."
    texts = ["The invoice was never paid.", "", long, "bananas", "-- ... --"]
    assert len(passages(long)) > 1
    vectors = embeddings.embed(texts)
    (wanted,) = embeddings.embed(["an unpaid bill"])
    same, nothing, inside, other, signs = embeddings.nearness(wanted, vectors)
    assert same == inside > other
    assert nothing == signs == -1
    assert embeddings.nearness(wanted, []) == []
    assert embeddings.nearness(wanted, [b"", b""]) == [-1, -1]
    assert embeddings.nearness(wanted, [wanted])[0] == pytest.approx(1, abs=0.01)


def test_the_vectors_are_those_of_the_package(embeddings: EmbeddingModel) -> None:
    """Its own loader, pointed to where its files are, and its own inference."""
    import numpy as np
    import wordllama

    folder = Path(wordllama.__file__).parent
    theirs = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
    texts: Sequence[str] = [LOGIN, "Füße und 漢字 and \U0001f600", "x" * 200]
    ours = np.stack([np.frombuffer(vector, np.int8) for vector in embeddings.embed(texts)]) / 300
    assert np.abs(ours - theirs.embed(list(texts), norm=True)).max() < 0.002
    assert embeddings.nearness(embeddings.embed(texts)[0], embeddings.embed(texts)) == pytest.approx(
        [float(theirs.similarity(texts[0], text)) for text in texts], abs=0.01
    )
