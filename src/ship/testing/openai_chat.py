"""OpenAI's Chat Completions, the server's side. Source: https://platform.openai.com/docs/api-reference/chat"""

from collections.abc import Iterator
from typing import Any

from ship.testing.answer import Answer, block_text, sse
from ship.testing.conversation import Conversation, Message, Role
from ship.testing.scenario import JSONObject

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "assistant": "assistant",
    "tool": "tool",
}


def parse(body: dict[str, Any]) -> Conversation:
    """The conversation that a request carries."""
    return Conversation(
        model=body["model"],
        messages=tuple(_message(message) for message in body["messages"]),
        tools=frozenset(tool["function"]["name"] for tool in body.get("tools") or ()),
        stream=bool(body.get("stream")),
    )


def _message(message: dict[str, Any]) -> Message:
    return Message(
        role=_ROLES.get(message["role"], "user"),
        text=block_text(message.get("content")),
        calls=tuple(call["id"] for call in message.get("tool_calls") or ()),
    )


def events(answer: Answer, *, finished: bool = True) -> Iterator[bytes]:
    """The stream; with ``finished`` false no chunk says why it ends."""
    yield _chunk(answer, {"role": "assistant", "content": ""})
    for piece in answer.reasoning:
        yield _chunk(answer, {"reasoning_content": piece})
    for piece in answer.text:
        yield _chunk(answer, {"content": piece})
    for index, call in enumerate(answer.calls):
        head = {"index": index, "id": call.id, "type": "function"}
        yield _chunk(answer, {"tool_calls": [{**head, "function": {"name": call.name, "arguments": ""}}]})
        for piece in _halves(call.arguments):
            yield _chunk(answer, {"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    if finished:
        yield _chunk(answer, {}, finish_reason=_finish_reason(answer))
        yield sse({**_envelope(answer, "chat.completion.chunk"), "choices": [], "usage": _usage(answer)})
    yield b"data: [DONE]\n\n"


def document(answer: Answer) -> JSONObject:
    """The answer to a request without ``stream``."""
    message: JSONObject = {"role": "assistant", "content": "".join(answer.text) or None}
    if answer.reasoning:
        message["reasoning_content"] = "".join(answer.reasoning)
    if answer.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in answer.calls
        ]
    choice = {"index": 0, "message": message, "finish_reason": _finish_reason(answer), "logprobs": None}
    return {**_envelope(answer, "chat.completion"), "choices": [choice], "usage": _usage(answer)}


def error(kind: str, message: str) -> JSONObject:
    """An error body."""
    return {"error": {"message": message, "type": kind, "param": None, "code": kind}}


def _chunk(answer: Answer, delta: JSONObject, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
    return sse({**_envelope(answer, "chat.completion.chunk"), "choices": [choice]})


def _envelope(answer: Answer, kind: str) -> JSONObject:
    return {"id": f"chatcmpl-{answer.id}", "object": kind, "created": 1_790_000_000, "model": answer.model}


def _finish_reason(answer: Answer) -> str:
    return "tool_calls" if answer.calls else "stop"


def _halves(text: str) -> tuple[str, str]:
    middle = len(text) // 2
    return text[:middle], text[middle:]


def _usage(answer: Answer) -> JSONObject:
    return {
        "prompt_tokens": answer.input_tokens,
        "completion_tokens": answer.output_tokens,
        "total_tokens": answer.input_tokens + answer.output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
    }
