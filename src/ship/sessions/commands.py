"""Everything that can be asked of a session, and what the machine asks of the world in turn."""

from ship.events import Cursor, Fact
from ship.model import AgentMode, Answer, Approval, Failure, Repository, Value


class Command(Value, frozen=True):
    """Something to decide on."""


class CreateSession(Command, frozen=True):
    """Begin; with a ``prompt`` the first task (``task_id``) is queued at once."""

    title: str
    repository: Repository
    model: str
    approval: Approval = Approval.AUTO
    prompt: str = ""
    task_id: str = ""
    agent: AgentMode = AgentMode.BUILD


class QueueTask(Command, frozen=True):
    """Work on this after what is queued already. An empty ``model`` means the session's."""

    task_id: str
    prompt: str
    model: str = ""
    agent: AgentMode = AgentMode.BUILD


class SteerTask(Command, frozen=True):
    """Say more to the running task; where none runs it becomes a task of its own."""

    task_id: str
    steer_id: str
    text: str
    model: str = ""
    agent: AgentMode = AgentMode.BUILD


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


class RecordModelCall(Command, frozen=True):
    """The gateway forwarded a call for the sandbox of ``generation``."""

    generation: int
    fact: Fact


class RecordEffectFailure(Command, frozen=True):
    """An effect failed for good."""

    fact: Fact
    generation: int
    failure: Failure


class FireAlarm(Command, frozen=True):
    """An alarm is due."""

    name: str


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


AnyEffect = ProvisionSandbox | CheckSandbox | KillSandbox


class Alarm(Value, frozen=True):
    """Wake this session in ``after_ms``; a later alarm of the same name replaces it, ``None`` clears it."""

    name: str
    after_ms: int | None
