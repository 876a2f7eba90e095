"""The REST half of E2B's protocol (https://e2b.dev/docs/api-reference): what makes, lists and ends sandboxes."""

import base64
import binascii
import hashlib
import json
import logging
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from hmac import compare_digest
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from .envd.http1 import Exchange
from .errors import ApiError, BadRequest, NotFound, Unauthorized, Unsupported
from .idempotency import Idempotency
from .sandboxes import DEFAULT_TIMEOUT_S, NewSandbox, Sandbox, Sandboxes

ENVD_VERSION = "0.6.4"
MAX_BODY_BYTES = 1024 * 1024
MAX_PAGE = 1000
_log = logging.getLogger("ship_sandboxd.api")
_MAX_TIMEOUT_S = 10 * 365 * 24 * 3600
_NOT_OFFERED = {
    "autoPause": "pausing",
    "mcp": "MCP servers",
    "iam": "workload identity",
    "volumeMounts": "volumes",
}
_CREATE_KEYS = frozenset(
    [
        "allow_internet_access",
        "autoPause",
        "autoPauseMemory",
        "autoResume",
        "envVars",
        "iam",
        "mcp",
        "metadata",
        "network",
        "secure",
        "templateID",
        "timeout",
        "volumeMounts",
    ]
)

Answer = tuple[int, Any, list[tuple[str, str]]]
Route = Callable[["Call"], Awaitable[Answer]]


class Call:
    """One request: its path's variables, its query and its body."""

    def __init__(
        self, exchange: Exchange, variables: dict[str, str], query: dict[str, str], body: Any
    ) -> None:
        self.exchange = exchange
        self.variables = variables
        self.query = query
        self.body = body

    @property
    def sandbox_id(self) -> str:
        # Older clients name a sandbox `{sandbox id}-{client id}`.
        return self.variables["id"].partition("-")[0]


class Api:
    """The routes. `domain` and `about` are what is told to callers of the host itself."""

    def __init__(self, sandboxes: Sandboxes, api_key: str, domain: str, about: dict[str, Any]) -> None:
        self._sandboxes = sandboxes
        self._api_key = api_key.encode()
        self._domain = domain
        self._about = about
        self._created: Idempotency[Sandbox] = Idempotency()
        for sandbox in sandboxes.all():
            if sandbox.record.idempotency_key:
                self._created.remember(sandbox.record.idempotency_key, sandbox.record.request_digest, sandbox)
        self._routes: list[tuple[str, re.Pattern[str], Route]] = [
            (method, re.compile(pattern), route) for method, pattern, route in self._table()
        ]

    def _table(self) -> list[tuple[str, str, Route]]:
        one = r"/sandboxes/(?P<id>[^/]+)"
        return [
            ("POST", r"(/v2)?/sandboxes", self._create),
            ("GET", r"(/v2)?/sandboxes", self._list),
            ("GET", one, self._get),
            ("DELETE", one, self._kill),
            ("POST", rf"(/v2)?{one}/connect", self._connect),
            ("POST", rf"{one}/timeout", self._set_timeout),
            ("POST", rf"{one}/(pause|resume|fork|snapshots|refreshes)", self._unsupported),
            ("PUT", rf"{one}/network", self._unsupported),
            ("GET", rf"(/v2)?{one}/(metrics|logs)", self._unsupported),
            (
                "GET",
                r"/sandboxes/metrics|/snapshots|(/v2)?/templates.*|/volumes.*|/secrets.*",
                self._unsupported,
            ),
            ("POST", r"(/v\d)?/templates.*|/volumes.*|/secrets.*", self._unsupported),
            ("PATCH", r"(/v\d)?/templates/.*", self._unsupported),
            ("DELETE", r"/templates/.*|/volumes/.*|/secrets/.*", self._unsupported),
        ]

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request; every error becomes E2B's error body."""
        try:
            status, value, fields = await self._dispatch(exchange)
        except ApiError as error:
            status, fields = error.status, []
            value = {"code": error.status, "message": str(error), "error_code": error.code}
            if status >= 500 and not isinstance(error, Unsupported):
                _log.error("request failed", extra={"code": error.code, "reason": str(error)})
        except OSError as error:
            _log.exception("request failed", extra={"method": exchange.request.method})
            status, fields = 500, []
            value = {"code": 500, "message": f"the sandbox host failed: {error}", "error_code": "internal"}
        body = b"" if value is None else json.dumps(value).encode()
        await exchange.respond(status, body, "application/json" if body else "", fields)

    async def _dispatch(self, exchange: Exchange) -> Answer:
        request = exchange.request
        url = urlsplit(request.target)
        path, query = unquote(url.path), dict(parse_qsl(url.query, keep_blank_values=True))
        if path == "/health" and request.method == "GET":
            return 200, self._about, []
        given = request.headers.get("x-api-key").encode()
        if not compare_digest(given, self._api_key):
            raise Unauthorized("the header X-API-KEY is missing or wrong")
        for method, pattern, route in self._routes:
            match = pattern.fullmatch(path) if method == request.method else None
            if match is not None:
                body = _json(await exchange.read_all(MAX_BODY_BYTES))
                return await route(Call(exchange, match.groupdict(), query, body))
        raise NotFound(f"{request.method} {path} does not exist")

    async def _create(self, call: Call) -> Answer:
        digest = hashlib.sha256(json.dumps(call.body, sort_keys=True).encode()).hexdigest()
        key = call.exchange.request.headers.get("idempotency-key")
        wanted = _new_sandbox(call.body, key, digest)
        if not key:
            sandbox = await self._sandboxes.create(wanted)
        else:
            sandbox = await self._created.once(key, digest, lambda: self._sandboxes.create(wanted))
        return 201, self._handle_of(sandbox), []

    async def _get(self, call: Call) -> Answer:
        sandbox = self._sandboxes.get(call.sandbox_id)
        record = sandbox.record
        detail = {
            **_listed(sandbox),
            "envdAccessToken": record.token,
            "domain": self._domain,
            "allowInternetAccess": record.allow_internet,
            "network": {"allowPublicTraffic": record.allow_public_traffic},
            "lifecycle": {"autoResume": False, "onTimeout": "kill"},
        }
        return 200, detail, []

    async def _list(self, call: Call) -> Answer:
        """A page of sandboxes by start, newest first; the header X-Next-Token leads to the next one."""
        query = call.query
        states = [state for state in query.get("state", "running,paused").split(",") if state]
        metadata = dict(parse_qsl(query.get("metadata", ""), keep_blank_values=True))
        started_after = _time(query["startedAfter"]) if query.get("startedAfter") else 0.0
        found = [
            sandbox
            for sandbox in self._sandboxes.all()
            if "running" in states
            and metadata.items() <= sandbox.record.metadata.items()
            and sandbox.record.started_at >= started_after
            and query.get("template", sandbox.record.template) == sandbox.record.template
        ]
        descending = query.get("order", "desc") != "asc"
        found.sort(key=_position, reverse=descending)
        if query.get("nextToken"):
            last = _decode_token(query["nextToken"])
            found = [
                sandbox
                for sandbox in found
                if (_position(sandbox) < last if descending else _position(sandbox) > last)
            ]
        limit = min(max(_number(query.get("limit", "100"), "limit"), 1), MAX_PAGE)
        page = found[:limit]
        fields = [("X-Next-Token", _encode_token(page[-1]))] if len(found) > limit else []
        return 200, [_listed(sandbox) for sandbox in page], fields

    async def _connect(self, call: Call) -> Answer:
        timeout_s = _timeout(call.body.get("timeout", DEFAULT_TIMEOUT_S))
        sandbox = self._sandboxes.set_timeout(call.sandbox_id, timeout_s, only_extend=True)
        return 200, self._handle_of(sandbox), []

    async def _set_timeout(self, call: Call) -> Answer:
        self._sandboxes.set_timeout(call.sandbox_id, _timeout(call.body.get("timeout")))
        return 204, None, []

    async def _kill(self, call: Call) -> Answer:
        await self._sandboxes.kill(call.sandbox_id)
        return 204, None, []

    async def _unsupported(self, call: Call) -> Answer:
        request = call.exchange.request
        raise Unsupported(
            f"{request.method} {request.target.partition('?')[0]} is not offered by this sandbox host"
        )

    def _handle_of(self, sandbox: Sandbox) -> dict[str, Any]:
        record = sandbox.record
        handle = {
            "templateID": record.template,
            "sandboxID": record.id,
            "clientID": "ship",
            "alias": record.template,
            "envdVersion": ENVD_VERSION,
            "envdAccessToken": record.token,
            "domain": self._domain,
        }
        return (
            handle if record.allow_public_traffic else {**handle, "trafficAccessToken": record.traffic_token}
        )


def _listed(sandbox: Sandbox) -> dict[str, Any]:
    record = sandbox.record
    return {
        "templateID": record.template,
        "alias": record.template,
        "sandboxID": record.id,
        "clientID": "ship",
        "startedAt": _timestamp(record.started_at),
        "endAt": _timestamp(record.end_at),
        "cpuCount": record.cpu_count,
        "memoryMB": record.memory_mb,
        "diskSizeMB": record.disk_mb,
        "metadata": record.metadata,
        "state": "running",
        "envdVersion": ENVD_VERSION,
    }


def _new_sandbox(body: dict[str, Any], idempotency_key: str, digest: str) -> NewSandbox:
    """The request's wishes, checked. What this host cannot do is refused, not left out in silence."""
    for key, feature in _NOT_OFFERED.items():
        if body.get(key):
            raise Unsupported(f"{feature} ({key}) is not offered by this sandbox host")
    if (body.get("autoResume") or {}).get("enabled"):
        raise Unsupported("resuming (autoResume) is not offered by this sandbox host")
    unknown = set(body) - _CREATE_KEYS
    if unknown:
        raise BadRequest(f"unknown fields: {', '.join(sorted(unknown))}")
    network = {
        key: value for key, value in (body.get("network") or {}).items() if value not in (None, [], {})
    }
    if set(network) - {"allowPublicTraffic"}:
        raise Unsupported(
            "network rules (network) are not offered by this sandbox host; see allow_internet_access"
        )
    if not isinstance(body.get("templateID"), str):
        raise BadRequest("templateID is missing")
    return NewSandbox(
        template=body["templateID"],
        timeout_s=_timeout(body.get("timeout", DEFAULT_TIMEOUT_S)),
        envs=_strings(body, "envVars"),
        metadata=_strings(body, "metadata"),
        allow_internet=body.get("allow_internet_access") is not False,
        allow_public_traffic=network.get("allowPublicTraffic") is not False,
        idempotency_key=idempotency_key,
        request_digest=digest,
    )


def _strings(body: dict[str, Any], key: str) -> tuple[tuple[str, str], ...]:
    values = body.get(key) or {}
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise BadRequest(f"{key} must be an object of strings")
    return tuple(values.items())


def _json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data or b"{}")
    except ValueError as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadRequest("the body is not a JSON object")
    return value


def _timeout(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_TIMEOUT_S:
        raise BadRequest("timeout must be a number of seconds, 0 or more")
    return value


def _number(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise BadRequest(f"{name} must be a whole number")
    return int(text)


def _time(text: str) -> float:
    try:
        return datetime.fromisoformat(text.replace(" ", "+")).timestamp()
    except ValueError as error:
        raise BadRequest("startedAfter must be a time in ISO 8601") from error


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _position(sandbox: Sandbox) -> tuple[float, str]:
    return sandbox.record.started_at, sandbox.id


def _encode_token(sandbox: Sandbox) -> str:
    return base64.urlsafe_b64encode(f"{sandbox.record.started_at!r} {sandbox.id}".encode()).decode()


def _decode_token(token: str) -> tuple[float, str]:
    try:
        started_at, _, sandbox_id = base64.urlsafe_b64decode(token).decode().partition(" ")
        return float(started_at), sandbox_id
    except (binascii.Error, ValueError) as error:
        raise BadRequest("nextToken is not one that this host gave", "next_token_invalid") from error
