"""What the workspace holds: the diff and the files, from the living sandbox or the last checkpoint."""

from collections.abc import AsyncIterator
from pathlib import PurePosixPath
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from ship.api import schemas
from ship.api.answers import encoded
from ship.api.artifacts import INERT, blob_of
from ship.api.dependencies import Caller, Serving
from ship.api.services import Services
from ship.errors import Conflict, InvalidInput, NotFound, SandboxFailed
from ship.sessions.state import SavedPoint, SessionState

router = APIRouter(prefix="/api/v1", tags=["workspace"])

WORKSPACE = PurePosixPath("/workspace/repo")
LIVE_DIFF = PurePosixPath("/tmp/ship-live.diff")  # noqa: S108 - inside the sandbox, whose /tmp is its own
DIFF_COMMAND = f"/opt/ship/bin/ship-runner diff > {LIVE_DIFF}"
DIFF_LIMIT_BYTES = 25 * 1024**2
DIFF_TIMEOUT_S = 60

FilePath = Annotated[
    str, Query(max_length=4096, description="Relative to the repository; empty means its top.")
]


@router.get("/sessions/{session_id}/diff", response_class=Response)
async def get_diff(
    session_id: str, serving: Serving, actor: Caller, live: bool = False, checkpoint: str = ""
) -> Response:
    """The change against the base commit, as a unified diff: of the last checkpoint, of the one that is named, or of the workspace as
    it stands."""
    state = await serving.sessions.state(session_id)
    if checkpoint:
        return _diff(await blob_of(serving, state, _point(state, checkpoint).diff_artifact))
    if live and state.sandbox.status == "ready":
        try:
            return _diff(await _live_diff(serving, state))
        except NotFound as error:
            if error.code == "file_not_found":
                raise
            # It was paused or ended just now: what it left is what there is.
            state = await serving.sessions.state(session_id)
    if state.checkpoint is None:
        return _diff(b"")
    return _diff(await blob_of(serving, state, state.checkpoint.diff_artifact))


@router.get("/sessions/{session_id}/files", response_model=schemas.FilePage)
async def list_files(session_id: str, serving: Serving, actor: Caller, path: FilePath = "") -> Response:
    """One folder of the workspace."""
    sandbox_id = await _sandbox_of(serving, session_id)
    entries = await serving.host.list_files(sandbox_id, str(_inside(path)))
    items = [
        {**entry._asdict(), "path": str(PurePosixPath(path) / entry.name)}
        for entry in sorted(entries, key=lambda entry: (entry.kind != "directory", entry.name))
        if entry.name != ".git"
    ]
    return encoded({"items": items})


@router.get("/sessions/{session_id}/files/content", response_class=StreamingResponse)
async def get_file(session_id: str, serving: Serving, actor: Caller, path: FilePath) -> Response:
    """One file of the workspace, as inert bytes."""
    sandbox_id = await _sandbox_of(serving, session_id)
    pieces = serving.host.read_file(sandbox_id, str(_inside(path)))
    first = await anext(pieces, b"")
    return StreamingResponse(_rejoined(first, pieces), media_type="application/octet-stream", headers=INERT)


def _point(state: SessionState, checkpoint_id: str) -> SavedPoint:
    found = next((point for point in state.checkpoints if point.id == checkpoint_id), None)
    if found is None:
        raise NotFound("this session has no such checkpoint", code="checkpoint_not_found")
    return found


async def _rejoined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


async def _live_diff(serving: Services, state: SessionState) -> bytes:
    sandbox_id = state.sandbox.sandbox_id
    result = await serving.host.run(sandbox_id, DIFF_COMMAND, DIFF_TIMEOUT_S)
    if result.exit_code != 0:
        raise SandboxFailed(f"the diff could not be made: {result.stderr[-500:]}", code="diff_failed")
    diff = b""
    async for piece in serving.host.read_file(sandbox_id, str(LIVE_DIFF)):
        diff += piece
        if len(diff) > DIFF_LIMIT_BYTES:
            raise SandboxFailed("the diff is too large to show", code="diff_too_large")
    return diff


def _diff(body: bytes | AsyncIterator[bytes]) -> Response:
    if isinstance(body, bytes):
        return Response(body, media_type="text/x-diff", headers=INERT)
    return StreamingResponse(body, media_type="text/x-diff", headers=INERT)


async def _sandbox_of(serving: Services, session_id: str) -> str:
    state = await serving.sessions.state(session_id)
    if state.sandbox.status != "ready":
        raise Conflict(
            "this session has no running sandbox",
            code="sandbox_not_running",
            hint="A new task or a retry starts one; the diff is there without it.",
        )
    return state.sandbox.sandbox_id


def _inside(path: str) -> PurePosixPath:
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts or "\0" in path:
        raise InvalidInput("the path must stay inside the repository", code="path_invalid")
    return WORKSPACE / relative
