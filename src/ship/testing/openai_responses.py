"""OpenAI's Responses, the server's side. Source: https://platform.openai.com/docs/api-reference/responses"""

from collections.abc import Iterator
from itertools import count
from typing import Any

from ship.testing.answer import Answer, Call, block_text, sse
from ship.testing.conversation import Conversation, Message, Role
from ship.testing.scenario import JSONObject

_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "assistant": "assistant"}


def parse(body: dict[str, Any]) -> Conversation:
    """The conversation that a request carries; neighbouring answers and calls are one message."""
    given = body["input"]
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    messages = [Message("system", body["instructions"])] if body.get("instructions") else []
    for item in items:
        message = _message(item)
        if message is None:
            continue
        if messages and message.role == messages[-1].role == "assistant":
            last = messages.pop()
            message = Message("assistant", last.text + message.text, last.calls + message.calls)
        messages.append(message)
    return Conversation(
        model=body["model"],
        messages=tuple(messages),
        tools=frozenset(tool["name"] for tool in body.get("tools") or () if "name" in tool),
        stream=bool(body.get("stream")),
    )


def _message(item: dict[str, Any]) -> Message | None:
    match item.get("type", "message"):
        case "message":
            return Message(_ROLES.get(item["role"], "user"), block_text(item["content"]))
        case "function_call":
            return Message("assistant", "", (item["call_id"],))
        case "function_call_output":
            return Message("tool", block_text(item["output"]))
        case _:
            return None


def events(answer: Answer, *, finished: bool = True) -> Iterator[bytes]:
    """The stream; with ``finished`` false ``response.completed`` is missing."""
    numbers = count()

    def event(kind: str, **data: object) -> bytes:
        return sse({"type": kind, "sequence_number": next(numbers), **data}, kind)

    yield event("response.created", response=_response(answer, "in_progress", []))
    items = _items(answer)
    for index, item in enumerate(items):
        place: dict[str, object] = {"item_id": item["id"], "output_index": index}
        yield event("response.output_item.added", output_index=index, item=_begun(item))
        match item["type"]:
            case "reasoning":
                part = {"type": "summary_text", "text": ""}
                yield event("response.reasoning_summary_part.added", **place, summary_index=0, part=part)
                for piece in answer.reasoning:
                    yield event(
                        "response.reasoning_summary_text.delta", **place, summary_index=0, delta=piece
                    )
            case "message":
                text_part: JSONObject = {"type": "output_text", "text": "", "annotations": []}
                yield event("response.content_part.added", **place, content_index=0, part=text_part)
                for piece in answer.text:
                    yield event("response.output_text.delta", **place, content_index=0, delta=piece)
            case "function_call":
                yield event("response.function_call_arguments.delta", **place, delta=item["arguments"])
        yield event("response.output_item.done", output_index=index, item=item)
    if finished:
        yield event("response.completed", response=_response(answer, "completed", items))


def document(answer: Answer) -> JSONObject:
    """The answer to a request without ``stream``."""
    return _response(answer, "completed", _items(answer))


def error(kind: str, message: str) -> JSONObject:
    """An error body."""
    return {"error": {"message": message, "type": kind, "param": None, "code": kind}}


def _items(answer: Answer) -> list[JSONObject]:
    items: list[JSONObject] = []
    if answer.reasoning:
        summary = [{"type": "summary_text", "text": "".join(answer.reasoning)}]
        items.append({"type": "reasoning", "id": f"rs_{answer.id}", "summary": summary})
    if answer.text:
        content = [{"type": "output_text", "text": "".join(answer.text), "annotations": []}]
        items.append(
            {
                "type": "message",
                "id": f"msg_{answer.id}",
                "role": "assistant",
                "status": "completed",
                "content": content,
            }
        )
    return items + [_call_item(call) for call in answer.calls]


def _call_item(call: Call) -> JSONObject:
    return {
        "type": "function_call",
        "id": f"fc_{call.id}",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
        "status": "completed",
    }


def _begun(item: JSONObject) -> JSONObject:
    empty: JSONObject = {"summary": [], "content": [], "arguments": "", "status": "in_progress"}
    return {name: empty.get(name, value) for name, value in item.items()}


def _response(answer: Answer, status: str, output: list[JSONObject]) -> JSONObject:
    usage = {
        "input_tokens": answer.input_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": answer.output_tokens,
        "output_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
        "total_tokens": answer.input_tokens + answer.output_tokens,
    }
    return {
        "id": f"resp_{answer.id}",
        "object": "response",
        "created_at": 1_790_000_000,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "model": answer.model,
        "output": output,
        "parallel_tool_calls": True,
        "usage": usage if status == "completed" else None,
    }
