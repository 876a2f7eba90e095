"""No report is larger than what the control plane takes, whatever the agent and the repository hold."""

import json
from typing import Any

import pytest

from ship.events.record import decode_fact
from ship_runner import facts
from ship_runner.bounds import FACT_BYTES, MARK, bounded, listed, pieces
from ship_runner.facts import Fact, wire

IDS = ("tsk", "msg", "prt")
LONG = "ä\x00" * (5 << 20)


def size(fact: Fact) -> int:
    return len(wire(fact.data).encode())


def decoded(fact: Fact) -> Any:
    return decode_fact(fact.type, fact.version, json.dumps(fact.data).encode())


def file(path: str) -> dict[str, Any]:
    return {"path": path, "status": "A", "additions": 2, "deletions": 1}


def checkpoint(files: list[dict[str, Any]]) -> Fact:
    return facts.checkpoint_created(
        "ckp",
        "tsk",
        "task",
        commit="abc",
        base_commit="def",
        parent_id="",
        files=files,
        diff_artifact="diff",
        bundle_artifact="bundle",
        agent_artifact="agent",
    )


@pytest.mark.parametrize(
    "fact",
    [
        facts.text_finished(*IDS, LONG),
        facts.reasoning_finished(*IDS, LONG, 1),
        facts.tool_started(*IDS, "bash", LONG, {"command": LONG}),
        facts.tool_started(*IDS, "edit", "", {"edits": [{"new": LONG}] * 40}),
        facts.tool_started(*IDS, "odd", "", {"numbers": list(range(1_000_000))}),
        facts.tool_started(*IDS, "odd", "", {f"{n}": n for n in range(100_000)}),
        facts.tool_finished(*IDS, "bash", LONG, LONG, LONG, 1),
        facts.request_asked("tsk", "per", "permission", LONG, LONG),
        facts.agent_restarted("hung", LONG),
    ],
    ids=lambda fact: fact.type,
)
def test_a_large_fact_is_cut_and_says_so(fact: Fact) -> None:
    shorter = bounded(fact)
    assert size(shorter) <= FACT_BYTES
    assert MARK in json.dumps(shorter.data, ensure_ascii=False)
    assert fact.type == decoded(shorter).TYPE


def test_long_lists_are_cut() -> None:
    todos = [{"content": "x" * 100, "status": "pending", "priority": ""}] * 50_000
    shorter = bounded(facts.todos_updated("tsk", todos))
    assert size(shorter) <= FACT_BYTES
    assert 0 < len(decoded(shorter).todos) < 50_000


def test_a_text_keeps_as_much_as_fits() -> None:
    text: str = bounded(facts.text_finished(*IDS, "x" * (1 << 20))).data["text"]
    assert len(text) > FACT_BYTES - 8192
    assert text.endswith(f"x{MARK}")


def test_a_small_fact_is_left_alone() -> None:
    fact = facts.text_finished(*IDS, "x" * 200_000)
    assert bounded(fact) is fact


def test_very_many_files_are_summed_up() -> None:
    fact = bounded(checkpoint([file(f"node_modules/{n}/index.js") for n in range(80_000)]))
    assert size(fact) < 1 << 20
    files = decoded(fact).files
    assert len(files) == 1001
    assert (files[-1].path, files[-1].status) == ("… and 79,000 more files", "M")
    assert sum(entry.additions for entry in files) == 160_000
    assert sum(entry.deletions for entry in files) == 80_000


def test_long_paths_are_cut_and_long_lists_of_them_too() -> None:
    hostile = [file("\x01" * 4000) for _ in range(1000)]
    assert size(checkpoint(listed(hostile))) < 1 << 20
    assert listed(hostile)[0]["path"].endswith(MARK)
    few = [file("a"), file("b")]
    assert listed(few) == few


def test_growing_text_comes_in_pieces() -> None:
    delta = {"part_id": "prt", "offset": 7, "text": "ab" * 100_000}
    parts = list(pieces(delta))
    assert "".join(part["text"] for part in parts) == delta["text"]
    assert [part["offset"] for part in parts] == [7, 7 + 65536, 7 + 2 * 65536, 7 + 3 * 65536]
