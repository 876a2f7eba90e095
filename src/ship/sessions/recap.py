"""The conversation so far in words, for an agent that does not remember it."""

from collections.abc import Collection, Iterable

import msgspec

MESSAGES = 100
"""How many of the last messages are looked at."""
_CHARS, _MESSAGE_CHARS = 16_000, 2_000
_SPEAKERS = {"prompt": "Person", "steer": "Person", "note": "Note", "agent": "You"}


class _Message(msgspec.Struct):
    kind: str
    text: str
    task_id: str | None


_decoder = msgspec.json.Decoder(_Message)


def recap(messages: Iterable[bytes], untold: Collection[str]) -> str:
    """What was said, oldest first, of encoded messages in the same order: at most 16,000 characters, of which the last ones are
    kept, and 2,000 of each message. The prompts of the tasks ``untold`` are left out: they are still to come."""
    said: list[str] = []
    room = _CHARS
    for message in map(_decoder.decode, reversed(list(messages))):
        if message.kind == "prompt" and message.task_id in untold:
            continue
        line = f"{_SPEAKERS[message.kind]}: {_cut(message.text.strip())}"
        room -= len(line)
        if room < 0:
            said.append("(What was said before that is left out.)")
            break
        said.append(line)
    return "\n\n".join(reversed(said))


def _cut(text: str) -> str:
    """The beginning and the end, where it is long."""
    if len(text) <= _MESSAGE_CHARS:
        return text
    half = _MESSAGE_CHARS // 2
    return f"{text[:half]} […] {text[-half:]}"
