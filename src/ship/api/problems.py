"""Errors as ``application/problem+json`` (RFC 9457), each with a stable code and what to do."""

import logging
from http import HTTPStatus

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from ship.errors import ShipError

_log = logging.getLogger("ship.api")


class Problem(BaseModel):
    """What went wrong. ``code`` is stable, ``hint`` says what to do."""

    model_config = ConfigDict(extra="forbid")

    type: str
    title: str
    status: int
    code: str
    detail: str
    hint: str


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


def install(app: FastAPI) -> None:
    """Turn every error that leaves a route into a problem."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        found = "; ".join(
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()
        )
        return problem(400, "invalid_input", found, "Send what openapi.json says for this route.")

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        code = {404: "route_not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        return problem(error.status_code, code, str(error.detail))

    @app.exception_handler(ShipError)
    @app.exception_handler(Exception)
    async def other(request: Request, error: Exception) -> Response:
        return answer(error, request)
