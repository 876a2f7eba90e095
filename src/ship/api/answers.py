"""Answers that are already encoded: the bytes of the store go out as they are."""

from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.responses import Response


def encoded(value: Any, status: int = 200) -> Response:
    """Plain data as JSON."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def page(items: Sequence[bytes], **fields: Any) -> Response:
    """``{"items": […], …}`` around items that are JSON already."""
    raw = [msgspec.Raw(item) for item in items]
    return encoded({"items": raw, **fields})
