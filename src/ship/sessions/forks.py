"""Forks: a new session that begins with a checkpoint of another one. Its artifacts are the same blobs."""

from collections.abc import Awaitable, Callable

import msgspec

from ship.errors import Conflict, NotFound
from ship.events import decode, facts
from ship.model import CheckpointReason, LimitsPatch, Origin
from ship.sessions.commands import CreateSession
from ship.sessions.service import Sessions
from ship.sessions.state import SavedPoint, SessionState


async def from_checkpoint(
    sessions: Sessions,
    session_id: str,
    checkpoint_id: str,
    command: CreateSession,
    is_there: Callable[[str], Awaitable[bool]],
) -> CreateSession:
    """The command that begins with that checkpoint, or the newest one when it is empty. Limits that the command leaves open are those
    of the session. ``is_there`` says whether the bytes of an artifact of that name can be read.

    Raises:
        NotFound: ``checkpoint_not_found``.
        Conflict: ``no_checkpoint``: nothing was kept yet; ``checkpoint_incomplete``: not all of it was stored, or it was lost.
    """
    state = await sessions.state(session_id)
    chain = _chain(state, checkpoint_id)
    kept = {artifact.name: artifact for artifact in state.artifacts}
    names = {name for point in chain for name in point.artifacts}
    bundles = [point.bundle_artifact for point in chain]
    whole = not chain[0].parent_id and all(bundles) and names <= kept.keys()
    if not whole or not all([await is_there(name) for name in bundles]):
        raise Conflict(
            "this checkpoint was not kept whole", code="checkpoint_incomplete", hint="Choose another one."
        )
    stored = [
        facts.ArtifactStored(
            name=name, sha256=each.sha256, size_bytes=each.size_bytes, media_type=each.media_type
        )
        for name, each in kept.items()
        if name in names
    ]
    points = [await _recorded(sessions, session_id, point) for point in chain]
    limits = state.limits
    ours = LimitsPatch(time_s=limits.time_s, tokens=limits.tokens, cost_usd=limits.cost_usd)
    return msgspec.structs.replace(
        command,
        origin=Origin(session_id=session_id, checkpoint_id=chain[-1].id, seq=chain[-1].seq),
        inherited=(*stored, *points),
        limits=command.limits.over(ours),
    )


def _chain(state: SessionState, checkpoint_id: str) -> tuple[SavedPoint, ...]:
    if not checkpoint_id and not state.checkpoints:
        raise Conflict(
            "this session has no checkpoint yet",
            code="no_checkpoint",
            hint="Wait for the end of its first task, or ask for a checkpoint.",
        )
    chain = state.chain(checkpoint_id or state.checkpoints[-1].id)
    if not chain:
        raise NotFound("this session has no such checkpoint", code="checkpoint_not_found")
    return chain


async def _recorded(sessions: Sessions, session_id: str, point: SavedPoint) -> facts.CheckpointCreated:
    """The checkpoint as its event tells it, with the files, which the state keeps of the newest only."""
    ((_, body),) = await sessions.events(session_id, point.seq - 1, 1)
    fact = decode(body).fact
    assert isinstance(fact, facts.CheckpointCreated)
    return msgspec.structs.replace(fact, reason=CheckpointReason.FORK, task_id="")
