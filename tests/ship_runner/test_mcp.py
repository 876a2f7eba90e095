"""The runner's tools for the agent: the protocol by itself, the process, and the real agent that calls them."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.ship_runner.control_plane import TOKEN, FakeControlPlane
from tests.ship_runner.runner import Runner
from tests.ship_runner.scripted import Turn, turns

from ship_runner import children
from ship_runner.mcp import Tool, ToolFailed, ToolServer

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def plane(repositories: Path) -> AsyncIterator[FakeControlPlane]:
    plane = FakeControlPlane(repositories)
    await plane.start()
    yield plane
    await plane.stop()


class Client:
    """A client of a tool server in this process: ``said`` is what the server has sent."""

    def __init__(self, *tools: Tool) -> None:
        self.said: list[dict[str, Any]] = []
        self._arrived = asyncio.Event()
        self.server = ToolServer(list(tools), self._take)

    def _take(self, message: dict[str, Any]) -> None:
        self.said.append(message)
        self._arrived.set()

    def say(self, method: str, number: int | None = None, **params: Any) -> None:
        message = {"jsonrpc": "2.0", "method": method, "params": params}
        self.server.hear(json.dumps(message if number is None else {**message, "id": number}).encode())

    async def answer(self, number: int) -> dict[str, Any]:
        async with asyncio.timeout(20):
            while True:
                for message in self.said:
                    if message.get("id") == number:
                        return message
                self._arrived.clear()
                await self._arrived.wait()


def tool(call: Any) -> Tool:
    return Tool("try", "tries it", {"type": "object"}, call)


async def echo(arguments: Mapping[str, Any]) -> str:
    return f"you said {arguments['word']}"


async def fail(arguments: Mapping[str, Any]) -> str:
    raise ToolFailed("that does not work")


async def wait(arguments: Mapping[str, Any]) -> str:
    await asyncio.Event().wait()
    return "never"


async def test_a_client_learns_what_there_is_and_calls_it() -> None:
    client = Client(tool(echo))
    client.say("initialize", 1, protocolVersion="2025-03-26", capabilities={}, clientInfo={})
    client.say("notifications/initialized")
    client.say("tools/list", 2)
    client.say("tools/call", 3, name="try", arguments={"word": "hello"})
    client.say("ping", 4)
    assert (await client.answer(1))["result"]["protocolVersion"] == "2025-03-26"
    assert (await client.answer(2))["result"]["tools"] == [
        {"name": "try", "description": "tries it", "inputSchema": {"type": "object"}}
    ]
    assert (await client.answer(3))["result"] == {
        "content": [{"type": "text", "text": "you said hello"}],
        "isError": False,
    }
    assert (await client.answer(4))["result"] == {}


async def test_a_client_of_another_version_is_offered_ours() -> None:
    client = Client()
    client.say("initialize", 1, protocolVersion="1999-01-01")
    assert (await client.answer(1))["result"]["protocolVersion"] == "2025-06-18"


async def test_a_call_that_fails_is_a_result_that_says_so() -> None:
    client = Client(tool(fail))
    client.say("tools/call", 1, name="try")
    result = (await client.answer(1))["result"]
    assert result["isError"]
    assert result["content"][0]["text"] == "that does not work"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"nonsense", -32700),
        (b"[]", -32600),
        (b'{"id": 1, "method": "dance"}', -32601),
        (b'{"id": 1, "method": "tools/call", "params": {"name": "unknown"}}', -32602),
    ],
)
async def test_what_is_not_understood_is_refused(line: bytes, code: int) -> None:
    client = Client(tool(echo))
    client.server.hear(line)
    assert client.said[0]["error"]["code"] == code


async def test_a_call_that_waits_says_so_and_can_be_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ship_runner.mcp.PROGRESS_S", 0.01)
    client = Client(tool(wait))
    client.say("tools/call", 1, name="try", _meta={"progressToken": "p"})
    client.say("ping", 2)
    await client.answer(2)
    async with asyncio.timeout(20):
        while not [message for message in client.said if message.get("method") == "notifications/progress"]:
            await asyncio.sleep(0.01)
    client.say("notifications/cancelled", requestId=1)
    await client.server.stop()
    assert [message.get("id") for message in client.said if "id" in message] == [2]


async def test_a_start_that_is_tried_again_has_the_same_key(
    plane: FakeControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "LOOK_S", 0.0)
    agent = children._Children(plane.url, TOKEN)
    plane.unanswered = 1
    await agent.start({"prompt": "one"})
    monkeypatch.setattr(children, "UNREACHABLE_S", 0.0)
    plane.unanswered = 1
    with pytest.raises(ToolFailed, match="Try again later"):
        await agent.start({"prompt": "two"})
    await agent.start({"prompt": "two"})
    await agent.start({"prompt": "two"})
    one, one_again, two, two_again, third = plane.child_keys
    assert (one, two) == (one_again, two_again)
    assert len({one, two, third}) == 3, "the agent may want two of the same"
    plane.children.clear()
    await agent._control.close()


@pytest.mark.system
async def test_the_process_starts_sessions_and_waits_for_their_end(plane: FakeControlPlane) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "ship_runner", "mcp",
        env={"SHIP_URL": plane.url, "SHIP_TOKEN": TOKEN}, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None

    async def call(number: int, name: str, **arguments: Any) -> dict[str, Any]:
        message = {"id": number, "method": "tools/call", "params": {"name": name, "arguments": arguments}}
        process.stdin.write(json.dumps(message).encode() + b"\n")
        result: dict[str, Any] = json.loads(await asyncio.wait_for(process.stdout.readline(), 40))["result"]
        return result

    started = await call(1, "start_session", prompt="do it", title="A child")
    assert "ses_child_0" in started["content"][0]["text"]
    child = plane.children["ses_child_0"]
    assert (child["prompt"], child["title"]) == ("do it", "A child")
    assert "running" in (await call(2, "session_status"))["content"][0]["text"]

    waiting = asyncio.create_task(call(3, "session_status", session_id="ses_child_0", wait=True))
    await plane.until(lambda: plane.looks > 1)
    await plane.stop()
    await plane.start()
    child.update(status="completed", summary="It is done.", files_changed=2)
    answer = (await waiting)["content"][0]["text"]
    assert "status: completed" in answer and "It is done." in answer and "2 files changed" in answer

    unknown = await call(4, "session_status", session_id="ses_unknown")
    assert unknown["isError"] and "no such session" in unknown["content"][0]["text"]
    assert (await call(5, "start_session", prompt=" "))["isError"]
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 20) == 0


@pytest.mark.system
async def test_the_agent_starts_a_session_and_reads_its_result(
    plane: FakeControlPlane, tmp_path: Path, tree: Path
) -> None:
    plane.model.scenarios["delegate"] = turns(
        Turn(calls=(("ship_start_session", {"prompt": "count the files", "title": "Count"}),)),
        Turn(calls=(("ship_session_status", {"session_id": "ses_child_0", "wait": True}),)),
        Turn(text="The other one is done."),
    )
    runner = Runner(plane, tmp_path, tree)
    try:
        await runner.ready()
        await plane.prompt("tsk_1", "delegate it")
        await plane.until(lambda: plane.children)
        offered = {tool["function"]["name"] for tool in plane.model.requests[-1]["tools"]}
        assert {"ship_start_session", "ship_session_status"} <= offered
        await plane.until(lambda: len(plane.of("tool.started")) == 2)
        await plane.until(lambda: plane.looks > 1)
        plane.children["ses_child_0"].update(status="completed", summary="There are 42 files.")
        assert (await plane.end_of("tsk_1")).TYPE == "task.completed"
        assert "42 files" in plane.of("tool.finished")[1].output
        assert "There are 42 files." in str(plane.model.requests[-1]["messages"][-1]["content"])
    finally:
        await runner.stop()
