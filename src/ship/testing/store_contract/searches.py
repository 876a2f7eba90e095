"""What was said, found by its words and by its meaning."""

import asyncio
from collections.abc import Sequence

from ship.ports.store import Packed, Said, Search, Snapshot, Store, Summary
from ship.words import parse

from .two_nodes import Check, Stores, append


async def what_was_said_is_found_by_its_words(stores: Stores) -> None:
    """``index`` and ``search``: words, phrases, beginnings, exclusions, in any script; the best first."""
    store = stores.one
    await _tell(store, "words-1", "Mend the login page", "The LOGIN button is grey", "deploy the café menu")
    await _tell(
        store, "words-2", "Something else", "login_button.css has a grey login, login, login", "ログイン画面"
    )
    await _tell(store, "words-3", "a NUL \0 and ' \" \\ : & | ! ( ) *", "x" * 90)
    assert await _search(store, "grey") == [], "nothing is found before it was indexed"
    await _index(stores)
    assert sorted(await _search(stores.other, "grey")) == ["words-1", "words-2"]
    assert await _search(store, "login") == ["words-1", "words-2"], (
        "the title counts double, then how often it is said"
    )
    assert await _search(store, "login page") == ["words-1"]
    assert await _search(store, "page mend") == ["words-1"]
    assert await _search(store, '"page mend"') == []
    assert await _search(store, '"mend the login"') == ["words-1"]
    assert await _search(store, "login_button.css") == ["words-2"]
    assert await _search(store, "CAFE") == ["words-1"]
    assert await _search(store, "butto") == []
    assert sorted(await _search(store, "butto*")) == ["words-1", "words-2"]
    assert sorted(await _search(store, '"login butt"*')) == ["words-1", "words-2"]
    assert await _search(store, '"grey login lo"*') == ["words-2"]
    assert await _search(store, "grey -css") == ["words-1"]
    assert await _search(store, 'grey -"the login"') == ["words-2"]
    assert await _search(store, "画面") == ["words-2"]
    assert await _search(store, "nul and") == ["words-3"]
    assert await _search(store, "x" * 90) == ["words-3"]
    assert await _search(store, "nothing of the kind") == []
    (found,) = await store.search(Search(parse("deploy")), 0, 9)
    assert found == ("words-1", 3, "deploy the café menu", 1, b"words-1")
    (found,) = await store.search(Search(parse("mend")), 0, 9)
    assert (found.seq, found.matches) == (0, 1)
    assert (await store.search(Search(parse("login")), 0, 9))[0].matches == 2


async def a_search_is_narrowed_and_paged(stores: Stores) -> None:
    """By status and repository; ``offset`` and ``limit`` count sessions."""
    store = stores.one
    for number in range(7):
        summary = Summary("ready" if number < 3 else "failed", 1, b"%d" % number, "narrow", f"/r{number % 2}")
        await store.append(append(f"narrow-{number}", 0, "a")._replace(summary=summary))
    await _index(stores)
    every = await _search(store, "narrow")
    assert sorted(every) == [f"narrow-{number}" for number in range(7)]
    pages = [await store.search(Search(parse("narrow")), offset, 3) for offset in (0, 3, 6, 9)]
    assert [[found.session_id for found in page] for page in pages] == [every[:3], every[3:6], every[6:], []]
    narrowed = await store.search(Search(parse("narrow"), "ready"), 0, 9)
    assert sorted(found.session_id for found in narrowed) == ["narrow-0", "narrow-1", "narrow-2"]
    narrowed = await store.search(Search(parse("narrow"), "ready", "/r1"), 0, 9)
    assert [found.session_id for found in narrowed] == ["narrow-1"]
    assert await store.search(Search(parse("narrow"), None, "/r"), 0, 9) == []


async def each_text_is_indexed_once(stores: Stores) -> None:
    """Nodes share the work; packed logs are found, and so is what is said later."""
    store = stores.one
    for number in range(60):
        await _tell(store, f"indexed-{number}", "", "shared", "work")
    counts = await asyncio.gather(*(one.index(9) for one in (stores.one, stores.other) * 10))
    assert sum(counts) + await _index(stores) == 180
    found = await store.search(Search(parse("shared")), 0, 99)
    assert (len(found), {one.matches for one in found}) == (60, {1})
    await store.pack("indexed-1", Packed(3, "0" * 64, b""), Snapshot(3, 1, b""))
    await store.append(append("indexed-2", 3, "a")._replace(said=[Said(4, b"m", "shared later")]))
    await _index(stores)
    assert len(await store.search(Search(parse("shared")), 0, 99)) == 60
    assert await _search(store, "shared later") == ["indexed-2"]


async def what_was_said_is_found_by_its_meaning(stores: Stores) -> None:
    """``embed``, ``meanings``, ``found``: each indexed text gets its vectors once; a model reads its own alone."""
    store, model = stores.one, _Lengths()
    await _tell(store, "meant-1", "four", "thirteen here", "")
    await _tell(store, "meant-2", "again", "one more")
    mine = {
        ("meant-1", 0): b"4",
        ("meant-1", 2): b"13",
        ("meant-1", 3): b"0",
        ("meant-2", 0): b"5",
        ("meant-2", 2): b"8",
    }
    await _embed(stores, model)
    assert not mine.keys() & (await _meanings(store, "lengths")).keys(), "what is not indexed yet has to wait"
    await _index(stores)
    counts = await asyncio.gather(*(one.embed(model, 2) for one in (stores.one, stores.other) * 10))
    assert sum(counts) + await _embed(stores, model) >= len(mine)
    assert mine.items() <= (await _meanings(stores.other, "lengths")).items()
    assert await _meanings(store, "another") == {}
    assert await store.embed(model, 9) == 0

    await store.append(append("meant-1", 3, "a")._replace(said=[Said(4, b"m", "later")]))
    await store.pack("meant-2", Packed(2, "0" * 64, b""), Snapshot(2, 1, b""))
    await _index(stores)
    assert await _embed(stores, model) == 1
    assert (mine | {("meant-1", 4): b"5"}).items() <= (await _meanings(store, "lengths")).items()

    ready = Summary("ready", 1, b"", "narrow", "/narrow")
    await store.append(append("meant-3", 0, "a")._replace(summary=ready))
    await store.append(append("meant-4", 0, "a")._replace(summary=ready._replace(status="failed")))
    await _index(stores)
    await _embed(stores, model)
    assert await _meanings(store, "lengths", "failed", "/narrow") == {("meant-4", 0): b"6"}
    assert (await _meanings(store, "lengths", None, "/narrow")).keys() == {("meant-3", 0), ("meant-4", 0)}
    assert await store.found([("meant-2", 2), ("meant-9", 0), ("meant-1", 4)]) == [
        ("meant-2", 2, "one more", 1, b"meant-2"),
        ("meant-1", 4, "later", 1, b"meant-1"),
    ]
    assert await store.found([]) == []


async def many_meanings_are_read_in_pages(stores: Stores) -> None:
    """None is left out where one page ends and the next begins."""
    store, model = stores.one, _Lengths()
    places = {(f"pages-{session}", seq) for session in range(3) for seq in (0, *range(2, 1_002))}
    for session in range(3):
        await _tell(store, f"pages-{session}", "title", *map(str, range(1_000)))
    await _index(stores, 500)
    await _embed(stores, model, 500)
    pages = [page async for page in store.meanings("lengths")]
    assert len(pages) > 1
    read = [place for page in pages for place in page.places if place in places]
    assert sorted(read) == sorted(places)


CHECKS: tuple[Check, ...] = (
    what_was_said_is_found_by_its_words,
    a_search_is_narrowed_and_paged,
    each_text_is_indexed_once,
    what_was_said_is_found_by_its_meaning,
    many_meanings_are_read_in_pages,
)


async def _tell(store: Store, session_id: str, title: str, *texts: str) -> None:
    """A session of that title in which these texts are said, from seq 2 on."""
    said = [Said(seq, text.encode(), text) for seq, text in enumerate(texts, start=2)]
    summary = Summary("ready", 1, session_id.encode(), title, "/r")
    events = append(session_id, 0, *"a" * (len(texts) + 1))
    await store.append(events._replace(said=said, summary=summary))


async def _index(stores: Stores, batch: int = 50) -> int:
    counts = []
    while count := await stores.other.index(batch):
        counts.append(count)
    return sum(counts)


class _Lengths:
    """An embedding model to which texts of one length mean the same."""

    name = "lengths"

    def embed(self, texts: Sequence[str]) -> list[bytes]:
        return [b"%d" % len(text) for text in texts]

    def nearness(self, wanted: bytes, vectors: Sequence[bytes]) -> list[float]:
        return [1.0 if wanted == each else 0.0 for each in vectors]


async def _embed(stores: Stores, model: _Lengths, batch: int = 50) -> int:
    counts = []
    while count := await stores.other.embed(model, batch):
        counts.append(count)
    return sum(counts)


async def _meanings(
    store: Store, model: str, status: str | None = None, repository: str | None = None
) -> dict[tuple[str, int], bytes]:
    pages = [page async for page in store.meanings(model, status, repository)]
    return {place: made for page in pages for place, made in zip(page.places, page.vectors, strict=True)}


async def _search(store: Store, query: str) -> list[str]:
    return [found.session_id for found in await store.search(Search(parse(query)), 0, 99)]
