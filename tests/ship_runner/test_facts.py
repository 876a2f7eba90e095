"""What the runner reports, held to Ship's own types."""

import json

import pytest

from ship.events.record import decode_fact
from ship_runner import facts
from ship_runner.facts import OUTPUT_LIMIT, Fact, cut
from ship_runner.instructions import (
    Ack,
    Cancel,
    MalformedInstruction,
    Prompt,
    Refused,
    Reply,
    Steer,
    TakeCheckpoint,
    Welcome,
    decode,
)

IDS = ("tsk", "msg", "prt")

EVERY_FACT = [
    facts.step_started(1, "clone", "main"),
    facts.step_finished(1, "clone", 12),
    facts.sandbox_ready(1, "abc", "ship/x"),
    facts.sandbox_failed(1, facts.failure("clone_failed", "why", "what to do")),
    facts.task_completed("tsk"),
    facts.task_failed("tsk", facts.failure("model_error", "why")),
    facts.task_cancelled("tsk"),
    facts.text_finished(*IDS, "text"),
    facts.reasoning_finished(*IDS, "text", 5),
    facts.tool_started(*IDS, "bash", "title", {"command": "x", "deep": [{"a": None, "b": 1.5}]}),
    facts.tool_finished(*IDS, "bash", "title", "output", "", 5),
    facts.todos_updated("tsk", [{"content": "a", "status": "pending", "priority": ""}]),
    facts.request_asked("tsk", "per_1", "permission", "title", "detail"),
    facts.request_asked(
        "tsk",
        "que_1",
        "question",
        "title",
        "",
        [{"question": "q", "header": "", "options": [{"label": "a", "description": ""}], "multiple": False, "custom": True}],
    ),
    facts.request_withdrawn("per_1"),
    facts.agent_retried("tsk", 1, "why", 5),
    facts.agent_restarted("hung", "why"),
    facts.sandbox_restored(2, "ckp", conversation=True, lost=["running processes"]),
    facts.checkpoint_created(
        "ckp", "tsk", "time", commit="abc", base_commit="def", parent_id="",
        files=[{"path": "a", "status": "M", "additions": 1, "deletions": 2}],
        diff_artifact="diff", bundle_artifact="", agent_artifact="",
    ),
    facts.checkpoint_failed("ckp", "tsk", "asked", facts.failure("disk_full", "why", "what to do")),
]  # fmt: skip


@pytest.mark.parametrize("fact", EVERY_FACT, ids=lambda fact: fact.type)
def test_ship_decodes_every_fact(fact: Fact) -> None:
    assert fact.type == decode_fact(fact.type, fact.version, json.dumps(fact.data).encode()).TYPE


def test_long_output_keeps_its_head_and_its_tail() -> None:
    kept, truncated = cut("ä" + "x" * OUTPUT_LIMIT + "ö")
    assert truncated
    assert len(kept.encode()) <= OUTPUT_LIMIT
    assert kept.startswith("äx")
    assert kept.endswith("xö")
    assert cut("short") == ("short", False)


def test_long_arguments_are_cut_however_deep() -> None:
    fact = facts.tool_started(*IDS, "write", "", {"a": {"b": ["x" * (OUTPUT_LIMIT + 1)]}})
    assert len(fact.data["input"]["a"]["b"][0]) <= OUTPUT_LIMIT


def test_half_a_surrogate_does_not_stop_a_report() -> None:
    assert cut("a\ud800b") == ("a?b", False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"t": "welcome", "acked": 3}', Welcome(3)),
        ('{"t": "ack", "n": 3}', Ack(3)),
        ('{"t": "prompt", "task_id": "a", "text": "b", "model": "c/d", "agent": "plan", "new": 1}', Prompt("a", "b", "c/d", "plan")),
        ('{"t": "prompt", "task_id": "a", "text": "b", "model": "c/d", "agent": "plan", "recovered": true}', Prompt("a", "b", "c/d", "plan", True)),
        ('{"t": "checkpoint", "checkpoint_id": "ckp", "reason": "asked"}', TakeCheckpoint("ckp", "asked")),
        ('{"t": "steer", "task_id": "a", "steer_id": "s", "text": "b"}', Steer("a", "s", "b")),
        ('{"t": "cancel", "task_id": "a"}', Cancel("a")),
        ('{"t": "answer", "request_id": "r", "answer": {"reply": "once"}}', Reply("r", {"reply": "once"})),
        ('{"t": "refused", "code": "c", "reason": "r"}', Refused("c", "r")),
    ],
)  # fmt: skip
def test_every_instruction_is_understood(text: str, expected: object) -> None:
    assert decode(text) == expected


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"t": "dance"}', '{"t": "ack"}', '{"t": "ack", "n": "3"}'])
def test_what_is_not_an_instruction_is_refused(text: str) -> None:
    with pytest.raises(MalformedInstruction):
        decode(text)
