"""Everything that can be asked of a session, and what the machine asks of the world in turn."""

from ship.events import Cursor, Fact, facts
from ship.model import (
    NO_LIMITS,
    Actor,
    AgentMode,
    Answer,
    Approval,
    Failure,
    LimitsPatch,
    Origin,
    Parent,
    Repository,
    Value,
)


class Command(Value, frozen=True):
    """Something to decide on."""


class CreateSession(Command, frozen=True):
    """Begin; with a ``prompt`` the first task (``task_id``) is queued at once. ``limits`` stand on top of the policy's. A fork has an
    ``origin`` and the facts of the checkpoint that it begins with in ``inherited``; a child has a ``parent``."""

    title: str
    repository: Repository
    model: str
    approval: Approval = Approval.AUTO
    prompt: str = ""
    task_id: str = ""
    agent: AgentMode = AgentMode.BUILD
    limits: LimitsPatch = NO_LIMITS
    origin: Origin | None = None
    inherited: tuple[facts.ArtifactStored | facts.CheckpointCreated, ...] = ()
    parent: Parent | None = None


class QueueTask(Command, frozen=True):
    """Work on this after what is queued already. An empty ``model`` means the session's, ``limits`` stand on top of the session's."""

    task_id: str
    prompt: str
    model: str = ""
    agent: AgentMode = AgentMode.BUILD
    limits: LimitsPatch = NO_LIMITS


class EditTask(Command, frozen=True):
    """Change a waiting task, or the limits of the running one; None leaves a value as it is."""

    task_id: str
    prompt: str | None = None
    model: str | None = None
    agent: AgentMode | None = None
    limits: LimitsPatch = NO_LIMITS


class MoveTask(Command, frozen=True):
    """Let a waiting task come before another one, or last when ``before`` is empty."""

    task_id: str
    before: str = ""


class SteerTask(Command, frozen=True):
    """Say more to the running task; where none runs it becomes a task of its own, to which the rest belongs as in ``QueueTask``."""

    task_id: str
    steer_id: str
    text: str
    model: str = ""
    agent: AgentMode = AgentMode.BUILD
    limits: LimitsPatch = NO_LIMITS


class CancelTask(Command, frozen=True):
    """End a queued or running task."""

    task_id: str


class AnswerRequest(Command, frozen=True):
    """A person's answer to what the agent asked."""

    request_id: str
    answer: Answer


class PostMessage(Command, frozen=True):
    """A note to the other people."""

    message_id: str
    text: str


class PauseSession(Command, frozen=True):
    """Freeze it. ``checkpoint_id`` is for the checkpoint of a task that runs."""

    checkpoint_id: str


class ResumeSession(Command, frozen=True):
    """Let it go on."""


class RequestCheckpoint(Command, frozen=True):
    """Make a checkpoint of the workspace as it stands; where one is wanted already, it is that one."""

    checkpoint_id: str


class StartChild(Command, frozen=True):
    """Start a session of its own on the same repository. An empty ``model`` means this session's."""

    child_id: str
    title: str
    prompt: str
    model: str = ""


class FinishChild(Command, frozen=True):
    """A child has nothing left to do."""

    fact: facts.ChildFinished


class RetrySession(Command, frozen=True):
    """Provision a failed session again."""


class ArchiveSession(Command, frozen=True):
    """End it for good."""


class StoreArtifact(Command, frozen=True):
    """A blob was stored under this name."""

    name: str
    sha256: str
    size_bytes: int
    media_type: str


class ReportFrame(Command, frozen=True):
    """The runner reports a fact in its frame ``at``."""

    at: Cursor
    fact: Fact


class ReportProgress(Command, frozen=True):
    """An effect reports a fact about the sandbox of ``generation``."""

    generation: int
    fact: Fact


class ReportMissing(Command, frozen=True):
    """The sandbox of ``generation`` is gone or broke the protocol."""

    generation: int
    reason: str


class ReportFrozen(Command, frozen=True):
    """The host has paused the sandbox of ``generation``."""

    generation: int


class ReportThawed(Command, frozen=True):
    """The host has resumed the sandbox of ``generation``, with its ``memory`` or without."""

    generation: int
    memory: bool


class ReportEnding(Command, frozen=True):
    """The runner of ``generation`` is there, and still ends the running task."""

    generation: int


class RecordModelCall(Command, frozen=True):
    """The gateway forwarded a call for the sandbox of ``generation``."""

    generation: int
    fact: Fact


class RecordEffectFailure(Command, frozen=True):
    """An effect failed for good. ``child_id`` is the child that it should have begun."""

    fact: facts.EffectFailed
    generation: int
    failure: Failure
    child_id: str = ""


class FireAlarm(Command, frozen=True):
    """An alarm is due. ``checkpoint_id`` is for the checkpoint that it may ask for."""

    name: str
    checkpoint_id: str = ""


class Effect(Value, frozen=True, tag_field="kind"):
    """Something to do outside, at least once; known by its id."""

    generation: int


class ProvisionSandbox(Effect, frozen=True, tag="provision_sandbox"):
    """Make the sandbox of this generation and start the runner in it."""


class CheckSandbox(Effect, frozen=True, tag="check_sandbox"):
    """See that it lives and its runner too, and extend its time."""

    sandbox_id: str


class KillSandbox(Effect, frozen=True, tag="kill_sandbox"):
    """End every sandbox of this session up to this generation."""


class PackLog(Effect, frozen=True, tag="pack_log"):
    """Pack the log of a session that is over into a blob."""


class PauseSandbox(Effect, frozen=True, tag="pause_sandbox"):
    """Freeze it, unless the session was resumed meanwhile."""

    sandbox_id: str


class ResumeSandbox(Effect, frozen=True, tag="resume_sandbox"):
    """Thaw it, unless the session was paused meanwhile."""

    sandbox_id: str


class BeginChild(Effect, frozen=True, tag="begin_child"):
    """Create the session of a child that was started by ``by``."""

    child_id: str
    task_id: str
    title: str
    prompt: str
    model: str
    by: Actor


class ReportToParent(Effect, frozen=True, tag="report_to_parent"):
    """Tell the parent how this child's work ended."""


class EndChildren(Effect, frozen=True, tag="end_children"):
    """Archive these children: what they were started for was ended."""

    child_ids: tuple[str, ...]


AnyEffect = (
    ProvisionSandbox
    | CheckSandbox
    | KillSandbox
    | PackLog
    | PauseSandbox
    | ResumeSandbox
    | BeginChild
    | ReportToParent
    | EndChildren
)


class Alarm(Value, frozen=True):
    """Wake this session in ``after_ms``; a later alarm of the same name replaces it, ``None`` clears it."""

    name: str
    after_ms: int | None
