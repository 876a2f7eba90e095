"""What the routes work with: the services of this process, and who is asking."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

from starlette.requests import HTTPConnection, Request

from ship.accounts.sandbox_tokens import SandboxTokens
from ship.accounts.tokens import Tokens
from ship.config import LimitSettings, Provider
from ship.errors import Forbidden, InvalidInput, StaleGeneration, TooLarge, Unauthenticated
from ship.model import Actor
from ship.ports.blobs import BlobStore
from ship.ports.sandboxes import SandboxHost
from ship.sessions.service import IdempotencyKey, Sessions
from ship.sessions.state import SessionState


def cookie_name(connection: HTTPConnection) -> str:
    """The sign-in cookie's name. Cookies do not tell ports apart, and two Ships may run on one host."""
    return f"ship_session_{connection.url.port or 'web'}"


class Services(NamedTuple):
    """The services of this process. ``check_repository`` raises on a source that sessions may not name; ``store_bundle`` keeps an
    uploaded git bundle and returns its SHA-256; ``ready`` raises when the process cannot serve."""

    sessions: Sessions
    tokens: Tokens
    sandbox_tokens: SandboxTokens
    blobs: BlobStore
    host: SandboxHost
    limits: LimitSettings
    providers: tuple[Provider, ...]
    default_model: str
    control_url: str
    check_repository: Callable[[str], None]
    store_bundle: Callable[[AsyncIterator[bytes]], Awaitable[str]]
    ready: Callable[[], Awaitable[None]]


def services(connection: HTTPConnection) -> Services:
    """The services that the composition root put there."""
    found: Services = connection.app.state.services
    return found


async def caller(connection: HTTPConnection, serving: Services) -> Actor:
    """Who asks: the holder of the bearer token, or of the sign-in cookie.

    Raises:
        Unauthenticated: neither is there or known.
        Forbidden: ``origin_refused`` when a cookie comes with another site's request.
    """
    scheme, _, secret = (_header(connection, b"authorization") or "").partition(" ")
    if scheme.lower() == "bearer" and secret:
        return await serving.tokens.authenticate(secret.strip())
    cookie = connection.cookies.get(cookie_name(connection))
    if not cookie:
        raise Unauthenticated(
            "sign in first",
            hint="Open the link of `ship login-link`, or send `Authorization: Bearer <token>` (`ship token create`).",
        )
    _refuse_other_sites(connection)
    return await serving.tokens.authenticate(cookie)


def _header(connection: HTTPConnection, name: bytes) -> str | None:
    """As ``connection.headers.get``, at a tenth of its cost: hot requests are asked for two."""
    for known, value in connection.scope["headers"]:
        if known == name:
            return str(value, "latin-1")
    return None


def _refuse_other_sites(connection: HTTPConnection) -> None:
    """A cookie travels with requests that other sites cause; those carry an origin that is not ours."""
    reading = connection.scope["type"] == "http" and connection.scope["method"] in ("GET", "HEAD")
    origin = connection.headers.get("origin")
    if origin is None and reading:
        return
    if origin is None or origin.partition("://")[2] != connection.headers.get("host"):
        raise Forbidden("this request comes from another site", code="origin_refused")


KEY_HEADER = b"idempotency-key"
KEY_CHARACTERS = 200


def key_of(who: str, connection: HTTPConnection, body: bytes) -> IdempotencyKey | None:
    """The key of the caller by that name with a digest of the request, if the header is there.

    Raises:
        InvalidInput: ``idempotency_key_invalid`` when it is empty or too long.
    """
    key = _header(connection, KEY_HEADER)
    if key is None:
        return None
    if not 0 < len(key) <= KEY_CHARACTERS:
        raise InvalidInput(
            f"an Idempotency-Key has 1 to {KEY_CHARACTERS} characters", code="idempotency_key_invalid"
        )
    path: str = connection.scope["path"]
    digest = hashlib.sha256(body)
    digest.update(path.encode())
    return IdempotencyKey(f"{who}:{path}", key, digest.hexdigest())


class RunnerCaller(NamedTuple):
    """The runner of a session's present sandbox."""

    session_id: str
    generation: int
    state: SessionState


async def runner(connection: HTTPConnection, serving: Services) -> RunnerCaller:
    """Which runner asks, by its session token.

    Raises:
        Unauthenticated: no genuine session token.
        StaleGeneration: of a sandbox that has been replaced or ended.
    """
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("a session token is needed", code="session_token_invalid")
    session_id, generation = serving.sandbox_tokens.verify(token.strip())
    state = await serving.sessions.state(session_id)
    if state.sandbox.generation != generation or not state.sandbox.is_alive:
        raise StaleGeneration("this sandbox is not the session's any more")
    return RunnerCaller(session_id, generation, state)


async def bounded_body(request: Request, limit_bytes: int) -> AsyncIterator[bytes]:
    """The request's body in pieces.

    Raises:
        TooLarge: ``body_too_large`` past the limit.
    """
    size_bytes = 0
    async for piece in request.stream():
        size_bytes += len(piece)
        if size_bytes > limit_bytes:
            raise TooLarge(f"the body has more than {limit_bytes} bytes", code="body_too_large")
        yield piece
