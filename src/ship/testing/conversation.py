"""What a model request says about the conversation so far, the same for every protocol."""

import re
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["system", "user", "assistant", "tool"]

_WORKSPACE = re.compile(r"Working directory: (\S.*)")
_REMINDER = re.compile(
    r"<system-reminder>\s*The user sent the following message:\s*(.*?)\n+Please address", re.DOTALL
)
_CALL_ID = re.compile(r"call_(\d+)_")
_ENDED = ("aborted", "interrupted", "cancelled", "rejected permission")


@dataclass(frozen=True)
class Message:
    """One message. ``calls`` are the ids of the tool calls of an assistant's message."""

    role: Role
    text: str
    calls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Position:
    """Where a conversation stands: which task (from 1), its prompt, the turn to play (from 0), and what came since the last."""

    task_number: int
    prompt: str
    turn: int
    steers: tuple[str, ...]
    results: tuple[str, ...]


@dataclass(frozen=True)
class Conversation:
    """One request. ``tools`` are the names of the tools that are offered."""

    model: str
    messages: tuple[Message, ...]
    tools: frozenset[str] = field(default_factory=frozenset)
    stream: bool = False

    @property
    def workspace(self) -> str:
        """The folder that the agent says it works in, or ``.``."""
        for message in self.messages:
            found = _WORKSPACE.search(message.text) if message.role == "system" else None
            if found:
                return found[1].strip()
        return "."

    @property
    def position(self) -> Position:
        """The task that runs.

        A prompt that follows an answer without tool calls, or a tool call that was cut short, starts a new task. One that
        follows a tool's result steers the running task. Every call's id names its turn: an answer that broke off may have left
        calls behind, and the retry's answer makes them again, so messages are not what is counted.
        """
        prompt, number, turn = "", 0, 0
        answered = running = False
        steers: list[str] = []
        results: list[str] = []
        for message in self.messages:
            if message.role == "assistant":
                turn = max([turn, *(_turn_of(call) + 1 for call in message.calls)])
                answered, running = True, bool(message.calls)
                steers.clear()
                results.clear()
            elif message.role == "tool":
                results.append(message.text)
                running = running and not _cut_short(message.text)
            elif message.role == "user" and running:
                steers.append(_steer_text(message.text))
            elif message.role == "user":
                if number == 0 or answered:
                    number += 1
                prompt, turn, answered = message.text, 0, False
        return Position(number, _unquoted(prompt), turn, tuple(steers), tuple(results))


def call_id(turn: int, answer_id: str, index: int) -> str:
    """The id of a turn's call."""
    return f"call_{turn}_{answer_id}_{index}"


def _turn_of(call: str) -> int:
    named = _CALL_ID.match(call)
    return int(named[1]) if named else -1


def _cut_short(result: str) -> bool:
    return any(word in result[-200:].lower() for word in _ENDED)


def _steer_text(text: str) -> str:
    wrapped = _REMINDER.search(text)
    return (wrapped[1] if wrapped else text).strip()


def _unquoted(prompt: str) -> str:
    """``opencode run`` puts a prompt of several words in double quotes."""
    text = prompt.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
