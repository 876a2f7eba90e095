"""What is read back: events, messages, snapshots, packed logs and summaries."""

import asyncio

from ship.ports.store import (
    PAGE_BYTES,
    Append,
    FirstAnswer,
    HeadMoved,
    NewEvent,
    Packed,
    Said,
    Snapshot,
    Summary,
)

from .two_nodes import LATER_MS, Check, Stores, append, kept_seqs, refusal


async def pages_of_events(stores: Stores) -> None:
    """``events``: after, limit, types, up_to, in order."""
    store = stores.one
    kinds = ("x", "y", "z")
    await store.append(append("pages", 0, *(kinds[number % 3] for number in range(30))))
    await store.append(append("pages-more", 0, "x"))
    assert [seq for seq, _ in await store.events("pages", 0, 4)] == [1, 2, 3, 4]
    assert [seq for seq, _ in await store.events("pages", 28, 9)] == [29, 30]
    assert [seq for seq, _ in await store.events("pages", 3, 9, up_to=5)] == [4, 5]
    assert await store.events("pages", 3, 2, ["y", "z"], 9) == [(5, b"y"), (6, b"z")]
    assert await store.events("pages", 0, 99, ["none"]) == []
    assert await store.events("pages", 30, 9) == []
    assert await store.events("missing", 0, 9) == []


async def a_page_of_large_events_ends_at_a_mebibyte(stores: Stores) -> None:
    """Whatever is asked for: a reader holds no more than that and one event."""
    store, body = stores.one, b"x" * (PAGE_BYTES // 4)
    events = [NewEvent("even" if seq % 2 == 0 else "odd", body) for seq in range(1, 11)]
    await store.append(Append("large", 0, 1, [*events, NewEvent("odd", 3 * PAGE_BYTES * b"x")]))
    assert [seq for seq, _ in await store.events("large", 0, 99)] == [1, 2, 3, 4]
    assert [seq for seq, _ in await store.events("large", 0, 3)] == [1, 2, 3]
    assert [seq for seq, _ in await store.events("large", 8, 99)] == [9, 10, 11]
    assert [seq for seq, _ in await store.events("large", 10, 99)] == [11]
    assert [seq for seq, _ in await store.events("large", 0, 99, ["even"])] == [2, 4, 6, 8]
    assert [seq for seq, _ in await store.events("large", 8, 99, ["even"])] == [10]


async def a_page_of_large_messages_ends_at_a_mebibyte(stores: Stores) -> None:
    """Whatever is asked for: counted from the newest, and one more than that at most."""
    store, body = stores.one, b"x" * (PAGE_BYTES // 4)
    bodies = [3 * PAGE_BYTES * b"x", *[body] * 9]
    said = [Said(seq, each, "x") for seq, each in enumerate(bodies, start=1)]
    await store.append(Append("told", 0, 1, [NewEvent("t", b"t")] * 10, said))
    assert [seq for seq, _ in await store.messages("told", None, 99)] == [7, 8, 9, 10]
    assert [seq for seq, _ in await store.messages("told", None, 3)] == [8, 9, 10]
    assert [seq for seq, _ in await store.messages("told", 3, 99)] == [1, 2]
    assert [seq for seq, _ in await store.messages("told", 2, 99)] == [1]


async def messages_page_backwards(stores: Stores) -> None:
    """``messages``: the last ones before a seq, newest last."""
    store = stores.one
    said = [Said(seq, f"m{seq}".encode(), f"text {seq}") for seq in (2, 4, 6)]
    await store.append(append("said", 0, *"abcdef")._replace(said=said))
    assert await store.messages("said", None, 2) == [(4, b"m4"), (6, b"m6")]
    assert await store.messages("said", 4, 9) == [(2, b"m2")]
    assert await store.messages("said", 2, 9) == []
    assert await store.messages("missing", None, 9) == []


async def the_last_snapshot_of_a_shape_is_kept(stores: Stores) -> None:
    """``snapshot``: replaced by a newer one, ignored when it has another form."""
    store = stores.one
    await store.append(append("folded", 0, "a")._replace(snapshot=Snapshot(1, 1, b"one")))
    assert await store.snapshot("folded", 1) == Snapshot(1, 1, b"one")
    assert await store.snapshot("folded", 2) is None
    await store.append(append("folded", 1, "a")._replace(snapshot=Snapshot(2, 2, b"two")))
    assert await store.snapshot("folded", 1) is None
    assert await store.snapshot("folded", 2) == Snapshot(2, 2, b"two")
    assert await store.snapshot("missing", 1) is None


async def a_packed_log_leaves_and_is_still_counted(stores: Stores) -> None:
    """``pack`` and ``packed``."""
    store, snapshot = stores.one, Snapshot(3, 1, b"state")
    await store.append(append("packed", 0, "a", "b", "c")._replace(said=[Said(1, b"said", "said")]))
    await store.append(append("unpacked", 0, "a"))
    assert await store.packed("packed") is None
    assert await refusal(store.pack("packed", Packed(2, "0" * 64, b"pages"), snapshot)) is HeadMoved
    assert await refusal(store.pack("missing", Packed(2, "0" * 64, b"pages"), snapshot)) is HeadMoved
    assert await kept_seqs(store, "packed") == [1, 2, 3]
    packed = Packed(3, "1" * 64, b"pages")
    await asyncio.gather(*(one.pack("packed", packed, snapshot) for one in (stores.one, stores.other) * 3))
    await store.pack("packed", Packed(3, "2" * 64, b"others"), snapshot)
    assert await stores.other.packed("packed") == packed
    assert await store.events("packed", 0, 9) == []
    assert await store.messages("packed", None, 9) == []
    assert await store.heads(["packed", "unpacked"]) == {"packed": 3, "unpacked": 1}
    assert await store.head("packed") == 3
    assert await store.snapshot("packed", 1) == snapshot
    assert await kept_seqs(store, "unpacked") == [1]
    answer = FirstAnswer("packed", "key", "f", b"1")
    assert await refusal(store.append(append("packed", 0, "a"))) is HeadMoved
    await store.append(Append("packed", 3, 1, first_answer=answer))
    assert [page async for page in store.dump() if page.table == "packed"] == [
        ("packed", [("packed", *packed)])
    ]


async def summaries_page_by_age(stores: Stores) -> None:
    """``summaries``: newest first, by status, by cursor; among equals by id, byte by byte."""
    store = stores.one
    names = [f"listed-{letter}" for letter in "aBcD"]
    for name in names:
        summary = Summary("ready" if name < "listed-a" else "failed", 3 * LATER_MS, name.encode())
        await store.append(append(name, 0, "a")._replace(summary=summary))
    await store.append(append("listed-new", 0, "a")._replace(summary=Summary("ready", 4 * LATER_MS, b"new")))
    ordered = ["listed-new", *sorted(names, reverse=True)]
    found = await store.summaries(None, None, 5)
    assert [row[1] for row in found] == ordered
    assert found[0] == (4 * LATER_MS, "listed-new", b"new")
    assert [row[1] for row in await store.summaries(None, found[1][:2], 2)] == ordered[2:4]
    assert [row[1] for row in await store.summaries("ready", None, 3)] == [
        "listed-new",
        "listed-D",
        "listed-B",
    ]
    assert await store.summaries("no such status", None, 9) == []
    changed = Summary("running", 0, b"changed")
    await store.append(append("listed-new", 1, "a")._replace(summary=changed))
    assert (await store.summaries("running", None, 1)) == [(4 * LATER_MS, "listed-new", b"changed")]


CHECKS: tuple[Check, ...] = (
    pages_of_events,
    a_page_of_large_events_ends_at_a_mebibyte,
    a_page_of_large_messages_ends_at_a_mebibyte,
    messages_page_backwards,
    the_last_snapshot_of_a_shape_is_kept,
    a_packed_log_leaves_and_is_still_counted,
    summaries_page_by_age,
)
