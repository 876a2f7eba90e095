"""What the runner reports: one function per fact, in the shapes of ``docs/protocol.md``, section "The runner link"."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

_VERSIONS = {"checkpoint.created": 2}
OUTPUT_LIMIT = 64 * 1024
"""Bytes of a tool's output that are kept, in UTF-8."""

Delta = dict[str, Any]
"""``{task_id, message_id, part_id, kind, offset, text}``: text that grows, not kept."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact: its type and its data."""

    type: str
    data: dict[str, Any]

    @property
    def version(self) -> int:
        """Of the shape of its data."""
        return _VERSIONS.get(self.type, 1)


def failure(code: str, reason: str, hint: str = "") -> dict[str, Any]:
    return {"code": code, "reason": reason, "hint": hint}


def step_started(generation: int, step: str, detail: str = "") -> Fact:
    return Fact("sandbox.step_started", {"generation": generation, "step": step, "detail": detail})


def step_finished(generation: int, step: str, took_ms: int, detail: str = "") -> Fact:
    return Fact(
        "sandbox.step_finished",
        {"generation": generation, "step": step, "took_ms": took_ms, "detail": detail},
    )


def sandbox_ready(generation: int, base_commit: str, work_branch: str) -> Fact:
    return Fact(
        "sandbox.ready", {"generation": generation, "base_commit": base_commit, "work_branch": work_branch}
    )


def sandbox_failed(generation: int, why: dict[str, Any]) -> Fact:
    return Fact("sandbox.failed", {"generation": generation, "failure": why})


def task_completed(task_id: str) -> Fact:
    return Fact("task.completed", {"task_id": task_id})


def task_failed(task_id: str, why: dict[str, Any]) -> Fact:
    return Fact("task.failed", {"task_id": task_id, "failure": why})


def task_cancelled(task_id: str) -> Fact:
    return Fact("task.cancelled", {"task_id": task_id})


def text_finished(task_id: str, message_id: str, part_id: str, text: str) -> Fact:
    return Fact(
        "text.finished", {"task_id": task_id, "message_id": message_id, "part_id": part_id, "text": text}
    )


def reasoning_finished(task_id: str, message_id: str, part_id: str, text: str, took_ms: int) -> Fact:
    return Fact(
        "reasoning.finished",
        {"task_id": task_id, "message_id": message_id, "part_id": part_id, "text": text, "took_ms": took_ms},
    )


def tool_started(
    task_id: str, message_id: str, part_id: str, tool: str, title: str, arguments: dict[str, Any]
) -> Fact:
    return Fact(
        "tool.started",
        {
            "task_id": task_id,
            "message_id": message_id,
            "part_id": part_id,
            "tool": tool,
            "title": title,
            "input": {name: _shortened(value) for name, value in arguments.items()},
        },
    )


def tool_finished(
    task_id: str, message_id: str, part_id: str, tool: str, title: str, output: str, error: str, took_ms: int
) -> Fact:
    kept, truncated = cut(output)
    return Fact(
        "tool.finished",
        {
            "task_id": task_id,
            "message_id": message_id,
            "part_id": part_id,
            "tool": tool,
            "title": title,
            "output": kept,
            "error": cut(error)[0],
            "truncated": truncated,
            "took_ms": took_ms,
        },
    )


def todos_updated(task_id: str, todos: Sequence[dict[str, str]]) -> Fact:
    return Fact("todos.updated", {"task_id": task_id, "todos": list(todos)})


def request_asked(
    task_id: str,
    request_id: str,
    kind: Literal["permission", "question"],
    title: str,
    detail: str = "",
    questions: Sequence[dict[str, Any]] = (),
) -> Fact:
    return Fact(
        "request.asked",
        {
            "task_id": task_id,
            "request_id": request_id,
            "kind": kind,
            "title": title,
            "detail": cut(detail)[0],
            "questions": list(questions),
        },
    )


def request_withdrawn(request_id: str) -> Fact:
    return Fact("request.withdrawn", {"request_id": request_id})


def agent_retried(task_id: str, attempt: int, reason: str, next_at_ms: int) -> Fact:
    return Fact(
        "agent.retried",
        {"task_id": task_id, "attempt": attempt, "reason": reason, "next_at_ms": next_at_ms},
    )


def agent_restarted(code: str, reason: str) -> Fact:
    return Fact("agent.restarted", {"code": code, "reason": reason})


def sandbox_restored(generation: int, checkpoint_id: str, *, conversation: bool, lost: Sequence[str]) -> Fact:
    return Fact(
        "sandbox.restored",
        {
            "generation": generation,
            "checkpoint_id": checkpoint_id,
            "conversation": conversation,
            "lost": list(lost),
        },
    )


def checkpoint_created(
    checkpoint_id: str,
    task_id: str,
    reason: str,
    *,
    commit: str,
    base_commit: str,
    parent_id: str,
    files: Sequence[dict[str, Any]],
    diff_artifact: str,
    bundle_artifact: str,
    agent_artifact: str,
) -> Fact:
    return Fact(
        "checkpoint.created",
        {
            "checkpoint_id": checkpoint_id,
            "task_id": task_id,
            "reason": reason,
            "commit": commit,
            "base_commit": base_commit,
            "parent_id": parent_id,
            "files": list(files),
            "diff_artifact": diff_artifact,
            "bundle_artifact": bundle_artifact,
            "agent_artifact": agent_artifact,
        },
    )


def checkpoint_failed(checkpoint_id: str, task_id: str, reason: str, why: dict[str, Any]) -> Fact:
    return Fact(
        "checkpoint.failed",
        {"checkpoint_id": checkpoint_id, "task_id": task_id, "reason": reason, "failure": why},
    )


def wire(document: dict[str, Any]) -> str:
    """The document as JSON text that can be encoded: halves of surrogate pairs, which a stream may cut apart, become ``?``."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace").decode()


def cut(text: str, limit: int = OUTPUT_LIMIT) -> tuple[str, bool]:
    """The head and the tail of a text that is longer than ``limit`` bytes of UTF-8, and whether anything is missing."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= limit:
        return encoded.decode(), False
    mark = f"\n\n… {len(encoded) - limit} bytes left out …\n\n".encode()
    head = (limit - len(mark)) // 2
    tail = limit - len(mark) - head
    return b"".join((_whole(encoded[:head]), mark, _whole(encoded[-tail:]))).decode(), True


def _whole(encoded: bytes) -> bytes:
    """Without the characters that a cut left in pieces."""
    return encoded.decode("utf-8", "ignore").encode()


def _shortened(value: Any) -> Any:
    """A tool's argument with long strings cut, however deep they lie."""
    if isinstance(value, str):
        return cut(value)[0]
    if isinstance(value, dict):
        return {name: _shortened(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_shortened(inner) for inner in value]
    return value
