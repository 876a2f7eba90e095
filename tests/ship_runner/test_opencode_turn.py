"""One run as it looks from the event stream."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ship_runner.agent import Run
from ship_runner.facts import Delta, Fact
from ship_runner.opencode.turn import GAP, LOOP_LIMIT, Turn

PROMPT, ANSWER = "msg_000000000001aa", "msg_000000000002aa"


class RecordingSink:
    """Keeps what it is given, once per key."""

    def __init__(self) -> None:
        self.facts: dict[str, Fact] = {}
        self.deltas: list[Delta] = []
        self.plans: list[list[dict[str, str]]] = []
        self.done: list[str] = []
        self.has_room = True

    async def room(self) -> None:
        self.has_room = True

    def report(self, fact: Fact, *, key: str) -> None:
        self.facts.setdefault(key, fact)

    def plan(self, todos: list[dict[str, str]]) -> None:
        self.plans.append(todos)

    def answered(self, request_id: str) -> None:
        self.done.append(request_id)

    def grow(self, delta: Delta) -> None:
        self.deltas.append(delta)


def begun() -> tuple[Turn, RecordingSink]:
    sink = RecordingSink()
    turn = Turn(Run("tsk", "ses", PROMPT, PROMPT, "text", "p/m", "build"), sink)
    told(turn, "message.updated", info={"id": ANSWER, "role": "assistant"})
    return turn, sink


def told(turn: Turn, kind: str, **properties: Any) -> None:
    turn.handle({"type": kind, "properties": {"sessionID": "ses", **properties}})


def part(turn: Turn, kind: str, message_id: str = ANSWER, **more: Any) -> None:
    told(turn, "message.part.updated", part={"id": "prt", "messageID": message_id, "type": kind, **more})


def delta(turn: Turn, text: str) -> None:
    told(turn, "message.part.delta", messageID=ANSWER, partID="prt", field="text", delta=text)


def offsets(deltas: list[Delta]) -> list[tuple[str, int, str]]:
    return [(each["kind"], each["offset"], each["text"]) for each in deltas]


def test_text_grows_from_its_beginning() -> None:
    turn, sink = begun()
    part(turn, "reasoning", text="", time={"start": 1})
    delta(turn, "Hel")
    delta(turn, "lo")
    assert offsets(sink.deltas) == [("reasoning", 0, "Hel"), ("reasoning", 3, "lo")]
    assert offsets(turn.growing()) == [("reasoning", 0, "Hello")]
    part(turn, "reasoning", text="Hello", time={"start": 1, "end": 2})
    assert list(sink.facts) == ["reasoning:prt"]
    assert turn.growing() == []


def test_text_that_was_not_seen_from_its_beginning_grows_unseen() -> None:
    turn, sink = begun()
    delta(turn, "lo")
    assert sink.deltas == []


def test_a_running_tools_output_grows() -> None:
    turn, sink = begun()

    def running(output: str) -> None:
        part(
            turn,
            "tool",
            tool="bash",
            state={"status": "running", "input": {}, "metadata": {"output": output}},
        )

    for output in ("", "a", "ab", "ab", "xyz"):
        running(output)
    assert offsets(sink.deltas) == [("tool", 0, "a"), ("tool", 1, "b"), ("tool", 0, "xyz")]
    assert turn.running_tools == {"prt"}
    part(turn, "tool", tool="bash", state={"status": "completed", "input": {}, "output": "xyz"})
    assert turn.running_tools == set()
    assert list(sink.facts) == ["tool.started:prt", "tool.finished:prt"]


def test_what_people_said_is_not_reported_as_the_agents_words() -> None:
    turn, sink = begun()
    part(turn, "text", PROMPT, text="the prompt", time={"start": 1, "end": 2})
    part(turn, "text", "msg_000000000000aa", text="an earlier answer", time={"start": 1, "end": 2})
    assert sink.facts == {}


def test_other_conversations_only_show_that_the_agent_is_alive() -> None:
    turn, sink = begun()
    turn.quiet_since = 0
    told(
        turn,
        "message.part.updated",
        sessionID="ses_other",
        part={"id": "x", "messageID": ANSWER, "type": "text", "text": "x"},
    )
    assert turn.quiet_since > 0
    assert sink.facts == {}
    turn.quiet_since = 0
    turn.handle({"type": "server.heartbeat", "properties": {}})
    assert turn.quiet_since == 0


def test_without_room_events_are_let_go_and_reading_brings_them() -> None:
    turn, sink = begun()
    sink.has_room = False
    ended = {
        "id": "prt",
        "messageID": ANSWER,
        "type": "text",
        "text": "Hello",
        "time": {"start": 1, "end": 2},
    }
    told(turn, "message.part.updated", part=ended)
    assert sink.facts == {}
    messages: list[Mapping[str, Any]] = [{"info": {"id": ANSWER, "role": "assistant"}, "parts": [ended]}]
    turn.read(messages, over=True)
    assert list(sink.facts) == ["text:prt"]


def test_requests_of_earlier_runs_do_not_count() -> None:
    turn, sink = begun()
    old = {"id": "per_000000000000aa", "permission": "bash", "patterns": ["ls"]}
    new = {"id": "per_000000000002aa", "permission": "bash", "patterns": ["ls"]}
    turn.ask([old, new], [])
    assert list(sink.facts) == [f"asked:{new['id']}"]
    assert turn.waiting_for == {new["id"]}
    told(turn, "permission.replied", requestID=new["id"])
    assert turn.waiting_for == set()
    assert sink.done == [new["id"]]


def test_steps_that_end_without_a_reason_are_a_loop_only_in_a_row() -> None:
    turn, _ = begun()
    for _ in range(LOOP_LIMIT - 1):
        part(turn, "step-finish", reason="unknown")
    part(turn, "step-finish", reason="tool-calls")
    for _ in range(LOOP_LIMIT - 1):
        part(turn, "step-finish", reason="unknown")
    assert turn.verdict is None
    part(turn, "step-finish", reason="unknown")
    assert turn.verdict is not None
    assert turn.verdict.code == "agent_looping"


def test_a_retry_is_told_once_with_its_time() -> None:
    turn, sink = begun()
    for _ in range(2):
        told(turn, "session.status", status={"type": "retry", "attempt": 2, "message": "busy", "next": 77})
    (fact,) = sink.facts.values()
    assert fact.data == {"task_id": "tsk", "attempt": 2, "reason": "busy", "next_at_ms": 77}
    assert turn.retry_until_ms == 77


def written(message_id: str = ANSWER, **info: Any) -> list[Mapping[str, Any]]:
    """A conversation whose answer has a text that OpenCode has not finished."""
    open_part = {"id": "prt", "messageID": message_id, "type": "text", "text": "", "time": {"start": 1}}
    return [{"info": {"id": message_id, "role": "assistant", **info}, "parts": [open_part]}]


def test_a_text_that_nobody_saw_begin_grows_after_a_gap() -> None:
    turn, sink = begun()
    delta(turn, "lost ")
    turn.read(written(), over=False)
    delta(turn, "kept")
    turn.read(written(), over=False)
    assert offsets(sink.deltas) == [("text", 0, GAP), ("text", 2, "kept")]
    part(turn, "text", text="lost and kept", time={"start": 1, "end": 2})
    turn.read(written(), over=False)
    assert len(sink.deltas) == 2
    assert turn.growing() == []


def test_what_a_dead_agent_had_begun_to_say_does_not_grow() -> None:
    continued = "msg_000000000003aa"
    turn, sink = begun()
    turn.run = replace(turn.run, message=continued)
    turn.read(written(), over=False)
    for info in ({"error": {"name": "x"}}, {"time": {"created": 1, "completed": 2}}):
        turn.read(written("msg_000000000004aa", **info), over=False)
    assert sink.deltas == []
