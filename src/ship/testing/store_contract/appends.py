"""What is appended: kept whole and in order, or refused whole."""

import asyncio

from ship.errors import InvalidInput, Unavailable
from ship.ports.store import (
    Append,
    FirstAnswer,
    HeadMoved,
    KeyTaken,
    NewAlarm,
    NewEvent,
    Said,
    Snapshot,
    Summary,
)

from .two_nodes import LATER_MS, Check, Stores, append, clear, kept_seqs, refusal, together


async def appends_go_on_at_the_head_or_not_at_all(stores: Stores) -> None:
    """``append``, ``head`` and ``heads``."""
    store = stores.one
    await store.append(append("go", 0, "a", "b"))
    assert await store.head("go") == 2
    for wrong in (0, 1, 3):
        assert await refusal(store.append(append("go", wrong, "c"))) is HeadMoved
    assert await refusal(store.append(append("missing", 1, "a"))) is HeadMoved
    assert await refusal(store.append(append("go", 1))) is HeadMoved, (
        "an append without events is held to it too"
    )
    await store.append(append("go", 2, "c"))
    assert await kept_seqs(store, "go") == [1, 2, 3]
    assert await store.head("missing") == 0
    assert await store.heads(["go", "missing", "go"]) == {"go": 3}
    assert await store.heads([]) == {}


async def what_one_node_appended_the_other_reads(stores: Stores) -> None:
    """An acknowledged append is seen everywhere at once."""
    for head in range(0, 20, 2):
        await stores.one.append(append("seen", head, "a"))
        assert await stores.other.head("seen") == head + 1
        await stores.other.append(append("seen", head + 1, "b"))
        assert [body for _, body in await stores.one.events("seen", head, 9)] == [b"a", b"b"]


async def bodies_come_back_as_they_were(stores: Stores) -> None:
    """Bytes of any kind and size; ids and texts in any script."""
    store = stores.one
    bodies = [b"", bytes(range(256)), b"\xff" * 300_000, "ß漢字🙂".encode()]
    events = [NewEvent("t", body) for body in bodies]
    await store.append(Append("ß漢字-'\"\\%_", 0, 1, events))
    assert [body for _, body in await store.events("ß漢字-'\"\\%_", 0, 9)] == bodies


async def a_refused_append_leaves_nothing_of_itself(stores: Stores) -> None:
    """Kept whole or not at all."""
    store = stores.one
    await store.append(append("whole", 0, "a"))
    await store.append(Append("whole", 1, 1, first_answer=FirstAnswer("whole", "taken", "f", b"1")))
    everything = Append(
        "whole",
        1,
        5,
        events=[NewEvent("b", b"b")],
        said=[Said(2, b"said", "said")],
        summary=Summary("ready", 1, b"summary"),
        snapshot=Snapshot(2, 1, b"snapshot"),
        effects=[("whole:effect", b"effect")],
        alarms=[NewAlarm("whole-alarm", 7)],
        first_answer=FirstAnswer("whole", "taken", "f", b"2"),
    )
    assert await refusal(store.append(everything)) is KeyTaken
    fresh = FirstAnswer("whole", "fresh", "f", b"2")
    assert await refusal(store.append(everything._replace(expected_head=0, first_answer=fresh))) is HeadMoved
    assert await kept_seqs(store, "whole") == [1]
    assert await store.messages("whole", None, 9) == []
    assert await store.snapshot("whole", 1) is None
    assert not [row for row in await store.summaries(None, None, 99) if row[1] == "whole"]
    assert await store.first_answer("whole", "fresh") is None
    assert await store.claim_effects(LATER_MS, 1, 99) == []
    assert await store.claim_alarms(LATER_MS, 1, 99) == []
    await store.append(everything._replace(first_answer=fresh))
    assert await kept_seqs(store, "whole") == [1, 2]
    assert await store.messages("whole", None, 9) == [(2, b"said")]
    assert await store.snapshot("whole", 1) == Snapshot(2, 1, b"snapshot")
    assert [row for row in await store.summaries(None, None, 99) if row[1] == "whole"] == [
        (1, "whole", b"summary")
    ]
    assert await store.first_answer("whole", "fresh") == fresh
    await clear(stores)


async def neighbours_of_a_refused_append_are_kept(stores: Stores) -> None:
    """Appends that arrive together share a transaction; each is judged by itself."""
    store = stores.one
    await store.append(append("neighbour-0", 0, "a"))
    answer = FirstAnswer("neighbours", "key", "f", b"1")
    outcomes = await together(
        *(store.append(append(f"neighbour-{number}", 0, "a")) for number in range(20)),
        store.append(append("neighbour-key-1", 0, "a")._replace(first_answer=answer)),
        store.append(append("neighbour-key-2", 0, "a")._replace(first_answer=answer)),
        *(store.append(append(f"neighbour-{number}", 0, "a")) for number in range(20, 40)),
    )
    assert outcomes == [HeadMoved, *[None] * 20, KeyTaken, *[None] * 20]
    heads = await store.heads([f"neighbour-{number}" for number in range(40)])
    assert set(heads.values()) == {1}
    assert len(heads) == 40
    assert await store.heads(["neighbour-key-1", "neighbour-key-2"]) == {"neighbour-key-1": 1}


async def what_no_store_can_keep_holds_nobody_up(stores: Stores) -> None:
    """Whatever is wrong with it, who asked is told, and the next append is kept."""
    for store in (stores.one, stores.other):
        head = await store.head("odd")
        odd = append("odd", head, "a")._replace(alarms=[NewAlarm("a", 2**70)])
        async with asyncio.timeout(10):
            assert await refusal(store.append(odd)) in (Unavailable, InvalidInput)
            await store.append(append("odd", head, "a"))


CHECKS: tuple[Check, ...] = (
    appends_go_on_at_the_head_or_not_at_all,
    what_one_node_appended_the_other_reads,
    bodies_come_back_as_they_were,
    a_refused_append_leaves_nothing_of_itself,
    neighbours_of_a_refused_append_are_kept,
    what_no_store_can_keep_holds_nobody_up,
)
