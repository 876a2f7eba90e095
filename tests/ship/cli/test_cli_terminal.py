"""What a person at a terminal gets: growing text, questions, a choice at Ctrl-C."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.ship.cli.terminals import Terminal
from tests.ship.client.protocol_server import TOKEN, Log, ProtocolServer

from ship.cli import asking, terminal
from ship.cli.exits import Exit
from ship.events import facts
from ship.events.frames import Delta
from ship.model import SYSTEM, Choice, Question, RequestKind


@contextmanager
def at_terminal(server: ProtocolServer, *arguments: str) -> Iterator[Terminal]:
    person = Terminal(*arguments, "--url", server.url, "--token", TOKEN)
    try:
        yield person
    finally:
        person.close()


def started(log: Log, task_id: str) -> None:
    log.append(facts.TaskStarted(task_id=task_id), SYSTEM)


def asks(log: Log, task_id: str) -> None:
    started(log, task_id)
    log.append(
        facts.RequestAsked(
            task_id=task_id,
            request_id="req_1",
            kind=RequestKind.PERMISSION,
            title="Run a command",
            detail="rm -r build",
        )
    )


def test_a_permission_is_asked_and_the_answer_sent(server: ProtocolServer) -> None:
    def answered(log: Log, request_id: str, body: dict[str, object]) -> None:
        log.append(facts.RequestWithdrawn(request_id=request_id))
        log.append(facts.TaskCompleted(task_id="tsk_1"))

    server.on_task, server.on_answer = asks, answered
    with at_terminal(server, "run", "https://example.com/r.git", "clean up") as person:
        person.wait_for("rm -r build")
        person.wait_for("allow?")
        person.type("perhaps\n")
        person.type("n: not that folder\n")
        assert person.ends_with() == Exit.OK
    assert server.sent("POST", "/sessions/ses_1/requests/req_1/answer") == [
        {"reply": "reject", "message": "not that folder"}
    ]


def test_a_question_that_somebody_else_answers_is_taken_back(server: ProtocolServer) -> None:
    server.on_task = asks
    with at_terminal(server, "run", "https://example.com/r.git", "clean up") as person:
        person.wait_for("allow?")
        server.logs["ses_1"].append(facts.RequestWithdrawn(request_id="req_1"))
        server.logs["ses_1"].append(facts.TaskCompleted(task_id="tsk_1"))
        assert person.ends_with() == Exit.OK
    assert server.sent("POST", "/sessions/ses_1/requests/req_1/answer") == []


def test_text_grows_before_it_is_finished(server: ProtocolServer) -> None:
    ids = {"task_id": "tsk_1", "message_id": "msg_1", "part_id": "prt_1"}

    def grows(log: Log, task_id: str) -> None:
        started(log, task_id)
        log.say(Delta(**ids, kind="text", offset=0, text="The cause is "))
        log.say(Delta(**ids, kind="text", offset=13, text="a missing comma"))

    server.on_task = grows
    with at_terminal(server, "run", "https://example.com/r.git", "why?") as person:
        person.wait_for("The cause is a missing comma")
        log = server.logs["ses_1"]
        log.append(facts.TextFinished(**ids, text="The cause is a **missing comma**."))
        log.append(facts.TaskCompleted(task_id="tsk_1"))
        assert person.ends_with() == Exit.OK
    assert "\x1b[1mmissing comma\x1b[0m" in person.shown


@pytest.mark.parametrize(
    ("keys", "code", "cancelled"),
    [("s\n", Exit.FAILED, True), ("\n", Exit.DETACHED, False), ("\x03", Exit.DETACHED, False)],
)
def test_ctrl_c_offers_to_leave_or_to_stop(
    server: ProtocolServer, keys: str, code: Exit, cancelled: bool
) -> None:
    server.on_task = started
    with at_terminal(server, "run", "https://example.com/r.git", "go on") as person:
        person.wait_for("go on")
        person.type("\x03")
        person.wait_for("[d]etach")
        person.type(keys)
        assert person.ends_with() == code
    assert (server.logs["ses_1"].tasks[0]["status"] == "cancelled") is cancelled


def test_what_a_line_picks_of_a_question() -> None:
    options = (Choice(label="Red"), Choice(label="Green"))
    one = Question(question="Which?", options=options, custom=False)
    assert asking.choose(one, "2") == ("Green",)
    assert asking.choose(one, "red") == ("Red",)
    assert asking.choose(one, "blue") == ()
    assert asking.choose(one, "3") == ()
    many = Question(question="Which?", options=options, multiple=True)
    assert asking.choose(many, "1, 2") == ("Red", "Green")
    assert asking.choose(many, "1, and blue") == ("1, and blue",)
    assert asking.choose(Question(question="Why?"), "because") == ("because",)


def test_nothing_that_a_terminal_obeys_gets_through() -> None:
    hostile = "a\x1b]0;title\x07b\x1b[2Jc\rd\x9be\u202ef\n\tg\x1b"
    assert terminal.clean(hostile) == "abcdef\n\tg"


def test_lengths_of_time_are_read_at_a_glance() -> None:
    assert [terminal.duration(ms) for ms in (85, 4200, 59_940, 185_000)] == [
        "85 ms",
        "4.2 s",
        "59.9 s",
        "3 min 5 s",
    ]


def test_however_narrow_a_terminal_is_a_table_names_each_row_and_how_it_stands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    table = terminal.Rows("id", "status", "title", "changed", "said last")
    table.add(
        "ses_" + "x" * 26, "completed", "A test fails. Find the bug, fix it", "1 file +2 -1", "All tests pass"
    )
    terminal.output().print(table)
    assert f"ses_{'x' * 26}  completed" in capsys.readouterr().out
