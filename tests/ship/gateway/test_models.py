import asyncio
import json
import re
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from ship.config import Provider
from ship.errors import StaleGeneration, Unavailable
from ship.gateway import models, upstream
from ship.model import LimitKind
from ship.testing.serving import serving

from .conftest import KEY, STALE_TOKEN, TOKEN, Gateway, RecordingGrants

AGENT_RETRIES_ON = re.compile(
    r"429|500|502|503|504|524|rate increased too quickly|rate.?limit|too many requests|overloaded|service.unavailable"
    r"|internal.error|internal server error|server.error|provider.returned.error|terminated|fetch failed|network.error"
    r"|connection (?:error|refused|lost)|timed out|timeout|try your request again|resource.exhausted|try again (?:later|in\b)",
    re.IGNORECASE,
)
"""The words after which OpenCode 1.18 tries again whatever the status is."""


def chat(model: str, prompt: str = "hello", **more: object) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": "bash", "parameters": {}}}]
    return {"model": model, "messages": [{"role": "user", "content": prompt}], "tools": tools, **more}


def messages(model: str, prompt: str = "hello", **more: object) -> dict[str, Any]:
    tools = [{"name": "bash", "input_schema": {"type": "object"}}]
    return {
        "model": model,
        "max_tokens": 100,
        "messages": [{"role": "user", "content": prompt}],
        "tools": tools,
        **more,
    }


def responses(model: str, prompt: str = "hello", **more: object) -> dict[str, Any]:
    tools = [{"type": "function", "name": "bash", "parameters": {}}]
    return {"model": model, "input": [{"role": "user", "content": prompt}], "tools": tools, **more}


PROTOCOLS = [
    ("scripted", "chat/completions", chat),
    ("scripted", "responses", responses),
    ("claude", "messages", messages),
]


async def post(
    gateway: Gateway, provider: str, path: str, body: object, *, token: str = TOKEN
) -> httpx.Response:
    async with httpx.AsyncClient(timeout=20, verify=False) as client:
        return await client.post(
            f"{gateway.url}/{provider}/v1/{path}", json=body, headers={"authorization": f"Bearer {token}"}
        )


@pytest.mark.parametrize(("provider", "path", "body"), PROTOCOLS)
async def test_a_task_at_its_limit_calls_no_model_and_does_not_try_again(
    gateway: Gateway, provider: str, path: str, body: Any
) -> None:
    gateway.grants.limit = LimitKind.TOKENS
    response = await post(gateway, provider, path, body("echo"))
    assert response.status_code == 402
    assert "token" in response.text
    assert not AGENT_RETRIES_ON.search(response.text)
    assert not gateway.model.seen
    assert not gateway.grants.calls


@pytest.mark.parametrize(("provider", "path", "body"), PROTOCOLS)
async def test_a_session_without_a_task_calls_no_model(
    gateway: Gateway, provider: str, path: str, body: Any
) -> None:
    gateway.grants.at_work = False
    response = await post(gateway, provider, path, body("echo"))
    assert (response.status_code, response.json()["error"]["code"]) == (403, "no_task_running")
    assert not AGENT_RETRIES_ON.search(response.text)
    assert not gateway.model.seen


async def test_a_model_without_a_price_is_not_called_for_a_limited_cost(gateway: Gateway) -> None:
    gateway.grants.cost_limited = True
    response = await post(gateway, "down", "chat/completions", chat("echo"))
    assert (response.status_code, response.json()["error"]["code"]) == (403, "model_price_unknown")
    assert not AGENT_RETRIES_ON.search(response.text)
    assert (await post(gateway, "scripted", "chat/completions", chat("echo"))).status_code == 200


async def test_what_a_call_used_is_kept_when_the_store_is_back(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(models, "RECORD_AGAIN_S", (0.0, 0.0))
    gateway.grants.refusals = [Unavailable("away"), Unavailable("away")]
    await post(gateway, "scripted", "chat/completions", chat("echo"))
    assert gateway.call.usage.output_tokens
    assert len(gateway.grants.ids) == 1, "it is kept once, whatever became of the first tries"
    gateway.grants.refusals = [StaleGeneration("replaced")]
    await post(gateway, "scripted", "chat/completions", chat("echo"))
    assert len(gateway.grants.calls) == 1
    assert "was not recorded" in caplog.text


def events(response: httpx.Response) -> list[Any]:
    datas = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(data) for data in datas if data != "[DONE]"]


def said(response: httpx.Response) -> str:
    """The text of a stream in any of the protocols."""
    pieces = []
    for event in events(response):
        match event:
            case {"choices": [{"delta": {"content": str(text)}}]}:
                pieces.append(text)
            case {"type": "response.output_text.delta", "delta": str(text)}:
                pieces.append(text)
            case {"type": "content_block_delta", "delta": {"type": "text_delta", "text": str(text)}}:
                pieces.append(text)
    return "".join(pieces)


@pytest.mark.parametrize(("provider", "path", "body"), PROTOCOLS)
async def test_a_stream_passes_through_and_its_tokens_are_counted(
    gateway: Gateway, provider: str, path: str, body: Any
) -> None:
    response = await post(gateway, provider, path, body("echo", "hello world", stream=True))

    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert said(response) == "You said: hello world"
    call = gateway.call
    assert (call.task_id, call.provider, call.model, call.status) == ("tsk_1", provider, "echo", 200)
    assert call.failure is None
    assert call.usage.model_calls == 1
    assert call.usage.input_tokens > 10
    assert call.usage.output_tokens >= 3
    assert call.usage.cost_usd == pytest.approx(
        (call.usage.input_tokens * 1.0 + call.usage.output_tokens * 4.0) / 1e6
    )


@pytest.mark.parametrize(("provider", "path", "body"), PROTOCOLS)
async def test_a_whole_answer_passes_through_and_its_tokens_are_counted(
    gateway: Gateway, provider: str, path: str, body: Any
) -> None:
    response = await post(gateway, provider, path, body("echo", "hello world"))

    assert response.status_code == 200
    assert "You said: hello world" in response.text
    assert gateway.call.failure is None
    assert gateway.call.usage.output_tokens >= 3


@pytest.mark.parametrize("fault", ["cut_stream", "no_finish_reason", "malformed"])
@pytest.mark.parametrize(("provider", "path", "body"), PROTOCOLS)
async def test_a_broken_stream_ends_with_an_error_and_never_looks_complete(
    gateway: Gateway, provider: str, path: str, body: Any, fault: str
) -> None:
    response = await post(gateway, provider, path, body(fault, "a b c d e f g h i j k l", stream=True))

    last = events(response)[-1]
    assert last["error"]["code"] == "model_stream_cut"
    assert AGENT_RETRIES_ON.search(last["error"]["message"]), "the agent has to try again"
    assert "[DONE]" not in response.text
    assert "message_stop" not in response.text
    assert 'finish_reason":"' not in response.text
    assert gateway.call.failure is not None
    assert gateway.call.failure.code == "model_stream_cut"


@pytest.mark.parametrize(("provider", "path", "body"), PROTOCOLS)
async def test_a_refused_key_names_the_setting_and_is_not_tried_again(
    gateway: Gateway, provider: str, path: str, body: Any
) -> None:
    response = await post(gateway, provider, path, body("refuses_key", stream=True))

    assert response.status_code == 401
    error = response.json()["error"]
    assert error["code"] == "model_key_refused"
    assert "--key" in error["message"]
    assert not AGENT_RETRIES_ON.search(response.text)
    assert (response.json().get("type") == "error") == (provider == "claude")
    assert gateway.call.status == 401


async def test_a_missing_key_is_told_from_a_wrong_one(gateway: Gateway) -> None:
    response = await post(gateway, "keyless", "chat/completions", chat("echo"))

    assert response.status_code == 401
    assert response.json()["error"]["message"] == "keyless wants an API key and none is set"
    assert "OPENAI_API_KEY" in response.json()["error"]["hint"]


async def test_a_model_that_is_down_is_worth_another_try(gateway: Gateway) -> None:
    response = await post(gateway, "down", "chat/completions", chat("echo", stream=True))

    assert response.status_code == 503
    assert response.json()["error"]["code"] == "model_unreachable"
    assert gateway.call.status == 0
    assert gateway.call.failure is not None


async def test_a_model_that_never_answers_is_given_up(gateway: Gateway) -> None:
    response = await post(gateway, "scripted", "chat/completions", chat("hangs", stream=True))

    assert response.status_code == 503
    assert response.json()["error"]["code"] == "model_unreachable"


async def test_a_rate_limit_passes_with_its_pause(gateway: Gateway) -> None:
    response = await post(gateway, "scripted", "chat/completions", chat("rate_limited", stream=True))

    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["code"] == "model_rate_limited"


async def test_a_server_error_keeps_its_status(gateway: Gateway) -> None:
    response = await post(gateway, "scripted", "chat/completions", chat("server_error", stream=True))

    assert response.status_code == 500
    assert response.json()["error"]["code"] == "model_failed"


@pytest.mark.parametrize(
    ("provider", "path", "body", "status", "code"),
    [
        ("scripted", "chat/completions", chat("no-such-model"), 400, "model_unknown"),
        ("keyless", "chat/completions", {"model": "x"}, 401, "model_key_refused"),
        ("nobody", "chat/completions", chat("echo"), 400, "model_not_configured"),
        ("scripted", "chat/completions", ["no", "object"], 400, "model_request_invalid"),
        ("scripted", "chat/completions", {"messages": []}, 400, "model_request_invalid"),
        ("scripted", "embeddings", chat("echo"), 404, "gateway_path_unknown"),
        ("scripted", "chat/completions/../../admin", chat("echo"), 404, "gateway_path_unknown"),
        ("scripted", "models", chat("echo"), 405, "gateway_method_not_allowed"),
    ],
)
async def test_what_cannot_be_served_is_refused_with_a_code(
    gateway: Gateway, provider: str, path: str, body: object, status: int, code: str
) -> None:
    response = await post(gateway, provider, path, body)

    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert not AGENT_RETRIES_ON.search(response.text)


async def test_unknown_and_replaced_tokens_are_refused_before_anything_is_sent(gateway: Gateway) -> None:
    unknown = await post(gateway, "scripted", "chat/completions", chat("echo"), token="shs_wrong")
    stale = await post(gateway, "scripted", "chat/completions", chat("echo"), token=STALE_TOKEN)

    assert (unknown.status_code, unknown.json()["error"]["code"]) == (401, "unauthenticated")
    assert (stale.status_code, stale.json()["error"]["code"]) == (403, "stale_generation")
    assert not gateway.model.seen


async def test_a_body_over_the_limit_is_refused(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "REQUEST_LIMIT_BYTES", 1000)

    response = await post(gateway, "claude", "messages", messages("echo", "x" * 2000))

    assert response.status_code == 413
    assert response.json()["type"] == "error"
    assert response.json()["error"]["code"] == "model_request_too_large"


async def test_the_token_never_reaches_the_provider_nor_the_key_the_sandbox(gateway: Gateway) -> None:
    answers = [
        await post(gateway, provider, path, body(model, stream=stream))
        for provider, path, body in PROTOCOLS
        for model in ("echo", "cut_stream", "refuses_key", "rate_limited", "server_error", "nonsense")
        for stream in (True, False)
    ]

    assert len(gateway.model.seen) > 20
    for seen in gateway.model.seen:
        sent = json.dumps(seen.headers) + seen.body.decode()
        assert TOKEN not in sent
        assert KEY in seen.headers.get("authorization", "") + seen.headers.get("x-api-key", "")
    for answer in answers:
        assert KEY not in answer.text
        assert KEY not in str(answer.headers)


async def test_the_token_is_taken_as_an_api_key_and_headers_of_the_sandbox_stay_here(
    gateway: Gateway,
) -> None:
    headers = {
        "x-api-key": TOKEN,
        "cookie": "a=b",
        "anthropic-beta": "tools-1",
        "x-forwarded-for": "10.0.0.1",
    }
    async with httpx.AsyncClient(verify=False) as client:
        response = await client.post(
            f"{gateway.url}/claude/v1/messages", json=messages("echo"), headers=headers
        )

    assert response.status_code == 200
    (seen,) = gateway.model.seen
    assert seen.headers["x-api-key"] == KEY
    assert seen.headers["anthropic-version"] == "2023-06-01"
    assert seen.headers["anthropic-beta"] == "tools-1"
    assert not {"cookie", "x-forwarded-for", "authorization"} & set(seen.headers)


async def test_a_chat_stream_is_made_to_say_its_usage(gateway: Gateway) -> None:
    await post(gateway, "scripted", "chat/completions", chat("echo", stream=True, stream_options={"x": 1}))
    await post(gateway, "scripted", "chat/completions", chat("echo"))

    streamed, whole = (json.loads(seen.body) for seen in gateway.model.seen)
    assert streamed["stream_options"] == {"x": 1, "include_usage": True}
    assert "stream_options" not in whole


async def test_openai_itself_gets_the_limit_under_its_newer_name(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    await post(gateway, "scripted", "chat/completions", chat("echo", max_tokens=10))
    monkeypatch.setattr(models, "OPENAI_HOST", "127.0.0.1")
    await post(gateway, "scripted", "chat/completions", chat("echo", max_tokens=10))

    elsewhere, openai = (json.loads(seen.body) for seen in gateway.model.seen)
    assert elsewhere["max_tokens"] == 10
    assert openai["max_completion_tokens"] == 10
    assert "max_tokens" not in openai


async def test_free_calls_are_forwarded_and_not_accounted(gateway: Gateway) -> None:
    async with httpx.AsyncClient(verify=False, headers={"authorization": f"Bearer {TOKEN}"}) as client:
        listed = await client.get(f"{gateway.url}/scripted/v1/models")
        counted = await client.post(f"{gateway.url}/claude/v1/messages/count_tokens", json=messages("echo"))

    assert "demo" in [each["id"] for each in listed.json()["data"]]
    assert counted.json()["input_tokens"] > 0
    assert gateway.grants.calls == []


async def test_an_agent_that_leaves_ends_the_call_upstream(gateway: Gateway) -> None:
    async with httpx.AsyncClient(timeout=20, verify=False) as client:
        request = client.stream(
            "POST",
            f"{gateway.url}/scripted/v1/chat/completions",
            json=chat("long", "for 60 seconds", stream=True),
            headers={"authorization": f"Bearer {TOKEN}"},
        )
        async with request as response:
            await anext(response.aiter_bytes())
    async with asyncio.timeout(10):
        while not gateway.grants.calls:
            await asyncio.sleep(0.02)

    assert gateway.call.failure is not None
    assert gateway.call.failure.code == "model_call_cancelled"
    assert gateway.call.took_ms < 10_000


async def test_a_session_has_a_limit_of_calls_under_way(gateway: Gateway) -> None:
    body = chat("hangs", stream=True)
    under_way = [
        asyncio.create_task(post(gateway, "scripted", "chat/completions", body))
        for _ in range(models.CALLS_PER_SESSION)
    ]
    async with asyncio.timeout(10):
        while len(gateway.model.seen) < models.CALLS_PER_SESSION:
            await asyncio.sleep(0.01)

    refused = await post(gateway, "scripted", "chat/completions", chat("echo"))
    await asyncio.gather(*under_way)
    taken = await post(gateway, "scripted", "chat/completions", chat("echo"))

    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_calls")
    assert taken.status_code == 200


class Upstream:
    """A provider that answers what the test wants, in order; the last answer is repeated."""

    def __init__(self, *answers: Response) -> None:
        self.answers = list(answers)
        self.requests: list[Request] = []

    async def answer(self, request: Request) -> Response:
        self.requests.append(request)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


async def ask(provider: Upstream, body: dict[str, Any]) -> tuple[httpx.Response, RecordingGrants]:
    grants = RecordingGrants()
    there = Starlette(routes=[Route("/v1/{path:path}", provider.answer, methods=["GET", "POST"])])
    async with serving(there) as url, upstream.client() as http:
        settings = Provider(
            name="p", protocol="openai", base_url=f"{url}/v1", api_key=KEY, key_setting="P_KEY"
        )
        async with serving(Starlette(routes=list(models.routes(grants, [settings], http)))) as gateway_url:
            gateway = Gateway(f"{gateway_url}/gateway/models", grants, None)  # type: ignore[arg-type] # not used
            return await post(gateway, "p", "chat/completions", body), grants


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (
            JSONResponse({"error": {"message": "no", "code": "insufficient_quota"}}, 429),
            402,
            "model_quota_exceeded",
        ),
        (
            JSONResponse({"error": {"message": "wait"}}, 429, headers={"retry-after": "9999"}),
            429,
            "model_rate_limited",
        ),
        (JSONResponse({"error": {"message": "no model"}}, 404), 400, "model_unknown"),
        (JSONResponse({"error": {"message": "forbidden"}}, 403), 401, "model_key_refused"),
        (PlainTextResponse("bad gateway", 502), 502, "model_failed"),
        (PlainTextResponse("moved", 302, headers={"location": "https://evil.test/"}), 502, "model_malformed"),
        (PlainTextResponse("<html>welcome</html>"), 502, "model_malformed"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_failures_of_a_provider_become_clear(
    answer: Response, status: int, code: str, stream: bool
) -> None:
    response, grants = await ask(Upstream(answer), chat("m", stream=stream))

    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert int(response.headers.get("retry-after", 0)) <= 60
    (call,) = grants.calls
    assert call.failure is not None
    assert call.failure.code == code


async def test_the_providers_own_words_reach_the_agent_where_it_acts_on_them() -> None:
    refusal = {
        "error": {"message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded"}
    }

    response, grants = await ask(Upstream(JSONResponse(refusal, 400)), chat("m", stream=True))

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert response.json()["error"]["message"] == "too long"
    assert grants.calls[0].failure is not None
    assert grants.calls[0].failure.code == "model_request_refused"


async def test_a_provider_that_echoes_the_key_does_not_give_it_away() -> None:
    event = b'data: {"choices":[{"delta":{"content":"' + KEY.encode() + b'"},"finish_reason":"stop"}]}\n\n'
    stream = StreamingResponse(iter([event]), media_type="text/event-stream")
    refused = JSONResponse({"error": {"message": f"bad {KEY}"}}, 400)

    streamed, _ = await ask(Upstream(stream), chat("m", stream=True))
    answered, grants = await ask(Upstream(refused), chat("m"))

    assert KEY not in streamed.text
    assert "***" in streamed.text
    assert KEY not in answered.text
    assert KEY not in str(grants.calls)


async def test_an_error_in_the_middle_of_a_stream_passes_as_it_is_and_is_accounted() -> None:
    lines = b'data: {"error":{"message":"overloaded","code":"x"}}\n\n'

    response, grants = await ask(
        Upstream(StreamingResponse(iter([lines]), media_type="text/event-stream")), chat("m", stream=True)
    )

    assert response.content == lines
    assert grants.calls[0].failure is not None
    assert grants.calls[0].failure.reason == "overloaded"


async def test_cached_and_reasoning_tokens_are_told_apart() -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 50,
        "prompt_tokens_details": {"cached_tokens": 80},
        "completion_tokens_details": {"reasoning_tokens": 30},
    }
    answer = JSONResponse({"choices": [{"finish_reason": "stop"}], "usage": usage})

    _, grants = await ask(Upstream(answer), chat("m"))

    used = grants.calls[0].usage
    assert (used.input_tokens, used.cache_read_tokens, used.output_tokens, used.reasoning_tokens) == (
        20,
        80,
        50,
        30,
    )


async def test_a_connection_that_breaks_before_the_first_byte_is_tried_again() -> None:
    answered = 0

    async def flaky(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        answered += 1
        await reader.readuntil(b"\r\n\r\n")
        if answered == 3:
            body = b'{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
            writer.write(b"content-length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
        writer.close()

    grants = RecordingGrants()
    server = await asyncio.start_server(flaky, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server, upstream.client() as http:
        settings = Provider(name="p", protocol="openai", base_url=url)
        async with serving(Starlette(routes=list(models.routes(grants, [settings], http)))) as gateway_url:
            gateway = Gateway(f"{gateway_url}/gateway/models", grants, None)  # type: ignore[arg-type] # not used
            response = await post(gateway, "p", "chat/completions", chat("m"))

    assert (response.status_code, answered) == (200, 3)
    assert grants.calls[0].usage.output_tokens == 2
