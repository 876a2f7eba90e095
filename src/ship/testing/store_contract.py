"""What every store must do: one check for each promise of ``ship.ports.store``, to be run on each adapter.

Each check gets two stores. Where a store may be shared they are two nodes on one empty database; else they are one and the same.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from ship.errors import Conflict, InvalidInput, ShipError, Unavailable
from ship.ports.store import (
    PAGE_BYTES,
    Append,
    Chain,
    FirstAnswer,
    HeadMoved,
    KeyTaken,
    NewAlarm,
    NewEvent,
    Packed,
    Page,
    Said,
    Search,
    Snapshot,
    Store,
    StoredToken,
    Summary,
)
from ship.words import parse

LATER_MS = 10**12


@dataclass(frozen=True)
class Stores:
    """Two nodes' stores on one database."""

    one: Store
    other: Store


Check = Callable[[Stores], Awaitable[None]]


async def check_store(stores: Stores) -> None:
    """Every check, one after the other, on one database. Raises AssertionError."""
    for check in STORE_CHECKS:
        await check(stores)


async def appends_go_on_at_the_head_or_not_at_all(stores: Stores) -> None:
    """``append``, ``head`` and ``heads``."""
    store = stores.one
    await store.append(_append("go", 0, "a", "b"))
    assert await store.head("go") == 2
    for wrong in (0, 1, 3):
        assert await _error(store.append(_append("go", wrong, "c"))) is HeadMoved
    assert await _error(store.append(_append("missing", 1, "a"))) is HeadMoved
    assert await _error(store.append(_append("go", 1))) is HeadMoved, (
        "an append without events is held to it too"
    )
    await store.append(_append("go", 2, "c"))
    assert await _seqs(store, "go") == [1, 2, 3]
    assert await store.head("missing") == 0
    assert await store.heads(["go", "missing", "go"]) == {"go": 3}
    assert await store.heads([]) == {}


async def what_one_node_appended_the_other_reads(stores: Stores) -> None:
    """An acknowledged append is seen everywhere at once."""
    for head in range(0, 20, 2):
        await stores.one.append(_append("seen", head, "a"))
        assert await stores.other.head("seen") == head + 1
        await stores.other.append(_append("seen", head + 1, "b"))
        assert [body for _, body in await stores.one.events("seen", head, 9)] == [b"a", b"b"]


async def pages_of_events(stores: Stores) -> None:
    """``events``: after, limit, types, up_to, in order."""
    store = stores.one
    kinds = ("x", "y", "z")
    await store.append(_append("pages", 0, *(kinds[number % 3] for number in range(30))))
    await store.append(_append("pages-more", 0, "x"))
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
    await store.append(_append("whole", 0, "a"))
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
    assert await _error(store.append(everything)) is KeyTaken
    fresh = FirstAnswer("whole", "fresh", "f", b"2")
    assert await _error(store.append(everything._replace(expected_head=0, first_answer=fresh))) is HeadMoved
    assert await _seqs(store, "whole") == [1]
    assert await store.messages("whole", None, 9) == []
    assert await store.snapshot("whole", 1) is None
    assert not [row for row in await store.summaries(None, None, 99) if row[1] == "whole"]
    assert await store.first_answer("whole", "fresh") is None
    assert await store.claim_effects(LATER_MS, 1, 99) == []
    assert await store.claim_alarms(LATER_MS, 1, 99) == []
    await store.append(everything._replace(first_answer=fresh))
    assert await _seqs(store, "whole") == [1, 2]
    assert await store.messages("whole", None, 9) == [(2, b"said")]
    assert await store.snapshot("whole", 1) == Snapshot(2, 1, b"snapshot")
    assert [row for row in await store.summaries(None, None, 99) if row[1] == "whole"] == [
        (1, "whole", b"summary")
    ]
    assert await store.first_answer("whole", "fresh") == fresh
    await _clear(stores)


async def neighbours_of_a_refused_append_are_kept(stores: Stores) -> None:
    """Appends that arrive together share a transaction; each is judged by itself."""
    store = stores.one
    await store.append(_append("neighbour-0", 0, "a"))
    answer = FirstAnswer("neighbours", "key", "f", b"1")
    outcomes = await _together(
        *(store.append(_append(f"neighbour-{number}", 0, "a")) for number in range(20)),
        store.append(_append("neighbour-key-1", 0, "a")._replace(first_answer=answer)),
        store.append(_append("neighbour-key-2", 0, "a")._replace(first_answer=answer)),
        *(store.append(_append(f"neighbour-{number}", 0, "a")) for number in range(20, 40)),
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
        odd = _append("odd", head, "a")._replace(alarms=[NewAlarm("a", 2**70)])
        async with asyncio.timeout(10):
            assert await _error(store.append(odd)) in (Unavailable, InvalidInput)
            await store.append(_append("odd", head, "a"))


async def a_chain_is_kept_in_the_order_of_the_calls(stores: Stores) -> None:
    """Appends of one session, each decided on the one before, none of them awaited."""
    outcomes = await _together(*(stores.one.append(_append("chain", head, f"e{head}")) for head in range(50)))
    assert outcomes == [None] * 50
    assert [body for _, body in await stores.one.events("chain", 0, 99)] == [
        f"e{head}".encode() for head in range(50)
    ]


async def a_chain_breaks_where_one_fails(stores: Stores) -> None:
    """What was decided on something that was refused is refused as well: no gap can arise."""
    store = stores.one
    answer = FirstAnswer("broken", "key", "f", b"1")
    await store.append(Append("broken", 0, 1, first_answer=answer))
    outcomes = await _together(
        store.append(_append("broken", 0, "a")),
        store.append(_append("broken", 1, "b")),
        store.append(_append("broken", 2, "c")._replace(first_answer=answer)),
        store.append(_append("broken", 3, "d")._replace(first_answer=answer._replace(key="never"))),
        store.append(_append("broken", 4, "e")),
        store.append(_append("broken", 2, "f")),
        store.append(_append("broken", 3, "g")),
    )
    assert outcomes == [None, None, KeyTaken, HeadMoved, HeadMoved, None, None]
    assert [body for _, body in await store.events("broken", 0, 9)] == [b"a", b"b", b"f", b"g"]
    assert await store.first_answer("broken", "never") is None


async def a_broken_chain_is_not_taken_up_by_chance(stores: Stores) -> None:
    """Another node's events may stand where a refused append's would: what was decided on that one is refused all the same."""
    chain, other = Chain(), Chain()
    await stores.other.append(_append("chance", 0, "theirs"))
    outcomes = await _together(
        stores.one.append(_append("chance", 0, "refused")._replace(chain=chain)),
        stores.one.append(_append("chance", 1, "built on it")._replace(chain=chain)),
        stores.one.append(_append("chance", 1, "of another chain")._replace(chain=other)),
    )
    assert outcomes == [HeadMoved, HeadMoved, None]
    assert await _error(stores.one.append(_append("chance", 2, "late")._replace(chain=chain))) is HeadMoved
    assert [body for _, body in await stores.one.events("chance", 0, 9)] == [b"theirs", b"of another chain"]


async def of_two_appends_at_one_head_one_is_kept(stores: Stores) -> None:
    """Nodes race for a head, also for that of a session that is new: the log has each seq once, and each has one writer."""
    kept: dict[int, str] = {}

    async def race(store: Store, name: str) -> None:
        for _ in range(40):
            head = await store.head("race")
            if await _error(store.append(_append("race", head, f"{name}-{head}"))) is None:
                assert head not in kept
                kept[head] = f"{name}-{head}"

    await asyncio.gather(
        *(race(stores.one, f"one-{number}") for number in range(3)),
        *(race(stores.other, f"other-{number}") for number in range(3)),
    )
    stored = await stores.one.events("race", 0, 999)
    assert [seq for seq, _ in stored] == list(range(1, len(stored) + 1))
    assert [body.decode() for _, body in stored] == [kept[head] for head in sorted(kept)]


async def of_two_appends_that_begin_a_session_one_is_kept(stores: Stores) -> None:
    """There is nothing to lock yet."""
    for number in range(20):
        name = f"begin-{number}"
        outcomes = await _together(
            stores.one.append(_append(name, 0, "one", "one")), stores.other.append(_append(name, 0, "other"))
        )
        assert sorted(map(str, outcomes)) == sorted(map(str, [None, HeadMoved]))
        bodies = [body for _, body in await stores.one.events(name, 0, 9)]
        assert bodies == ([b"one", b"one"] if outcomes[0] is None else [b"other"])


async def of_two_appends_with_one_key_one_is_kept(stores: Stores) -> None:
    """The second learns that the key is taken, and reads the first one's answer."""
    for number in range(20):
        one = FirstAnswer("one-key", f"{number}", "f", b"one")
        other = one._replace(answer=b"other")
        outcomes = await _together(
            stores.one.append(_append(f"one-key-{number}", 0, "a")._replace(first_answer=one)),
            stores.other.append(_append(f"other-key-{number}", 0, "a")._replace(first_answer=other)),
        )
        assert sorted(map(str, outcomes)) == sorted(map(str, [None, KeyTaken]))
        kept = one if outcomes[0] is None else other
        assert await stores.one.first_answer("one-key", f"{number}") == kept
        heads = await stores.other.heads([f"one-key-{number}", f"other-key-{number}"])
        assert list(heads) == [f"one-key-{number}" if kept is one else f"other-key-{number}"]


async def nodes_that_append_to_the_same_sessions_do_not_block_each_other(stores: Stores) -> None:
    """Batches that hold the same sessions in opposite orders all come to an end."""
    names = [f"cross-{number}" for number in range(12)]

    async def rounds(store: Store, order: Sequence[str]) -> None:
        for _ in range(8):
            heads = await store.heads(order)
            appends = (
                store.append(_append(name, heads.get(name, 0), "a")._replace(alarms=[NewAlarm("cross", 9)]))
                for name in order
            )
            assert set(await _together(*appends)) <= {None, HeadMoved}

    await asyncio.gather(rounds(stores.one, names), rounds(stores.other, names[::-1]))
    for name in names:
        seqs = await _seqs(stores.one, name)
        assert seqs == list(range(1, len(seqs) + 1))
        assert len(seqs) >= 8
    await _clear(stores)


async def messages_page_backwards(stores: Stores) -> None:
    """``messages``: the last ones before a seq, newest last."""
    store = stores.one
    said = [Said(seq, f"m{seq}".encode(), f"text {seq}") for seq in (2, 4, 6)]
    await store.append(_append("said", 0, *"abcdef")._replace(said=said))
    assert await store.messages("said", None, 2) == [(4, b"m4"), (6, b"m6")]
    assert await store.messages("said", 4, 9) == [(2, b"m2")]
    assert await store.messages("said", 2, 9) == []
    assert await store.messages("missing", None, 9) == []


async def the_last_snapshot_of_a_shape_is_kept(stores: Stores) -> None:
    """``snapshot``: replaced by a newer one, ignored when it has another form."""
    store = stores.one
    await store.append(_append("folded", 0, "a")._replace(snapshot=Snapshot(1, 1, b"one")))
    assert await store.snapshot("folded", 1) == Snapshot(1, 1, b"one")
    assert await store.snapshot("folded", 2) is None
    await store.append(_append("folded", 1, "a")._replace(snapshot=Snapshot(2, 2, b"two")))
    assert await store.snapshot("folded", 1) is None
    assert await store.snapshot("folded", 2) == Snapshot(2, 2, b"two")
    assert await store.snapshot("missing", 1) is None


async def a_packed_log_leaves_and_is_still_counted(stores: Stores) -> None:
    """``pack`` and ``packed``."""
    store, snapshot = stores.one, Snapshot(3, 1, b"state")
    await store.append(_append("packed", 0, "a", "b", "c")._replace(said=[Said(1, b"said", "said")]))
    await store.append(_append("unpacked", 0, "a"))
    assert await store.packed("packed") is None
    assert await _error(store.pack("packed", Packed(2, "0" * 64, b"pages"), snapshot)) is HeadMoved
    assert await _error(store.pack("missing", Packed(2, "0" * 64, b"pages"), snapshot)) is HeadMoved
    assert await _seqs(store, "packed") == [1, 2, 3]
    packed = Packed(3, "1" * 64, b"pages")
    await asyncio.gather(*(one.pack("packed", packed, snapshot) for one in (stores.one, stores.other) * 3))
    await store.pack("packed", Packed(3, "2" * 64, b"others"), snapshot)
    assert await stores.other.packed("packed") == packed
    assert await store.events("packed", 0, 9) == []
    assert await store.messages("packed", None, 9) == []
    assert await store.heads(["packed", "unpacked"]) == {"packed": 3, "unpacked": 1}
    assert await store.head("packed") == 3
    assert await store.snapshot("packed", 1) == snapshot
    assert await _seqs(store, "unpacked") == [1]
    answer = FirstAnswer("packed", "key", "f", b"1")
    assert await _error(store.append(_append("packed", 0, "a"))) is HeadMoved
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
        await store.append(_append(name, 0, "a")._replace(summary=summary))
    await store.append(_append("listed-new", 0, "a")._replace(summary=Summary("ready", 4 * LATER_MS, b"new")))
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
    await store.append(_append("listed-new", 1, "a")._replace(summary=changed))
    assert (await store.summaries("running", None, 1)) == [(4 * LATER_MS, "listed-new", b"changed")]


async def answers_are_forgotten_by_age(stores: Stores) -> None:
    """``first_answer`` and ``forget_answers``; a key belongs to its scope."""
    store = stores.one
    old, new = FirstAnswer("age", "old", "f1", b"1"), FirstAnswer("age", "new", "f2", b"\x00")
    await store.append(Append("age", 0, 100, first_answer=old))
    await store.append(Append("age", 0, 200, first_answer=new))
    assert await store.first_answer("age", "old") == old
    assert await store.first_answer("other scope", "old") is None
    await store.append(Append("age", 0, 200, first_answer=old._replace(scope="other scope")))
    await store.forget_answers(200)
    assert await store.first_answer("age", "old") is None
    assert await store.first_answer("age", "new") == new
    await store.append(Append("age", 0, 300, first_answer=old))


async def effects_are_leased(stores: Stores) -> None:
    """A claim pushes the due time out; who finishes deletes, who dies lets the lease run out."""
    one, other = stores.one, stores.other
    effects = [("lease:1", b"first"), ("lease:2", b"second")]
    await one.append(Append("lease", 0, 100, effects=effects))
    await one.append(Append("lease", 0, 150, effects=[("lease:1", b"again"), ("lease:3", b"third")]))
    assert await one.next_due_ms() == 100
    assert await one.claim_effects(99, 50, 9) == []
    claimed = await one.claim_effects(149, 50, 9)
    assert sorted(claimed) == [("lease:1", "lease", b"first", 1), ("lease:2", "lease", b"second", 1)]
    assert [due.effect_id for due in await other.claim_effects(150, 500, 9)] == ["lease:3"]
    assert await other.claim_effects(198, 50, 9) == []
    await one.finish_effect("lease:1")
    assert [(due.effect_id, due.attempts) for due in await other.claim_effects(199, 50, 9)] == [
        ("lease:2", 2)
    ]
    await other.postpone_effect("lease:2", 9_000)
    assert await one.claim_effects(8_999, 50, 1) == [("lease:3", "lease", b"third", 2)]
    assert await one.claim_effects(8_999, 50, 9) == []
    await one.release_effects(400)
    assert await one.next_due_ms() == 400
    assert {due.effect_id for due in await one.claim_effects(400, 50, 9)} == {"lease:2", "lease:3"}
    await one.finish_effect("lease:2")
    await one.finish_effect("lease:3")
    await one.finish_effect("lease:3")
    assert await one.next_due_ms() is None


async def the_longest_due_effect_is_claimed_first(stores: Stores) -> None:
    """Whatever the order in which they were put in."""
    for due_at_ms in (300, 100, 200):
        await stores.one.append(Append("first", 0, due_at_ms, effects=[(f"first:{due_at_ms}", b"")]))
    for expected in ("first:100", "first:200", "first:300"):
        assert [due.effect_id for due in await stores.other.claim_effects(1_000, LATER_MS, 1)] == [expected]
        await stores.one.finish_effect(expected)


async def no_two_claims_get_the_same_effect(stores: Stores) -> None:
    """Nodes that claim at the same time share the work."""
    ids = [f"share:{number}" for number in range(200)]
    await stores.one.append(Append("share", 0, 1, effects=[(effect_id, b"x") for effect_id in ids]))

    async def claim(store: Store) -> list[str]:
        claimed: list[str] = []
        while due := await store.claim_effects(1, LATER_MS, 7):
            claimed += [effect.effect_id for effect in due]
        return claimed

    taken = await asyncio.gather(*(claim(store) for store in (stores.one, stores.other) * 3))
    assert sorted(effect_id for claimed in taken for effect_id in claimed) == sorted(ids)
    for effect_id in ids:
        await stores.one.finish_effect(effect_id)


async def alarms_are_leased(stores: Stores) -> None:
    """Set, moved, cleared, claimed, finished; what is not finished comes back."""
    one, other = stores.one, stores.other
    await one.append(Append("wake", 0, 1, alarms=[NewAlarm("a", 100), NewAlarm("b", 300), NewAlarm("c", 50)]))
    await one.append(Append("wake", 0, 1, alarms=[NewAlarm("b", 200), NewAlarm("c", None)]))
    assert await one.next_due_ms() == 100
    assert await one.claim_alarms(99, 50, 9) == []
    assert await other.claim_alarms(100, 50, 9) == [("wake", "a", 150)]
    assert await one.claim_alarms(149, 50, 9) == []
    (again,) = await one.claim_alarms(150, 50, 9)
    await one.finish_alarm(again)
    assert await other.claim_alarms(500, 50, 1) == [("wake", "b", 550)]
    await other.set_alarm("wake", NewAlarm("b", None))
    assert await one.next_due_ms() is None
    await other.set_alarm("wake", NewAlarm("b", 700))
    await other.set_alarm("wake", NewAlarm("c", 600))
    await one.postpone_alarms(["b", "c", "none"], 650)
    assert [(alarm.name, alarm.due_at_ms) for alarm in await one.claim_alarms(700, 50, 1)] == [("c", 750)]
    assert [alarm.name for alarm in await one.claim_alarms(700, 50, 9)] == ["b"]
    await _clear(stores)


async def what_is_due_moves_with_a_clock_that_is_set(stores: Stores) -> None:
    """Effects and alarms, also those that are claimed."""
    store = stores.one
    effects = [("clock:1", b"claimed"), ("clock:2", b"due")]
    await store.append(Append("clock", 0, 1_000, effects=effects, alarms=[NewAlarm("a", 1_200)]))
    await store.claim_effects(1_000, 100, 1)
    await store.move_due(-900)
    assert await store.next_due_ms() == 100
    assert len(await store.claim_effects(199, 9_000, 9)) == 1
    assert len(await store.claim_effects(200, 9_000, 9)) == 1
    assert await store.claim_alarms(299, 50, 9) == []
    assert await store.claim_alarms(300, 50, 9) == [("clock", "a", 350)]
    await _clear(stores)


async def the_last_word_on_an_alarm_counts(stores: Stores) -> None:
    """Appends of one transaction that set and clear the same alarm."""
    await asyncio.gather(
        stores.one.append(Append("word", 0, 1, alarms=[NewAlarm("a", 10), NewAlarm("b", None)])),
        stores.one.append(Append("word", 0, 1, alarms=[NewAlarm("a", None), NewAlarm("b", 20)])),
    )
    assert [alarm.name for alarm in await stores.one.claim_alarms(LATER_MS, 1, 9)] == ["b"]
    await _clear(stores)


async def an_alarm_that_was_set_anew_while_it_fired_stays(stores: Stores) -> None:
    """``finish_alarm`` knows what it has claimed."""
    await stores.one.set_alarm("anew", NewAlarm("a", 100))
    (alarm,) = await stores.one.claim_alarms(100, 50, 9)
    await stores.other.set_alarm("anew", NewAlarm("a", 500))
    await stores.one.finish_alarm(alarm)
    assert await stores.one.next_due_ms() == 500
    (alarm,) = await stores.other.claim_alarms(500, 50, 9)
    await stores.one.append(Append("anew", 0, 1, alarms=[NewAlarm("a", 900)]))
    await stores.other.finish_alarm(alarm)
    assert await stores.one.next_due_ms() == 900
    await _clear(stores)


async def no_two_claims_get_the_same_alarm(stores: Stores) -> None:
    """As with effects."""
    names = [f"n{number}" for number in range(100)]
    await stores.one.append(Append("share", 0, 1, alarms=[NewAlarm(name, 1) for name in names]))

    async def claim(store: Store) -> list[str]:
        claimed: list[str] = []
        while due := await store.claim_alarms(1, LATER_MS, 7):
            claimed += [alarm.name for alarm in due]
        return claimed

    taken = await asyncio.gather(*(claim(store) for store in (stores.one, stores.other) * 3))
    assert sorted(name for claimed in taken for name in claimed) == sorted(names)
    await _clear(stores)


async def tokens_live_until_their_time_is_over(stores: Stores) -> None:
    """``add_token``, ``find_token``, ``tokens``."""
    store = stores.one
    forever = StoredToken("d1", "api", "laptop", 100, None)
    short = StoredToken("d2", "api", "guest", 200, 300)
    await store.add_token(short)
    await store.add_token(forever)
    await store.add_token(StoredToken("d3", "browser", "laptop", 150, None))
    assert await stores.other.find_token("d2", 299) == short
    assert await store.find_token("d2", 300) is None
    assert await store.find_token("none", 0) is None
    assert await store.tokens("api") == [forever, short]
    await store.add_token(StoredToken("d4", "login", "later", 300, None))
    assert await store.tokens("api") == [forever], "adding one drops those whose time is over"
    assert await store.tokens("no such kind") == []


async def a_secret_is_made_once(stores: Stores) -> None:
    """``secret``: whoever comes first."""
    found = await asyncio.gather(
        *(store.secret("key", f"{n}") for n in range(4) for store in (stores.one, stores.other))
    )
    assert len(set(found)) == 1
    assert await stores.other.secret("key", "later") == found[0]
    assert await stores.one.secret("another", "fresh") == "fresh"


async def a_token_is_revoked_once(stores: Stores) -> None:
    """``remove_token`` says who was first; ``remove_tokens_named`` how many."""
    await stores.one.add_token(StoredToken("r1", "login", "link", 1, None))
    outcomes = await asyncio.gather(
        *(store.remove_token("r1") for store in (stores.one, stores.other, stores.one, stores.other))
    )
    assert sorted(outcomes) == [False, False, False, True]
    for digest in ("r2", "r3"):
        await stores.one.add_token(StoredToken(digest, "api", "named", 1, None))
    assert await stores.other.remove_tokens_named("named") == 2
    assert await stores.other.remove_tokens_named("named") == 0
    assert await stores.one.find_token("r2", 0) is None


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
        await store.append(_append(f"narrow-{number}", 0, "a")._replace(summary=summary))
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
    await store.append(_append("indexed-2", 3, "a")._replace(said=[Said(4, b"m", "shared later")]))
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

    await store.append(_append("meant-1", 3, "a")._replace(said=[Said(4, b"m", "later")]))
    await store.pack("meant-2", Packed(2, "0" * 64, b""), Snapshot(2, 1, b""))
    await _index(stores)
    assert await _embed(stores, model) == 1
    assert (mine | {("meant-1", 4): b"5"}).items() <= (await _meanings(store, "lengths")).items()

    ready = Summary("ready", 1, b"", "narrow", "/narrow")
    await store.append(_append("meant-3", 0, "a")._replace(summary=ready))
    await store.append(_append("meant-4", 0, "a")._replace(summary=ready._replace(status="failed")))
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


async def what_is_dumped_is_whole(stores: Stores) -> None:
    """``dump``: every row, once; ``fill`` refuses a store that is not empty."""
    store = stores.one
    alarms, answer = [NewAlarm("carried", 7)], FirstAnswer("carried", "key", "f", b"answer")
    await store.append(
        Append(
            "carried",
            0,
            5,
            events=[NewEvent("a", b"%d" % number) for number in range(500)],
            said=[Said(2, b"said", "said")],
            summary=Summary("ready", 1, b"summary", "title", "/r"),
            snapshot=Snapshot(2, 1, b"snapshot"),
            effects=[("carried:effect", b"effect")],
            alarms=alarms,
            first_answer=answer,
        )
    )
    await store.add_token(StoredToken("carried", "api", "laptop", 1, None))
    rows: dict[str, list[object]] = {}
    async for table, page in stores.other.dump():
        rows.setdefault(table, []).extend(row for row in page if "carried" in row or "carried:effect" in row)
    assert rows["events"] == [("carried", seq, "a", b"%d" % (seq - 1)) for seq in range(1, 501)]
    assert rows["sessions"] == [("carried", "ready", 1, b"summary", "/r")]
    assert sorted(map(str, rows["all_texts"])) == ["('carried', 0, 'title')", "('carried', 2, 'said')"]
    assert rows["snapshots"] == [("carried", 2, 1, b"snapshot")]
    assert rows["outbox"] == [("carried:effect", "carried", b"effect", 0, 5)]
    assert rows["alarms"] == [("carried", "carried", 7)]
    assert rows["idempotency"] == [("carried", "key", "f", b"answer", 5)]
    assert rows["tokens"] == [("carried", "api", "laptop", 1, None)]
    assert await _error(store.fill(_no_pages())) is Conflict
    await _clear(stores)


async def it_can_be_written(stores: Stores) -> None:
    """``probe``."""
    await stores.one.probe()
    await stores.other.probe()


STORE_CHECKS: tuple[Check, ...] = (
    appends_go_on_at_the_head_or_not_at_all,
    what_one_node_appended_the_other_reads,
    pages_of_events,
    a_page_of_large_events_ends_at_a_mebibyte,
    a_page_of_large_messages_ends_at_a_mebibyte,
    bodies_come_back_as_they_were,
    a_refused_append_leaves_nothing_of_itself,
    neighbours_of_a_refused_append_are_kept,
    what_no_store_can_keep_holds_nobody_up,
    a_chain_is_kept_in_the_order_of_the_calls,
    a_chain_breaks_where_one_fails,
    a_broken_chain_is_not_taken_up_by_chance,
    of_two_appends_at_one_head_one_is_kept,
    of_two_appends_that_begin_a_session_one_is_kept,
    of_two_appends_with_one_key_one_is_kept,
    nodes_that_append_to_the_same_sessions_do_not_block_each_other,
    messages_page_backwards,
    the_last_snapshot_of_a_shape_is_kept,
    a_packed_log_leaves_and_is_still_counted,
    summaries_page_by_age,
    answers_are_forgotten_by_age,
    effects_are_leased,
    the_longest_due_effect_is_claimed_first,
    no_two_claims_get_the_same_effect,
    alarms_are_leased,
    what_is_due_moves_with_a_clock_that_is_set,
    the_last_word_on_an_alarm_counts,
    an_alarm_that_was_set_anew_while_it_fired_stays,
    no_two_claims_get_the_same_alarm,
    tokens_live_until_their_time_is_over,
    a_secret_is_made_once,
    a_token_is_revoked_once,
    what_was_said_is_found_by_its_words,
    a_search_is_narrowed_and_paged,
    each_text_is_indexed_once,
    what_was_said_is_found_by_its_meaning,
    many_meanings_are_read_in_pages,
    what_is_dumped_is_whole,
    it_can_be_written,
)


def _append(session_id: str, expected_head: int, *types: str) -> Append:
    """Events whose bodies are their types."""
    return Append(session_id, expected_head, 1, [NewEvent(name, name.encode()) for name in types])


async def _tell(store: Store, session_id: str, title: str, *texts: str) -> None:
    """A session of that title in which these texts are said, from seq 2 on."""
    said = [Said(seq, text.encode(), text) for seq, text in enumerate(texts, start=2)]
    summary = Summary("ready", 1, session_id.encode(), title, "/r")
    events = _append(session_id, 0, *"a" * (len(texts) + 1))
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


async def _no_pages() -> AsyncGenerator[Page, None]:
    for page in list[Page]():
        yield page


async def _seqs(store: Store, session_id: str) -> list[int]:
    return [seq for seq, _ in await store.events(session_id, 0, 9_999)]


async def _error(call: Awaitable[None]) -> type[ShipError] | None:
    try:
        await call
    except ShipError as error:
        return type(error)
    return None


async def _together(*calls: Awaitable[None]) -> list[type[ShipError] | None]:
    return await asyncio.gather(*map(_error, calls))


async def _clear(stores: Stores) -> None:
    """Leave no effect and no alarm to the next check."""
    for effect in await stores.one.claim_effects(10 * LATER_MS, 1, 9_999):
        await stores.one.finish_effect(effect.effect_id)
    for alarm in await stores.one.claim_alarms(10 * LATER_MS, 1, 9_999):
        await stores.one.finish_alarm(alarm)
