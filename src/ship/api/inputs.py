"""The shapes of what requests carry: bodies and queries."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from ship.model import AgentMode, Approval, PermissionReply

MAX_SEQ = 2**53

Prompt = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
Name = Annotated[str, StringConstraints(max_length=200)]
Limit = Annotated[int, Field(ge=1, le=500)]
Place = Annotated[int, Field(ge=1, le=MAX_SEQ)]
"""The seq of an event that there is."""


class Schema(BaseModel):
    """Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class RepositoryIn(Schema):
    """``source``: an http(s) URL, an absolute path on the server below an allowed root, or ``upload:<sha256>``."""

    source: Annotated[str, StringConstraints(min_length=1, max_length=2000, strip_whitespace=True)]
    branch: Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x20\x7f]*$")] = ""


class LimitsIn(Schema):
    """What one task may use; 0 means no limit, what is left out stays as it is."""

    time_s: Annotated[int, Field(ge=0, le=10**9)] | None = None
    tokens: Annotated[int, Field(ge=0, le=10**12)] | None = None
    cost_usd: Annotated[float, Field(ge=0, le=10**9, allow_inf_nan=False)] | None = None


class SessionIn(Schema):
    """A new session; with a prompt its first task is queued at once. ``model`` is ``provider/name``."""

    repository: RepositoryIn
    prompt: Annotated[str, StringConstraints(strip_whitespace=True)] = ""
    title: Annotated[str, StringConstraints(max_length=200, strip_whitespace=True)] = ""
    model: Name = ""
    agent: AgentMode = AgentMode.BUILD
    approval: Approval = Approval.AUTO
    limits: LimitsIn | None = None


class TaskIn(Schema):
    """A follow-up. ``steer`` says it to the running task, ``queue`` waits for its end. The rest is for a task of its own, which a steer
    becomes where none runs."""

    prompt: Prompt
    model: Name = ""
    agent: AgentMode = AgentMode.BUILD
    mode: Literal["queue", "steer"] = "queue"
    limits: LimitsIn | None = None


class TaskChange(Schema):
    """What is to be different about a waiting task; of the running one only ``limits``."""

    prompt: Prompt | None = None
    model: Name | None = None
    agent: AgentMode | None = None
    limits: LimitsIn | None = None


class TaskMove(Schema):
    """The waiting task that it is to come before; empty for the end of the queue."""

    before: Name = ""


class ForkIn(Schema):
    """A new session that begins with a checkpoint: the newest one, where none is named. What is left out is as in the session."""

    checkpoint_id: Name = ""
    prompt: Annotated[str, StringConstraints(strip_whitespace=True)] = ""
    title: Annotated[str, StringConstraints(max_length=200, strip_whitespace=True)] = ""
    model: Name = ""
    agent: AgentMode = AgentMode.BUILD
    limits: LimitsIn | None = None


class ChildIn(Schema):
    """Work for a session of its own on the same repository. An empty ``model`` means the parent's."""

    prompt: Prompt
    title: Annotated[str, StringConstraints(max_length=200, strip_whitespace=True)] = ""
    model: Name = ""


class MessageIn(Schema):
    """A note to the other people; the agent does not see it."""

    text: Annotated[str, StringConstraints(min_length=1, max_length=20_000)]


class AnswerIn(Schema):
    """``reply`` for a permission (or ``reject`` for a question), ``answers`` for questions: one list of labels or texts each."""

    reply: PermissionReply | None = None
    answers: list[list[Annotated[str, StringConstraints(max_length=5_000)]]] = Field(default_factory=list)
    message: Annotated[str, StringConstraints(max_length=5_000)] = ""


class StreamQuery(BaseModel):
    """Which part of a log: what comes past ``after``, of these types."""

    after: Annotated[int, Field(ge=0, le=MAX_SEQ)] = 0
    types: Annotated[str, Field(description="Event types, parted by commas; empty means all.")] = ""


class RecordsQuery(StreamQuery):
    """The same as a page."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 500


class MessagesQuery(BaseModel):
    """The last messages, or those before a place in the log."""

    before: Place | None = None
    limit: Limit = 50
