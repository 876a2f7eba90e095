"""What travels over the runner link, and what is fanned out without being logged.

Both directions are JSON text messages of one WebSocket, told apart by their field ``t``.
The runner has the same shapes in its own package; ``tests/ship_runner`` holds both to ``docs/protocol.md``.
"""

import msgspec

from ship.model import AgentMode, Answer, CheckpointReason

PROTOCOL = 1


class Frame(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="t"):
    """One message of the link."""


class Hello(Frame, frozen=True, kw_only=True, tag="hello"):
    """First from the runner. ``spooled`` is the highest frame number that it has written to its spool."""

    protocol: int
    generation: int
    spooled: int
    version: str = ""


class Reported(Frame, frozen=True, kw_only=True, tag="event"):
    """A fact from the runner. ``n`` counts from 1 per generation; it is resent until acknowledged."""

    n: int
    at_ms: int
    type: str
    v: int
    data: msgspec.Raw


class Delta(Frame, frozen=True, kw_only=True, tag="delta"):
    """Text that is still growing: ``text`` belongs at character ``offset`` of the part. ``kind`` is ``text``, ``reasoning`` or
    ``tool`` (a running tool's output). Not logged: the finished part is."""

    task_id: str
    message_id: str
    part_id: str
    kind: str
    offset: int
    text: str


class Welcome(Frame, frozen=True, kw_only=True, tag="welcome"):
    """First from the control plane: everything up to ``acked`` is in the log."""

    acked: int


class Ack(Frame, frozen=True, kw_only=True, tag="ack"):
    """Every frame up to ``n`` is in the log; the runner may forget them."""

    n: int


class Prompt(Frame, frozen=True, kw_only=True, tag="prompt"):
    """Work on this task. Repeated after a reconnect; the runner knows it by ``task_id``. ``recovered`` says that an earlier sandbox
    died under it: the agent goes on from the checkpoint that was restored."""

    task_id: str
    text: str
    model: str
    agent: AgentMode
    recovered: bool = False


class Steer(Frame, frozen=True, kw_only=True, tag="steer"):
    """Say more to the running task; known by ``steer_id``."""

    task_id: str
    steer_id: str
    text: str


class Cancel(Frame, frozen=True, kw_only=True, tag="cancel"):
    """End the task; the runner answers with ``task.cancelled``, or with the end that came first."""

    task_id: str


class Checkpoint(Frame, frozen=True, kw_only=True, tag="checkpoint"):
    """Make a checkpoint of the workspace as it stands, also in the middle of a task; known by ``checkpoint_id``."""

    checkpoint_id: str
    reason: CheckpointReason


class Reply(Frame, frozen=True, kw_only=True, tag="answer"):
    """A person's answer to a request; known by ``request_id``."""

    request_id: str
    answer: Answer


class Refused(Frame, frozen=True, kw_only=True, tag="refused"):
    """The control plane will not hear this runner any more; it stops its agent and ends."""

    code: str
    reason: str


FromRunner = Hello | Reported | Delta
Instruction = Prompt | Steer | Cancel | Checkpoint | Reply
ToRunner = Welcome | Ack | Prompt | Steer | Cancel | Checkpoint | Reply | Refused
