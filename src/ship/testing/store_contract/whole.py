"""The store as a whole: dumped, and written to."""

from collections.abc import AsyncGenerator

from ship.errors import Conflict
from ship.ports.store import (
    Append,
    FirstAnswer,
    NewAlarm,
    NewEvent,
    Page,
    Said,
    Snapshot,
    StoredToken,
    Summary,
)

from .two_nodes import Check, Stores, clear, refusal


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
    assert await refusal(store.fill(_no_pages())) is Conflict
    await clear(stores)


async def it_can_be_written(stores: Stores) -> None:
    """``probe``."""
    await stores.one.probe()
    await stores.other.probe()


CHECKS: tuple[Check, ...] = (
    what_is_dumped_is_whole,
    it_can_be_written,
)


async def _no_pages() -> AsyncGenerator[Page, None]:
    for page in list[Page]():
        yield page
