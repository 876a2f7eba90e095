"""What a session is: the value that its log folds to."""

from functools import reduce

from ship.events import Cursor
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
    SessionStatus,
    TaskStatus,
    Todo,
    Usage,
    Value,
)


class Steer(Value, frozen=True):
    """More that was said to a running task."""

    steer_id: str
    text: str


class Task(Value, frozen=True):
    """One prompt and how it goes. Times are 0 until they are known.

    ``worked_ms`` is the time that counts, up to ``working_since_ms``; that is 0 while the clock stands still. ``limit`` is the one
    that was reached, ``given_up`` says that it was stuck: both mean that it is being ended, as a cancel does, since ``ending_since_ms``.
    ``recovered`` says that a sandbox died under it.
    """

    id: str
    status: TaskStatus
    prompt: str
    author: str
    model: str
    agent: AgentMode
    queued_at_ms: int
    started_at_ms: int = 0
    ended_at_ms: int = 0
    cancel_requested: bool = False
    failure: Failure | None = None
    usage: Usage = Usage()
    limits: Limits = Limits()
    worked_ms: int = 0
    working_since_ms: int = 0
    limit: LimitKind | None = None
    given_up: bool = False
    ending_since_ms: int = 0
    recovered: bool = False
    steers: tuple[Steer, ...] = ()

    @property
    def ending(self) -> bool:
        """Whether the runner was told to end it."""
        return self.cancel_requested or self.given_up or self.limit is not None

    def worked(self, now_ms: int) -> int:
        """Milliseconds that count against its time limit."""
        running_ms = now_ms - self.working_since_ms if self.working_since_ms else 0
        return self.worked_ms + max(0, running_ms)


class Request(Value, frozen=True):
    """Something the agent waits for a person to answer."""

    id: str
    task_id: str
    kind: RequestKind
    title: str
    detail: str
    questions: tuple[Question, ...]
    asked_at_ms: int


class Answered(Value, frozen=True):
    """What a person said to a request."""

    request: Request
    answer: Answer


class Step(Value, frozen=True):
    """One step on the way to a ready sandbox; ``status`` is ``running``, ``done`` or ``failed``."""

    step: str
    status: str
    started_at_ms: int
    took_ms: int = 0
    detail: str = ""


class Restored(Value, frozen=True):
    """What a new sandbox began with: a checkpoint, with the agent's ``conversation`` or without, and what was ``lost``."""

    checkpoint_id: str
    conversation: bool
    lost: tuple[str, ...]


class Sandbox(Value, frozen=True):
    """The sandbox of the present generation; ``status`` is ``none``, ``creating``, ``ready``, ``paused``, ``failed`` or ``lost``."""

    generation: int = 0
    sandbox_id: str = ""
    status: str = "none"
    steps: tuple[Step, ...] = ()
    restored: Restored | None = None

    @property
    def is_alive(self) -> bool:
        """Whether its runner may be heard."""
        return self.status in ("creating", "ready", "paused")


class Checkpoint(Value, frozen=True):
    """The newest point that can be restored."""

    id: str
    task_id: str
    commit: str
    base_commit: str
    files: tuple[ChangedFile, ...]
    diff_artifact: str
    bundle_artifact: str


class SavedPoint(Value, frozen=True):
    """A checkpoint as a line of the list: where in the log it stands, what it changed, and what restores it."""

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
    diff_artifact: str
    bundle_artifact: str
    agent_artifact: str

    @property
    def artifacts(self) -> tuple[str, ...]:
        """The names of what it consists of."""
        return tuple(name for name in (self.diff_artifact, self.bundle_artifact, self.agent_artifact) if name)


class Wanted(Value, frozen=True):
    """A checkpoint that was asked for and is not there yet."""

    id: str
    reason: CheckpointReason


class Child(Value, frozen=True):
    """A session that this one started; ``status`` is ``running`` until it is known how its last task ended."""

    id: str
    task_id: str
    title: str
    status: TaskStatus = TaskStatus.RUNNING
    summary: str = ""
    files_changed: int = 0
    additions: int = 0
    deletions: int = 0
    usage: Usage = Usage()


class Artifact(Value, frozen=True):
    """A named blob of the session."""

    name: str
    sha256: str
    size_bytes: int
    media_type: str


class SessionState(Value, frozen=True):
    """All that is true of a session after ``head_seq`` events."""

    title: str
    status: SessionStatus
    repository: Repository
    model: str
    approval: Approval
    created_by: str
    created_at_ms: int
    updated_at_ms: int
    head_seq: int
    limits: Limits = Limits()
    origin: Origin | None = None
    parent: Parent | None = None
    failure: Failure | None = None
    pause_reason: str = ""
    """Why it is paused; empty when it is not."""
    work_branch: str = ""
    base_commit: str = ""
    sandbox: Sandbox = Sandbox()
    cursor: Cursor = Cursor(generation=0, n=0)
    tasks: tuple[Task, ...] = ()
    requests: tuple[Request, ...] = ()
    answers: tuple[Answered, ...] = ()
    """Answers of the running task, kept until it ends so that a reconnecting runner hears them again."""
    todos: tuple[Todo, ...] = ()
    usage: Usage = Usage()
    checkpoint: Checkpoint | None = None
    checkpoints: tuple[SavedPoint, ...] = ()
    """Every checkpoint that can be restored, oldest first."""
    wanted_checkpoint: Wanted | None = None
    artifacts: tuple[Artifact, ...] = ()
    children: tuple[Child, ...] = ()
    stuck: bool = False
    """People were told that the running task is silent, and nothing was heard of it since."""
    heard_at_ms: int = 0
    """When the runner, the model gateway or an answer was last heard."""
    losses: int = 0
    """Sandboxes lost since a task was completed or a person stepped in."""
    last_text: str = ""
    """What a child's agent said last."""

    @property
    def running(self) -> Task | None:
        """The running task; there is at most one."""
        return next((task for task in self.tasks if task.status is TaskStatus.RUNNING), None)

    @property
    def queue(self) -> tuple[Task, ...]:
        """Waiting tasks, the next first."""
        return tuple(task for task in self.tasks if task.status is TaskStatus.QUEUED)

    @property
    def used(self) -> Usage:
        """What it has used, with its children as far as they have told."""
        return reduce(Usage.plus, (child.usage for child in self.children), self.usage)

    @property
    def is_working(self) -> bool:
        """Whether time counts: the agent works and waits for nobody."""
        return self.status is SessionStatus.RUNNING and self.sandbox.status == "ready" and not self.requests

    @property
    def is_waiting(self) -> bool:
        """Whether nothing goes on until somebody does something."""
        return self.status is SessionStatus.READY or (
            self.status is SessionStatus.RUNNING and bool(self.requests)
        )

    def chain(self, checkpoint_id: str) -> tuple[SavedPoint, ...]:
        """The checkpoints whose bundles restore that one, in order; empty when it is not known."""
        known = {point.id: point for point in self.checkpoints}
        chain: list[SavedPoint] = []
        while (point := known.pop(checkpoint_id, None)) is not None:
            chain.append(point)
            checkpoint_id = point.parent_id
        return tuple(reversed(chain))

    def task(self, task_id: str) -> Task | None:
        """The task of that id, if there is one."""
        return next((task for task in self.tasks if task.id == task_id), None)
