"""The routes that are asked most, bound for the door: what of a request goes into which argument of the route's function.

They are ordinary routes of the application. The door calls the same functions with the same callers, schemas and keys, and hands
whatever a schema refuses to the application, which says what was wrong with it.
"""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, get_type_hints
from urllib.parse import parse_qsl

from fastapi import APIRouter, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError, create_model

from ship.api.services import Caller, Key, Serving

SESSION_ID = "session_id"
_PLACEHOLDER = "{session_id}"
_ID_AT = 4
"""Where the session's id stands in ``/api/v1/sessions/{session_id}/…``, split at its slashes."""

_DEFAULTS: Mapping[str, Any] = {}


class HotRoute:
    """One route. ``takes_body`` and ``takes_key`` say what its function wants besides the caller."""

    def __init__(self, route: APIRoute) -> None:
        hints = get_type_hints(route.endpoint, include_extras=True)
        parameters = inspect.signature(route.endpoint).parameters
        self.call: Callable[..., Awaitable[Response]] = route.endpoint
        self.takes_key = hints.get("key") == Key
        self.takes_session = SESSION_ID in parameters
        self._body: type[BaseModel] | None = hints.get("body")
        plain = {"serving": Serving, "actor": Caller, "key": Key}
        asked: dict[str, Any] = {
            name: (hints[name], parameter.default)
            for name, parameter in parameters.items()
            if name not in (SESSION_ID, "body") and hints[name] != plain.get(name)
        }
        self._query = create_model("Query", **asked) if asked else None
        self.query = lru_cache(256)(self._read_query)

    @property
    def takes_body(self) -> bool:
        """Whether its requests have a body."""
        return self._body is not None

    def body(self, data: bytes) -> BaseModel | None:
        """The body by the route's schema. Raises ValidationError."""
        return self._body.model_validate_json(data) if self._body else None

    def _read_query(self, query: bytes) -> Mapping[str, Any]:
        """The query's arguments by their types, with defaults. Raises ValidationError."""
        if self._query is None:
            return _DEFAULTS
        read = self._query.model_validate(dict(parse_qsl(query.decode(), keep_blank_values=True)))
        return {name: getattr(read, name) for name in self._query.model_fields}


class HotCall(NamedTuple):
    """A route and the session that it is about, if it is about one."""

    route: HotRoute
    session_id: str | None

    def arguments(self, query: bytes, body: bytes) -> dict[str, Any] | None:
        """What its function takes of the request; None when a schema refuses it."""
        try:
            found = dict(self.route.query(query))
            if self.route.takes_body:
                found["body"] = self.route.body(body)
        except (ValidationError, UnicodeDecodeError):
            return None
        if self.session_id is not None:
            found[SESSION_ID] = self.session_id
        return found


class HotRoutes:
    """Finds the hot route of a request."""

    def __init__(self, routers: list[APIRouter], functions: tuple[Callable[..., Any], ...]) -> None:
        routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
        self._routes: dict[tuple[bytes, bytes], HotRoute] = {}
        for function in functions:
            route = next(known for known in routes if known.endpoint is function)
            path = route.path.replace(_PLACEHOLDER, "").encode()
            for method in route.methods or ():
                self._routes[method.encode(), path] = HotRoute(route)

    def find(self, method: bytes, path: bytes) -> HotCall | None:
        """The call that a request is, if it is one of a hot route."""
        parts = path.split(b"/")
        if len(parts) <= _ID_AT:
            route = self._routes.get((method, path))
            return HotCall(route, None) if route else None
        session_id, parts[_ID_AT] = parts[_ID_AT], b""
        route = self._routes.get((method, b"/".join(parts)))
        if route is None or not session_id or b"%" in session_id or not session_id.isascii():
            return None
        return HotCall(route, session_id.decode())
