"""The shapes of answers. They mirror ``ship.sessions.views``; a test holds the two together."""

from typing import Any, Literal

from ship.api.inputs import Schema
from ship.model import (
    AgentMode,
    Approval,
    CheckpointReason,
    LimitKind,
    RequestKind,
    SearchMode,
    SessionStatus,
    TaskStatus,
)


class Problem(Schema):
    """What went wrong. ``code`` is stable, ``hint`` says what to do."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    hint: str


class FailureOut(Schema):
    """Why: a stable code, words, and what to do."""

    code: str
    reason: str
    hint: str


class RepositoryOut(Schema):
    """What the session works on."""

    source: str
    branch: str


class UsageOut(Schema):
    """Model usage as the gateway counted it."""

    model_calls: int
    input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cost_usd: float


class LimitsOut(Schema):
    """What one task may use; 0 means no limit."""

    time_s: int
    tokens: int
    cost_usd: float


class OriginOut(Schema):
    """The checkpoint that a fork began with."""

    session_id: str
    checkpoint_id: str
    seq: int


class ParentOut(Schema):
    """Whose child it is."""

    session_id: str
    task_id: str
    depth: int


class StepOut(Schema):
    """One step on the way to a ready sandbox."""

    step: str
    status: Literal["running", "done", "failed"]
    started_at_ms: int
    took_ms: int
    detail: str


class RestoredOut(Schema):
    """What a new sandbox began with, and what was lost."""

    checkpoint_id: str
    conversation: bool
    lost: list[str]


class SandboxOut(Schema):
    """Where the sandbox stands."""

    generation: int
    sandbox_id: str
    status: Literal["none", "creating", "ready", "paused", "failed", "lost"]
    steps: list[StepOut]
    restored: RestoredOut | None


class TaskOut(Schema):
    """One prompt and how it goes; times are 0 until known."""

    id: str
    status: TaskStatus
    prompt: str
    author: str
    model: str
    agent: AgentMode
    queued_at_ms: int
    started_at_ms: int
    ended_at_ms: int
    cancel_requested: bool
    failure: FailureOut | None
    usage: UsageOut
    limits: LimitsOut
    worked_ms: int
    working_since_ms: int
    limit: LimitKind | None
    given_up: bool
    recovered: bool


class ChoiceOut(Schema):
    """One offered answer."""

    label: str
    description: str


class QuestionOut(Schema):
    """One question."""

    question: str
    header: str
    options: list[ChoiceOut]
    multiple: bool
    custom: bool


class RequestOut(Schema):
    """Something the agent waits for."""

    id: str
    task_id: str
    kind: RequestKind
    title: str
    detail: str
    questions: list[QuestionOut]
    asked_at_ms: int


class TodoOut(Schema):
    """One line of the agent's plan."""

    content: str
    status: str
    priority: str


class ChangedFileOut(Schema):
    """One changed file; ``status`` is git's letter."""

    path: str
    status: str
    additions: int
    deletions: int


class CheckpointOut(Schema):
    """The newest point that can be restored."""

    id: str
    task_id: str
    commit: str
    base_commit: str
    files: list[ChangedFileOut]


class SavedPointOut(Schema):
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


class SavedPointPage(Schema):
    """The checkpoints that can be restored, oldest first."""

    items: list[SavedPointOut]


class WantedOut(Schema):
    """A checkpoint that was asked for and is not there yet."""

    id: str
    reason: CheckpointReason


class ChildOut(Schema):
    """A session that this one started."""

    id: str
    task_id: str
    title: str
    status: TaskStatus
    summary: str
    files_changed: int
    additions: int
    deletions: int
    usage: UsageOut


class ArtifactOut(Schema):
    """A named blob."""

    name: str
    sha256: str
    size_bytes: int
    media_type: str


class SessionOut(Schema):
    """A session, whole."""

    id: str
    title: str
    status: SessionStatus
    failure: FailureOut | None
    repository: RepositoryOut
    model: str
    approval: Approval
    work_branch: str
    base_commit: str
    created_by: str
    created_at_ms: int
    updated_at_ms: int
    head_seq: int
    limits: LimitsOut
    origin: OriginOut | None
    parent: ParentOut | None
    pause_reason: str
    sandbox: SandboxOut
    tasks: list[TaskOut]
    requests: list[RequestOut]
    todos: list[TodoOut]
    usage: UsageOut
    checkpoint: CheckpointOut | None
    wanted_checkpoint: WantedOut | None
    artifacts: list[ArtifactOut]
    children: list[ChildOut]
    stuck: bool


class SessionSummaryOut(Schema):
    """A session's line in the list."""

    id: str
    title: str
    status: SessionStatus
    failure: FailureOut | None
    repository: RepositoryOut
    model: str
    parent: ParentOut | None
    created_by: str
    created_at_ms: int
    updated_at_ms: int
    head_seq: int
    last_task_status: TaskStatus | None
    open_requests: int
    running_task: str | None
    queued_tasks: int
    files_changed: int
    additions: int
    deletions: int


class SessionPage(Schema):
    """A page of sessions, newest first."""

    items: list[SessionSummaryOut]
    next_cursor: str | None


class SnippetMark(Schema):
    """A piece of a snippet, and whether it was looked for."""

    text: str
    match: bool


class FoundOut(Schema):
    """A session where a search found something: the best of ``matches`` texts, the message at ``seq`` or the title at 0."""

    session: SessionSummaryOut
    seq: int
    matches: int
    snippet: list[SnippetMark]


class FoundPage(Schema):
    """A page of what a search found, the best first."""

    items: list[FoundOut]
    next_cursor: str | None


class TaskAccepted(Schema):
    """The task that was queued, or the running one that was steered."""

    task_id: str
    steer_id: str | None = None
    seq: int


class Accepted(Schema):
    """It is in the log; ``seq`` is the head after it."""

    seq: int
    task_id: str | None = None


class CheckpointAccepted(Schema):
    """The checkpoint that will be made."""

    checkpoint_id: str
    seq: int


class ChildAccepted(Schema):
    """The child that begins."""

    child_id: str
    seq: int


class ChildPage(Schema):
    """The sessions that were started by this one, oldest first."""

    items: list[ChildOut]


class MessageOut(Schema):
    """Something that a person or the agent said."""

    seq: int
    kind: Literal["note", "prompt", "steer", "agent"]
    author: str
    text: str
    task_id: str | None
    at_ms: int


class MessagePage(Schema):
    """The page of messages, newest last."""

    items: list[MessageOut]
    has_more: bool


class ActorOut(Schema):
    """Who caused an event."""

    kind: Literal["user", "agent", "system"]
    name: str


class CursorOut(Schema):
    """Which runner frame an event came in."""

    generation: int
    n: int


class RecordOut(Schema):
    """One event; ``docs/protocol.md`` lists the types and their data."""

    seq: int
    at_ms: int
    type: str
    v: int
    actor: ActorOut
    data: dict[str, Any]
    frame: CursorOut | None


class RecordPage(Schema):
    """A page of the log, oldest first."""

    items: list[RecordOut]
    head_seq: int


class FileOut(Schema):
    """One entry of a folder of the workspace."""

    name: str
    path: str
    kind: Literal["file", "directory", "symlink"]
    size_bytes: int


class FilePage(Schema):
    """A folder."""

    items: list[FileOut]


class ArtifactPage(Schema):
    """The session's artifacts."""

    items: list[ArtifactOut]


class UploadOut(Schema):
    """The uploaded bundle as a repository's ``source``."""

    source: str


class ModelOut(Schema):
    """One model that tasks may name."""

    id: str
    provider: str
    name: str


class ModelPage(Schema):
    """All models; ``default`` is empty when none is configured."""

    items: list[ModelOut]
    default: str


class MeOut(Schema):
    """Who is signed in, and how sessions can be searched here: each a ``mode`` of the search."""

    name: str
    search_modes: list[SearchMode]


class BootstrapRepository(Schema):
    """Where the runner clones from."""

    clone_url: str
    branch: str


class BootstrapModel(Schema):
    """One model of a provider; ``input_tokens`` 0 means that a request may fill the context."""

    name: str
    context_tokens: int
    input_tokens: int
    output_tokens: int
    images: bool


class BootstrapProvider(Schema):
    """A model API as the sandbox reaches it."""

    name: str
    protocol: Literal["openai", "anthropic"]
    base_url: str
    models: list[BootstrapModel]


class BootstrapRestore(Schema):
    """What a new sandbox begins with; ``summary`` is the conversation so far in words."""

    checkpoint_id: str
    bundles: list[str]
    agent_artifact: str
    summary: str
    lost_task: bool


class BootstrapOut(Schema):
    """What a runner is to do."""

    session_id: str
    generation: int
    title: str
    repository: BootstrapRepository
    work_branch: str
    base_commit: str
    restore: BootstrapRestore | None
    depth: int
    approval: Approval
    default_model: str
    providers: list[BootstrapProvider]
