"""From OpenCode's JSON to facts and outcomes."""

import json
from typing import Any, Literal

import pytest

from ship_runner.agent import Outcome
from ship_runner.control import Model, Provider
from ship_runner.opencode import mapping
from ship_runner.opencode.configuration import configuration


def part(kind: str, **more: Any) -> dict[str, Any]:
    return {"id": "prt_1", "messageID": "msg_1", "type": kind, **more}


def tool(status: str, **state: Any) -> dict[str, Any]:
    return part("tool", tool="bash", state={"status": status, "input": {"command": "ls -l"}, **state})


def keys(found: list[mapping.Keyed]) -> list[str]:
    return [key for key, _ in found]


def test_a_text_is_told_when_it_has_ended() -> None:
    growing = part("text", text="Hel", time={"start": 1})
    ended = part("text", text="Hello", time={"start": 1, "end": 2})
    assert mapping.part_facts("tsk", growing, over=False) == []
    assert keys(mapping.part_facts("tsk", ended, over=False)) == ["text:prt_1"]
    assert keys(mapping.part_facts("tsk", growing, over=True)) == ["text:prt_1"]
    assert mapping.part_facts("tsk", part("text", text=" \n"), over=True) == []


def test_a_tool_is_told_when_it_starts_and_when_it_ends() -> None:
    assert mapping.part_facts("tsk", tool("pending"), over=False) == []
    running = mapping.part_facts("tsk", tool("running"), over=False)
    assert keys(running) == ["tool.started:prt_1"]
    assert running[0][1].data["title"] == "ls -l"
    done = mapping.part_facts(
        "tsk", tool("completed", output="x", title="List", time={"start": 5, "end": 9}), over=False
    )
    assert keys(done) == ["tool.started:prt_1", "tool.finished:prt_1"]
    assert done[1][1].data | {"output": "x", "error": "", "took_ms": 4, "title": "List"} == done[1][1].data
    failed = mapping.part_facts("tsk", tool("error", error="no"), over=False)
    assert failed[1][1].data["error"] == "no"


def test_a_tool_that_was_left_running_has_failed() -> None:
    left = mapping.part_facts("tsk", tool("running", metadata={"output": "half"}), over=True)
    assert left[1][1].data | {"output": "half", "error": mapping.INTERRUPTED} == left[1][1].data


def message(identifier: str, role: str = "assistant", **info: Any) -> dict[str, Any]:
    return {
        "info": {"id": identifier, "role": role, "time": {"created": 1, "completed": 2}, **info},
        "parts": [],
    }


EARLIER, PROMPT, LATER = "msg_000000000001aa", "msg_000000000002aa", "msg_000000000003aa"


def test_an_idle_agent_without_an_answer_has_not_begun() -> None:
    messages = [message(EARLIER, finish="stop"), message(PROMPT, "user")]
    assert mapping.idle_outcome(messages, PROMPT, None) is None


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        ({"finish": "stop"}, "completed", ""),
        ({"finish": "length"}, "completed", ""),
        ({"finish": "tool-calls"}, "interrupted", "connection"),
        ({"time": {"created": 1}}, "interrupted", "connection"),
        ({"error": {"name": "MessageAbortedError", "data": {"message": "Aborted"}}}, "aborted", ""),
        ({"error": {"name": "APIError", "data": {"message": "x", "metadata": {"code": "ECONNRESET"}}}}, "interrupted", "connection"),
        ({"error": {"name": "APIError", "data": {"message": "x", "statusCode": 500}}}, "failed", "model_error"),
        ({"error": {"name": "ProviderModelNotFoundError", "data": {}}}, "failed", "model_not_configured"),
        ({"error": {"name": "ContextOverflowError", "data": {"message": "too long"}}}, "failed", "model_error"),
    ],
)  # fmt: skip
def test_an_idle_agents_last_answer_says_how_the_run_ended(
    answer: dict[str, Any], kind: str, code: str
) -> None:
    outcome = mapping.idle_outcome([message(PROMPT, "user"), message(LATER, **answer)], PROMPT, None)
    assert outcome is not None
    assert (outcome.kind, outcome.code) == (kind, code)


def test_the_gateways_words_are_passed_on() -> None:
    body = json.dumps(
        {"error": {"code": "model_unreachable", "message": "No route.", "hint": "Look at the URL."}}
    )
    outcome = mapping.error_outcome(
        {"name": "APIError", "data": {"message": "x", "statusCode": 502, "responseBody": body}}
    )
    assert (outcome.code, outcome.reason, outcome.hint) == (
        "model_unreachable",
        "No route.",
        "Look at the URL.",
    )


@pytest.mark.parametrize("body", ["", "<html>", "[]", '{"error": "x"}', '{"error": {"code": 5, "message": "x"}}', '{"error": {"code": "rate_limit", "message": "x"}}'])  # fmt: skip
def test_other_bodies_are_model_errors(body: str) -> None:
    outcome = mapping.error_outcome(
        {"name": "APIError", "data": {"message": "x", "statusCode": 400, "responseBody": body}}
    )
    assert outcome.code == "model_error"


def test_an_error_before_any_answer_counts() -> None:
    error = {"name": "UnknownError", "data": {"message": "broken"}}
    outcome = mapping.idle_outcome([message(PROMPT, "user")], PROMPT, error)
    assert outcome is not None
    assert (outcome.kind, outcome.reason.endswith("broken")) == ("failed", True)


def test_message_ids_order_by_time() -> None:
    first = mapping.new_message_id()
    assert len(first) == len("msg_") + 26
    assert mapping.order("per_0123456789abXYZ") == "0123456789ab"


def providers() -> tuple[Provider, ...]:
    return (Provider("anthropic", "anthropic", "http://ship.internal/a/v1", (Model("m", 1000, 100),)),)


def test_the_configuration_names_the_token_and_does_not_hold_it() -> None:
    document = configuration(providers(), "anthropic/m", "auto")
    provider = document["provider"]["anthropic"]
    assert provider["npm"] == "@ai-sdk/anthropic"
    assert provider["options"] == {"baseURL": "http://ship.internal/a/v1", "apiKey": "{file:./token}"}
    assert provider["models"]["m"]["limit"] == {"context": 1000, "output": 100}
    assert "modalities" not in provider["models"]["m"]


@pytest.mark.parametrize(
    ("protocol", "media"), [("anthropic", ["text", "image", "pdf"]), ("openai", ["text", "image"])]
)
def test_the_configuration_says_what_a_model_takes(
    protocol: Literal["anthropic", "openai"], media: list[str]
) -> None:
    model = Model("m", 1000, 100, input_tokens=700, images=True)
    document = configuration((Provider("p", protocol, "http://ship.internal/p/v1", (model,)),), "p/m", "auto")
    said = document["provider"]["p"]["models"]["m"]
    assert said["limit"] == {"context": 1000, "output": 100, "input": 700}
    assert (said["attachment"], said["modalities"]["input"]) == (True, media)


def test_a_model_that_is_not_there_is_named_without_a_stack() -> None:
    message = "ProviderModelNotFoundError: Model not found: p/m.\n    at somewhere (file.js:1:2)"
    outcome = mapping.error_outcome({"name": "UnknownError", "data": {"message": message}})
    assert (outcome.code, outcome.reason) == ("model_not_configured", message.splitlines()[0])


@pytest.mark.parametrize("approval", ["auto", "ask"])
def test_editing_is_never_allowed_at_the_top(approval: str) -> None:
    document = configuration(providers(), "", approval)
    assert "edit" not in document["permission"]
    assert ("agent" in document) == (approval == "ask")


def test_an_answer_that_was_begun_before_a_message_is_no_answer_to_it() -> None:
    first, second = "msg_000000000001aa", "msg_000000000002aa"
    info = {"id": "msg_000000000003aa", "role": "assistant", "time": {"completed": 1}, "finish": "stop"}
    assert mapping.idle_outcome([{"info": {**info, "parentID": first}}], second, None) is None
    assert mapping.idle_outcome([{"info": {**info, "parentID": second}}], second, None) == Outcome(
        "completed"
    )
