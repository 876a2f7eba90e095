"""Anthropic's Messages, the server's side. Source: https://docs.anthropic.com/en/api/messages"""

from collections.abc import Iterator
from typing import Any

from ship.testing.answer import Answer, Call, block_text, sse
from ship.testing.conversation import Conversation, Message
from ship.testing.scenario import JSONObject


def parse(body: dict[str, Any]) -> Conversation:
    """The conversation that a request carries; a tool's result becomes a message of its own."""
    messages = [Message("system", block_text(body.get("system")))]
    for message in body["messages"]:
        messages += _messages(message)
    return Conversation(
        model=body["model"],
        messages=tuple(messages),
        tools=frozenset(tool["name"] for tool in body.get("tools") or ()),
        stream=bool(body.get("stream")),
    )


def _messages(message: dict[str, Any]) -> list[Message]:
    content = message["content"]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = "\n".join(block["text"] for block in blocks if block["type"] == "text")
    if message["role"] == "assistant":
        calls = tuple(block["id"] for block in blocks if block["type"] == "tool_use")
        return [Message("assistant", text, calls)]
    results = [
        Message("tool", block_text(block.get("content")))
        for block in blocks
        if block["type"] == "tool_result"
    ]
    return [*results, Message("user", text)] if text else results


def events(answer: Answer, *, finished: bool = True) -> Iterator[bytes]:
    """The stream; with ``finished`` false neither ``message_delta`` nor ``message_stop`` comes."""
    usage = {**_usage(answer), "output_tokens": 1}
    start = {**_message_head(answer), "content": [], "stop_reason": None, "usage": usage}
    yield _event("message_start", message=start)
    yield _event("ping")
    index = 0
    if answer.reasoning:
        deltas: list[JSONObject] = [
            {"type": "thinking_delta", "thinking": piece} for piece in answer.reasoning
        ]
        deltas.append({"type": "signature_delta", "signature": "c2NyaXB0ZWQ="})
        yield from _block(index, {"type": "thinking", "thinking": "", "signature": ""}, deltas)
        index += 1
    if answer.text:
        deltas = [{"type": "text_delta", "text": piece} for piece in answer.text]
        yield from _block(index, {"type": "text", "text": ""}, deltas)
        index += 1
    for number, call in enumerate(answer.calls, index):
        begun: JSONObject = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        yield from _block(number, begun, [{"type": "input_json_delta", "partial_json": call.arguments}])
    if finished:
        delta = {"stop_reason": _stop_reason(answer), "stop_sequence": None}
        yield _event("message_delta", delta=delta, usage={"output_tokens": answer.output_tokens})
        yield _event("message_stop")


def document(answer: Answer) -> JSONObject:
    """The answer to a request without ``stream``."""
    content: list[JSONObject] = []
    if answer.reasoning:
        thinking = "".join(answer.reasoning)
        content.append({"type": "thinking", "thinking": thinking, "signature": "c2NyaXB0ZWQ="})
    if answer.text:
        content.append({"type": "text", "text": "".join(answer.text)})
    content += [_tool_use(call) for call in answer.calls]
    return {
        **_message_head(answer),
        "content": content,
        "stop_reason": _stop_reason(answer),
        "usage": _usage(answer),
    }


def error(kind: str, message: str) -> JSONObject:
    """An error body."""
    return {"type": "error", "error": {"type": kind, "message": message}}


def _event(kind: str, **data: object) -> bytes:
    return sse({"type": kind, **data}, kind)


def _block(index: int, begun: JSONObject, deltas: list[JSONObject]) -> Iterator[bytes]:
    yield _event("content_block_start", index=index, content_block=begun)
    for delta in deltas:
        yield _event("content_block_delta", index=index, delta=delta)
    yield _event("content_block_stop", index=index)


def _tool_use(call: Call) -> JSONObject:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": call.input}


def _message_head(answer: Answer) -> JSONObject:
    return {
        "id": f"msg_{answer.id}",
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "stop_sequence": None,
    }


def _stop_reason(answer: Answer) -> str:
    return "tool_use" if answer.calls else "end_turn"


def _usage(answer: Answer) -> JSONObject:
    return {
        "input_tokens": answer.input_tokens,
        "output_tokens": answer.output_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
    }
