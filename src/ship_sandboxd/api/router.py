"""Finds the route of a request, asks for the API key, and turns every error into E2B's error body."""

import json
import logging
from collections.abc import Iterable
from urllib.parse import parse_qsl, urlsplit

from ..envd.http1 import Exchange, Request
from ..errors import ApiError, BadRequest, NotFound, Unauthorized, Unsupported
from ..records import DEFAULT_TENANT
from ..tenants import Tenants
from .call import Answer, Call, Handler, Route, parse_json

MAX_BODY_BYTES = 1024 * 1024
_log = logging.getLogger("ship_sandboxd.api")


class Api:
    """The routes of the host. Where two fit a path, the one with fewer variables is taken."""

    def __init__(self, routes: Iterable[Route], tenants: Tenants) -> None:
        self.routes = sorted(routes, key=lambda route: route.path.count("{"))
        self._tenants = tenants

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request; every error becomes E2B's error body."""
        try:
            answer = await self._dispatch(exchange)
        except ApiError as error:
            answer = Answer(
                error.status, {"code": error.status, "message": str(error), "error_code": error.code}
            )
            if error.status >= 500 and not isinstance(error, Unsupported):
                _log.error("request failed", extra={"code": error.code, "reason": str(error)})
        except OSError as error:
            _log.exception("request failed", extra={"method": exchange.request.method})
            message = f"the sandbox host failed: {error}"
            answer = Answer(500, {"code": 500, "message": message, "error_code": "internal"})
        value = answer.value
        body = value if isinstance(value, bytes) else b"" if value is None else json.dumps(value).encode()
        await exchange.respond(answer.status, body, answer.content_type if body else "", answer.fields)

    async def _dispatch(self, exchange: Exchange) -> Answer:
        request = exchange.request
        try:
            url = urlsplit(request.target)
            query = dict(parse_qsl(url.query, keep_blank_values=True))
        except ValueError as error:
            raise BadRequest(f"the address is malformed: {error}") from error
        route, variables = self._find(request.method, url.path)
        tenant = DEFAULT_TENANT if route is not None and route.open else self._authenticate(exchange)
        if route is None:
            raise NotFound(f"{request.method} {url.path} does not exist")
        body = {} if route.streamed else parse_json(await exchange.read_all(MAX_BODY_BYTES))
        return await route.handle(Call(exchange, variables, query, body, tenant))

    def _find(self, method: str, path: str) -> tuple[Route | None, dict[str, str]]:
        segments = path.split("/")
        for route in self.routes:
            if route.method == method and (variables := route.match(segments)) is not None:
                return route, variables
        return None, {}

    def _authenticate(self, exchange: Exchange) -> str:
        """The tenant of the key that the request shows. Raises Unauthorized."""
        key = presented_key(exchange.request)
        tenant = self._tenants.owner(key) if key else None
        if tenant is None:
            raise Unauthorized("the API key (X-API-KEY, or Authorization: Bearer) is missing or wrong")
        return tenant


def presented_key(request: Request) -> str:
    """The API key of a request, or an empty string. The command line of E2B sends access tokens on some routes: a key
    of the tenant serves as one."""
    key = request.headers.get("x-api-key")
    if key:
        return key
    scheme, _, token = request.headers.get("authorization").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def not_offered(why: str = "") -> Handler:
    """The handler of what E2B's protocol has and this host does not."""

    async def refuse(call: Call) -> Answer:
        request = call.exchange.request
        what = f"{request.method} {request.target.partition('?')[0]} is not offered by this sandbox host"
        raise Unsupported(f"{what}: {why}" if why else what)

    return refuse


unsupported = not_offered()
