import msgspec
import pytest
from tests.ship.client.protocol_server import TOKEN, ProtocolServer

from ship import errors
from ship.client import Client
from ship.events import facts
from ship.model import AgentMode, Answer, PermissionReply, SessionStatus


async def test_a_session_is_made_with_what_was_given_and_nothing_else(server: ProtocolServer) -> None:
    async with Client(server.url, TOKEN) as client:
        session = await client.create_session(
            "https://example.com/r.git", prompt="fix it", agent=AgentMode.PLAN
        )
    assert session.id == "ses_1"
    assert session.tasks[0].prompt == "fix it"
    assert server.sent("POST", "/sessions") == [
        {"repository": {"source": "https://example.com/r.git"}, "prompt": "fix it", "agent": "plan"}
    ]


async def test_every_post_carries_an_idempotency_key_of_its_own(server: ProtocolServer) -> None:
    server.log()
    async with Client(server.url, TOKEN) as client:
        await client.add_task("ses_1", "one")
        await client.add_task("ses_1", "two")
    keys = [headers["idempotency-key"] for method, _, _, headers in server.requests if method == "POST"]
    assert len(set(keys)) == 2


async def test_lists_are_read_page_by_page(server: ProtocolServer) -> None:
    for number in range(120):
        server.log(f"ses_{number}")
    async with Client(server.url, TOKEN) as client:
        first = await client.sessions(limit=50)
        everything = [summary.id async for summary in client.all_sessions()]
    assert first.next_cursor == "50"
    assert everything == [f"ses_{number}" for number in reversed(range(120))]


async def test_answers_are_sent_in_the_shape_of_the_protocol(server: ProtocolServer) -> None:
    server.log()
    async with Client(server.url, TOKEN) as client:
        await client.answer("ses_1", "req_1", Answer(reply=PermissionReply.ONCE))
        await client.answer("ses_1", "req_2", Answer(answers=(("a", "b"), ("c",))))
    assert server.sent("POST", "/sessions/ses_1/requests/req_1/answer") == [{"reply": "once"}]
    assert server.sent("POST", "/sessions/ses_1/requests/req_2/answer") == [{"answers": [["a", "b"], ["c"]]}]


async def test_the_other_routes_answer_typed_values(server: ProtocolServer, tmp_path) -> None:
    log = server.log()
    log.append(facts.MessagePosted(message_id="msg_1", text="hello"))
    log.diff = b"diff --git a/x b/x\n\xff"
    bundle = tmp_path / "bundle"
    bundle.write_bytes(b"x" * 3_000_000)
    async with Client(server.url, TOKEN) as client:
        assert (await client.session("ses_1")).status is SessionStatus.READY
        assert await client.diff("ses_1") == log.diff
        assert (await client.post_message("ses_1", "hi")).text == "hi"
        assert (await client.event_page("ses_1")).items == tuple(log.records)
        assert (await client.models()).default == "scripted/demo"
        assert await client.me() == "test"
        assert await client.ready()
        assert [summary.id async for summary in client.watch_sessions()] == ["ses_1"]
        await client.retry("ses_1")
        source = await client.upload(bundle)
        await client.archive("ses_1")
    assert server.uploads[source.removeprefix("upload:")] == bundle.read_bytes()
    assert log.ended


async def test_a_refusal_keeps_its_code_and_its_hint(server: ProtocolServer) -> None:
    server.log().ended = True
    async with Client(server.url, TOKEN) as client:
        with pytest.raises(errors.Conflict, match="is archived") as caught:
            await client.add_task("ses_1", "and this")
    assert caught.value.code == "session_archived"
    assert caught.value.hint == "Start another one."


async def test_an_unknown_session_and_an_unknown_token_are_errors_of_their_own(
    server: ProtocolServer,
) -> None:
    async with Client(server.url, TOKEN) as client:
        with pytest.raises(errors.NotFound, match="no such session"):
            await client.session("ses_none")
    async with Client(server.url, "wrong") as client:
        with pytest.raises(errors.Unauthenticated):
            await client.sessions()


async def test_a_page_that_is_no_problem_document_still_becomes_an_error(server: ProtocolServer) -> None:
    server.log()
    async with Client(server.url, TOKEN) as client:
        with pytest.raises(errors.ShipError) as caught:
            await client.artifacts("ses_1")
    assert caught.value.code == "http_404"


async def test_no_server_is_said_with_what_to_do() -> None:
    async with Client("http://127.0.0.1:9", TOKEN) as client:
        with pytest.raises(
            errors.Unavailable, match=r"no Ship server answers at http://127\.0\.0\.1:9"
        ) as caught:
            await client.me()
    assert caught.value.code == "not_reachable"
    assert "ship up" in caught.value.hint


async def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(server, monkeypatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    log = server.log()
    log.append(facts.TaskQueued(task_id="tsk_1", prompt="p", model="m/n"))
    log.ended = True
    async with Client(server.url, TOKEN) as client:
        assert await client.me() == "test"
        assert [record.seq async for record in client.events("ses_1")] == [1]


def test_a_path_segment_cannot_leave_its_place() -> None:
    from ship.client.client import _path

    assert _path("sessions", "../../readyz") == "/sessions/..%2F..%2Freadyz"


def test_the_views_ignore_what_a_newer_server_adds() -> None:
    from ship.client import views

    models = msgspec.json.decode(b'{"items": [], "default": null, "new": 1}', type=views.Models)
    assert models.default is None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8700",
        "127.0.0.1:8700",
        "ftp://host",
        "http://",
        "http://h:x",
        "http://h:99999",
        "http://[::1",
        "\udcff",
    ],
)
async def test_a_malformed_url_is_said_to_be_so(url: str) -> None:
    with pytest.raises(errors.InvalidInput) as refused:
        Client(url, TOKEN)
    assert refused.value.code == "url_malformed"


@pytest.mark.parametrize("token", ["", "s3cret words", "s3cret\n", "s3cret\udcff", "ü"])
async def test_a_malformed_token_is_said_to_be_so_and_not_sent(server: ProtocolServer, token: str) -> None:
    async with Client(server.url, token) as client:
        with pytest.raises(errors.InvalidInput) as of_request:
            await client.me()
        with pytest.raises(errors.InvalidInput) as of_stream:
            await anext(aiter(client.events("ses_1")))
    assert of_request.value.code == of_stream.value.code == "token_malformed"
    assert "s3cret" not in of_request.value.message
    assert server.requests == []
