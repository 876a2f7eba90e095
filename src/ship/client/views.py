"""What the server answers, as frozen values; ``docs/protocol.md`` describes each.

Fields that this version does not know are ignored, so that an older client reads a newer server.
"""

from typing import Literal

import msgspec

from ship.events import Record
from ship.model import (
    AgentMode,
    Approval,
    ChangedFile,
    CheckpointReason,
    Failure,
    LimitKind,
    Limits,
    Origin,
    Parent,
    Question,
    Repository,
    RequestKind,
    SessionStatus,
    TaskStatus,
    Todo,
    Usage,
)


class View(msgspec.Struct, frozen=True, kw_only=True):
    """One JSON object of an answer."""


class Step(View, frozen=True, kw_only=True):
    """One step on the way to a ready sandbox. ``took_ms`` is None while it runs."""

    step: str
    status: Literal["running", "done", "failed"]
    started_at_ms: int
    took_ms: int | None = None
    detail: str = ""


class Restored(View, frozen=True, kw_only=True):
    """What a new sandbox began with: a checkpoint, with the agent's ``conversation`` or without, and what was ``lost``."""

    checkpoint_id: str
    conversation: bool
    lost: tuple[str, ...] = ()


class Sandbox(View, frozen=True, kw_only=True):
    """Where the session's present sandbox stands; generation 0 means that there was none yet."""

    generation: int
    sandbox_id: str | None = None
    status: Literal["none", "creating", "ready", "paused", "failed", "lost"]
    steps: tuple[Step, ...] = ()
    restored: Restored | None = None


class Task(View, frozen=True, kw_only=True):
    """One prompt and the work that it started."""

    id: str
    status: TaskStatus
    prompt: str
    author: str
    model: str
    agent: AgentMode
    queued_at_ms: int
    started_at_ms: int | None = None
    ended_at_ms: int | None = None
    cancel_requested: bool = False
    failure: Failure | None = None
    usage: Usage = Usage()
    limits: Limits = Limits()
    worked_ms: int = 0
    working_since_ms: int = 0
    limit: LimitKind | None = None
    given_up: bool = False
    recovered: bool = False


class OpenRequest(View, frozen=True, kw_only=True):
    """A permission or question that waits for a person."""

    id: str
    task_id: str
    kind: RequestKind
    title: str
    detail: str = ""
    questions: tuple[Question, ...] = ()
    asked_at_ms: int


class Checkpoint(View, frozen=True, kw_only=True):
    """The workspace after a task."""

    id: str
    task_id: str
    commit: str
    base_commit: str
    files: tuple[ChangedFile, ...] = ()


class SavedPoint(View, frozen=True, kw_only=True):
    """A checkpoint as a line of the list; ``seq`` is where it stands in the log."""

    id: str
    seq: int
    at_ms: int
    task_id: str
    reason: CheckpointReason
    commit: str
    base_commit: str
    parent_id: str
    files_changed: int
    additions: int
    deletions: int


class CheckpointAccepted(View, frozen=True, kw_only=True):
    """The checkpoint that will be made."""

    checkpoint_id: str
    seq: int


class ChildAccepted(View, frozen=True, kw_only=True):
    """The child that begins."""

    child_id: str
    seq: int


class Wanted(View, frozen=True, kw_only=True):
    """A checkpoint that was asked for and is not there yet."""

    id: str
    reason: CheckpointReason


class Child(View, frozen=True, kw_only=True):
    """A session that this one started; ``summary`` is what its agent said last."""

    id: str
    task_id: str
    title: str
    status: TaskStatus
    summary: str = ""
    files_changed: int = 0
    additions: int = 0
    deletions: int = 0


class Artifact(View, frozen=True, kw_only=True):
    """A named blob of a session."""

    name: str
    sha256: str
    size_bytes: int
    media_type: str


class Session(View, frozen=True, kw_only=True):
    """The folded state of a session; its log reaches up to ``head_seq``."""

    id: str
    title: str
    status: SessionStatus
    failure: Failure | None = None
    repository: Repository
    model: str
    approval: Approval
    work_branch: str | None = None
    base_commit: str | None = None
    created_by: str
    created_at_ms: int
    updated_at_ms: int
    head_seq: int
    limits: Limits = Limits()
    origin: Origin | None = None
    parent: Parent | None = None
    pause_reason: str = ""
    sandbox: Sandbox
    tasks: tuple[Task, ...] = ()
    requests: tuple[OpenRequest, ...] = ()
    todos: tuple[Todo, ...] = ()
    usage: Usage = Usage()
    checkpoint: Checkpoint | None = None
    wanted_checkpoint: Wanted | None = None
    artifacts: tuple[Artifact, ...] = ()
    children: tuple[Child, ...] = ()
    stuck: bool = False


class SessionSummary(View, frozen=True, kw_only=True):
    """A session as a line of a list."""

    id: str
    title: str
    status: SessionStatus
    failure: Failure | None = None
    repository: Repository
    model: str
    parent: Parent | None = None
    created_by: str
    created_at_ms: int
    updated_at_ms: int
    head_seq: int
    last_task_status: TaskStatus | None = None
    open_requests: int = 0
    running_task: str | None = None
    queued_tasks: int = 0
    files_changed: int = 0
    additions: int = 0
    deletions: int = 0


class SnippetMark(View, frozen=True, kw_only=True):
    """A piece of a snippet, and whether it was looked for."""

    text: str
    match: bool


class Found(View, frozen=True, kw_only=True):
    """A session where a search found something: the best of ``matches`` texts, the message at ``seq`` or the title at 0."""

    session: SessionSummary
    seq: int
    matches: int
    snippet: tuple[SnippetMark, ...]


class FoundPage(View, frozen=True, kw_only=True):
    """What a search found, the best first."""

    items: tuple[Found, ...]
    next_cursor: str | None = None


class SessionPage(View, frozen=True, kw_only=True):
    """Sessions, newest first."""

    items: tuple[SessionSummary, ...]
    next_cursor: str | None = None


class TaskAccepted(View, frozen=True, kw_only=True):
    """Where a new task or steer stands in the log. ``steer_id`` is set when it steers the running task."""

    task_id: str
    seq: int
    steer_id: str | None = None


class Message(View, frozen=True, kw_only=True):
    """What a person or the agent said."""

    seq: int
    kind: Literal["note", "prompt", "steer", "agent"]
    author: str
    text: str
    task_id: str | None = None
    at_ms: int


class MessagePage(View, frozen=True, kw_only=True):
    """Messages, newest last."""

    items: tuple[Message, ...]
    has_more: bool = False


class EventPage(View, frozen=True, kw_only=True):
    """Records in order of ``seq``; the log reaches up to ``head_seq``."""

    items: tuple[Record, ...]
    head_seq: int


class Entry(View, frozen=True, kw_only=True):
    """One file, folder or link of the workspace."""

    name: str
    path: str
    kind: Literal["file", "directory", "symlink"]
    size_bytes: int = 0


class ModelChoice(View, frozen=True, kw_only=True):
    """A model that a task may ask for; ``id`` is ``provider/name``."""

    id: str
    provider: str
    name: str


class Models(View, frozen=True, kw_only=True):
    """The configured models, and which one a task gets that names none."""

    items: tuple[ModelChoice, ...]
    default: str | None = None
