"""The conversation so far in words: who said what, in order, bounded, and nothing that is still to come."""

import msgspec

from ship.sessions.recap import recap


def message(kind: str, text: str, task_id: str | None = "tsk_1") -> bytes:
    view = {"seq": 1, "kind": kind, "author": "a", "text": text, "task_id": task_id, "at_ms": 0}
    return msgspec.json.encode(view)


def test_it_tells_who_said_what_in_order() -> None:
    said = [
        message("prompt", "Fix it."),
        message("agent", " I look.\n"),
        message("steer", "Only the parser."),
        message("note", "Lunch?", None),
        message("agent", "Done."),
    ]
    expected = "Person: Fix it.\n\nYou: I look.\n\nPerson: Only the parser.\n\nNote: Lunch?\n\nYou: Done."
    assert recap(said, ()) == expected


def test_what_is_still_to_come_is_left_out() -> None:
    said = [
        message("prompt", "one", "tsk_1"),
        message("prompt", "two", "tsk_2"),
        message("agent", "hm", "tsk_2"),
    ]
    assert recap(said, ["tsk_2"]) == "Person: one\n\nYou: hm"
    assert recap([], ()) == ""


def test_a_long_message_keeps_both_its_ends() -> None:
    told = recap([message("agent", f"begin {'x' * 50_000} end")], ())
    assert len(told) < 2_100
    assert told.startswith("You: begin x")
    assert told.endswith("x end")


def test_the_last_words_are_kept_and_the_first_left_out() -> None:
    said = [message("agent", f"{number} {'y' * 1_000}") for number in range(50)]
    told = recap(said, ())
    assert len(told) < 17_000
    assert told.startswith("(What was said before that is left out.)\n\nYou: ")
    assert "You: 49 y" in told
    assert "You: 0 y" not in told
