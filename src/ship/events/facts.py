"""Every fact that a session's log can hold.

Each class is one event type: frozen, named in the past tense by ``TYPE``, versioned by ``VERSION``, refusing unknown
fields. A changed shape gets the next version, an upcaster for the old one and a golden file of its own.
``docs/protocol.md`` lists them for clients; a test compares the two.
"""

from typing import Any, ClassVar

import msgspec

from ship.model import (
    AgentMode,
    Answer,
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
    TaskStatus,
    Todo,
    Usage,
)


class Fact(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of one event."""

    TYPE: ClassVar[str]
    VERSION: ClassVar[int] = 1


class SessionCreated(Fact, frozen=True, kw_only=True):
    """A session came to be. ``model`` is ``provider/name``, ``limits`` hold for each of its tasks that names none. A fork has an
    ``origin``, a child a ``parent``."""

    TYPE = "session.created"
    VERSION = 2
    title: str
    repository: Repository
    model: str
    approval: Approval = Approval.AUTO
    limits: Limits = Limits()
    origin: Origin | None = None
    parent: Parent | None = None


class SessionFailed(Fact, frozen=True, kw_only=True):
    """The session cannot go on by itself; a retry or a new task provisions it again."""

    TYPE = "session.failed"
    failure: Failure


class SessionPaused(Fact, frozen=True, kw_only=True):
    """Its sandbox is to be frozen, with whatever runs in it. ``reason`` is ``idle``, ``asked`` or ``resume_failed``."""

    TYPE = "session.paused"
    reason: str


class SessionResumed(Fact, frozen=True, kw_only=True):
    """Its sandbox is to go on. ``reason`` is ``asked``, ``task``, ``steer``, ``answer``, ``cancel``, ``checkpoint`` or
    ``pause_failed``."""

    TYPE = "session.resumed"
    reason: str


class SessionArchived(Fact, frozen=True, kw_only=True):
    """The end: no event follows."""

    TYPE = "session.archived"


class SandboxRequested(Fact, frozen=True, kw_only=True):
    """A sandbox of this generation is to be made; lower generations are refused from here on."""

    TYPE = "sandbox.requested"
    generation: int
    reason: str = ""


class SandboxCreated(Fact, frozen=True, kw_only=True):
    """The sandbox host made it."""

    TYPE = "sandbox.created"
    generation: int
    sandbox_id: str


class SandboxStepStarted(Fact, frozen=True, kw_only=True):
    """A step on the way to a ready sandbox began: ``create``, ``runner``, ``clone``, ``agent``."""

    TYPE = "sandbox.step_started"
    generation: int
    step: str
    detail: str = ""


class SandboxStepFinished(Fact, frozen=True, kw_only=True):
    """That step ended well."""

    TYPE = "sandbox.step_finished"
    generation: int
    step: str
    took_ms: int
    detail: str = ""


class SandboxReady(Fact, frozen=True, kw_only=True):
    """Repository and agent stand ready. ``work_branch`` was made at ``base_commit``."""

    TYPE = "sandbox.ready"
    generation: int
    base_commit: str
    work_branch: str


class SandboxFailed(Fact, frozen=True, kw_only=True):
    """This sandbox did not become ready."""

    TYPE = "sandbox.failed"
    generation: int
    failure: Failure


class SandboxLost(Fact, frozen=True, kw_only=True):
    """The sandbox is gone although nobody ended it."""

    TYPE = "sandbox.lost"
    generation: int
    reason: str


class SandboxPaused(Fact, frozen=True, kw_only=True):
    """The sandbox host froze it."""

    TYPE = "sandbox.paused"
    generation: int


class SandboxResumed(Fact, frozen=True, kw_only=True):
    """It goes on. ``memory`` says whether its processes go on where they were; without it only the files came back."""

    TYPE = "sandbox.resumed"
    generation: int
    memory: bool


class SandboxRestored(Fact, frozen=True, kw_only=True):
    """The runner brought a checkpoint back into a new sandbox, or had none to bring back (``checkpoint_id`` is empty): ``conversation``
    says whether the agent remembers, ``lost`` what did not come back, in plain words."""

    TYPE = "sandbox.restored"
    generation: int
    checkpoint_id: str
    conversation: bool
    lost: tuple[str, ...] = ()


class TaskQueued(Fact, frozen=True, kw_only=True):
    """Somebody asked for work. ``limits`` are those that hold for it."""

    TYPE = "task.queued"
    VERSION = 2
    task_id: str
    prompt: str
    model: str
    agent: AgentMode = AgentMode.BUILD
    limits: Limits = Limits()


class TaskEdited(Fact, frozen=True, kw_only=True):
    """Somebody changed a task: these are its values now. Of a running task only ``limits`` change."""

    TYPE = "task.edited"
    task_id: str
    prompt: str
    model: str
    agent: AgentMode
    limits: Limits


class TaskMoved(Fact, frozen=True, kw_only=True):
    """Somebody moved a waiting task: it comes before the waiting task ``before``, or last when that is empty."""

    TYPE = "task.moved"
    task_id: str
    before: str = ""


class TaskStarted(Fact, frozen=True, kw_only=True):
    """The task is the running one now."""

    TYPE = "task.started"
    task_id: str


class TaskSteered(Fact, frozen=True, kw_only=True):
    """Somebody said more to the running task."""

    TYPE = "task.steered"
    task_id: str
    steer_id: str
    text: str


class TaskInterrupted(Fact, frozen=True, kw_only=True):
    """The sandbox of ``generation`` died under the task, which goes on in the next one."""

    TYPE = "task.interrupted"
    task_id: str
    generation: int
    reason: str


class TaskLimitReached(Fact, frozen=True, kw_only=True):
    """The task has used up a limit and is ended: ``value`` of the ``allowed`` seconds, tokens or dollars."""

    TYPE = "task.limit_reached"
    task_id: str
    limit: LimitKind
    value: float
    allowed: float


class TaskStuck(Fact, frozen=True, kw_only=True):
    """Neither the agent nor a model call was heard of for ``idle_ms``. ``given_up`` says that the task is ended for it."""

    TYPE = "task.stuck"
    task_id: str
    idle_ms: int
    given_up: bool = False


class TaskCancelRequested(Fact, frozen=True, kw_only=True):
    """Somebody wants the running task to end."""

    TYPE = "task.cancel_requested"
    task_id: str


class TaskCompleted(Fact, frozen=True, kw_only=True):
    """The agent is done with the task."""

    TYPE = "task.completed"
    task_id: str


class TaskFailed(Fact, frozen=True, kw_only=True):
    """The task ended without being done."""

    TYPE = "task.failed"
    task_id: str
    failure: Failure


class TaskCancelled(Fact, frozen=True, kw_only=True):
    """The task was ended by a person."""

    TYPE = "task.cancelled"
    task_id: str


class MessagePosted(Fact, frozen=True, kw_only=True):
    """A note from one person to the others; the agent does not see it."""

    TYPE = "message.posted"
    message_id: str
    text: str


class TextFinished(Fact, frozen=True, kw_only=True):
    """The agent said something."""

    TYPE = "text.finished"
    task_id: str
    message_id: str
    part_id: str
    text: str


class ReasoningFinished(Fact, frozen=True, kw_only=True):
    """The agent thought aloud."""

    TYPE = "reasoning.finished"
    task_id: str
    message_id: str
    part_id: str
    text: str
    took_ms: int = 0


class ToolStarted(Fact, frozen=True, kw_only=True):
    """The agent called a tool. ``input`` is the tool's own JSON object."""

    TYPE = "tool.started"
    task_id: str
    message_id: str
    part_id: str
    tool: str
    title: str = ""
    input: dict[str, Any] = {}


class ToolFinished(Fact, frozen=True, kw_only=True):
    """The call ended; ``error`` is empty when it went well. ``truncated`` says that ``output`` was cut."""

    TYPE = "tool.finished"
    task_id: str
    message_id: str
    part_id: str
    tool: str
    title: str = ""
    output: str = ""
    error: str = ""
    truncated: bool = False
    took_ms: int = 0


class TodosUpdated(Fact, frozen=True, kw_only=True):
    """The agent's plan, whole."""

    TYPE = "todos.updated"
    task_id: str
    todos: tuple[Todo, ...]


class RequestAsked(Fact, frozen=True, kw_only=True):
    """The agent waits for a person: a permission (``title`` says for what, ``detail`` shows it) or questions."""

    TYPE = "request.asked"
    task_id: str
    request_id: str
    kind: RequestKind
    title: str
    detail: str = ""
    questions: tuple[Question, ...] = ()


class RequestAnswered(Fact, frozen=True, kw_only=True):
    """A person answered."""

    TYPE = "request.answered"
    request_id: str
    answer: Answer


class RequestWithdrawn(Fact, frozen=True, kw_only=True):
    """The agent no longer waits for it."""

    TYPE = "request.withdrawn"
    request_id: str


class AgentRetried(Fact, frozen=True, kw_only=True):
    """The agent tries its model again after an error; ``next_at_ms`` is when."""

    TYPE = "agent.retried"
    task_id: str
    attempt: int
    reason: str
    next_at_ms: int = 0


class AgentRestarted(Fact, frozen=True, kw_only=True):
    """The agent's process was started anew; ``code`` is ``crashed``, ``hung``, ``looping`` or ``oversized``."""

    TYPE = "agent.restarted"
    code: str
    reason: str


class CheckpointRequested(Fact, frozen=True, kw_only=True):
    """A checkpoint of the workspace as it stands is wanted, also in the middle of a task."""

    TYPE = "checkpoint.requested"
    checkpoint_id: str
    reason: CheckpointReason


class CheckpointCreated(Fact, frozen=True, kw_only=True):
    """The workspace, committed on a ref of its own. ``diff_artifact`` names the stored diff against ``base_commit``,
    ``bundle_artifact`` the git bundle that restores it on top of the bundle of ``parent_id`` (by itself when that is empty),
    ``agent_artifact`` the agent's own state. Outside of a task ``task_id`` is empty."""

    TYPE = "checkpoint.created"
    VERSION = 2
    checkpoint_id: str
    task_id: str
    commit: str
    base_commit: str
    files: tuple[ChangedFile, ...]
    diff_artifact: str
    bundle_artifact: str = ""
    reason: CheckpointReason = CheckpointReason.TASK
    agent_artifact: str = ""
    parent_id: str = ""


class CheckpointFailed(Fact, frozen=True, kw_only=True):
    """The work could not be kept: no checkpoint was made. The files are still in the sandbox; the task goes on, or ends as it did."""

    TYPE = "checkpoint.failed"
    checkpoint_id: str
    task_id: str
    reason: CheckpointReason
    failure: Failure


class ArtifactStored(Fact, frozen=True, kw_only=True):
    """A named blob of the session was written; a later one of the same name replaces it."""

    TYPE = "artifact.stored"
    name: str
    sha256: str
    size_bytes: int
    media_type: str


class ModelCalled(Fact, frozen=True, kw_only=True):
    """The gateway forwarded one model call. ``status`` is the provider's HTTP status, 0 when it was not reached;
    ``failure`` is set when the call did not succeed."""

    TYPE = "model.called"
    task_id: str
    provider: str
    model: str
    status: int
    took_ms: int
    usage: Usage
    failure: Failure | None = None


class ChildStarted(Fact, frozen=True, kw_only=True):
    """A session of its own was started on the same repository; ``task_id`` is the task that did, empty when a person did."""

    TYPE = "child.started"
    child_id: str
    task_id: str
    title: str
    prompt: str
    model: str


class ChildFinished(Fact, frozen=True, kw_only=True):
    """The child has nothing left to do: how its last task ended, what its agent said last, what it changed, and what it has used so
    far, with its own children."""

    TYPE = "child.finished"
    VERSION = 2
    child_id: str
    status: TaskStatus
    summary: str
    files_changed: int = 0
    additions: int = 0
    deletions: int = 0
    usage: Usage = Usage()


class EffectFailed(Fact, frozen=True, kw_only=True):
    """Something Ship had to do outside the log failed for good."""

    TYPE = "effect.failed"
    effect_id: str
    kind: str
    attempts: int
    failure: Failure


FACTS: tuple[type[Fact], ...] = tuple(Fact.__subclasses__())
"""Every event type, in the order of this module."""
