"""One answer of the scripted model, before a protocol gives it a shape."""

import re
from dataclasses import dataclass

import msgspec

from ship.testing.scenario import JSONObject

_CHUNK = re.compile(r"\s*\S+\s*")


@dataclass(frozen=True)
class Call:
    """A tool call with its id; ``arguments`` is JSON text."""

    id: str
    name: str
    arguments: str

    @property
    def input(self) -> JSONObject:
        """The arguments as an object."""
        return msgspec.json.decode(self.arguments, type=dict[str, object])


@dataclass(frozen=True)
class Answer:
    """What the model says. ``text`` and ``reasoning`` come in the chunks that a stream sends them in."""

    id: str
    model: str
    reasoning: tuple[str, ...]
    text: tuple[str, ...]
    calls: tuple[Call, ...]
    input_tokens: int

    @property
    def reasoning_tokens(self) -> int:
        """As many as there are chunks."""
        return len(self.reasoning)

    @property
    def output_tokens(self) -> int:
        """Chunks of text and reasoning, and a quarter of the characters of calls."""
        return len(self.text) + len(self.reasoning) + sum(len(call.arguments) // 4 + 5 for call in self.calls)


def chunks(text: str, words: int = 3) -> tuple[str, ...]:
    """The text in pieces of so many words, blanks included."""
    pieces = _CHUNK.findall(text)
    return tuple("".join(pieces[at : at + words]) for at in range(0, len(pieces), words))


def sse(data: object, event: str = "") -> bytes:
    """One Server-Sent Event with a JSON body."""
    name = f"event: {event}\n".encode() if event else b""
    return name + b"data: " + msgspec.json.encode(data) + b"\n\n"


def block_text(content: object) -> str:
    """The text of a message's content: a string, or a list of blocks with ``text`` or nested ``content``."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "\n".join(
        block_text(block.get("text") or block.get("content")) for block in content if isinstance(block, dict)
    )
