"""What the scripted model says: scenarios, as small declarative values.

A scenario is a list of scripts; the first whose ``prompt`` matches plays. A script is a list of turns, one for each
answer of the model. Nothing is remembered between requests: the turn to play follows from the conversation that
every request carries, so a scripted model may be restarted in the middle of a task.

Strings may hold ``{workspace}``, ``{prompt}`` and ``{seconds}``; see ``Turn``.
"""

import re
from enum import StrEnum

import msgspec

JSONObject = dict[str, object]


class Fault(StrEnum):
    """How an answer goes wrong. Each strikes the same request ``times`` times, then the turn is played."""

    RATE_LIMITED = "rate_limited"
    """429 with ``Retry-After: 1``."""
    SERVER_ERROR = "server_error"
    """500."""
    REFUSES_KEY = "refuses_key"
    """401, whatever the key is."""
    CUT_STREAM = "cut_stream"
    """The connection breaks in the middle of the stream."""
    NO_FINISH_REASON = "no_finish_reason"
    """The stream ends cleanly, but the model never says that it is done."""
    MALFORMED = "malformed"
    """An event in the middle of the stream is not JSON."""
    SLOW = "slow"
    """A whole second passes before each event."""
    HANGS = "hangs"
    """The request is taken and never answered."""


LASTING = frozenset({Fault.REFUSES_KEY, Fault.HANGS, Fault.SLOW})
"""Faults that go on for ever unless a scenario says otherwise; the others strike once."""


class ToolCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tool call of a turn."""

    name: str
    arguments: JSONObject = {}


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One answer of the model: reasoning, then text, then tool calls.

    ``pace_s`` is the pause before each chunk of the stream, ``steady_s`` makes the text an endless list of numbered lines for
    that many seconds (a number of seconds or minutes in the prompt wins). Where ``expects`` is set and the last tool
    results do not contain it, ``otherwise`` is said and the script ends.
    """

    reasoning: str = ""
    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    pace_s: float = 0.0
    steady_s: float = 0.0
    expects: str = ""
    otherwise: str = ""
    fault: Fault | None = None
    fault_times: int = 1


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Turns for the prompts that the regular expression ``prompt`` is found in; ``first`` limits it to the first task of a
    conversation."""

    turns: tuple[Turn, ...]
    prompt: str = ""
    first: bool = False

    def matches(self, prompt: str, task_number: int) -> bool:
        """Whether this script plays for the task with this prompt, the ``task_number``-th from 1."""
        if self.first and task_number > 1:
            return False
        return re.search(self.prompt, prompt, re.IGNORECASE) is not None


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model of the scripted provider. Its ``name`` is the model's name."""

    name: str
    summary: str
    scripts: tuple[Script, ...] = ()

    def with_fault(self, fault: Fault, times: int) -> "Scenario":
        """The same scenario, with the fault in the second turn of each script, or the only one."""
        return msgspec.structs.replace(
            self,
            name=f"{self.name}+{fault}",
            scripts=tuple(_with_fault(script, fault, times) for script in self.scripts),
        )


def _with_fault(script: Script, fault: Fault, times: int) -> Script:
    at = min(1, len(script.turns) - 1)
    faulty = msgspec.structs.replace(script.turns[at], fault=fault, fault_times=times)
    return msgspec.structs.replace(script, turns=(*script.turns[:at], faulty, *script.turns[at + 1 :]))


def decode(text: bytes | str) -> list[Scenario]:
    """Scenarios from a JSON list, as ``--scenarios FILE`` reads them. Raises ``msgspec.ValidationError``."""
    return msgspec.json.decode(text, type=list[Scenario])
