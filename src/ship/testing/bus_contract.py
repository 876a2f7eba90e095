"""What every ``Bus`` must do: on one node, and between two."""

import asyncio

from ship.ports.bus import HEAD, Bus, Listener, Notice

WAIT_S = 5.0
_LARGE_BYTES = 3 * 1024**2


async def check_bus(bus: Bus) -> None:
    """Every sentence of ``Bus`` that one node can show. Raises AssertionError."""
    bus.publish("nobody", [_event(1)])
    assert bus.topics() == []
    async with bus.listen("a") as first, bus.listen("a") as second, bus.listen("b") as third:
        assert sorted(bus.topics()) == ["a", "b"]
        notices = [_event(1), _event(2), Notice(0, "delta", b"text")]
        bus.publish("a", notices[:2])
        bus.publish("a", notices[2:])
        assert await first.take(WAIT_S) == notices
        assert await second.take(WAIT_S) == notices
        assert await third.take(0) == []
        bus.publish_here("b", [_event(3)])
        assert await third.take(WAIT_S) == [_event(3)]
        waiting = asyncio.create_task(first.take(WAIT_S))
        await asyncio.sleep(0)
        bus.publish("a", [_event(4)])
        assert await waiting == [_event(4)]
    assert bus.topics() == []
    await _check_slow_listener(bus)


async def _check_slow_listener(bus: Bus) -> None:
    """Who takes nothing loses what is old, hears that, and costs bounded memory."""
    large = Notice(1, "event", bytes(64 * 1024))
    async with bus.listen("a") as slow:
        for _ in range(1_000):
            bus.publish("a", [large])
        assert slow.lagged
        kept = await slow.take(0)
        assert kept
        assert sum(len(notice.body) for notice in kept) < 16 * 1024**2
        slow.lagged = False
        bus.publish("a", [_event(2)])
        assert await slow.take(WAIT_S) == [_event(2)]
        assert not slow.lagged


async def check_buses(one: Bus, other: Bus) -> None:
    """What two nodes hear of each other. Raises AssertionError."""
    overheard: list[tuple[str, list[Notice]]] = []
    one.overhear(lambda topic, notices: overheard.append((topic, notices)))
    async with one.listen("a") as here, other.listen("a") as there, one.listen("a") as also_here:
        other.publish("a", [_event(1), _event(2)])
        one.publish("a", [_event(3)])
        # What is one's own may come before what travels; nothing comes twice.
        for listener in (here, also_here, there):
            assert sorted(await _taken(listener, 3)) == [_event(1), _event(2), _event(3)]
        assert overheard == [("a", [_event(1), _event(2)])]
        one.publish_here("a", [_event(4)])
        other.publish_here("a", [_event(5)])
        many = [_event(seq) for seq in range(100, 1100)]
        for notice in many:
            other.publish("a", [notice])
        assert await _taken(here, 1_001) == [_event(4), *many]
        assert await _taken(there, 1_001) == [_event(5), *many]
        await _check_large(here, other)
    async with one.listen("a") as later:
        other.publish("a", [_event(6)])
        assert await _taken(later, 1) == [_event(6)]


async def _check_large(here: Listener, other: Bus) -> None:
    """What is too large for the way comes as a head, in its place; what fits beside it comes whole."""
    large = Notice(2_001, "event", bytes(_LARGE_BYTES))
    other.publish("a", [_event(2_000), large, _event(2_002)])
    before, replaced, after = await _taken(here, 3)
    assert (before, after) == (_event(2_000), _event(2_002))
    assert replaced in (large, Notice(2_001, HEAD, b""))


async def _taken(listener: Listener, count: int) -> list[Notice]:
    """The next so many notices; fewer when no more come."""
    taken: list[Notice] = []
    while len(taken) < count and (new := await listener.take(WAIT_S)):
        taken += new
    assert await listener.take(0) == []
    return taken


def _event(seq: int) -> Notice:
    return Notice(seq, "task.queued", b'{"seq": %d}' % seq)
