"""Answers that are already encoded: the bytes of the store go out as they are."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from starlette.responses import Response


class _Encoded(Response):
    media_type = "application/json"

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        """The two that it has: there is no charset to work out."""
        self.raw_headers = [
            (b"content-length", b"%d" % len(self.body)),
            (b"content-type", b"application/json"),
        ]


def encoded(value: Any, status: int = 200) -> Response:
    """Plain data as JSON."""
    return _Encoded(msgspec.json.encode(value), status)


def page(items: Sequence[bytes], **fields: Any) -> Response:
    """``{"items": […], …}`` around items that are JSON already."""
    raw = [msgspec.Raw(item) for item in items]
    return encoded({"items": raw, **fields})
