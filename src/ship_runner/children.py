"""The agent's tools to start sessions of their own beside its own, and to read what came of them."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from ship_runner.mcp import Tool, ToolFailed

if TYPE_CHECKING:
    import httpx

    from ship_runner.control import ControlPlane

LOOK_S = 3.0
"""How often a waiting call looks."""
UNREACHABLE_S = 120.0
"""How long a call that does not wait bears a control plane that is away."""

_START = {
    "type": "object",
    "properties": {
        "prompt": {
            "type": "string",
            "description": "The whole task, for an agent that knows nothing of this conversation.",
        },
        "title": {"type": "string", "description": "A few words for the people who watch."},
        "model": {"type": "string", "description": "provider/name; this session's own where it is left out."},
    },
    "required": ["prompt"],
    "additionalProperties": False,
}
_STATUS = {
    "type": "object",
    "properties": {
        "session_id": {
            "type": "string",
            "description": "As start_session gave it; all where it is left out.",
        },
        "wait": {"type": "boolean", "description": "Answer only when the session's task has ended."},
    },
    "additionalProperties": False,
}


def tools(url: str, token: str) -> list[Tool]:
    """``start_session`` and ``session_status``, of the control plane at ``url``."""
    children = _Children(url, token)
    return [
        Tool(
            "start_session",
            "Start another session: an agent of its own in a sandbox of its own, on the same repository as it is at its base, that "
            "works on a task beside you. Answers at once with the session's id; read the result with session_status. Its changes "
            "stay in its session, where people review them.",
            _START,
            children.start,
        ),
        Tool(
            "session_status",
            "How sessions that you started stand: running, completed, failed or cancelled, what their agent said last, and how much it "
            "changed. With wait it answers when the task has ended, however long that takes.",
            _STATUS,
            children.status,
        ),
    ]


class _Children:
    def __init__(self, url: str, token: str) -> None:
        self._terms = (url, token)
        self._unanswered: dict[str, str] = {}

    @cached_property
    def _control(self) -> "ControlPlane":
        # The agent waits for this process when it starts, and seldom calls: what takes long to import comes with the first call.
        from ship_runner.control import ControlPlane

        return ControlPlane(*self._terms)

    async def start(self, arguments: Mapping[str, Any]) -> str:
        prompt = arguments.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            raise ToolFailed("The prompt is missing: say the whole task in it.")
        wanted = {name: arguments[name] for name in ("prompt", "title", "model") if arguments.get(name)}
        child = await self._started(wanted)
        return f"Started session {child['child_id']}. Ask session_status for its result."

    async def _started(self, wanted: dict[str, Any]) -> Any:
        """One session, also when the answer to an earlier try was lost, be it this call's or the agent's call before it."""
        asked = json.dumps(wanted)
        key = self._unanswered.pop(asked, "") or token_hex(16)
        try:
            return await self._asked(lambda: self._control.start_child(wanted, key), patience_s=UNREACHABLE_S)
        except BaseException:
            self._unanswered[asked] = key
            raise

    async def status(self, arguments: Mapping[str, Any]) -> str:
        session_id, wait = arguments.get("session_id"), bool(arguments.get("wait"))
        patience_s = None if wait else UNREACHABLE_S
        while True:
            if session_id:
                found = [
                    await self._asked(lambda: self._control.child(str(session_id)), patience_s=patience_s)
                ]
            else:
                found = await self._asked(self._control.children, patience_s=patience_s)
            if not wait or all(child["status"] != "running" for child in found):
                return "\n\n".join(map(_described, found)) or "You have started no session."
            await asyncio.sleep(LOOK_S)

    async def _asked(self, work: Callable[[], Awaitable[Any]], *, patience_s: float | None) -> Any:
        """Ask, and again while the control plane is away; ``None`` is patience without an end."""
        import httpx

        started = time.monotonic()
        while True:
            try:
                return await work()
            except httpx.HTTPStatusError as error:
                if error.response.status_code < 500:
                    raise ToolFailed(_problem(error.response)) from error
                reason = _problem(error.response)
            except httpx.HTTPError as error:
                reason = f"Ship does not answer: {error!r}"
            if patience_s is not None and time.monotonic() - started >= patience_s:
                raise ToolFailed(f"{reason} Try again later.")
            await asyncio.sleep(LOOK_S)


def _described(child: Mapping[str, Any]) -> str:
    changed = f"{child['files_changed']} files changed, +{child['additions']} -{child['deletions']}"
    lines = [f"session {child['id']}: {child['title']}", f"status: {child['status']}", changed]
    if child["summary"]:
        lines += ["", child["summary"]]
    return "\n".join(lines)


def _problem(answer: "httpx.Response") -> str:
    """What an ``application/problem+json`` says, for the model."""
    try:
        document = answer.json()
        return " ".join(filter(None, (str(document["detail"]), str(document.get("hint") or ""))))
    except (ValueError, KeyError, TypeError):
        return f"Ship answered with status {answer.status_code}."
