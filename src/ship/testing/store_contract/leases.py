"""What is claimed for a time: effects and alarms."""

import asyncio

from ship.ports.store import Append, NewAlarm, Store

from .two_nodes import LATER_MS, Check, Stores, clear


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
    await clear(stores)


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
    await clear(stores)


async def the_last_word_on_an_alarm_counts(stores: Stores) -> None:
    """Appends of one transaction that set and clear the same alarm."""
    await asyncio.gather(
        stores.one.append(Append("word", 0, 1, alarms=[NewAlarm("a", 10), NewAlarm("b", None)])),
        stores.one.append(Append("word", 0, 1, alarms=[NewAlarm("a", None), NewAlarm("b", 20)])),
    )
    assert [alarm.name for alarm in await stores.one.claim_alarms(LATER_MS, 1, 9)] == ["b"]
    await clear(stores)


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
    await clear(stores)


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
    await clear(stores)


CHECKS: tuple[Check, ...] = (
    effects_are_leased,
    the_longest_due_effect_is_claimed_first,
    no_two_claims_get_the_same_effect,
    alarms_are_leased,
    what_is_due_moves_with_a_clock_that_is_set,
    the_last_word_on_an_alarm_counts,
    an_alarm_that_was_set_anew_while_it_fired_stays,
    no_two_claims_get_the_same_alarm,
)
