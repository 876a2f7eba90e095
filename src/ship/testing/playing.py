"""Find a conversation's place in a scenario and say what comes next."""

import hashlib
import math
import re

import msgspec

from ship.testing.answer import Answer, Call, chunks
from ship.testing.conversation import Conversation, Position, call_id
from ship.testing.scenario import Scenario, Turn

STEADY_PACE_S = 0.25
"""The pause between the lines of a steady turn."""

_SECONDS = re.compile(r"(\d+)\s*(s|sec|seconds?|m|min|minutes?)\b", re.IGNORECASE)
_DEFAULT_SECONDS = 60


def choose(found: Scenario, conversation: Conversation) -> Turn:
    """The turn that the scenario has for this conversation."""
    position = conversation.position
    if not conversation.tools:
        return _toolless(found, conversation, position)
    script = next(
        (each for each in found.scripts if each.matches(position.prompt, position.task_number)), None
    )
    if script is None or position.turn >= len(script.turns):
        return Turn(text="There is nothing more in my script.")
    turn = script.turns[position.turn]
    if turn.expects and not any(turn.expects in result for result in position.results):
        return Turn(text=turn.otherwise)
    if position.steers:
        heard = " ".join(f"Understood: “{steer}”. I keep it in mind." for steer in position.steers)
        return msgspec.structs.replace(turn, text=f"{heard}\n\n{turn.text}")
    return turn


def _toolless(found: Scenario, conversation: Conversation, position: Position) -> Turn:
    """An answer where no tools are offered: a title where one is wanted, else the first turn's words."""
    system = " ".join(message.text for message in conversation.messages if message.role == "system")
    if "title" in system.lower():
        return Turn(
            text=position.prompt.strip().splitlines()[0][:50] if position.prompt.strip() else "A task"
        )
    turns = found.scripts[0].turns
    return msgspec.structs.replace(turns[min(position.turn, len(turns) - 1)], calls=())


def perform(turn: Turn, conversation: Conversation, *, input_tokens: int) -> Answer:
    """The turn as an answer, with the names in braces filled in."""
    position = conversation.position
    prompts = [message.text for message in conversation.messages if message.role == "user"]
    seconds = _seconds(prompts, turn.steady_s)
    values = {
        "{workspace}": conversation.workspace,
        "{prompt}": position.prompt,
        "{seconds}": str(seconds),
        "{results}": "\n".join(position.results),
    }
    history = "\0".join(f"{message.role}:{message.text}" for message in conversation.messages)
    answer_id = hashlib.sha256(history.encode()).hexdigest()[:16]
    calls = tuple(
        Call(
            call_id(position.turn, answer_id, index),
            call.name,
            msgspec.json.encode(_filled(call.arguments, values)).decode(),
        )
        for index, call in enumerate(turn.calls)
    )
    return Answer(
        id=answer_id,
        model=conversation.model,
        reasoning=chunks(str(_filled(turn.reasoning, values))),
        text=_steady(seconds) if turn.steady_s else chunks(str(_filled(turn.text, values))),
        calls=calls,
        input_tokens=input_tokens,
    )


def _filled(value: object, values: dict[str, str]) -> object:
    match value:
        case str():
            return re.sub(r"\{\w+\}", lambda found: values.get(found[0], found[0]), value)
        case list():
            return [_filled(each, values) for each in value]
        case dict():
            return {name: _filled(each, values) for name, each in value.items()}
        case _:
            return value


def _seconds(prompts: list[str], default: float) -> int:
    """The time that the newest prompt names which names one: who is told to go on keeps to it."""
    for prompt in reversed(prompts):
        if named := _SECONDS.search(prompt):
            return int(named[1]) * (60 if named[2].lower().startswith("m") else 1)
    return math.ceil(default or _DEFAULT_SECONDS)


def _steady(seconds: int) -> tuple[str, ...]:
    return tuple(f"line {number}\n" for number in range(1, int(seconds / STEADY_PACE_S) + 1))
