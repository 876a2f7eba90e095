"""The port to a coding agent: what the runner needs of one, whichever it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from ship_runner.facts import Delta, Fact


@dataclass(frozen=True, slots=True)
class Run:
    """One stretch of the agent's work on a task: a prompt, or the words that make it go on after an interruption.

    ``conversation`` is the agent's own id of the conversation, ``first_message`` the message with the task's own prompt, and
    ``message`` the one that starts this run; both ids are made by ``Agent.new_message`` before the run, so that a
    repeated run is known by them. ``model`` is ``provider/name``, ``mode`` is ``build`` or ``plan``. A run that is ``aborted`` may have
    been begun by an earlier runner, and is to be stopped.
    """

    task_id: str
    conversation: str
    first_message: str
    message: str
    text: str
    model: str
    mode: str
    aborted: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    ``completed``; ``aborted`` on request; ``failed``: going on would not help; ``interrupted``: the agent stands idle
    again, but not because it was done, and a continuation may help. Codes of interruptions: ``connection`` (to the model),
    ``crashed``, ``hung``, ``oversized``. ``code``, ``reason`` and ``hint`` are empty for the first two.
    """

    kind: Literal["completed", "aborted", "failed", "interrupted"]
    code: str = ""
    reason: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Restart:
    """Why an agent's process was started anew: ``crashed``, ``hung`` or ``oversized``, and the reason in words."""

    code: str
    reason: str


class Sink(Protocol):
    """Where the agent's doings go. All but ``room`` return at once."""

    @property
    def has_room(self) -> bool:
        """False asks the agent to hold its reports back; it brings them later by reading its own record again."""

    async def room(self) -> None:
        """Wait until there is room."""

    def report(self, fact: Fact, *, key: str) -> None:
        """Keep a fact; the second under one key is nothing."""

    def plan(self, todos: list[dict[str, str]]) -> None:
        """Keep the agent's plan, when it is not the one that was kept last."""

    def answered(self, request_id: str) -> None:
        """The agent no longer waits for this answer."""

    def grow(self, delta: Delta) -> None:
        """Pass on text that grows; may be dropped."""


class Agent(Protocol):
    """A coding agent that works in one folder, one run at a time.

    States: stopped → ``start`` → idle ⇄ running (``run``) → ``stop`` → stopped. The agent's process outlives the runner:
    ``start`` finds one that an earlier runner left and goes on with it. Every part of the agent's work is reported exactly
    once, under a key of its own, even when the runner or the agent was killed in between.
    """

    async def start(self) -> Restart | None:
        """Have the agent ready for prompts: find it, start it, or start it anew when it died or has outgrown its memory or its
        configuration has changed. Never disturbs a run. Answers why, when an agent that had been running was replaced.

        Raises: RunnerFailure ``agent_start_failed``.
        """

    async def begin(self, title: str) -> str:
        """Begin a conversation; its id. Raises RunnerFailure ``agent_start_failed``."""

    async def resume(self, conversation: str) -> bool:
        """Make a remembered conversation ready for prompts; False when the agent does not know it after all.

        Raises RunnerFailure ``agent_start_failed``.
        """

    async def save_memory(self, conversation: str, path: Path) -> None:
        """Write all that the agent needs to go on with a conversation elsewhere to a file, without disturbing a run; the
        same bytes for the same memory. Raises RunnerFailure ``memory_not_kept``."""

    async def restore_memory(self, path: Path) -> str:
        """Give a stopped agent the memory in a file; the conversation's id. Raises RunnerFailure ``memory_damaged``."""

    async def forget(self) -> None:
        """Stop, and forget every conversation."""

    def new_message(self) -> str:
        """An id for a message that is later than all others."""

    async def run(self, run: Run, sink: Sink) -> Outcome:
        """Give the agent its text, unless its message is there already, and report until the agent stands idle.

        Never raises for what the agent does; an agent that cannot be started is a ``failed`` outcome. After an interruption
        the agent has been started anew already.
        """

    def growing(self) -> list[Delta]:
        """The texts that grow at this moment, each from its beginning: for a listener that missed some."""

    async def steer(self, text: str, earlier: str, note: Callable[[str], None]) -> bool:
        """Say more to the agent while it runs; False when the run ends or has ended: say it in a run of its own then.

        ``earlier`` is the message of an attempt whose outcome is not known, or empty; nothing is said twice. ``note``
        is told the message's id before it is said. Raises RunnerFailure ``agent_unreachable``.
        """

    async def abort(self) -> None:
        """Have the run end: it answers ``aborted`` within seconds, whatever the agent does."""

    async def answer(self, request_id: str, answer: Mapping[str, Any]) -> None:
        """Pass on a person's answer ``{reply, answers, message}``; an answer that nobody waits for is nothing."""

    async def stop(self) -> None:
        """End the agent and everything that it started."""
