"""Errors as ``application/problem+json`` (RFC 9457), each with a stable code and what to do."""

import logging
from http import HTTPStatus

import msgspec
from starlette.requests import HTTPConnection
from starlette.responses import Response

from ship.errors import ShipError

_log = logging.getLogger("ship.api")


def problem(status: int, code: str, detail: str, hint: str = "") -> Response:
    """The answer that says so."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
        "hint": hint,
    }
    return Response(msgspec.json.encode(body), status, media_type="application/problem+json")


def answer(error: Exception, connection: HTTPConnection) -> Response:
    """The problem that an error is told as. One that is not ours is a defect: the log gets it, the caller learns no more."""
    if isinstance(error, ShipError):
        return problem(error.status, error.code, error.message, error.hint)
    _log.error("%s %s failed", connection.scope.get("method"), connection.scope["path"], exc_info=error)
    return problem(
        500,
        "internal_error",
        "Ship failed to answer this",
        "This is a defect of Ship; the server's log has the details.",
    )
