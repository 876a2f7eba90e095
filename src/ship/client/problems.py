"""The server's errors, raised again on this side."""

import http

import httpx
import msgspec

from ship import errors


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An ``application/problem+json`` body (RFC 9457) with Ship's ``code`` and ``hint``."""

    code: str = ""
    title: str = ""
    detail: str = ""
    hint: str = ""


_BY_STATUS: dict[int, type[errors.ShipError]] = {
    kind.status: kind
    for kind in (
        errors.InvalidInput,
        errors.Unauthenticated,
        errors.Forbidden,
        errors.NotFound,
        errors.Conflict,
        errors.TooLarge,
        errors.Unavailable,
    )
}
_BY_CODE: dict[str, type[errors.ShipError]] = {
    kind.code: kind for kind in (errors.StaleGeneration, errors.SandboxFailed, errors.ConfigurationError)
}
_MOST_SHOWN = 300


def from_response(response: httpx.Response) -> errors.ShipError:
    """The error that a failed answer stands for; its body must have been read.

    An answer that is no problem document (a proxy's page, say) becomes an error of its status, code ``http_<status>``.
    """
    status = response.status_code
    try:
        problem = msgspec.json.decode(response.content, type=Problem)
    except msgspec.DecodeError:
        problem = Problem(detail=response.text[:_MOST_SHOWN].strip())
    kind = _BY_CODE.get(problem.code) or _BY_STATUS.get(status) or _nearest(status)
    message = problem.detail or problem.title or f"{status} {http.HTTPStatus(status).phrase}"
    return kind(message, code=problem.code or f"http_{status}", hint=problem.hint)


def _nearest(status: int) -> type[errors.ShipError]:
    if status in (502, 504):
        return errors.Unavailable
    return errors.InvalidInput if 400 <= status < 500 else errors.ShipError
