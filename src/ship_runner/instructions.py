"""What the control plane says to the runner: ``docs/protocol.md``, section "The runner link"."""

import json
from dataclasses import MISSING, dataclass, fields
from typing import Any


class MalformedInstruction(ValueError):
    """The control plane sent something that is not in the protocol."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """First: everything up to ``acked`` is in the log."""

    acked: int


@dataclass(frozen=True, slots=True)
class Ack:
    """Everything up to ``n`` is in the log."""

    n: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """Work on this; ``model`` is ``provider/name``, ``agent`` is ``build`` or ``plan``. ``recovered``: an earlier sandbox died under
    this task."""

    task_id: str
    text: str
    model: str
    agent: str
    recovered: bool = False


@dataclass(frozen=True, slots=True)
class Steer:
    """Say more to the running task."""

    task_id: str
    steer_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """End the task."""

    task_id: str


@dataclass(frozen=True, slots=True)
class TakeCheckpoint:
    """Make a checkpoint of the workspace as it stands; ``reason`` is ``asked`` or ``pause``."""

    checkpoint_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Reply:
    """A person's answer: ``{reply, answers, message}``."""

    request_id: str
    answer: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Refused:
    """The control plane hears this runner no more."""

    code: str
    reason: str


Instruction = Prompt | Steer | Cancel | TakeCheckpoint | Reply
Message = Welcome | Ack | Refused | Instruction

_KINDS: dict[str, type[Message]] = {
    "welcome": Welcome,
    "ack": Ack,
    "prompt": Prompt,
    "steer": Steer,
    "cancel": Cancel,
    "checkpoint": TakeCheckpoint,
    "answer": Reply,
    "refused": Refused,
}


def decode(text: str | bytes) -> Message:
    """One message of the link; fields that we do not know are left out.

    Raises:
        MalformedInstruction: not JSON, an unknown kind, or a field missing or of the wrong type.
    """
    try:
        document = json.loads(text)
        kind = _KINDS[document["t"]]
        values = {
            field.name: document[field.name]
            for field in fields(kind)
            if field.default is MISSING or field.name in document
        }
    except (ValueError, KeyError, TypeError) as error:
        raise MalformedInstruction(f"cannot read {text[:120]!r}: {error!r}") from error
    for field in fields(kind):
        expected = {"n": int, "acked": int, "answer": dict, "recovered": bool}.get(field.name, str)
        if field.name in values and not isinstance(values[field.name], expected):
            raise MalformedInstruction(f"{field.name} of {document['t']} is not {expected.__name__}")
    return kind(**values)
