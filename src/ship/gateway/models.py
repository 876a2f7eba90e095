"""The model gateway: the providers' own protocols, with our key in place of the session token.

A sandbox calls ``/gateway/models/{provider}/v1/…`` as it would call the provider. The answer streams through, tokens are
counted on the way, and whatever goes wrong reaches the agent as an error of the provider's own shape with a code of ours.
"""

import asyncio
import logging
import secrets
from collections.abc import Coroutine, Iterable
from urllib.parse import urlsplit

import httpx
import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ship.config import Provider
from ship.errors import ShipError, StaleGeneration, Unavailable
from ship.gateway import model_errors, upstream
from ship.gateway.credentials import session_token
from ship.gateway.dialects import DIALECTS, ChatMeter, Dialect
from ship.gateway.forwarding import Forwarding, send_error
from ship.gateway.grants import Grant, Grants
from ship.gateway.slots import Slots

logger = logging.getLogger(__name__)

OPENAI_HOST = "api.openai.com"
REQUEST_LIMIT_BYTES = 32 * 1024 * 1024

CALLS_PER_SESSION = 16
"""How many may be under way at once; with the limit of a request this bounds what a sandbox can make us hold."""
RECORD_AGAIN_S = (0.2, 1.0, 4.0, 10.0)
"""Pauses before what a call used is recorded again, while the store is away: a limit that does not count is none."""


def routes(grants: Grants, providers: Iterable[Provider], http: httpx.AsyncClient) -> list[Route]:
    """The gateway's routes, to be mounted at the root. ``http`` comes from ``upstream.client``."""
    return [Route("/gateway/models/{provider}/v1/{path:path}", _Endpoint(grants, providers, http))]


class _Asked(msgspec.Struct):
    """What we need to know of a request."""

    model: str
    stream: bool = False
    stream_options: dict[str, object] | None = None


class _Endpoint:
    """The ASGI endpoint. One of its instances serves all requests."""

    def __init__(self, grants: Grants, providers: Iterable[Provider], http: httpx.AsyncClient) -> None:
        self._grants = grants
        self._providers = {provider.name: provider for provider in providers}
        self._http = http
        self._slots = Slots(CALLS_PER_SESSION)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; a client that leaves ends the call to the provider."""
        request = Request(scope, receive)
        dialect = DIALECTS.get(request.path_params["path"], Dialect(None))
        try:
            provider, grant = await self._admit(request)
            with self._slots.taken(grant.session_id):
                body = await _body(request) if dialect.method == "POST" else b""
                call = _call(request, provider, dialect, body)
                if dialect.meter is not None:
                    _check_price(grant, call)
                await self._forward(grant, Forwarding(self._http, call, dialect, send), receive)
        except ClientDisconnect:
            return
        except ShipError as error:
            await send_error(send, dialect, error)

    async def _admit(self, request: Request) -> tuple[Provider, Grant]:
        path = request.path_params["path"]
        dialect = DIALECTS.get(path)
        if dialect is None:
            raise model_errors.GatewayPathUnknown(
                f"The gateway does not forward {path!r}", hint=f"It forwards {', '.join(DIALECTS)}."
            )
        if request.method != dialect.method:
            raise model_errors.MethodNotAllowed(f"{path} takes {dialect.method}, not {request.method}")
        grant = await self._authorized(request)
        if dialect.method == "POST":
            _check_limits(grant)
        name = request.path_params["provider"]
        provider = self._providers.get(name)
        if provider is None:
            raise model_errors.ModelNotConfigured(
                f"No model provider {name!r} is configured",
                hint="Name one of the providers in Ship's settings.",
            )
        return provider, grant

    async def _forward(self, grant: Grant, forwarding: Forwarding, receive: Receive) -> None:
        try:
            await _unless_disconnected(receive, forwarding.run())
        finally:
            await self._record(grant, forwarding)
        await forwarding.end()

    async def _authorized(self, request: Request) -> Grant:
        try:
            return await self._grants.authorize(session_token(request))
        except StaleGeneration as error:
            raise model_errors.SandboxReplaced("This sandbox has been replaced by a newer one") from error

    async def _record(self, grant: Grant, forwarding: Forwarding) -> None:
        call = forwarding.account(grant)
        if call is None:
            return
        call_id = secrets.token_hex(16)
        for pause_s in (*RECORD_AGAIN_S, None):
            try:
                await self._grants.model_called(grant, call, call_id)
            except ShipError as error:
                may_pass = isinstance(error, Unavailable) or error.code == "session_busy"
                if pause_s is None or not may_pass:
                    logger.warning(
                        "a model call of session %s was not recorded: %s", grant.session_id, error.code
                    )
                    return
                await asyncio.sleep(pause_s)
            else:
                return


def _check_limits(grant: Grant) -> None:
    if not grant.at_work:
        raise model_errors.NoTaskRuns("No task of this session runs", hint="Send it one.")
    if grant.limit is not None:
        raise model_errors.LimitReached(
            f"The task, or the one that it works for, has reached its {grant.limit} limit",
            hint="Raise it, and send a follow-up.",
        )


def _check_price(grant: Grant, call: upstream.Call) -> None:
    """Whoever chose the model, the task's limit of cost would be none."""
    if grant.cost_limited and not call.provider.is_priced(call.model):
        raise model_errors.PriceUnknown(
            f"The task's cost is limited, and the price of {call.model} is not known",
            hint="Give the model its prices in the settings file, or limit tokens or time.",
        )


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > REQUEST_LIMIT_BYTES:
            raise model_errors.RequestTooLarge(
                f"The request is over {REQUEST_LIMIT_BYTES // 1024**2} MiB", hint="Shorten the conversation."
            )
    return bytes(body)


def _call(request: Request, provider: Provider, dialect: Dialect, body: bytes) -> upstream.Call:
    path, query, headers = request.path_params["path"], request.url.query, dict(request.headers)
    if dialect.method == "GET":
        return upstream.Call(provider, "GET", path, query, headers)
    try:
        document = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        asked = msgspec.json.decode(body, type=_Asked)
    except msgspec.MsgspecError as error:
        raise model_errors.RequestInvalid(f"The request is not a model call: {error}") from error
    names = [spec.name for spec in provider.models]
    if names and asked.model not in names:
        raise model_errors.ModelUnknown(
            f"{provider.name} has no model {asked.model!r} in Ship's settings",
            hint="Name one of the models that the settings list for it.",
        )
    if dialect.meter is ChatMeter:
        body = msgspec.json.encode(_adapted(provider, document, asked))
    return upstream.Call(provider, "POST", path, query, headers, body, asked.model, asked.stream)


def _adapted(provider: Provider, document: dict[str, msgspec.Raw], asked: _Asked) -> dict[str, object]:
    """A chat request that says its usage when it streams, with the limit under the name that OpenAI itself wants: its newer
    models refuse ``max_tokens``, which OpenAI-compatible clients send."""
    adapted: dict[str, object] = dict(document)
    if asked.stream:
        adapted["stream_options"] = {**(asked.stream_options or {}), "include_usage": True}
    if "max_tokens" in adapted and urlsplit(provider.base_url).hostname == OPENAI_HOST:
        adapted["max_completion_tokens"] = adapted.pop("max_tokens")
    return adapted


async def _unless_disconnected(receive: Receive, work: Coroutine[None, None, None]) -> None:
    """Does the work, or cancels it when the client leaves."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.wait({working, leaving})
    if not working.cancelled():
        working.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
