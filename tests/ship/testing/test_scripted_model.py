import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ship.testing import sample_repository, scripted_model
from ship.testing.builtin import SCENARIOS
from ship.testing.scripted_model import ScriptedModel

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {}}} for name in ("bash", "read", "edit")
]
SYSTEM = {
    "role": "system",
    "content": "You are an agent.\n  Working directory: /work/space\n  Platform: linux",
}


class ChatAgent:
    """The least agent that can play a scenario: it answers every call with what ``tools`` says."""

    def __init__(self, url: str, model: str) -> None:
        self.url = url
        self.model = model
        self.messages: list[dict[str, Any]] = [SYSTEM]
        self.calls: list[tuple[str, dict[str, Any]]] = []

    async def step(self) -> dict[str, Any]:
        body = {"model": self.model, "messages": self.messages, "tools": TOOLS}
        async with httpx.AsyncClient(verify=False, timeout=20) as client:
            response = await client.post(f"{self.url}/chat/completions", json=body)
        response.raise_for_status()
        message: dict[str, Any] = response.json()["choices"][0]["message"]
        self.messages.append(message)
        return message

    async def run(self, prompt: str, results: dict[str, str] | None = None) -> str:
        self.messages.append({"role": "user", "content": prompt})
        for _ in range(50):
            message = await self.step()
            for call in message.get("tool_calls", []):
                name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
                self.calls.append((name, arguments))
                content = (results or {}).get(name, "done")
                self.messages.append({"role": "tool", "tool_call_id": call["id"], "content": content})
            if "tool_calls" not in message:
                return str(message["content"])
        raise AssertionError("the scenario does not end")


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with scripted_model.serve(ScriptedModel(pace_s=0.0)) as url:
        yield url


async def test_the_demo_plays_to_its_end_where_the_tools_answer_as_they_should(url: str) -> None:
    agent = ChatAgent(url, "demo")
    answers = {"bash": "test_decimal_hours FAILED, then OK", "read": "def minutes(text)"}

    last = await agent.run(sample_repository.PROMPT, answers)

    assert "All tests pass now" in last
    assert [name for name, _ in agent.calls].count("edit") == 2
    assert all(
        arguments["filePath"].startswith("/work/space/") for name, arguments in agent.calls if name == "edit"
    )


async def test_the_demo_stops_honestly_in_another_repository(url: str) -> None:
    agent = ChatAgent(url, "demo")

    last = await agent.run("fix it", {"bash": "no tests ran"})

    assert "change nothing" in last
    assert "edit" not in [name for name, _ in agent.calls]


async def test_a_second_task_is_not_the_demo_again(url: str) -> None:
    agent = ChatAgent(url, "demo")
    await agent.run("fix it", {"bash": "no tests ran"})

    last = await agent.run("and now write a poem")

    assert "“and now write a poem”" in last


async def test_who_steers_is_heard_and_the_task_goes_on(url: str) -> None:
    agent = ChatAgent(url, "thirty_tools")
    agent.messages.append({"role": "user", "content": "go"})
    first = await agent.step()
    result = {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": "ok"}
    agent.messages += [result, {"role": "user", "content": "mind the gap"}]

    second = await agent.step()

    assert "mind the gap" in second["content"]
    assert "Step 2 of 30" in second["content"]


@pytest.mark.parametrize(
    "result",
    [
        "Tool execution aborted",
        "tick\n" * 100 + "<shell_metadata>\nUser aborted the command\n</shell_metadata>",
        "[Tool execution was interrupted]",
        "The user rejected permission to use this specific tool call.",
    ],
)
async def test_a_task_after_a_cut_short_call_is_a_new_task(url: str, result: str) -> None:
    agent = ChatAgent(url, "thirty_tools")
    agent.messages.append({"role": "user", "content": "go"})
    first = await agent.step()
    call = first["tool_calls"][0]["id"]
    agent.messages.append({"role": "tool", "tool_call_id": call, "content": result})
    agent.messages.append({"role": "user", "content": "go again"})

    assert "Step 1 of 30" in (await agent.step())["content"]


async def test_calls_of_an_answer_that_broke_off_do_not_move_the_script(url: str) -> None:
    agent = ChatAgent(url, "thirty_tools")
    agent.messages.append({"role": "user", "content": "go"})
    broken = await agent.step()
    result = {"role": "tool", "tool_call_id": broken["tool_calls"][0]["id"], "content": "ok"}
    agent.messages = [*agent.messages, result, dict(broken), result]

    assert "Step 2 of 30" in (await agent.step())["content"]


async def test_thirty_tools_are_thirty(url: str) -> None:
    agent = ChatAgent(url, "thirty_tools")

    await agent.run("go")

    assert len(agent.calls) == 30
    assert {name for name, _ in agent.calls} == {"bash", "read", "write", "edit", "glob", "grep"}


@pytest.mark.parametrize("model", [each.name for each in SCENARIOS if each.name != "long"])
async def test_every_scenario_ends(url: str, model: str) -> None:
    assert await ChatAgent(url, model).run("go")


async def test_titles_are_given_where_no_tools_are_offered(url: str) -> None:
    ask = [
        {"role": "system", "content": "You are a title generator."},
        {"role": "user", "content": "Generate a title for this conversation:\n"},
        {"role": "user", "content": '"Fix the failing test"'},
    ]
    async with httpx.AsyncClient(verify=False) as client:
        answer = await client.post(f"{url}/chat/completions", json={"model": "demo", "messages": ask})

    assert answer.json()["choices"][0]["message"]["content"] == "Fix the failing test"


async def test_a_fault_strikes_the_same_request_so_many_times(url: str) -> None:
    body = {"model": "echo+server_error*2", "messages": [{"role": "user", "content": "a"}], "tools": TOOLS}
    other = {**body, "messages": [{"role": "user", "content": "b"}]}
    async with httpx.AsyncClient(verify=False) as client:
        path = f"{url}/chat/completions"
        statuses = [
            (await client.post(path, json=each)).status_code
            for each in (body, body, other, body, other, other)
        ]

    assert statuses == [500, 500, 500, 200, 500, 200]


async def test_only_the_key_it_was_given_is_taken() -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "a"}]}
    async with (
        scripted_model.serve(ScriptedModel(key="right")) as url,
        httpx.AsyncClient(verify=False) as client,
    ):
        path = f"{url}/chat/completions"
        wrong = await client.post(path, json=body, headers={"authorization": "Bearer wrong"})
        right = await client.post(path, json=body, headers={"authorization": "Bearer right"})

    assert (wrong.status_code, right.status_code) == (401, 200)


async def test_what_does_not_fit_into_its_context_is_refused(url: str) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "a" * 1_000_000}]}
    async with httpx.AsyncClient(verify=False) as client:
        answer = await client.post(f"{url}/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


async def test_the_long_scenario_talks_for_the_time_that_the_prompt_names(url: str) -> None:
    body = {
        "model": "long",
        "messages": [{"role": "user", "content": "for 1 second"}],
        "tools": TOOLS,
        "stream": True,
    }
    started = asyncio.get_running_loop().time()
    async with httpx.AsyncClient(verify=False, timeout=20) as client:
        answer = await client.post(f"{url}/chat/completions", json=body)

    assert "line 4" in answer.text
    assert "line 5" not in answer.text
    assert asyncio.get_running_loop().time() - started > 0.9


def test_the_sample_repository_is_the_same_everywhere_and_one_of_its_tests_fails(tmp_path: Path) -> None:
    first, second = sample_repository.create(tmp_path / "a"), sample_repository.create(tmp_path / "b")
    tests = subprocess.run(
        [sys.executable, "-m", "unittest"], cwd=tmp_path / "a", capture_output=True, text=True, check=False
    )

    assert first == second
    assert tests.returncode == 1
    assert "FAILED (failures=1)" in tests.stderr
    assert "test_decimal_hours" in tests.stderr
    with pytest.raises(FileExistsError):
        sample_repository.create(tmp_path / "a")


@pytest.mark.system
def test_as_a_program_it_says_where_it_is_and_ends_with_its_parent(tmp_path: Path) -> None:
    more = tmp_path / "more.json"
    more.write_text(
        json.dumps([{"name": "mine", "summary": "x", "scripts": [{"turns": [{"text": "from a file"}]}]}])
    )
    command = [
        sys.executable,
        "-m",
        "ship.testing.scripted_model",
        "--scenarios",
        str(more),
        "--exit-with-stdin",
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        url = process.stdout.readline().strip()
        body = {"model": "mine", "messages": [{"role": "user", "content": "hi"}], "tools": TOOLS}
        answer = httpx.post(f"{url}/chat/completions", json=body, timeout=20)
        process.stdin.close()
        ended = process.wait(timeout=20)

    assert answer.json()["choices"][0]["message"]["content"] == "from a file"
    assert ended == 0


@pytest.mark.system
def test_as_a_program_it_ends_on_a_signal() -> None:
    command = [sys.executable, "-m", "ship.testing.scripted_model"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(process.pid, signal.SIGTERM)

        assert process.wait(timeout=20) == 0
