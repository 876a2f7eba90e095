"""One call to a model provider: our key in, its answer or a clear error out."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec

from ship.config import Provider
from ship.gateway import model_errors
from ship.gateway.dialects import error_message
from ship.gateway.model_errors import ModelError

logger = logging.getLogger(__name__)

_ERROR_BODY_LIMIT_BYTES = 64 * 1024
_SCRUBBED_KEY_LENGTH = 16
"""Shorter keys belong to servers that take any; hiding them would damage the text."""
_FORWARDED_REQUEST_HEADERS = ("content-type", "accept", "anthropic-version", "anthropic-beta", "openai-beta")
_FORWARDED_ANSWER_HEADERS = ("content-type", "x-request-id", "request-id")
_RETRY_PAUSES_S = (0.2, 0.6)


@dataclass(frozen=True)
class Patience:
    """How long a provider may take, in seconds. ``silence_s`` is the longest time without a byte; OpenCode itself gives up
    after 300 s."""

    connect_s: float = 10.0
    silence_s: float = 280.0


@dataclass(frozen=True)
class Call:
    """What to send. ``path`` is below the provider's base URL, ``query`` without its question mark."""

    provider: Provider
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes = b""
    model: str = ""
    streams: bool = False


@dataclass(frozen=True)
class Answer:
    """A good answer. ``chunks`` are the bytes as they come, already decompressed."""

    status: int
    headers: dict[str, str]
    chunks: AsyncIterator[bytes]

    @property
    def is_event_stream(self) -> bool:
        """Whether it streams Server-Sent Events."""
        return self.headers.get("content-type", "").startswith("text/event-stream")


def client(patience: Patience = Patience()) -> httpx.AsyncClient:
    """The HTTP client that all calls share; whoever makes it closes it."""
    return httpx.AsyncClient(
        http2=False,
        follow_redirects=False,
        timeout=httpx.Timeout(patience.silence_s, connect=patience.connect_s, pool=None),
        # A proxy that the environment names is for the world outside, not for a model on this machine.
        mounts={f"all://{host}": None for host in ("localhost", "127.0.0.1", "[::1]")},
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=30),
    )


@asynccontextmanager
async def opened(http: httpx.AsyncClient, call: Call) -> AsyncIterator[Answer]:
    """The provider's answer with its first bytes at hand, so nothing was passed on while a second try is still possible.

    A connection that breaks before the first byte is tried again, three times in all. Raises ``ModelError``.
    """
    for pause_s in (*_RETRY_PAUSES_S, None):
        try:
            response = await http.send(_request(http, call), stream=True)
            try:
                chunks = response.aiter_bytes()
                first = await anext(chunks, b"") if response.is_success else b""
            except BaseException:
                await response.aclose()
                raise
            break
        except httpx.TimeoutException as error:
            raise model_errors.unreachable(call.provider, "no answer in time") from error
        except httpx.TransportError as error:
            if pause_s is None:
                raise model_errors.unreachable(call.provider, _words(error)) from error
            logger.info("model call to %s broke before its first byte, trying again", call.provider.name)
        await asyncio.sleep(pause_s)
    try:
        if not response.is_success:
            raise await _refusal(call.provider, response)
        headers = {
            name: response.headers[name] for name in _FORWARDED_ANSWER_HEADERS if name in response.headers
        }
        yield Answer(response.status_code, headers, _from_first(first, chunks))
    finally:
        await response.aclose()


def scrub(provider: Provider, data: bytes) -> bytes:
    """The data without the provider's key, should it echo it."""
    if len(provider.api_key) < _SCRUBBED_KEY_LENGTH:
        return data
    return data.replace(provider.api_key.encode(), b"***")


async def _from_first(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


def _request(http: httpx.AsyncClient, call: Call) -> httpx.Request:
    provider = call.provider
    headers = {name: call.headers[name] for name in _FORWARDED_REQUEST_HEADERS if name in call.headers}
    headers |= {"accept-encoding": "identity", "user-agent": "ship"}
    if provider.protocol == "anthropic":
        headers.setdefault("anthropic-version", "2023-06-01")
    if provider.api_key and provider.protocol == "anthropic":
        headers["x-api-key"] = provider.api_key
    elif provider.api_key:
        headers["authorization"] = f"Bearer {provider.api_key}"
    url = httpx.URL(f"{provider.base_url.rstrip('/')}/{call.path}")
    if call.query:
        url = url.copy_with(query=call.query.encode())
    return http.build_request(call.method, url, headers=headers, content=call.body or None)


def _words(error: httpx.TransportError) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "its certificate is not trusted"
        cause = cause.__cause__ or cause.__context__
    match error:
        case httpx.ConnectError():
            return "no connection"
        case httpx.UnsupportedProtocol():
            return "its base URL is not http or https"
        case _:
            return "the connection broke before the answer"


async def _refusal(provider: Provider, response: httpx.Response) -> ModelError:
    status = response.status_code
    if status in (401, 403):
        return model_errors.key_refused(provider, status)
    body = scrub(provider, await _limited(response))
    said = _said(body)
    why = error_message(said)
    if isinstance(said, dict) and said.get("code") == "insufficient_quota":
        return model_errors.QuotaExceeded(
            f"The account at {provider.name} has used up its quota",
            hint=f"Check the plan and billing at {provider.name}.",
            upstream_status=status,
        )
    match status:
        case 404:
            return model_errors.ModelUnknown(
                f"{provider.name} does not know this model: {why}",
                hint="Check the model's name and the provider's base URL in the settings.",
                upstream_status=status,
            )
        case 429:
            return model_errors.RateLimited(
                f"{provider.name} limits the rate of requests: {why}",
                hint="Wait; or use a key with a higher limit.",
                upstream_status=status,
                retry_after_s=_retry_after_s(response.headers.get("retry-after", "")),
            )
        case _ if 400 <= status < 500:
            return model_errors.RequestRefused(status, why, said if isinstance(said, dict) else {})
        case _ if 300 <= status < 400:
            return model_errors.ModelMalformed(
                f"{provider.name} redirects elsewhere",
                hint="Set the provider's base URL to the address that answers by itself.",
                upstream_status=status,
            )
        case _:
            return model_errors.ModelFailed(
                f"{provider.name} had a server error: {why}",
                hint="The same request may work later.",
                upstream_status=status,
                retry_after_s=_retry_after_s(response.headers.get("retry-after", "")),
            )


async def _limited(response: httpx.Response) -> bytes:
    body = bytearray()
    try:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > _ERROR_BODY_LIMIT_BYTES:
                break
    except httpx.TransportError:
        logger.info("the body of an error answer broke off")
    return bytes(body[:_ERROR_BODY_LIMIT_BYTES])


def _said(body: bytes) -> object:
    """The ``error`` member of an error's body, or the body's text."""
    try:
        document: Any = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body.decode(errors="replace").strip()
    return document.get("error", document) if isinstance(document, dict) else document


def _retry_after_s(value: str) -> int:
    """Whole seconds, at most ``RETRY_AFTER_LIMIT_S``; dates and nonsense count as the limit, absence as none."""
    if not value:
        return 0
    try:
        seconds = float(value)
    except ValueError:
        return model_errors.RETRY_AFTER_LIMIT_S
    return round(min(max(seconds, 1.0), model_errors.RETRY_AFTER_LIMIT_S))
