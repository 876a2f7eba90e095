"""Snapshots of sandboxes, and forks."""

import asyncio
import base64
import binascii
from collections.abc import Callable
from typing import Any

from ..errors import ApiError, BadRequest, LaunchFailed, disk_full
from ..lifecycle.sandbox import Sandbox
from ..lifecycle.sandboxes import Sandboxes
from ..lifecycle.snapshots import DEFAULT_TAG, Snapshot, Snapshots
from .call import Answer, Call, Route, parse_number, parse_timeout

MAX_FORKS = 100
MAX_PAGE = 100
DEFAULT_FORK_TIMEOUT_S = 15
_FORKS_AT_ONCE = 8


class SnapshotRoutes:
    """`handle_of` writes a sandbox as its maker is answered."""

    def __init__(
        self, sandboxes: Sandboxes, snapshots: Snapshots, handle_of: Callable[[Sandbox], dict[str, Any]]
    ) -> None:
        self._sandboxes = sandboxes
        self._snapshots = snapshots
        self._handle_of = handle_of

    def table(self) -> list[Route]:
        return [
            Route("POST", "/sandboxes/{sandboxID}/snapshots", self._snapshot),
            Route("POST", "/sandboxes/{sandboxID}/fork", self._fork),
            Route("GET", "/snapshots", self._list),
        ]

    async def _snapshot(self, call: Call) -> Answer:
        name = call.body.get("name") or ""
        if not isinstance(name, str):
            raise BadRequest("name must be a text")
        sandbox = self._sandboxes.get(call.sandbox_id, call.tenant)
        await self._snapshots.check_room(call.tenant, name)
        template, size_bytes = await self._sandboxes.capture(sandbox.id)
        return Answer(
            201, _told(await self._snapshots.add(call.tenant, name, sandbox.id, template, size_bytes))
        )

    async def _list(self, call: Call) -> Answer:
        """A page of snapshots, newest first; the header X-Next-Token leads to the next one."""
        query = call.query
        found = await self._snapshots.all(call.tenant)
        if query.get("sandboxID"):
            sandbox_id = query["sandboxID"].partition("-")[0]
            found = [snapshot for snapshot in found if snapshot.sandbox_id == sandbox_id]
        if query.get("name"):
            found = [snapshot for snapshot in found if _is_called(snapshot, query["name"])]
        if query.get("nextToken"):
            last = _decode_token(query["nextToken"])
            found = [snapshot for snapshot in found if (snapshot.created_at, snapshot.id) < last]
        limit = min(max(parse_number(query.get("limit", str(MAX_PAGE)), "limit"), 1), MAX_PAGE)
        page = found[:limit]
        fields = [("X-Next-Token", _encode_token(page[-1]))] if len(found) > limit else []
        return Answer(200, [_told(snapshot) for snapshot in page], fields)

    async def _fork(self, call: Call) -> Answer:
        timeout_s = parse_timeout(call.body.get("timeout", DEFAULT_FORK_TIMEOUT_S))
        count = call.body.get("count", 1)
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_FORKS:
            raise BadRequest(f"count must be a number from 1 to {MAX_FORKS}")
        sandbox = self._sandboxes.get(call.sandbox_id, call.tenant)
        template, _ = await self._sandboxes.capture(sandbox.id)
        few = asyncio.Semaphore(_FORKS_AT_ONCE)

        async def fork() -> dict[str, Any]:
            async with few:
                try:
                    return {
                        "sandbox": self._handle_of(await self._sandboxes.fork(sandbox, template, timeout_s))
                    }
                except ApiError as error:
                    return {"error": _refusal(error)}
                except OSError as error:
                    return {"error": _refusal(disk_full(error) or LaunchFailed(str(error)))}

        return Answer(201, await asyncio.gather(*(fork() for _ in range(count))))


def _refusal(error: ApiError) -> dict[str, Any]:
    return {"code": error.status, "message": str(error), "error_code": error.code}


def _told(snapshot: Snapshot) -> dict[str, Any]:
    return {"snapshotID": snapshot.reference, "names": [snapshot.reference] if snapshot.name else []}


def _is_called(snapshot: Snapshot, wanted: str) -> bool:
    """By name or id, with or without its tag and its tenant."""
    name, _, tag = wanted.removeprefix(f"{snapshot.tenant}/").partition(":")
    if name == snapshot.id:
        return tag in ("", DEFAULT_TAG)
    return name.lower() == snapshot.name and tag in ("", snapshot.tag)


def _encode_token(snapshot: Snapshot) -> str:
    return base64.urlsafe_b64encode(f"{snapshot.created_at!r} {snapshot.id}".encode()).decode()


def _decode_token(token: str) -> tuple[float, str]:
    try:
        created_at, _, snapshot_id = base64.urlsafe_b64decode(token).decode().partition(" ")
        return float(created_at), snapshot_id
    except (binascii.Error, ValueError) as error:
        raise BadRequest("nextToken is not one that this host gave", "next_token_invalid") from error
