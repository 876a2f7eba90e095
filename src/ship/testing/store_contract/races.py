"""Appends that meet each other, in chains and at one head."""

import asyncio
from collections.abc import Sequence

from ship.ports.store import Append, Chain, FirstAnswer, HeadMoved, KeyTaken, NewAlarm, Store

from .two_nodes import Check, Stores, append, clear, kept_seqs, refusal, together


async def a_chain_is_kept_in_the_order_of_the_calls(stores: Stores) -> None:
    """Appends of one session, each decided on the one before, none of them awaited."""
    outcomes = await together(*(stores.one.append(append("chain", head, f"e{head}")) for head in range(50)))
    assert outcomes == [None] * 50
    assert [body for _, body in await stores.one.events("chain", 0, 99)] == [
        f"e{head}".encode() for head in range(50)
    ]


async def a_chain_breaks_where_one_fails(stores: Stores) -> None:
    """What was decided on something that was refused is refused as well: no gap can arise."""
    store = stores.one
    answer = FirstAnswer("broken", "key", "f", b"1")
    await store.append(Append("broken", 0, 1, first_answer=answer))
    outcomes = await together(
        store.append(append("broken", 0, "a")),
        store.append(append("broken", 1, "b")),
        store.append(append("broken", 2, "c")._replace(first_answer=answer)),
        store.append(append("broken", 3, "d")._replace(first_answer=answer._replace(key="never"))),
        store.append(append("broken", 4, "e")),
        store.append(append("broken", 2, "f")),
        store.append(append("broken", 3, "g")),
    )
    assert outcomes == [None, None, KeyTaken, HeadMoved, HeadMoved, None, None]
    assert [body for _, body in await store.events("broken", 0, 9)] == [b"a", b"b", b"f", b"g"]
    assert await store.first_answer("broken", "never") is None


async def a_broken_chain_is_not_taken_up_by_chance(stores: Stores) -> None:
    """Another node's events may stand where a refused append's would: what was decided on that one is refused all the same."""
    chain, other = Chain(), Chain()
    await stores.other.append(append("chance", 0, "theirs"))
    outcomes = await together(
        stores.one.append(append("chance", 0, "refused")._replace(chain=chain)),
        stores.one.append(append("chance", 1, "built on it")._replace(chain=chain)),
        stores.one.append(append("chance", 1, "of another chain")._replace(chain=other)),
    )
    assert outcomes == [HeadMoved, HeadMoved, None]
    assert await refusal(stores.one.append(append("chance", 2, "late")._replace(chain=chain))) is HeadMoved
    assert [body for _, body in await stores.one.events("chance", 0, 9)] == [b"theirs", b"of another chain"]


async def of_two_appends_at_one_head_one_is_kept(stores: Stores) -> None:
    """Nodes race for a head, also for that of a session that is new: the log has each seq once, and each has one writer."""
    kept: dict[int, str] = {}

    async def race(store: Store, name: str) -> None:
        for _ in range(40):
            head = await store.head("race")
            if await refusal(store.append(append("race", head, f"{name}-{head}"))) is None:
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
        outcomes = await together(
            stores.one.append(append(name, 0, "one", "one")), stores.other.append(append(name, 0, "other"))
        )
        assert sorted(map(str, outcomes)) == sorted(map(str, [None, HeadMoved]))
        bodies = [body for _, body in await stores.one.events(name, 0, 9)]
        assert bodies == ([b"one", b"one"] if outcomes[0] is None else [b"other"])


async def of_two_appends_with_one_key_one_is_kept(stores: Stores) -> None:
    """The second learns that the key is taken, and reads the first one's answer."""
    for number in range(20):
        one = FirstAnswer("one-key", f"{number}", "f", b"one")
        other = one._replace(answer=b"other")
        outcomes = await together(
            stores.one.append(append(f"one-key-{number}", 0, "a")._replace(first_answer=one)),
            stores.other.append(append(f"other-key-{number}", 0, "a")._replace(first_answer=other)),
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
                store.append(append(name, heads.get(name, 0), "a")._replace(alarms=[NewAlarm("cross", 9)]))
                for name in order
            )
            assert set(await together(*appends)) <= {None, HeadMoved}

    await asyncio.gather(rounds(stores.one, names), rounds(stores.other, names[::-1]))
    for name in names:
        seqs = await kept_seqs(stores.one, name)
        assert seqs == list(range(1, len(seqs) + 1))
        assert len(seqs) >= 8
    await clear(stores)


CHECKS: tuple[Check, ...] = (
    a_chain_is_kept_in_the_order_of_the_calls,
    a_chain_breaks_where_one_fails,
    a_broken_chain_is_not_taken_up_by_chance,
    of_two_appends_at_one_head_one_is_kept,
    of_two_appends_that_begin_a_session_one_is_kept,
    of_two_appends_with_one_key_one_is_kept,
    nodes_that_append_to_the_same_sessions_do_not_block_each_other,
)
