from collections.abc import AsyncIterator

import pytest

from ship.gateway import event_stream
from ship.gateway.event_stream import OversizedEvent, data, events

STREAM = (
    b"data: one\n\nevent: x\r\ndata: two\r\ndata: lines\r\n\r\n: comment\r\rdata:three\n\ndata: never ended\n"
)


async def pieces(content: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(content), size):
        yield content[at : at + size]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
async def test_events_are_the_same_however_the_bytes_come(size: int) -> None:
    found = [event async for event in events(pieces(STREAM, size))]

    assert [data(event) for event in found] == [b"one", b"two\nlines", b"", b"three"]
    assert STREAM.startswith(b"".join(found))


async def test_an_event_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "EVENT_LIMIT_BYTES", 100)

    with pytest.raises(OversizedEvent):
        async for _ in events(pieces(b"data: " + b"x" * 1000, 10)):
            pass
