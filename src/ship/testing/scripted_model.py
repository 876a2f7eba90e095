"""A model API that answers by script: OpenAI's Chat Completions and Responses, and Anthropic's Messages.

    python -m ship.testing.scripted_model --listen 127.0.0.1:0

prints its base URL, which ends in ``/v1``, on one line and serves until it is ended. The model's name picks the scenario, see
``ship.testing.builtin``; ``docs/models.md`` describes it for users.
"""

import argparse
import asyncio
import contextlib
import hashlib
import os
import signal
import sys
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ship.config import ModelSpec, Provider
from ship.testing import anthropic_messages, openai_chat, openai_responses, scenario
from ship.testing.answer import Answer
from ship.testing.builtin import DEMO, ECHO, SCENARIOS
from ship.testing.conversation import Conversation
from ship.testing.playing import STEADY_PACE_S, choose, perform
from ship.testing.scenario import LASTING, Fault, Scenario, Turn
from ship.testing.serving import serving

CONTEXT_TOKENS = 200_000
"""As the settings say of it. An agent that is answered all the same shortens its conversation for ever."""
_REMEMBERED_REQUESTS = 4096
_SLOW_PACE_S = 1.0


@dataclass(frozen=True)
class Seen:
    """One request that the model got, for tests: header names are lower case."""

    path: str
    headers: dict[str, str]
    body: bytes


class ScriptedModel:
    """The answers. ``key`` is the only API key that is taken; empty takes any. ``pace_s`` is the least pause between chunks.

    ``seen`` holds the last requests.
    """

    def __init__(self, scenarios: Iterable[Scenario] = (), *, key: str = "", pace_s: float = 0.02) -> None:
        self._scenarios = {each.name: each for each in (*SCENARIOS, *scenarios)}
        self._key = key
        self._pace_s = pace_s
        self._struck: OrderedDict[str, int] = OrderedDict()
        self.seen: deque[Seen] = deque(maxlen=256)

    @property
    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/responses", self._responses, methods=["POST"]),
                Route("/v1/messages", self._messages, methods=["POST"]),
                Route("/v1/messages/count_tokens", self._count_tokens, methods=["POST"]),
                Route("/v1/models", self._models),
            ]
        )

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, openai_chat)

    async def _responses(self, request: Request) -> Response:
        return await self._answer(request, openai_responses)

    async def _messages(self, request: Request) -> Response:
        return await self._answer(request, anthropic_messages)

    async def _count_tokens(self, request: Request) -> Response:
        body = await self._read(request)
        if not self._takes_key(request):
            return _refusal(anthropic_messages, 401, "authentication_error", "invalid x-api-key")
        return JSONResponse({"input_tokens": len(body) // 4})

    async def _models(self, request: Request) -> Response:
        if not self._takes_key(request):
            return _refusal(openai_chat, 401, "invalid_api_key", "Incorrect API key provided")
        return JSONResponse(
            {"object": "list", "data": [{"id": name, "object": "model"} for name in self._scenarios]}
        )

    async def _answer(self, request: Request, protocol: ModuleType) -> Response:
        body = await self._read(request)
        if not self._takes_key(request):
            return _refusal(protocol, 401, "invalid_api_key", "Incorrect API key provided")
        document: dict[str, Any] = msgspec.json.decode(body)
        conversation: Conversation = protocol.parse(document)
        found = self._scenario(conversation.model)
        if found is None:
            return _refusal(
                protocol, 404, "model_not_found", f"The model {conversation.model!r} does not exist"
            )
        input_tokens = len(body) // 4
        if input_tokens > CONTEXT_TOKENS:
            return _refusal(
                protocol,
                400,
                "context_length_exceeded",
                f"This model's maximum context length is {CONTEXT_TOKENS} tokens, and the request has {input_tokens}",
            )
        turn = choose(found, conversation)
        fault = self._fault(turn, body)
        answer = perform(turn, conversation, input_tokens=input_tokens)
        pace_s = max(self._pace_s, turn.pace_s, STEADY_PACE_S if turn.steady_s else 0.0)
        return _respond(protocol, answer, conversation.stream, fault, pace_s=pace_s)

    async def _read(self, request: Request) -> bytes:
        body = await request.body()
        self.seen.append(Seen(request.url.path, dict(request.headers), body))
        return body

    def _takes_key(self, request: Request) -> bool:
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        return self._key in ("", bearer, request.headers.get("x-api-key", ""))

    def _scenario(self, model: str) -> Scenario | None:
        name, _, times = model.partition("*")
        known = self._scenarios.get(model)
        if known is not None:
            return known
        name, _, fault = name.rpartition("+")
        plain = self._scenarios.get(name or ECHO.name)
        if plain is None or fault not in set(Fault):
            return None
        return plain.with_fault(Fault(fault), int(times) if times.isdigit() else _times(Fault(fault)))

    def _fault(self, turn: Turn, body: bytes) -> Fault | None:
        """The turn's fault while it strikes: a retry is the same body, so bodies are what is counted."""
        if turn.fault is None:
            return None
        digest = hashlib.sha256(body).hexdigest()
        struck = self._struck.pop(digest, 0)
        self._struck[digest] = struck + 1
        if len(self._struck) > _REMEMBERED_REQUESTS:
            self._struck.popitem(last=False)
        return turn.fault if struck < turn.fault_times else None


def _times(fault: Fault) -> int:
    return sys.maxsize if fault in LASTING else 1


def _respond(
    protocol: ModuleType, answer: Answer, stream: bool, fault: Fault | None, *, pace_s: float
) -> Response:
    match fault:
        case Fault.RATE_LIMITED:
            refusal = _refusal(protocol, 429, "rate_limit_exceeded", "Too many requests, slow down")
            refusal.headers["retry-after"] = "1"
            return refusal
        case Fault.SERVER_ERROR:
            return _refusal(protocol, 500, "server_error", "The server had an error")
        case Fault.REFUSES_KEY:
            return _refusal(protocol, 401, "invalid_api_key", "Incorrect API key provided")
        case Fault.HANGS:
            return _Hanging()
        case _ if not stream:
            return JSONResponse(protocol.document(answer))
        case _:
            events = _damaged(list(protocol.events(answer, finished=fault != Fault.NO_FINISH_REASON)), fault)
            if fault == Fault.SLOW:
                pace_s = max(pace_s, _SLOW_PACE_S)
            return _EventStream(events, pace_s=pace_s, cut=fault == Fault.CUT_STREAM)


def _damaged(events: list[bytes], fault: Fault | None) -> list[bytes]:
    middle = len(events) // 2
    if fault == Fault.CUT_STREAM:
        return events[:middle]
    if fault == Fault.MALFORMED:
        return [*events[:middle], b'data: {"id": "broken\n\n', *events[middle:]]
    return events


def _refusal(protocol: ModuleType, status: int, kind: str, message: str) -> JSONResponse:
    return JSONResponse(protocol.error(kind, message), status)


class _EventStream(Response):
    """Server-Sent Events at a pace; a cut one breaks the connection after the last."""

    media_type = "text/event-stream"

    def __init__(self, events: list[bytes], *, pace_s: float, cut: bool) -> None:
        super().__init__(headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._events = events
        self._pace_s = pace_s
        self._cut = cut

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events until the client leaves."""
        left = asyncio.ensure_future(_disconnected(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            for event in self._events:
                if self._pace_s:
                    await asyncio.wait([left], timeout=self._pace_s)
                if left.done():
                    return
                await send({"type": "http.response.body", "body": event, "more_body": True})
        finally:
            left.cancel()
        if not self._cut:
            await send({"type": "http.response.body", "body": b""})


class _Hanging(Response):
    """Nothing, for as long as the client waits."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Waits until the client leaves."""
        await _disconnected(receive)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def provider(
    base_url: str,
    *,
    name: str = "scripted",
    protocol: Literal["openai", "anthropic"] = "openai",
    api_key: str = "scripted",
    models: Iterable[str] = (),
) -> Provider:
    """The settings that make Ship use a scripted model at ``base_url``: every built-in scenario and fault as a model, the demo
    with each fault, and ``models`` beside them."""
    names = [each.name for each in SCENARIOS] + [str(fault) for fault in Fault]
    names += [f"{DEMO.name}+{fault}" for fault in Fault]
    return Provider(
        name=name,
        protocol=protocol,
        base_url=base_url,
        api_key=api_key,
        key_setting="the scripted model's --key",
        models=tuple(
            ModelSpec(name=each, context_tokens=CONTEXT_TOKENS, input_price=1.0, output_price=4.0)
            for each in (*names, *models)
        ),
    )


@contextlib.asynccontextmanager
async def serve(model: ScriptedModel, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serves the model on this loop; gives its base URL, which ends in ``/v1``."""
    async with serving(model.app, host=host, port=port) as url:
        yield f"{url}/v1"


async def _run(model: ScriptedModel, host: str, port: int, *, exit_with_stdin: bool) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    if exit_with_stdin:
        stdin = sys.stdin.fileno()
        loop.add_reader(stdin, lambda: None if os.read(stdin, 4096) else ended.set())
    async with serve(model, host=host, port=port) as url:
        print(url, flush=True)  # noqa: T201 - the caller reads the address from standard output
        await ended.wait()


def main() -> None:
    """Serves until SIGINT or SIGTERM, or until standard input closes where that is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m ship.testing.scripted_model", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="port 0 picks a free one"
    )
    parser.add_argument("--key", default="", help="the only API key to take; any when empty")
    parser.add_argument(
        "--pace", type=float, default=0.02, metavar="SECONDS", help="pause before each chunk of a stream"
    )
    parser.add_argument("--scenarios", type=Path, metavar="FILE", help="more scenarios, a JSON list")
    parser.add_argument("--exit-with-stdin", action="store_true", help="end when standard input closes")
    chosen = parser.parse_args()
    host, _, port = chosen.listen.rpartition(":")
    more = scenario.decode(chosen.scenarios.read_bytes()) if chosen.scenarios else []
    model = ScriptedModel(more, key=chosen.key, pace_s=chosen.pace)
    asyncio.run(_run(model, host, int(port), exit_with_stdin=chosen.exit_with_stdin))


if __name__ == "__main__":
    main()
