"""Artifacts: named blobs of a session."""

import re
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from ship.api import schemas
from ship.api.answers import encoded
from ship.api.dependencies import Caller, Serving
from ship.api.services import Services, bounded_body
from ship.errors import InvalidInput, NotFound, Unavailable
from ship.model import Actor
from ship.sessions import commands
from ship.sessions.state import Artifact, SessionState

router = APIRouter(prefix="/api/v1", tags=["artifacts"])

INERT = {
    "X-Content-Type-Options": "nosniff",
    "Content-Disposition": "attachment",
    "Content-Security-Policy": "sandbox; default-src 'none'",
}
"""Bytes of a sandbox are never a page of ours."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_MEDIA_TYPE = re.compile(r"[a-z0-9.+-]+/[A-Za-z0-9.+-]+")


@router.put("/sessions/{session_id}/artifacts/{name}", status_code=201, response_model=schemas.ArtifactOut)
async def put_artifact(
    session_id: str, name: str, request: Request, serving: Serving, actor: Caller
) -> Response:
    """Store the body under this name; a former one of the name is replaced."""
    return await store(session_id, name, request, serving, actor)


@router.get("/sessions/{session_id}/artifacts", response_model=schemas.ArtifactPage)
async def list_artifacts(session_id: str, serving: Serving, actor: Caller) -> Response:
    """The names and what stands behind them."""
    state = await serving.sessions.state(session_id)
    return encoded({"items": state.artifacts})


@router.get("/sessions/{session_id}/artifacts/{name}", response_class=StreamingResponse)
async def get_artifact(session_id: str, name: str, serving: Serving, actor: Caller) -> Response:
    """The bytes, inert."""
    state = await serving.sessions.state(session_id)
    return await answer(serving, state, name)


async def store(session_id: str, name: str, request: Request, serving: Services, actor: Actor) -> Response:
    """Store the request's body as an artifact; people and runners do it alike."""
    await serving.sessions.state(session_id)
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            "an artifact's name has letters, digits, dots, dashes and underscores, at most 200",
            code="artifact_name_invalid",
        )
    sent = request.headers.get("content-type", "").partition(";")[0].strip()
    media_type = sent if _MEDIA_TYPE.fullmatch(sent) else "application/octet-stream"
    limit_bytes = serving.limits.artifact_bytes
    blob = await serving.blobs.put(bounded_body(request, limit_bytes), limit_bytes)
    command = commands.StoreArtifact(
        name=name, sha256=blob.sha256, size_bytes=blob.size_bytes, media_type=media_type
    )
    outcome = await serving.sessions.execute(session_id, command, actor)
    return encoded(_find(outcome.state, name), 201)


async def answer(serving: Services, state: SessionState, name: str) -> Response:
    """The artifact's bytes as an inert download."""
    artifact = _find(state, name)
    headers = {**INERT, "Content-Length": str(artifact.size_bytes), "ETag": f'"{artifact.sha256}"'}
    body = await blob_of(serving, state, name)
    return StreamingResponse(body, media_type=artifact.media_type, headers=headers)


async def blob_of(serving: Services, state: SessionState, name: str) -> AsyncIterator[bytes]:
    """The artifact's bytes. Raises NotFound (``blob_not_found``) now, and not when an answer has begun, where they are lost."""
    pieces = serving.blobs.get(_find(state, name).sha256)
    first = await anext(pieces, b"")

    async def begun() -> AsyncIterator[bytes]:
        yield first
        async for piece in pieces:
            yield piece

    return begun()


async def is_kept(serving: Services, state: SessionState, name: str) -> bool:
    """Whether the artifact's bytes are there; where the blobs do not answer, they may be."""
    try:
        await serving.blobs.read(_find(state, name).sha256, 0, 1)
    except NotFound:
        return False
    except Unavailable:
        return True
    return True


def _find(state: SessionState, name: str) -> Artifact:
    found = next((artifact for artifact in state.artifacts if artifact.name == name), None)
    if found is None:
        raise NotFound(f"there is no artifact {name!r}", code="artifact_not_found")
    return found
