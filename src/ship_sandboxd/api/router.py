"""Finds the route of a request, asks for the API key, and turns every error into E2B's error body."""

import json
import logging
from collections.abc import Iterable
from hmac import compare_digest
from urllib.parse import parse_qsl, urlsplit

from ..envd.http1 import Exchange
from ..errors import ApiError, BadRequest, NotFound, Unauthorized, Unsupported
from .call import Answer, Call, Route, parse_json

MAX_BODY_BYTES = 1024 * 1024
_log = logging.getLogger("ship_sandboxd.api")


class Api:
    """The routes of the host. Where two fit a path, the one with fewer variables is taken."""

    def __init__(self, routes: Iterable[Route], api_key: str) -> None:
        self.routes = sorted(routes, key=lambda route: route.path.count("{"))
        self._api_key = api_key.encode()

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
        if route is None or not route.open:
            self._authenticate(exchange)
        if route is None:
            raise NotFound(f"{request.method} {url.path} does not exist")
        body = {} if route.streamed else parse_json(await exchange.read_all(MAX_BODY_BYTES))
        return await route.handle(Call(exchange, variables, query, body))

    def _find(self, method: str, path: str) -> tuple[Route | None, dict[str, str]]:
        segments = path.split("/")
        for route in self.routes:
            if route.method == method and (variables := route.match(segments)) is not None:
                return route, variables
        return None, {}

    def _authenticate(self, exchange: Exchange) -> None:
        given = exchange.request.headers.get("x-api-key").encode()
        if not compare_digest(given, self._api_key):
            raise Unauthorized("the header X-API-KEY is missing or wrong")


async def unsupported(call: Call) -> Answer:
    """The handler of what E2B's protocol has and this host does not."""
    request = call.exchange.request
    raise Unsupported(
        f"{request.method} {request.target.partition('?')[0]} is not offered by this sandbox host"
    )
