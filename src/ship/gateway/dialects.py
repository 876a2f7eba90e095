"""How each model protocol counts tokens, ends a stream and says that something went wrong.

Sources: https://platform.openai.com/docs/api-reference (Chat Completions, Completions, Responses) and
https://docs.anthropic.com/en/api/messages.
"""

from typing import Any, Protocol

import msgspec

from ship.model import Usage

JSONObject = dict[str, Any]


class Meter(Protocol):
    """Reads one answer of a model, a whole document or the events of a stream."""

    usage: Usage
    finished: bool
    """Whether the stream said that it is complete, or that it failed."""
    failure: str
    """The model's own error message in the middle of a stream."""

    def read(self, data: JSONObject) -> None:
        """Takes the JSON body of the answer or of one event."""
        ...


class ChatMeter:
    """Chat Completions and the older Completions."""

    def __init__(self) -> None:
        self.usage = Usage(model_calls=1)
        self.finished = False
        self.failure = ""

    def read(self, data: JSONObject) -> None:
        """A chunk or a completion; the usage comes in the last chunk."""
        if error := data.get("error"):
            self.finished, self.failure = True, error_message(error)
        if any(_object(choice).get("finish_reason") for choice in _list(data.get("choices"))):
            self.finished = True
        if usage := _object(data.get("usage")):
            self.usage = _openai_usage(usage, "prompt", "completion")


class ResponsesMeter:
    """OpenAI's Responses: the last event carries the whole response."""

    _LAST = frozenset({"response.completed", "response.incomplete", "response.failed"})

    def __init__(self) -> None:
        self.usage = Usage(model_calls=1)
        self.finished = False
        self.failure = ""

    def read(self, data: JSONObject) -> None:
        """An event, or a response."""
        kind = data.get("type")
        if kind == "error":
            self.finished, self.failure = True, error_message(data.get("error") or data)
            return
        response = data.get("response") if kind else data
        if not isinstance(response, dict) or (kind and kind not in self._LAST):
            return
        self.finished = True
        if response.get("error"):
            self.failure = error_message(response["error"])
        if usage := _object(response.get("usage")):
            self.usage = _openai_usage(usage, "input", "output")


class MessagesMeter:
    """Anthropic's Messages: input at the start of a stream, the output so far in each ``message_delta``."""

    def __init__(self) -> None:
        self.usage = Usage(model_calls=1)
        self.finished = False
        self.failure = ""
        self._counts: JSONObject = {}

    def read(self, data: JSONObject) -> None:
        """An event, or a message."""
        match data.get("type"):
            case "message_start":
                self._count(_object(_object(data.get("message")).get("usage")))
            case "message_delta" | "message":
                self._count(_object(data.get("usage")))
            case "message_stop":
                self.finished = True
            case "error":
                self.finished, self.failure = True, error_message(data.get("error"))

    def _count(self, usage: JSONObject) -> None:
        self._counts |= {name: count for name, count in usage.items() if isinstance(count, int)}
        self.usage = Usage(
            model_calls=1,
            input_tokens=self._counts.get("input_tokens", 0),
            output_tokens=self._counts.get("output_tokens", 0),
            cache_read_tokens=self._counts.get("cache_read_input_tokens", 0),
            cache_write_tokens=self._counts.get("cache_creation_input_tokens", 0),
        )


class Dialect(msgspec.Struct, frozen=True):
    """One protocol of one path. ``meter`` is None where a call costs nothing."""

    meter: type[ChatMeter] | type[ResponsesMeter] | type[MessagesMeter] | None
    anthropic: bool = False
    method: str = "POST"

    def error(self, *, message: str, kind: str, code: str, hint: str) -> JSONObject:
        """The body of an answer that refuses."""
        said = {"type": kind, "message": message, "code": code, "hint": hint}
        return {"type": "error", "error": said} if self.anthropic else {"error": said}

    def error_event(self, *, message: str, code: str, hint: str) -> bytes:
        """The event that ends a stream with an error."""
        said = {
            "type": "api_error" if self.anthropic else "server_error",
            "message": message,
            "code": code,
            "hint": hint,
        }
        if self.anthropic or self.meter is ResponsesMeter:
            data: JSONObject = {"type": "error", "error": said}
            if not self.anthropic:
                data |= {"sequence_number": 0, "code": code, "message": message, "param": None}
            return b"event: error\ndata: " + msgspec.json.encode(data) + b"\n\n"
        return b"data: " + msgspec.json.encode({"error": said}) + b"\n\n"


DIALECTS: dict[str, Dialect] = {
    "chat/completions": Dialect(ChatMeter),
    "completions": Dialect(ChatMeter),
    "responses": Dialect(ResponsesMeter),
    "messages": Dialect(MessagesMeter, anthropic=True),
    "messages/count_tokens": Dialect(None, anthropic=True),
    "models": Dialect(None, method="GET"),
}
"""Every path that the gateway forwards, below ``/v1/``."""


def error_message(error: object) -> str:
    """The words of a provider's error, at most 500 characters."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("error") or error.get("code") or error.get("type")
    return str(error or "no reason given")[:500]


def _openai_usage(usage: JSONObject, inward: str, outward: str) -> Usage:
    cached = _number(_object(usage.get(f"{inward}_tokens_details")), "cached_tokens")
    return Usage(
        model_calls=1,
        input_tokens=max(0, _number(usage, f"{inward}_tokens") - cached),
        output_tokens=_number(usage, f"{outward}_tokens"),
        reasoning_tokens=_number(_object(usage.get(f"{outward}_tokens_details")), "reasoning_tokens"),
        cache_read_tokens=cached,
    )


def _object(value: object) -> JSONObject:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(counts: JSONObject, name: str) -> int:
    value = counts.get(name)
    return value if isinstance(value, int) else 0
