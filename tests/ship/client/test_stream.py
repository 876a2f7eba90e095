import asyncio

import pytest
from tests.ship.client.protocol_server import TOKEN, Log, ProtocolServer

from ship import errors
from ship.client import Client
from ship.events import Record, facts
from ship.events.frames import Delta


def text(number: int) -> facts.TextFinished:
    return facts.TextFinished(task_id="tsk_1", message_id="msg_1", part_id=f"prt_{number}", text=str(number))


def delta(content: str) -> Delta:
    return Delta(task_id="tsk_1", message_id="msg_1", part_id="prt_1", kind="text", offset=0, text=content)


def filled(server: ProtocolServer, count: int) -> Log:
    log = server.log()
    for number in range(count):
        log.append(text(number))
    return log


async def test_the_log_is_replayed_and_then_followed(server: ProtocolServer) -> None:
    log = filled(server, 3)
    seen: list[Record | Delta] = []
    async with Client(server.url, TOKEN) as client:
        async for item in client.events("ses_1", after=1):
            seen.append(item)
            if len(seen) == 2:
                log.say(delta("gro"))
                log.append(text(3))
                log.ended = True
    assert seen == [log.records[1], log.records[2], delta("gro"), log.records[3]]


async def test_a_cut_connection_resumes_without_gap_or_duplicate(server: ProtocolServer) -> None:
    log = filled(server, 20)
    log.ended = True
    server.cut_after = 3
    lost: list[str] = []
    async with Client(server.url, TOKEN) as client:
        seqs = [
            item.seq async for item in client.events("ses_1", on_lost=lost.append) if isinstance(item, Record)
        ]
    assert seqs == list(range(1, 21))
    assert server.connections == [f"after={after}" for after in range(0, 21, 3)]
    assert len(lost) == 6


async def test_a_client_that_was_too_slow_comes_back(server: ProtocolServer) -> None:
    log = filled(server, 2)
    log.ended = True
    server.close_codes = [4408]
    async with Client(server.url, TOKEN) as client:
        seqs = [item.seq async for item in client.events("ses_1") if isinstance(item, Record)]
    assert seqs == [1, 2]


async def test_a_gap_in_the_stream_is_noticed_and_filled(server: ProtocolServer) -> None:
    log = filled(server, 5)
    log.ended = True
    server.skip_seq = 3
    async with Client(server.url, TOKEN) as client:
        seqs = [item.seq async for item in client.events("ses_1") if isinstance(item, Record)]
    assert seqs == [1, 2, 3, 4, 5]


async def test_a_filter_may_leave_holes_and_is_resumed_behind_them(server: ProtocolServer) -> None:
    log = filled(server, 4)
    log.append(facts.MessagePosted(message_id="msg_1", text="hello"))
    log.append(text(5))
    log.ended = True
    async with Client(server.url, TOKEN) as client:
        events = client.events("ses_1", types=["message.posted"])
        seqs = [item.seq async for item in events if isinstance(item, Record)]
    assert seqs == [5]
    assert events.seq == 6
    assert server.connections == ["after=0&types=message.posted"]


async def test_what_cannot_get_better_is_raised_at_once(server: ProtocolServer) -> None:
    async with Client(server.url, TOKEN) as client:
        with pytest.raises(errors.NotFound):
            await anext(aiter(client.events("ses_none")))
    async with Client(server.url, "wrong") as client:
        with pytest.raises(errors.Unauthenticated):
            await anext(aiter(client.events("ses_none")))


async def test_a_refused_handshake_is_not_taken_for_an_unknown_token(server: ProtocolServer) -> None:
    server.log()
    server.refuse_handshakes = True
    async with Client(server.url, TOKEN) as client:
        with pytest.raises(errors.Forbidden) as refused:
            await anext(aiter(client.events("ses_1")))
    assert refused.value.code == "http_403"


async def test_wrong_parameters_are_raised_with_the_servers_reason(server: ProtocolServer) -> None:
    server.log()
    server.close_codes, server.close_reason = [4400], "types_unknown"
    async with Client(server.url, TOKEN) as client:
        with pytest.raises(errors.InvalidInput, match="types_unknown") as refused:
            await anext(aiter(client.events("ses_1", types=["x"])))
    assert refused.value.code == "types_unknown"


async def test_a_server_that_asks_for_patience_is_tried_again(server: ProtocolServer) -> None:
    filled(server, 2).ended = True
    server.close_codes = [1013]
    lost: list[str] = []
    async with Client(server.url, TOKEN) as client:
        events = client.events("ses_1", on_lost=lost.append)
        seqs = [item.seq async for item in events if isinstance(item, Record)]
    assert seqs == [1, 2]
    assert lost == ["the server asks to try again later"]


async def test_patience_ends() -> None:
    async with Client("http://127.0.0.1:9", TOKEN) as client:
        lost: list[str] = []
        with pytest.raises(errors.Unavailable, match="does not come back"):
            async with asyncio.timeout(5):
                await anext(aiter(client.events("ses_1", patience_s=0.2, on_lost=lost.append)))
    assert lost


async def test_a_token_that_was_renewed_meanwhile_is_taken_up(server: ProtocolServer) -> None:
    log = filled(server, 4)
    log.ended = True
    server.cut_after = 2
    tokens = iter([TOKEN, "tok_of_before_the_restart", TOKEN, TOKEN, TOKEN])
    async with Client(server.url, lambda: next(tokens, TOKEN)) as client:
        seqs = [item.seq async for item in client.events("ses_1") if isinstance(item, Record)]
    assert seqs == [1, 2, 3, 4]
