"""What clients see of a session: plain data, ready to be encoded. ``docs/protocol.md`` describes the shapes."""

from typing import Any

import msgspec

from ship.events import Record, facts
from ship.model import TaskStatus
from ship.sessions.state import SavedPoint, SessionState

View = dict[str, Any]


def session(session_id: str, state: SessionState) -> View:
    """A session, whole."""
    view: View = msgspec.to_builtins(state)
    for internal in ("cursor", "answers", "heard_at_ms", "losses", "last_text", "checkpoints"):
        del view[internal]
    for task in view["tasks"]:
        for internal in ("steers", "ending_since_ms"):
            del task[internal]
    if view["checkpoint"]:
        for internal in ("diff_artifact", "bundle_artifact"):
            del view["checkpoint"][internal]
    return {"id": session_id, **view}


def summary(session_id: str, state: SessionState) -> View:
    """A session's line in the list, for the encoder."""
    running = state.running
    files = state.checkpoint.files if state.checkpoint else ()
    return {
        "id": session_id,
        "title": state.title,
        "status": state.status,
        "failure": state.failure,
        "repository": state.repository,
        "model": state.model,
        "parent": state.parent,
        "created_by": state.created_by,
        "created_at_ms": state.created_at_ms,
        "updated_at_ms": state.updated_at_ms,
        "head_seq": state.head_seq,
        "last_task_status": _last_task_status(state),
        "open_requests": len(state.requests),
        "running_task": running.id if running else None,
        "queued_tasks": sum(task.status is TaskStatus.QUEUED for task in state.tasks),
        "files_changed": len(files),
        "additions": sum(file.additions for file in files),
        "deletions": sum(file.deletions for file in files),
    }


def checkpoint(point: SavedPoint) -> View:
    """A checkpoint's line in the list."""
    view: View = msgspec.to_builtins(point)
    for internal in ("diff_artifact", "bundle_artifact", "agent_artifact"):
        del view[internal]
    return view


def _last_task_status(state: SessionState) -> TaskStatus | None:
    """Of the task that was begun last, or of the only one that waits."""
    begun = [task for task in state.tasks if task.started_at_ms] or list(state.tasks)
    return begun[-1].status if begun else None


def message(record: Record) -> View | None:
    """What a record says to people, if it says something."""
    fact = record.fact
    match fact:
        case facts.MessagePosted():
            kind, text, task_id = "note", fact.text, None
        case facts.TaskQueued():
            kind, text, task_id = "prompt", fact.prompt, fact.task_id
        case facts.TaskSteered():
            kind, text, task_id = "steer", fact.text, fact.task_id
        case facts.TextFinished():
            kind, text, task_id = "agent", fact.text, fact.task_id
        case _:
            return None
    return {
        "seq": record.seq,
        "kind": kind,
        "author": record.actor.name,
        "text": text,
        "task_id": task_id,
        "at_ms": record.at_ms,
    }
