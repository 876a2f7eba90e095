"""A model that follows a script: the OpenAI chat protocol, streamed, chosen by the first word of the prompt."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse


@dataclass(frozen=True)
class Turn:
    """One answer: reasoning first, then text, then tool calls. ``pause_s`` lies between two pieces."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    pause_s: float = 0.0
    cut: bool = False
    finish: str | None = ""
    status: int = 200
    error: dict[str, Any] = field(default_factory=dict)


Scenario = Callable[[int], Turn]
"""From the number of answers given since the prompt to the next one."""


def turns(*listed: Turn) -> Scenario:
    return lambda step: listed[min(step, len(listed) - 1)]


class ScriptedModel:
    """``scenarios`` by the first word of a prompt; ``requests`` are the bodies received; ``open_calls`` run now."""

    def __init__(self) -> None:
        self.scenarios: dict[str, Scenario] = {}
        self.requests: list[dict[str, Any]] = []
        self.cut_all = asyncio.Event()

    async def answer(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        turn = self._turn(body["messages"])
        if turn.status != 200:
            return JSONResponse({"error": turn.error}, status_code=turn.status)
        return StreamingResponse(self._stream(turn), media_type="text/event-stream")

    def _turn(self, messages: list[dict[str, Any]]) -> Turn:
        for index in range(len(messages) - 1, -1, -1):
            if messages[index]["role"] == "user":
                word = text_of(messages[index]).strip().strip('"').split(" ")[0]
                if word in self.scenarios:
                    answers = sum(1 for message in messages[index:] if message["role"] == "assistant")
                    return self.scenarios[word](answers)
        return Turn(text="A title")

    async def _stream(self, turn: Turn) -> AsyncIterator[str]:
        def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return f"data: {json.dumps({'id': 'c1', 'object': 'chat.completion.chunk', 'created': 1, 'model': 'm', 'choices': [choice]})}\n\n"

        yield chunk({"role": "assistant", "content": ""})
        for word in pieces(turn.reasoning):
            yield chunk({"reasoning_content": word})
            await asyncio.sleep(turn.pause_s)
        for word in pieces(turn.text):
            yield chunk({"content": word})
            await asyncio.sleep(turn.pause_s)
        if turn.cut:
            raise ConnectionResetError("the script cuts the stream here")
        for index, (tool, arguments) in enumerate(turn.calls):
            function = {"name": tool, "arguments": json.dumps(arguments)}
            yield chunk(
                {
                    "tool_calls": [
                        {
                            "index": index,
                            "id": f"call_{tool}_{len(self.requests)}_{index}",
                            "type": "function",
                            "function": function,
                        }
                    ]
                }
            )
        if turn.finish is not None:
            yield chunk({}, turn.finish or ("tool_calls" if turn.calls else "stop"))
            usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
            yield f"data: {json.dumps({'id': 'c1', 'object': 'chat.completion.chunk', 'created': 1, 'model': 'm', 'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"


def text_of(message: dict[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", "") for part in content)


def pieces(text: str) -> list[str]:
    """The text in words, spaces kept."""
    return [word + " " for word in text.split(" ")][:-1] + text.split(" ")[-1:] if text else []
