"""Search over all sessions."""

import re
from typing import Annotated

from fastapi import APIRouter, Query, Response

from ship.api import schemas
from ship.api.answers import encoded
from ship.api.dependencies import Caller, Serving
from ship.errors import InvalidInput
from ship.model import SearchMode, SessionStatus

router = APIRouter(prefix="/api/v1", tags=["sessions"])

DEEPEST = 10_000
"""Nobody pages further; what is looked for has better words."""


@router.get("/search", response_model=schemas.FoundPage)
async def search(
    serving: Serving,
    actor: Caller,
    q: Annotated[str, Query(max_length=1_000)],
    mode: SearchMode = SearchMode.WORDS,
    status: SessionStatus | None = None,
    repository: str | None = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Response:
    """The sessions whose title or messages have these words: all of them, "phrases in quotes", beginnings*, -not. By ``meaning``:
    those that say something like it in whatever words, where the server has that switched on."""
    offset = _offset(cursor)
    sessions = serving.sessions
    search = sessions.search_by_meaning if mode is SearchMode.MEANING else sessions.search
    found = await search(q, status, repository, offset, limit)
    following = str(offset + limit) if len(found) == limit else None
    return encoded({"items": found, "next_cursor": following})


def _offset(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not re.fullmatch("[0-9]{1,9}", cursor) or int(cursor) > DEEPEST:
        raise InvalidInput(
            "this cursor is not one of ours", code="cursor_invalid", hint="Start without a cursor."
        )
    return int(cursor)
