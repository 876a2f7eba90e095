"""One request of the REST API as a route sees it, and the answer and the table that a route makes.

Everything that a caller sends is checked here or by the readers below; what is wrong is a BadRequest that says so.
"""

import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, unquote

from ..envd.http1 import Exchange
from ..errors import BadRequest
from ..lifecycle.records import DEFAULT_TENANT

MAX_QUERY_FIELDS = 100
MAX_NESTING = 64
MAX_TIMEOUT_S = 10 * 365 * 24 * 3600


@dataclass(frozen=True)
class Call:
    """`variables` are those of the route's path, decoded; `body` is the JSON object that was sent, {} without one, and
    always {} on a streamed route, which reads `exchange.body()` itself. `tenant` owns the key: a route
    finds, lists and changes nothing that belongs to another one."""

    exchange: Exchange
    variables: dict[str, str]
    query: dict[str, str]
    body: dict[str, Any]
    tenant: str = DEFAULT_TENANT

    @property
    def sandbox_id(self) -> str:
        # Older clients name a sandbox `{sandbox id}-{client id}`.
        return self.variables["sandboxID"].partition("-")[0]

    def header(self, name: str) -> str:
        """A header field's value, or an empty string."""
        return self.exchange.request.headers.get(name)


@dataclass(frozen=True)
class Answer:
    """`value` is sent as JSON, bytes as they are with `content_type`; None is an empty body."""

    status: int
    value: Any = None
    fields: list[tuple[str, str]] = field(default_factory=list)
    content_type: str = "application/json"


Handler = Callable[[Call], Awaitable[Answer]]


@dataclass(frozen=True)
class Route:
    """`path` is written as in OpenAPI, `/sandboxes/{sandboxID}/timeout`; a variable is one segment of the path.

    An `open` route is served without a key: it must ask for a proof of its own, or tell nothing that matters. The body
    of a `streamed` one is neither read nor bounded before the handler is called.
    """

    method: str
    path: str
    handle: Handler
    open: bool = False
    streamed: bool = False

    def match(self, segments: list[str]) -> dict[str, str] | None:
        """The path's variables, when this route's path has the form of these (still encoded) segments."""
        own = self.path.split("/")
        if len(own) != len(segments):
            return None
        variables = {}
        for pattern, segment in zip(own, segments, strict=True):
            if pattern.startswith("{"):
                if not segment:
                    return None
                variables[pattern[1:-1]] = unquote(segment)
            elif pattern != segment:
                return None
        return variables


def parse_json(data: bytes) -> dict[str, Any]:
    """The JSON object of a body; {} of an empty one."""
    try:
        value = json.loads(data or b"{}")
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadRequest("the body is not a JSON object")
    if _nests_deeper(value, MAX_NESTING):
        raise BadRequest(f"the body is nested deeper than {MAX_NESTING} levels")
    return value


def _nests_deeper(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [inner for outer in layer for inner in _inner(outer)]
    return bool(layer)


def _inner(value: Any) -> Iterable[Any]:
    """The containers that lie directly in this one."""
    found = value.values() if isinstance(value, dict) else value
    return (each for each in found if isinstance(each, dict | list))


def parse_query(text: str) -> dict[str, str]:
    """The fields of a query; of one that comes twice, the last."""
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS))
    except ValueError as error:
        raise BadRequest(f"the query is malformed: {error}") from error


def parse_strings(body: dict[str, Any], key: str) -> tuple[tuple[str, str], ...]:
    """The items of an object of strings; none when it is missing."""
    values = body.get(key) or {}
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise BadRequest(f"{key} must be an object of strings")
    return tuple(values.items())


def parse_flag(body: dict[str, Any], key: str, *, default: bool) -> bool:
    """A Boolean; the default when it is missing or null."""
    value = body.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BadRequest(f"{key} must be true or false")
    return value


def parse_timeout(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_TIMEOUT_S:
        raise BadRequest("timeout must be a number of seconds, 0 or more")
    return value


def parse_number(text: str, name: str, digits: int = 9) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= digits):
        raise BadRequest(f"{name} must be a whole number")
    return int(text)


def parse_time(text: str, name: str) -> float:
    """Seconds since 1970 of a time in ISO 8601."""
    try:
        return datetime.fromisoformat(text.replace(" ", "+")).timestamp()
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"{name} must be a time in ISO 8601") from error


def timestamp(seconds: float) -> str:
    """A time as E2B's API writes it, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
