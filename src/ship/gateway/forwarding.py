"""A model call on its way through the gateway: the answer passes to the agent, the account stays here."""

import time
from contextlib import aclosing

import httpx
import msgspec
from starlette.types import Send

from ship.config import Provider
from ship.errors import ShipError
from ship.events.facts import ModelCalled
from ship.gateway import model_errors, upstream
from ship.gateway.dialects import ChatMeter, Dialect, Meter
from ship.gateway.event_stream import OversizedEvent, data, events
from ship.gateway.grants import Grant
from ship.gateway.model_errors import ModelError, RequestRefused
from ship.model import Failure, Usage

ANSWER_LIMIT_BYTES = 32 * 1024 * 1024
"""Of an answer that is not streamed."""

CANCELLED = Failure(
    code="model_call_cancelled", reason="The agent ended the call before the answer was complete"
)


class Forwarding:
    """One call on its way: what was sent to the agent, and what is known of it afterwards."""

    def __init__(self, http: httpx.AsyncClient, call: upstream.Call, dialect: Dialect, send: Send) -> None:
        self._http = http
        self._call = call
        self._dialect = dialect
        self._send = send
        self._meter: Meter = (dialect.meter or ChatMeter)()
        self._started_s = time.monotonic()
        self._status = 0
        self._failure: Failure | None = CANCELLED
        self._begun = False
        self._ended = False

    async def run(self) -> None:
        """Forwards the call and its answer, except for the end of it, which is for ``end``."""
        try:
            async with upstream.opened(self._http, self._call) as answer:
                self._status = answer.status
                if self._call.streams:
                    await self._forward_events(answer)
                else:
                    await self._forward_document(answer)
            self._failure = None
            if self._meter.failure:
                self._failure = Failure(code="model_failed", reason=self._meter.failure)
        except ModelError as error:
            self._status = error.upstream_status
            self._failure = Failure(code=error.code, reason=error.message, hint=error.hint)
            if self._begun:
                event = self._dialect.error_event(message=error.message, code=error.code, hint=error.hint)
                await self._send_body(event)
            else:
                self._ended = True
                await send_error(self._send, self._dialect, error)

    async def end(self) -> None:
        """Ends the answer. The agent goes on when it sees this, so the account is kept before."""
        if self._begun and not self._ended:
            await self._send({"type": "http.response.body", "body": b""})

    def account(self, grant: Grant) -> ModelCalled | None:
        """What the call used; None for one that is free."""
        if self._dialect.meter is None:
            return None
        cancelled_at_end = self._failure is CANCELLED and self._meter.finished
        return ModelCalled(
            task_id=grant.task_id,
            provider=self._call.provider.name,
            model=self._call.model,
            status=self._status,
            took_ms=round((time.monotonic() - self._started_s) * 1000),
            usage=_priced(self._meter.usage, self._call.provider, self._call.model),
            failure=None if cancelled_at_end else self._failure,
        )

    async def _forward_events(self, answer: upstream.Answer) -> None:
        provider = self._call.provider
        if not answer.is_event_stream:
            raise model_errors.ModelMalformed(
                f"{provider.name} did not answer with an event stream",
                hint="Check the provider's base URL in the settings.",
                upstream_status=answer.status,
            )
        try:
            async with aclosing(events(answer.chunks)) as stream:
                async for event in stream:
                    self._meter_event(event)
                    await self._begin(answer)
                    await self._send_body(upstream.scrub(provider, event))
        except httpx.TimeoutException as error:
            raise model_errors.stream_cut(provider, "fell silent in the middle of its answer") from error
        except httpx.TransportError as error:
            raise model_errors.stream_cut(provider, "broke off in the middle of its answer") from error
        except OversizedEvent as error:
            raise model_errors.stream_cut(provider, "sent an event that is too large") from error
        if not self._meter.finished:
            raise model_errors.stream_cut(provider, "stopped before its answer was complete")

    def _meter_event(self, event: bytes) -> None:
        content = data(event)
        if content == b"[DONE]" and not self._meter.finished:
            raise model_errors.stream_cut(self._call.provider, "stopped before its answer was complete")
        if content in (b"", b"[DONE]"):
            return
        try:
            self._meter.read(msgspec.json.decode(content, type=dict))
        except msgspec.MsgspecError as error:
            raise model_errors.stream_cut(self._call.provider, "sent an event that is not JSON") from error

    async def _forward_document(self, answer: upstream.Answer) -> None:
        provider = self._call.provider
        body = bytearray()
        try:
            async for chunk in answer.chunks:
                body += chunk
                if len(body) > ANSWER_LIMIT_BYTES:
                    raise model_errors.stream_cut(provider, "sent an answer that is too large")
            self._meter.read(msgspec.json.decode(body, type=dict))
        except httpx.TransportError as error:
            raise model_errors.stream_cut(provider, "broke off in the middle of its answer") from error
        except msgspec.MsgspecError as error:
            raise model_errors.ModelMalformed(
                f"{provider.name} did not answer with JSON",
                hint="Check the provider's base URL in the settings.",
                upstream_status=answer.status,
            ) from error
        await self._begin(answer)
        await self._send_body(upstream.scrub(provider, bytes(body)))

    async def _begin(self, answer: upstream.Answer) -> None:
        if not self._begun:
            self._begun = True
            await send_start(self._send, answer.status, {**answer.headers, "cache-control": "no-store"})

    async def _send_body(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})


async def send_error(send: Send, dialect: Dialect, error: ShipError) -> None:
    """Answers with an error in the shape of the dialect."""
    kind = error.kind if isinstance(error, ModelError) else "api_error"
    body = dialect.error(message=error.message, kind=kind, code=error.code, hint=error.hint)
    if isinstance(error, RequestRefused):
        body["error"] |= error.said
    headers = {"content-type": "application/json"}
    if isinstance(error, ModelError) and error.retry_after_s:
        headers["retry-after"] = str(error.retry_after_s)
    await send_start(send, error.status, headers)
    await send({"type": "http.response.body", "body": msgspec.json.encode(body)})


async def send_start(send: Send, status: int, headers: dict[str, str]) -> None:
    """Sends the status and the headers."""
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


def _priced(usage: Usage, provider: Provider, model: str) -> Usage:
    """The usage with its cost. Where no price is set for the cache, its tokens cost what input costs."""
    spec = next((each for each in provider.models if each.name == model), None)
    if spec is None:
        return usage
    dollars = (
        usage.input_tokens * spec.input_price
        + usage.output_tokens * spec.output_price
        + usage.cache_read_tokens * (spec.cache_read_price or spec.input_price)
        + usage.cache_write_tokens * (spec.cache_write_price or spec.input_price)
    )
    return msgspec.structs.replace(usage, cost_usd=dollars / 1_000_000)
