"""Finds the route of a request, asks for the API key, and turns every error into E2B's error body."""

import asyncio
import json
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..envd.http1 import BrokenStreamError, Exchange, ProtocolError, Request
from ..errors import (
    ApiError,
    NotFound,
    QuotaExceeded,
    Unauthorized,
    Unsupported,
    WrongContentType,
    disk_full,
)
from ..lifecycle.records import DEFAULT_TENANT
from ..telemetry.metrics import Metrics
from ..tenants import Tenants
from .call import Answer, Call, Route, parse_json, parse_query

MAX_BODY_BYTES = 1024 * 1024
BODY_TIMEOUT_S = 30.0
_JSON_TYPES = ("", "application/json")
_log = logging.getLogger("ship_sandboxd.api")


class Api:
    """The routes of the host. Where two fit a path, the one with fewer variables is taken."""

    def __init__(self, routes: Iterable[Route], tenants: Tenants, metrics: Metrics) -> None:
        self.routes = sorted(routes, key=lambda route: route.path.count("{"))
        self._tenants = tenants
        self._metrics = metrics

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request; every error becomes E2B's error body."""
        request, began = exchange.request, time.monotonic()
        url, route, variables = self._find(request)
        path = route.path if route is not None else "unknown"
        try:
            answer = await self._answer(exchange, url, route, variables)
        except ApiError as error:
            # E2B's clients ask again after a 429, unless they are told that this is of no use.
            fields = [("Should-Retry", "false")] if isinstance(error, QuotaExceeded) else []
            said = {"code": error.status, "message": str(error), "error_code": error.code}
            answer = Answer(error.status, said, fields)
            facts = {"method": request.method, "path": path, "code": error.code, "reason": str(error)}
            failed = error.status >= 500 and not isinstance(error, Unsupported)
            _log.log(logging.WARNING if failed else logging.DEBUG, "request refused", extra=facts)
        except (BrokenStreamError, ProtocolError):
            raise  # the connection's own affair: see serve_connection
        except Exception as error:
            _log.exception("request failed", extra={"method": request.method, "path": path})
            reason = f": {error}" if isinstance(error, OSError) else "; its log says why"
            message = f"the sandbox host failed{reason}"
            answer = Answer(500, {"code": 500, "message": message, "error_code": "internal"})
        await self._respond(exchange, answer)
        took = time.monotonic() - began
        told = {"status": answer.status, "ms": round(1000 * took, 2)}
        _log.debug("request", extra={"method": request.method, "path": path, **told})
        self._metrics.requests.add(request.method if route else "any", path, str(answer.status))
        self._metrics.request_seconds.observe(took, request.method if route else "any", path)

    async def _respond(self, exchange: Exchange, answer: Answer) -> None:
        value = answer.value
        body = value if isinstance(value, bytes) else b"" if value is None else json.dumps(value).encode()
        await exchange.respond(answer.status, body, answer.content_type if body else "", answer.fields)

    async def _answer(
        self, exchange: Exchange, url: tuple[str, str], route: Route | None, variables: dict[str, str]
    ) -> Answer:
        path, query = url
        tenant = DEFAULT_TENANT if route is not None and route.open else self._authenticate(exchange)
        if route is None:
            raise NotFound(f"{exchange.request.method} {path} does not exist")
        body = {} if route.streamed else await _read_json(exchange)
        try:
            return await route.handle(Call(exchange, variables, parse_query(query), body, tenant))
        except OSError as error:
            if full := disk_full(error):
                raise full from error
            raise

    def _find(self, request: Request) -> tuple[tuple[str, str], Route | None, dict[str, str]]:
        """((path, query), the route, the variables of the path)"""
        path, _, query = request.target.partition("#")[0].partition("?")
        segments = path.split("/")
        for route in self.routes:
            if route.method == request.method and (variables := route.match(segments)) is not None:
                return (path, query), route, variables
        return (path, query), None, {}

    def _authenticate(self, exchange: Exchange) -> str:
        """The tenant of the key that the request shows. Raises Unauthorized."""
        key = presented_key(exchange.request)
        tenant = self._tenants.owner(key) if key else None
        if tenant is None:
            raise Unauthorized("the API key (X-API-KEY, or Authorization: Bearer) is missing or wrong")
        return tenant


async def _read_json(exchange: Exchange) -> dict[str, Any]:
    try:
        data = await asyncio.wait_for(exchange.read_all(MAX_BODY_BYTES), BODY_TIMEOUT_S)
    except TimeoutError as error:
        raise ProtocolError("the body did not come in time", 408) from error
    content_type = exchange.request.headers.get("content-type").partition(";")[0].strip().lower()
    if data and content_type not in _JSON_TYPES:
        raise WrongContentType(f"the body must be application/json, not {content_type}")
    return parse_json(data)


def presented_key(request: Request) -> str:
    """The API key of a request, or an empty string. The command line of E2B sends access tokens on some routes: a key
    of the tenant serves as one."""
    key = request.headers.get("x-api-key")
    if key:
        return key
    scheme, _, token = request.headers.get("authorization").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


@dataclass(frozen=True)
class NotOffered:
    """The handler of what E2B's protocol has and this host does not."""

    why: str = ""

    async def __call__(self, call: Call) -> Answer:
        request = call.exchange.request
        what = f"{request.method} {request.target.partition('?')[0]} is not offered by this sandbox host"
        raise Unsupported(f"{what}: {self.why}" if self.why else what)


unsupported = NotOffered()
