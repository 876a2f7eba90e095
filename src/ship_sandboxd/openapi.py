"""The REST API as an OpenAPI document (https://spec.openapis.org/oas/v3.1.0), made of the host's own routes.

Where a route has the form that E2B's protocol gives it, only its outline is told here; the shapes below are those that a
client without E2B's SDK needs first.
"""

from collections.abc import Iterable
from typing import Any

from .api.call import Answer, Call, Route
from .api.router import NotOffered

Shape = dict[str, Any]

_STRING: Shape = {"type": "string"}
_NUMBER: Shape = {"type": "number"}
_COUNT: Shape = {"type": "integer", "minimum": 0}
_FLAG: Shape = {"type": "boolean"}
_TIME: Shape = {"type": "string", "format": "date-time"}
_STRINGS: Shape = {"type": "object", "additionalProperties": _STRING}
_DIRECTION: Shape = {"type": "string", "enum": ["forward", "backward"]}
_LEVEL: Shape = {"type": "string", "enum": ["debug", "info", "warn", "error"]}


def _object(required: dict[str, Shape], optional: dict[str, Shape] | None = None) -> Shape:
    return {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}


def _ref(name: str) -> Shape:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(of: Shape) -> Shape:
    return {"type": "array", "items": of}


_SANDBOX = {
    "sandboxID": _STRING,
    "templateID": _STRING,
    "alias": _STRING,
    "clientID": _STRING,
    "envdVersion": _STRING,
}
_LISTED = {
    **_SANDBOX,
    "state": {"type": "string", "enum": ["running", "paused"]},
    "startedAt": _TIME,
    "endAt": _TIME,
    "cpuCount": _COUNT,
    "memoryMB": _COUNT,
    "diskSizeMB": _COUNT,
    "metadata": _STRINGS,
    "memoryKept": {
        **_FLAG,
        "description": "Whether its processes are, or came back, as they were at the pause",
    },
}
_SCHEMAS: dict[str, Shape] = {
    "Error": _object({"code": _COUNT, "message": _STRING}, {"error_code": _STRING}),
    "NewSandbox": _object(
        {"templateID": _STRING},
        {
            "timeout": {**_COUNT, "description": "Seconds to live"},
            "metadata": _STRINGS,
            "envVars": _STRINGS,
            "autoPause": {**_FLAG, "description": "Pause it instead of ending it when its time is over"},
            "autoPauseMemory": {**_FLAG, "description": "Keep its memory when that happens"},
            "autoResume": _object({"enabled": _FLAG}),
            "allow_internet_access": _FLAG,
            "secure": _FLAG,
            "network": _ref("Network"),
        },
    ),
    "Network": _object(
        {},
        {
            "allowOut": _list(_STRING),
            "denyOut": _list(_STRING),
            "allowPublicTraffic": _FLAG,
            "maskRequestHost": {**_STRING, "description": "Host field for its servers; ${PORT} is the port"},
            "rules": {"type": "object"},
        },
    ),
    "Timeout": _object({"timeout": _COUNT}),
    "Handle": _object(
        {**_SANDBOX, "envdAccessToken": _STRING, "domain": _STRING},
        {"trafficAccessToken": _STRING, "memoryKept": _FLAG},
    ),
    "ListedSandbox": _object(_LISTED),
    "Sandbox": _object(
        {**_LISTED, "envdAccessToken": _STRING, "domain": _STRING},
        {
            "allowInternetAccess": _FLAG,
            "network": _ref("Network"),
            "lifecycle": _object({"autoResume": _FLAG, "onTimeout": _STRING}),
        },
    ),
    "Snapshot": _object({"snapshotID": _STRING, "names": _list(_STRING)}),
    "Fork": _object({}, {"sandbox": _ref("Handle"), "error": _ref("Error")}),
    "Metric": _object(
        {
            "timestamp": _TIME,
            "timestampUnix": _COUNT,
            "cpuCount": _COUNT,
            "cpuUsedPct": {**_NUMBER, "description": "Of all its processors, 0 to 100"},
            "memTotal": _COUNT,
            "memUsed": _COUNT,
            "memCache": _COUNT,
            "diskTotal": _COUNT,
            "diskUsed": _COUNT,
        }
    ),
    "LogEntry": _object({"timestamp": _TIME, "level": _LEVEL, "message": _STRING, "fields": _STRINGS}),
    "NewTemplate": _object(
        {"name": _STRING}, {"tags": _list(_STRING), "cpuCount": _COUNT, "memoryMB": _COUNT}
    ),
    "Template": _object(
        {
            "templateID": _STRING,
            "buildID": _STRING,
            "names": _list(_STRING),
            "aliases": _list(_STRING),
            "public": _FLAG,
            "cpuCount": _COUNT,
            "memoryMB": _COUNT,
            "diskSizeMB": _COUNT,
            "createdAt": _TIME,
            "updatedAt": _TIME,
            "spawnCount": _COUNT,
            "buildCount": _COUNT,
            "buildStatus": _STRING,
            "envdVersion": _STRING,
        },
        {
            "createdBy": {"type": "null"},
            "lastSpawnedAt": {"type": ["string", "null"]},
            "isDefault": {**_FLAG, "description": "Whether it is the operator's"},
        },
    ),
    "BuildLogEntry": _object({"timestamp": _TIME, "level": _LEVEL, "message": _STRING}, {"step": _STRING}),
    "BuildStatus": _object(
        {
            "templateID": _STRING,
            "buildID": _STRING,
            "status": {"type": "string", "enum": ["waiting", "building", "ready", "error"]},
            "logs": _list(_STRING),
            "logEntries": _list(_ref("BuildLogEntry")),
        },
        {"reason": {"type": "object"}},
    ),
    "Health": _object({"status": _STRING, "isolation": _STRING, "url": _STRING}),
    "Team": _object({"teamID": _STRING, "name": _STRING, "apiKey": _STRING, "isDefault": _FLAG}),
}
_PAGING = {"limit": _COUNT, "nextToken": _STRING}
_LIST_QUERY = {
    "state": {**_STRING, "description": "running, paused, or both with a comma"},
    "metadata": {**_STRING, "description": "A query string of names and values that all must fit"},
    "template": _STRING,
    "startedAfter": _TIME,
    "order": {"type": "string", "enum": ["asc", "desc"]},
    **_PAGING,
}
_ONE = "/sandboxes/{sandboxID}"
_MADE = {"201": _ref("Handle")}
_CONNECTED = {"200": _ref("Handle"), "201": _ref("Handle")}
# (method, path) → what it does, its query, its body, its answers; None is an answer without a body.
_TOLD: dict[tuple[str, str], tuple[str, dict[str, Shape], Shape | None, dict[str, Shape | None]]] = {
    ("GET", "/health"): ("How sandboxes are kept apart and limited here", {}, None, {"200": _ref("Health")}),
    ("GET", "/metrics"): ("Numbers about the host for Prometheus", {}, None, {"200": {**_STRING}}),
    ("GET", "/openapi.json"): ("This document", {}, None, {"200": {"type": "object"}}),
    ("GET", "/"): ("The status page", {}, None, {"200": _STRING}),
    ("GET", "/status.css"): ("The status page's style", {}, None, {"200": _STRING}),
    ("GET", "/status.js"): ("The status page's program", {}, None, {"200": _STRING}),
    ("GET", "/teams"): ("The tenant of the key", {}, None, {"200": _list(_ref("Team"))}),
    ("POST", "/sandboxes"): ("Make a sandbox", {}, _ref("NewSandbox"), {**_MADE}),
    ("POST", "/v2/sandboxes"): ("Make a sandbox", {}, _ref("NewSandbox"), {**_MADE}),
    ("GET", "/sandboxes"): ("Sandboxes, by pages", _LIST_QUERY, None, {"200": _list(_ref("ListedSandbox"))}),
    ("GET", "/v2/sandboxes"): (
        "Sandboxes, by pages",
        _LIST_QUERY,
        None,
        {"200": _list(_ref("ListedSandbox"))},
    ),
    ("GET", _ONE): ("One sandbox", {}, None, {"200": _ref("Sandbox")}),
    ("DELETE", _ONE): ("End a sandbox", {}, None, {"204": None}),
    ("POST", f"{_ONE}/connect"): ("Resume it, or let it live on", {}, _ref("Timeout"), {**_CONNECTED}),
    ("POST", f"/v2{_ONE}/connect"): ("Resume it, or let it live on", {}, _ref("Timeout"), {**_CONNECTED}),
    ("POST", f"{_ONE}/timeout"): ("Let it live for so long from now", {}, _ref("Timeout"), {"204": None}),
    ("POST", f"{_ONE}/pause"): ("Pause it", {}, _object({}, {"memory": _FLAG}), {"204": None}),
    ("POST", f"{_ONE}/resume"): ("Resume it", {}, _ref("Timeout"), {**_MADE}),
    ("POST", f"{_ONE}/refreshes"): ("Extend its life", {}, _object({}, {"duration": _COUNT}), {"204": None}),
    ("PUT", f"{_ONE}/network"): ("Replace its rules for the way out", {}, _ref("Network"), {"204": None}),
    ("POST", f"{_ONE}/snapshots"): (
        "Keep its files as a template",
        {},
        _object({}, {"name": {**_STRING, "description": "name or name:tag"}}),
        {"201": _ref("Snapshot")},
    ),
    ("POST", f"{_ONE}/fork"): (
        "Make others of its files",
        {},
        _object({}, {"timeout": _COUNT, "count": {**_COUNT, "maximum": 100}}),
        {"201": _list(_ref("Fork"))},
    ),
    ("GET", "/snapshots"): (
        "Snapshots, newest first, by pages",
        {"sandboxID": _STRING, "name": _STRING, **_PAGING},
        None,
        {"200": _list(_ref("Snapshot"))},
    ),
    ("GET", f"{_ONE}/metrics"): (
        "What it uses, sampled every 5 seconds",
        {"start": _COUNT, "end": _COUNT},
        None,
        {"200": _list(_ref("Metric"))},
    ),
    ("GET", "/sandboxes/metrics"): (
        "The newest metric of each",
        {"sandbox_ids": {**_STRING, "description": "At most 100, with commas between"}},
        None,
        {"200": _object({"sandboxes": {"type": "object", "additionalProperties": _ref("Metric")}})},
    ),
    ("GET", f"{_ONE}/logs"): (
        "What happened to it, from a time in milliseconds",
        {"start": _COUNT, "limit": _COUNT},
        None,
        {
            "200": _object(
                {
                    "logs": _list(_object({"timestamp": _TIME, "line": _STRING})),
                    "logEntries": _list(_ref("LogEntry")),
                }
            )
        },
    ),
    ("GET", f"/v2{_ONE}/logs"): (
        "What happened to it",
        {
            "cursor": {**_COUNT, "description": "Milliseconds since 1970"},
            "limit": _COUNT,
            "direction": _DIRECTION,
            "level": _LEVEL,
            "search": _STRING,
        },
        None,
        {"200": _object({"logs": _list(_ref("LogEntry"))})},
    ),
}

_TEMPLATE = "/templates/{templateID}"
_BUILD = f"{_TEMPLATE}/builds/{{buildID}}"
_UPLOAD = f"{_TEMPLATE}/files/{{hash}}"
_TAGS: Shape = _list(_STRING)
_ANNOUNCED = {"202": _object({"templateID": _STRING, "buildID": _STRING})}
_BUILD_LOG = {"limit": _COUNT, "level": _LEVEL}
_CHANGED: Shape = _object({}, {"public": _FLAG})
_TOLD |= {
    ("POST", "/v3/templates"): ("Announce a build", {}, _ref("NewTemplate"), {**_ANNOUNCED}),
    ("POST", "/v2/templates"): ("Announce a build", {}, _ref("NewTemplate"), {**_ANNOUNCED}),
    ("GET", "/v2/templates"): ("Templates, by pages", _PAGING, None, {"200": _list(_ref("Template"))}),
    ("GET", "/templates"): ("Templates", {}, None, {"200": _list(_ref("Template"))}),
    ("GET", "/templates/aliases/{alias}"): (
        "The template of a name",
        {},
        None,
        {"200": _object({"templateID": _STRING, "public": _FLAG})},
    ),
    ("POST", "/templates/tags"): (
        "Put tags on a build",
        {},
        _object({"target": _STRING, "tags": _TAGS}),
        {"201": _object({"tags": _TAGS, "buildID": _STRING})},
    ),
    ("DELETE", "/templates/tags"): (
        "Take tags away",
        {},
        _object({"name": _STRING, "tags": _TAGS}),
        {"204": None},
    ),
    ("GET", _TEMPLATE): (
        "One template and its builds",
        _PAGING,
        None,
        {"200": _object({"templateID": _STRING, "builds": _list({"type": "object"})})},
    ),
    ("PATCH", _TEMPLATE): ("Change a template", {}, _CHANGED, {"200": _object({"names": _TAGS})}),
    ("PATCH", f"/v2{_TEMPLATE}"): ("Change a template", {}, _CHANGED, {"200": _object({"names": _TAGS})}),
    ("DELETE", _TEMPLATE): ("Delete a template or a snapshot", {}, None, {"204": None}),
    ("GET", "/default-templates"): ("The operator's templates", {}, None, {"200": _list(_ref("Template"))}),
    ("GET", f"{_TEMPLATE}/tags/count"): (
        "How many tags it has",
        {},
        None,
        {"200": _object({"total": _COUNT})},
    ),
    ("GET", f"{_TEMPLATE}/tags/exists"): (
        "Whether it has a tag",
        {"tag": _STRING},
        None,
        {"200": _object({"exists": _FLAG, "normalizedTag": _STRING})},
    ),
    ("GET", f"{_TEMPLATE}/tags"): ("Its tags", {}, None, {"200": _list({"type": "object"})}),
    ("POST", f"/v2{_BUILD}"): (
        "Start a build by its steps",
        {},
        _object(
            {},
            {
                "fromImage": _STRING,
                "fromTemplate": _STRING,
                "steps": _list({"type": "object"}),
                "startCmd": _STRING,
                "readyCmd": _STRING,
                "force": _FLAG,
            },
        ),
        {"202": None},
    ),
    ("GET", f"{_BUILD}/status"): (
        "How far a build is, and what it said",
        {"logsOffset": _COUNT, **_BUILD_LOG},
        None,
        {"200": _ref("BuildStatus")},
    ),
    ("GET", f"{_BUILD}/logs"): (
        "What a build has said",
        {"cursor": _COUNT, "direction": _DIRECTION, **_BUILD_LOG},
        None,
        {"200": _object({"logs": _list(_ref("BuildLogEntry"))})},
    ),
    ("GET", _UPLOAD): (
        "Where to send the files of a copy step, if they are not there yet",
        {},
        None,
        {"201": _object({"present": _FLAG, "url": _STRING})},
    ),
    ("PUT", _UPLOAD): ("Send them, by the signed address", {}, None, {"200": None}),
}


def with_document(routes: Iterable[Route]) -> list[Route]:
    """These routes, and one that tells them."""

    async def tell(call: Call) -> Answer:
        return Answer(200, found)

    all_of_them = [*routes, Route("GET", "/openapi.json", tell, open=True)]
    found = document(all_of_them)
    return all_of_them


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """OpenAPI 3.1 of these routes, sorted by path."""
    paths: dict[str, dict[str, Any]] = {}
    for route in sorted(routes, key=lambda route: (route.path, route.method)):
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Sandbox host",
            "version": "1",
            "description": "The REST half of E2B's protocol, as this host serves it. Requests for a sandbox itself go to "
            "its host name, {port}-{sandbox id}.{domain}.",
        },
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-KEY"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
        "security": [{"apiKey": []}, {"bearer": []}],
    }


def _operation(route: Route) -> dict[str, Any]:
    summary, query, body, answers = _TOLD.get((route.method, route.path)) or _outline(route)
    names = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
    parameters = [{"name": name, "in": "path", "required": True, "schema": _STRING} for name in names]
    parameters += [{"name": name, "in": "query", "schema": shape} for name, shape in query.items()]
    operation: dict[str, Any] = {"summary": summary, "responses": _responses(route, answers)}
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = {"content": {"application/json": {"schema": body}}}
    if route.open:
        operation["security"] = []
    return operation


def _outline(route: Route) -> tuple[str, dict[str, Shape], Shape | None, dict[str, Shape | None]]:
    if isinstance(route.handle, NotOffered):
        return f"Not offered{f': {route.handle.why}' if route.handle.why else ''}", {}, None, {}
    body: Shape | None = {"type": "object"} if route.method in ("POST", "PUT", "PATCH") else None
    return "As in E2B's protocol", {}, body, {"2XX": {}}


def _responses(route: Route, answers: dict[str, Shape | None]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for status, shape in answers.items():
        found[status] = {"description": "Done"}
        if shape is not None:
            found[status]["content"] = {_media_type(route): {"schema": shape}}
    what = "Not offered" if isinstance(route.handle, NotOffered) else "What went wrong"
    found["501" if isinstance(route.handle, NotOffered) else "default"] = {
        "description": what,
        "content": {"application/json": {"schema": _ref("Error")}},
    }
    return found


def _media_type(route: Route) -> str:
    if route.path == "/metrics":
        return "text/plain"
    by_suffix = {"/": "text/html", "/status.css": "text/css", "/status.js": "text/javascript"}
    return by_suffix.get(route.path, "application/json")
