"""The words of Ship as frozen values: ids, states, and what events are made of.

Times are milliseconds since the Unix epoch (``*_ms``), money is US dollars, sizes are bytes.
"""

from enum import StrEnum

import msgspec


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=False):
    """A frozen value; unknown fields are refused when it is decoded."""


class SessionStatus(StrEnum):
    """Where a session stands; ``docs/glossary.md`` draws the transitions."""

    CREATED = "created"
    PROVISIONING = "provisioning"
    READY = "ready"
    RUNNING = "running"
    PAUSED = "paused"
    FAILED = "failed"
    ARCHIVED = "archived"


class TaskStatus(StrEnum):
    """Where a task stands."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ActorKind(StrEnum):
    """Who caused an event."""

    USER = "user"
    AGENT = "agent"
    SYSTEM = "system"


class Actor(Value, frozen=True):
    """Who caused an event: a person by the name of their credential, the agent, or Ship itself."""

    kind: ActorKind
    name: str


SYSTEM = Actor(kind=ActorKind.SYSTEM, name="ship")
AGENT = Actor(kind=ActorKind.AGENT, name="agent")


class Approval(StrEnum):
    """Whether the agent asks a person before it edits files or runs commands."""

    AUTO = "auto"
    ASK = "ask"


class AgentMode(StrEnum):
    """``build`` changes the workspace, ``plan`` only reads it."""

    BUILD = "build"
    PLAN = "plan"


class SearchMode(StrEnum):
    """What a search goes by: the ``words`` of texts, or their ``meaning``."""

    WORDS = "words"
    MEANING = "meaning"


class Repository(Value, frozen=True):
    """What a session works on.

    ``source`` is an ``http(s)://`` URL, an absolute path on the control plane's machine below an allowed
    root, or ``upload:<sha256>`` for a git bundle sent beforehand. ``branch`` is a branch, tag or commit;
    empty means the repository's own default.
    """

    source: str
    branch: str = ""


class Failure(Value, frozen=True):
    """Why something failed: a stable code, the reason in words, and what to do."""

    code: str
    reason: str
    hint: str = ""


class Usage(Value, frozen=True):
    """Model usage as counted by the gateway."""

    model_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cost_usd: float = 0.0

    def plus(self, other: "Usage") -> "Usage":
        """The sum of both."""
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})

    @property
    def tokens(self) -> int:
        """All tokens that went in and out; those of the reasoning are among the output."""
        return self.input_tokens + self.output_tokens + self.cache_read_tokens + self.cache_write_tokens


class Limits(Value, frozen=True):
    """What one task may use; 0 means no limit. ``time_s`` counts while the agent works: not while it waits for a person, not while
    the session is paused. ``tokens`` are all that go in and out of models."""

    time_s: int = 0
    tokens: int = 0
    cost_usd: float = 0.0


class LimitsPatch(Value, frozen=True):
    """Some limits; None leaves one as it is."""

    time_s: int | None = None
    tokens: int | None = None
    cost_usd: float | None = None

    def over(self, other: "LimitsPatch") -> "LimitsPatch":
        """These limits, and those of the other where these say nothing."""
        return LimitsPatch(
            time_s=other.time_s if self.time_s is None else self.time_s,
            tokens=other.tokens if self.tokens is None else self.tokens,
            cost_usd=other.cost_usd if self.cost_usd is None else self.cost_usd,
        )

    def applied_to(self, limits: Limits) -> Limits:
        """Those limits with these instead."""
        return Limits(
            time_s=limits.time_s if self.time_s is None else self.time_s,
            tokens=limits.tokens if self.tokens is None else self.tokens,
            cost_usd=limits.cost_usd if self.cost_usd is None else self.cost_usd,
        )


NO_LIMITS = LimitsPatch()
"""Says nothing about limits."""


class LimitKind(StrEnum):
    """Which limit of a task was reached."""

    TIME = "time"
    TOKENS = "tokens"
    COST = "cost"


class Origin(Value, frozen=True):
    """Where a fork came from: a checkpoint of another session, and the seq of its event there."""

    session_id: str
    checkpoint_id: str
    seq: int


class Parent(Value, frozen=True):
    """Whose child a session is: the task that started it (empty when a person did), and how many parents there are above it."""

    session_id: str
    task_id: str
    depth: int


class CheckpointReason(StrEnum):
    """Why a checkpoint was made: a task ended, it was time for one in a long task, a person or a pause asked for it, or a fork
    began with it."""

    TASK = "task"
    TIME = "time"
    ASKED = "asked"
    PAUSE = "pause"
    FORK = "fork"


class Todo(Value, frozen=True):
    """One line of the agent's own plan."""

    content: str
    status: str
    priority: str = ""


class ChangedFile(Value, frozen=True):
    """One file of a diff. ``status`` is git's letter: A, M, D, R, T."""

    path: str
    status: str
    additions: int
    deletions: int


class RequestKind(StrEnum):
    """What the agent wants of a person."""

    PERMISSION = "permission"
    QUESTION = "question"


class Choice(Value, frozen=True):
    """One offered answer to a question."""

    label: str
    description: str = ""


class Question(Value, frozen=True):
    """One question of a request; ``multiple`` allows several labels, ``custom`` a free text."""

    question: str
    header: str = ""
    options: tuple[Choice, ...] = ()
    multiple: bool = False
    custom: bool = True


class PermissionReply(StrEnum):
    """A person's word on a permission. ``reject`` also declines a question."""

    ONCE = "once"
    ALWAYS = "always"
    REJECT = "reject"


class Answer(Value, frozen=True):
    """A person's answer: ``reply`` for a permission, ``answers`` (labels or free text, one list a question) for
    a question."""

    reply: PermissionReply | None = None
    answers: tuple[tuple[str, ...], ...] = ()
    message: str = ""
