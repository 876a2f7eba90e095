"""Make, list, change and end sandboxes."""

import base64
import binascii
import hashlib
import json
import time
from typing import Any
from urllib.parse import parse_qsl, unquote

from ..errors import BadRequest, Conflict, Unsupported
from ..idempotency import Idempotency
from ..lifecycle.new_sandbox import DEFAULT_TIMEOUT_S, NewSandbox
from ..lifecycle.records import PAUSED, RUNNING
from ..lifecycle.sandbox import Sandbox
from ..lifecycle.sandboxes import Sandboxes
from ..network import policy
from ..telemetry.metrics import Metrics
from .call import (
    Answer,
    Call,
    Route,
    parse_flag,
    parse_number,
    parse_strings,
    parse_time,
    parse_timeout,
    timestamp,
)

ENVD_VERSION = "0.6.4"
MAX_PAGE = 1000
MAX_REFRESH_S = 3600
_NOT_OFFERED = {
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


class SandboxRoutes:
    """`domain` is what clients are told to find sandboxes at."""

    def __init__(self, sandboxes: Sandboxes, domain: str, metrics: Metrics) -> None:
        self._sandboxes = sandboxes
        self._metrics = metrics
        self._domain = domain
        self._created: Idempotency[Sandbox] = Idempotency()
        for sandbox in sandboxes.all():
            record = sandbox.record
            if record.idempotency_key:
                key = _scoped(record.tenant, record.idempotency_key)
                self._created.remember(key, record.request_digest, sandbox)

    def table(self) -> list[Route]:
        one = "/sandboxes/{sandboxID}"
        return [
            Route("POST", "/sandboxes", self._create),
            Route("POST", "/v2/sandboxes", self._create),
            Route("GET", "/sandboxes", self._list),
            Route("GET", "/v2/sandboxes", self._list),
            Route("GET", one, self._get),
            Route("DELETE", one, self._kill),
            Route("POST", f"{one}/connect", self._connect),
            Route("POST", f"/v2{one}/connect", self._connect),
            Route("POST", f"{one}/timeout", self._set_timeout),
            Route("POST", f"{one}/pause", self._pause),
            Route("POST", f"{one}/resume", self._resume),
            Route("POST", f"{one}/refreshes", self._refresh),
            Route("PUT", f"{one}/network", self._update_network),
        ]

    async def _create(self, call: Call) -> Answer:
        digest = hashlib.sha256(json.dumps(call.body, sort_keys=True).encode()).hexdigest()
        key = call.header("idempotency-key")
        wanted = _new_sandbox(call.body, call.tenant, key, digest)
        if not key:
            sandbox = await self._make(wanted)
        else:
            sandbox = await self._created.once(_scoped(call.tenant, key), digest, lambda: self._make(wanted))
        return Answer(201, self.handle_of(sandbox))

    async def _make(self, wanted: NewSandbox) -> Sandbox:
        began = time.monotonic()
        sandbox = await self._sandboxes.create(wanted)
        self._metrics.create_seconds.observe(time.monotonic() - began)
        return sandbox

    async def _get(self, call: Call) -> Answer:
        sandbox = self._sandboxes.get(call.sandbox_id, call.tenant)
        record = sandbox.record
        detail = {
            **_listed(sandbox),
            "envdAccessToken": record.token,
            "domain": self._domain,
            "allowInternetAccess": record.allow_internet,
            "network": {"allowPublicTraffic": record.allow_public_traffic, **record.network},
            "lifecycle": {"autoResume": record.auto_resume, "onTimeout": record.on_timeout},
        }
        return Answer(200, detail)

    async def _list(self, call: Call) -> Answer:
        """A page of sandboxes by start, newest first; the header X-Next-Token leads to the next one."""
        query = call.query
        states = _choices(query, "state", RUNNING, PAUSED)
        # The SDKs encode each name and value once more than the query string does.
        pairs = parse_qsl(query.get("metadata", ""), keep_blank_values=True)
        metadata = {unquote(name): unquote(value) for name, value in pairs}
        started_after = (
            parse_time(query["startedAfter"], "startedAfter") if query.get("startedAfter") else 0.0
        )
        found = [
            sandbox
            for sandbox in self._sandboxes.all()
            if sandbox.record.tenant == call.tenant
            and shown_state(sandbox) in states
            and metadata.items() <= sandbox.record.metadata.items()
            and parse_time(timestamp(sandbox.record.started_at), "") >= started_after  # as it was told
            and query.get("template", sandbox.record.template)
            in (sandbox.record.template, sandbox.record.made_of.alias)
        ]
        descending = _choices(query, "order", "desc", "asc")[0] == "desc"
        found.sort(key=_position, reverse=descending)
        if query.get("nextToken"):
            last = _decode_token(query["nextToken"])
            found = [
                sandbox
                for sandbox in found
                if (_position(sandbox) < last if descending else _position(sandbox) > last)
            ]
        limit = min(max(parse_number(query.get("limit", "100"), "limit"), 1), MAX_PAGE)
        page = found[:limit]
        fields = [("X-Next-Token", _encode_token(page[-1]))] if len(found) > limit else []
        return Answer(200, [_listed(sandbox) for sandbox in page], fields)

    async def _connect(self, call: Call) -> Answer:
        """Resume it if it is paused (201), and let a running one (200) live for at least so long."""
        timeout_s = parse_timeout(call.body.get("timeout", DEFAULT_TIMEOUT_S))
        sandbox = self._sandboxes.get(call.sandbox_id, call.tenant)
        resumed = await self._sandboxes.resume(sandbox.id, timeout_s)
        return Answer(201 if resumed else 200, self.handle_of(sandbox))

    async def _resume(self, call: Call) -> Answer:
        timeout_s = parse_timeout(call.body.get("timeout", DEFAULT_TIMEOUT_S))
        sandbox = self._sandboxes.get(call.sandbox_id, call.tenant)
        if not await self._sandboxes.resume(sandbox.id, timeout_s):
            raise Conflict(f"sandbox '{sandbox.id}' is running already", "sandbox_running")
        return Answer(201, self.handle_of(sandbox))

    async def _pause(self, call: Call) -> Answer:
        keep_memory = parse_flag(call.body, "memory", default=True)
        sandbox = self._sandboxes.get(call.sandbox_id, call.tenant)
        await self._sandboxes.pause(sandbox.id, keep_memory=keep_memory)
        return Answer(204)

    async def _refresh(self, call: Call) -> Answer:
        duration_s = min(parse_timeout(call.body.get("duration", 0)), MAX_REFRESH_S)
        sandbox = self._sandboxes.get(call.sandbox_id, call.tenant)
        self._sandboxes.set_timeout(sandbox.id, duration_s, only_extend=True)
        return Answer(204)

    async def _set_timeout(self, call: Call) -> Answer:
        timeout_s = parse_timeout(call.body.get("timeout"))
        sandbox = self._sandboxes.get(call.sandbox_id, call.tenant)
        self._sandboxes.set_timeout(sandbox.id, timeout_s)
        return Answer(204)

    async def _update_network(self, call: Call) -> Answer:
        sandbox = self._sandboxes.get(call.sandbox_id, call.tenant)
        self._sandboxes.update_network(sandbox.id, call.body)
        return Answer(204)

    async def _kill(self, call: Call) -> Answer:
        await self._sandboxes.kill(call.sandbox_id, call.tenant)
        return Answer(204)

    def handle_of(self, sandbox: Sandbox) -> dict[str, Any]:
        """What a client needs to use a sandbox."""
        record = sandbox.record
        handle = {
            "templateID": record.template,
            "sandboxID": record.id,
            "clientID": "ship",
            "alias": record.made_of.alias or record.template,
            "envdVersion": ENVD_VERSION,
            "envdAccessToken": record.token,
            "domain": self._domain,
            "memoryKept": record.memory_kept,
        }
        return (
            handle if record.allow_public_traffic else {**handle, "trafficAccessToken": record.traffic_token}
        )


def shown_state(sandbox: Sandbox) -> str:
    """What E2B's protocol knows: `running` or `paused`."""
    return RUNNING if sandbox.record.state == RUNNING else PAUSED


def _listed(sandbox: Sandbox) -> dict[str, Any]:
    record = sandbox.record
    return {
        "templateID": record.template,
        "alias": record.made_of.alias or record.template,
        "sandboxID": record.id,
        "clientID": "ship",
        "startedAt": timestamp(record.started_at),
        "endAt": timestamp(record.end_at),
        "cpuCount": record.cpu_count,
        "memoryMB": record.memory_mb,
        "diskSizeMB": record.disk_mb,
        "metadata": record.metadata,
        "state": shown_state(sandbox),
        "memoryKept": record.memory_kept,
        "envdVersion": ENVD_VERSION,
    }


def _new_sandbox(body: dict[str, Any], tenant: str, idempotency_key: str, digest: str) -> NewSandbox:
    """The request's wishes, checked. What this host cannot do is refused, not left out in silence."""
    for key, feature in _NOT_OFFERED.items():
        if body.get(key):
            raise Unsupported(f"{feature} ({key}) is not offered by this sandbox host")
    unknown = set(body) - _CREATE_KEYS
    if unknown:
        raise BadRequest(f"unknown fields: {', '.join(sorted(unknown))}")
    allow_internet = body.get("allow_internet_access") is not False
    ways = policy.at_creation(body.get("network"), allow_internet)
    if not isinstance(body.get("templateID"), str):
        raise BadRequest("templateID is missing")
    auto_pause = parse_flag(body, "autoPause", default=False)
    keeps_memory = parse_flag(body, "autoPauseMemory", default=True)
    auto_resume = _auto_resume(body.get("autoResume"))
    if auto_resume and not (auto_pause and keeps_memory):
        raise BadRequest("autoResume needs autoPause, and cannot be combined with autoPauseMemory false")
    return NewSandbox(
        template=body["templateID"],
        tenant=tenant,
        timeout_s=parse_timeout(body.get("timeout", DEFAULT_TIMEOUT_S)),
        envs=parse_strings(body, "envVars"),
        metadata=parse_strings(body, "metadata"),
        auto_pause=auto_pause,
        auto_pause_keeps_memory=keeps_memory,
        auto_resume=auto_resume,
        allow_internet=allow_internet,
        allow_public_traffic=ways.get("allowPublicTraffic") is not False,
        network=ways,
        idempotency_key=idempotency_key,
        request_digest=digest,
    )


def _auto_resume(value: object) -> bool:
    if value is None:
        return False
    if not isinstance(value, dict):
        raise BadRequest("autoResume must be an object")
    return parse_flag(value, "enabled", default=False)


def _choices(query: dict[str, str], key: str, *known: str) -> list[str]:
    """Those that a query names with commas between; all that are known, where it names none."""
    chosen = [each for each in query.get(key, "").split(",") if each]
    if not set(chosen) <= set(known):
        raise BadRequest(f"{key} must be one of {', '.join(known)}")
    return chosen or list(known)


def _scoped(tenant: str, key: str) -> str:
    """An idempotency key means something to its own tenant only."""
    return f"{tenant} {key}"


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
