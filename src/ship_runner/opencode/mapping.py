"""From OpenCode's messages and events to ours: pure functions on its JSON (version 1.18)."""

import json
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

from ship_runner import facts
from ship_runner.agent import Outcome
from ship_runner.facts import Fact

Json = Mapping[str, Any]
Keyed = tuple[str, Fact]
"""A fact and the key under which it may be reported once."""

STOPPED = Outcome("interrupted", "connection", "The agent stopped in the middle of its work.")
INTERRUPTED = "The agent was interrupted while this ran."
_CONNECTION_CODES = frozenset(
    {"ECONNRESET", "ECONNREFUSED", "ECONNABORTED", "EPIPE", "ETIMEDOUT", "ENOTFOUND"}
)
_CONNECTION_WORDS = (
    "socket connection was closed",
    "connection reset",
    "unable to connect",
    "econnreset",
    "econnrefused",
    "fetch failed",
    "terminated",
    "network",
    "premature",
    "sse read timed out",
)


def new_message_id() -> str:
    """An id in OpenCode's own form, ``msg_`` + 12 hex digits of time + 14 letters: it orders messages by their ids."""
    stamp = (time.time_ns() // 1_000_000 * 0x1000) & 0xFFFF_FFFF_FFFF
    return f"msg_{stamp:012x}{os.urandom(7).hex()}"


def order(identifier: str) -> str:
    """The part of an OpenCode id that orders it among all ids, whatever they name."""
    return identifier.partition("_")[2][:12]


def part_facts(task_id: str, part: Json, *, over: bool) -> list[Keyed]:
    """What a part of an answer tells by now; ``over`` says that nothing will be added to it."""
    match part["type"]:
        case "text":
            return _text(task_id, part, over)
        case "reasoning":
            return _reasoning(task_id, part, over)
        case "tool":
            return _tool(task_id, part, over)
    return []


def _text(task_id: str, part: Json, over: bool) -> list[Keyed]:
    ended = over or "end" in (part.get("time") or {})
    if not ended or not part["text"].strip() or part.get("synthetic") or part.get("ignored"):
        return []
    fact = facts.text_finished(task_id, part["messageID"], part["id"], part["text"])
    return [(f"text:{part['id']}", fact)]


def _reasoning(task_id: str, part: Json, over: bool) -> list[Keyed]:
    times = part.get("time") or {}
    if not (over or "end" in times) or not part["text"].strip():
        return []
    took_ms = times["end"] - times["start"] if "end" in times else 0
    fact = facts.reasoning_finished(task_id, part["messageID"], part["id"], part["text"], took_ms)
    return [(f"reasoning:{part['id']}", fact)]


def _tool(task_id: str, part: Json, over: bool) -> list[Keyed]:
    state = part["state"]
    status = state["status"]
    if status == "pending" and not over:
        return []
    ids = (task_id, part["messageID"], part["id"], part["tool"])
    title = state.get("title") or _tool_title(state.get("input") or {})
    found = [(f"tool.started:{part['id']}", facts.tool_started(*ids, title, dict(state.get("input") or {})))]
    times = state.get("time") or {}
    took_ms = times["end"] - times["start"] if "end" in times else 0
    output = state.get("output") or (state.get("metadata") or {}).get("output") or ""
    if status == "completed":
        finished = facts.tool_finished(*ids, title, output, "", took_ms)
    elif status == "error":
        finished = facts.tool_finished(*ids, title, output, state.get("error") or "The tool failed.", took_ms)
    elif over:
        finished = facts.tool_finished(*ids, title, output, INTERRUPTED, took_ms)
    else:
        return found
    return [*found, (f"tool.finished:{part['id']}", finished)]


def _tool_title(arguments: Json) -> str:
    """A line that says what a call does, until the tool gives its own."""
    for name in ("description", "command", "filePath", "path", "pattern", "url", "query"):
        value = arguments.get(name)
        if isinstance(value, str) and value:
            return value.splitlines()[0][:200]
    return ""


def running_output(part: Json) -> str | None:
    """What a running tool has printed so far, or None."""
    if part["type"] != "tool" or part["state"]["status"] != "running":
        return None
    output = (part["state"].get("metadata") or {}).get("output")
    return output if isinstance(output, str) else None


def permission_asked(task_id: str, request: Json) -> Keyed:
    """A permission that the agent waits for: what it wants to do, and the command or the change itself."""
    metadata = request.get("metadata") or {}
    patterns = [str(pattern) for pattern in request.get("patterns") or ()]
    what = metadata.get("command") or metadata.get("filepath") or ", ".join(patterns)
    title = f"{request['permission']}: {str(what).splitlines()[0] if what else ''}"[:300]
    detail = metadata.get("diff") or metadata.get("command") or "\n".join(patterns)
    fact = facts.request_asked(task_id, request["id"], "permission", title, str(detail))
    return f"asked:{request['id']}", fact


def question_asked(task_id: str, request: Json) -> Keyed:
    """Questions that the agent waits for."""
    questions = [
        {
            "question": str(question["question"]),
            "header": str(question.get("header") or ""),
            "options": [
                {"label": str(option["label"]), "description": str(option.get("description") or "")}
                for option in question.get("options") or ()
            ],
            "multiple": bool(question.get("multiple")),
            "custom": question.get("custom") is not False,
        }
        for question in request["questions"]
    ]
    title = questions[0]["question"] if questions else "The agent has a question"
    fact = facts.request_asked(task_id, request["id"], "question", str(title)[:300], "", questions)
    return f"asked:{request['id']}", fact


def todos(listed: Iterable[Json]) -> list[dict[str, str]]:
    return [
        {
            "content": str(todo.get("content", "")),
            "status": str(todo.get("status", "")),
            "priority": str(todo.get("priority") or ""),
        }
        for todo in listed
    ]


def error_outcome(error: Json) -> Outcome:
    """What an error of a message or a session means for the run."""
    name = error.get("name", "")
    data = error.get("data") or {}
    message = _without_stack(str(data.get("message") or name or "unknown error"))
    if name == "MessageAbortedError":
        return Outcome("aborted")
    if said := _said_by_gateway(data.get("responseBody")):
        return said
    if "ProviderModelNotFoundError" in (name, message.partition(":")[0]) or name == "ProviderInitError":
        return Outcome(
            "failed", "model_not_configured", message, "Choose another model, or configure this one."
        )
    if name == "ProviderAuthError":
        return Outcome("failed", "model_key_refused", message, "Check the model's key.")
    if "statusCode" not in data and _broken_connection(data, message):
        return Outcome("interrupted", "connection", message)
    status = f" (status {data['statusCode']})" if "statusCode" in data else ""
    return Outcome("failed", "model_error", f"The model answered with an error{status}: {message[:2000]}")


def _without_stack(message: str) -> str:
    return message.partition("\n    at ")[0].strip()


def _said_by_gateway(body: Any) -> Outcome | None:
    """The gateway's own words, ``{"error": {"code", "message", "hint"?}}``, when the body has them."""
    try:
        error = json.loads(body)["error"]
        code, message = error["code"], error["message"]
    except (TypeError, ValueError, KeyError):
        return None
    if not isinstance(code, str) or not code.startswith(("model_", "budget_", "limit_", "gateway_")):
        return None
    return Outcome("failed", code, str(message)[:2000], str(error.get("hint") or ""))


def _broken_connection(data: Json, message: str) -> bool:
    code = str((data.get("metadata") or {}).get("code") or "")
    lowered = message.lower()
    return code in _CONNECTION_CODES or any(words in lowered for words in _CONNECTION_WORDS)


def _takes_up(answer: Json, message_id: str) -> bool:
    """Whether an answer was begun in the knowledge of a message; ``parentID`` is the last message that it knew."""
    return order(answer.get("parentID") or answer["id"]) >= order(message_id)


def idle_outcome(messages: list[Json], message_id: str, session_error: Json | None) -> Outcome | None:
    """How the run that ``message_id`` started has ended, given that the agent stands idle; None when it has not begun."""
    answers = [
        message["info"]
        for message in messages
        if message["info"]["role"] == "assistant" and _takes_up(message["info"], message_id)
    ]
    if session_error is not None and (not answers or not answers[-1].get("finish")):
        return error_outcome(session_error)
    if not answers:
        return None
    last = answers[-1]
    if last.get("error"):
        return error_outcome(last["error"])
    if not (last.get("time") or {}).get("completed") or last.get("finish") in {"tool-calls", "unknown", None}:
        return STOPPED
    return Outcome("completed")
