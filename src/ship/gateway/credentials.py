"""The session token as the tools in a sandbox send it."""

import base64
import binascii

from starlette.requests import HTTPConnection


def session_token(connection: HTTPConnection) -> str:
    """The token from ``Authorization: Bearer``, the password of ``Authorization: Basic``, or ``x-api-key``; else empty."""
    scheme, _, value = connection.headers.get("authorization", "").partition(" ")
    match scheme.lower():
        case "bearer":
            return value.strip()
        case "basic":
            return _password(value.strip())
        case _:
            return connection.headers.get("x-api-key", "").strip()


def _password(value: str) -> str:
    try:
        decoded = base64.b64decode(value, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
    return decoded.partition(":")[2]
