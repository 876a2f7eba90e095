"""The machine under any sequence of commands, and its single rules."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ship.errors import Conflict, InvalidInput, NotFound, ShipError, StaleGeneration
from ship.events import Cursor, Fact, Record, decode, encode, facts
from ship.model import (
    SYSTEM,
    Actor,
    ActorKind,
    AgentMode,
    Answer,
    Failure,
    PermissionReply,
    Question,
    Repository,
    RequestKind,
    SessionStatus,
    TaskStatus,
    Usage,
)
from ship.sessions import commands
from ship.sessions.fold import fold
from ship.sessions.machine import Decision, decide
from ship.sessions.state import SessionState

ME = Actor(kind=ActorKind.USER, name="me")
FAILURE = Failure(code="x", reason="why", hint="so")
NOW_MS = 1_000


class Session:
    """A session driven by hand: commands in, log out."""

    def __init__(self) -> None:
        self.log: list[Record] = []
        self.state: SessionState | None = None
        self.effects: list[Any] = []
        self.n = 0

    def do(self, command: commands.Command, actor: Actor = ME) -> Decision:
        decision = decide(self.state, command, actor, NOW_MS)
        self.log += decision.records
        self.effects += decision.effects
        self.state = decision.state
        return decision

    def report(self, fact: Fact) -> Decision:
        assert self.state is not None
        cursor = self.state.cursor
        return self.do(
            commands.ReportFrame(at=Cursor(generation=cursor.generation, n=cursor.n + 1), fact=fact)
        )

    @property
    def types(self) -> list[str]:
        return [record.fact.TYPE for record in self.log]


def created(prompt: str = "") -> Session:
    session = Session()
    repository = Repository(source="/tmp/repo")
    session.do(
        commands.CreateSession(title="t", repository=repository, model="p/m", prompt=prompt, task_id="tsk_1")
    )
    return session


def ready(prompt: str = "") -> Session:
    session = created(prompt)
    session.report(facts.SandboxReady(generation=1, base_commit="c0", work_branch="ship/x"))
    return session


def test_a_new_session_asks_for_a_sandbox_and_starts_its_task_when_that_is_ready() -> None:
    session = created("do it")
    assert session.state and session.state.status is SessionStatus.PROVISIONING
    assert [type(effect) for effect in session.effects] == [commands.ProvisionSandbox]
    session.report(facts.SandboxReady(generation=1, base_commit="c0", work_branch="ship/x"))
    assert session.state.status is SessionStatus.RUNNING
    assert session.types[-2:] == ["sandbox.ready", "task.started"]


def test_follow_ups_wait_and_run_one_at_a_time() -> None:
    session = ready("first")
    session.do(commands.QueueTask(task_id="tsk_2", prompt="second"))
    assert session.state and [task.id for task in session.state.queue] == ["tsk_2"]
    session.report(facts.TaskCompleted(task_id="tsk_1"))
    assert session.state.running and session.state.running.id == "tsk_2"


def test_a_steer_reaches_the_running_task_or_becomes_a_task() -> None:
    session = ready("first")
    steered = session.do(commands.SteerTask(task_id="tsk_2", steer_id="str_1", text="more"))
    assert steered.answer["task_id"] == "tsk_1"
    session.report(facts.TaskCompleted(task_id="tsk_1"))
    started = session.do(commands.SteerTask(task_id="tsk_3", steer_id="str_2", text="again"))
    assert started.answer["task_id"] == "tsk_3"
    assert session.state and session.state.running and session.state.running.id == "tsk_3"


def test_a_queued_task_is_cancelled_at_once_and_a_running_one_by_its_agent() -> None:
    session = ready("first")
    session.do(commands.QueueTask(task_id="tsk_2", prompt="second"))
    session.do(commands.CancelTask(task_id="tsk_2"))
    session.do(commands.CancelTask(task_id="tsk_1"))
    again = session.do(commands.CancelTask(task_id="tsk_1"))
    assert not again.records
    assert session.state and session.state.running and session.state.running.cancel_requested
    session.report(facts.TaskCancelled(task_id="tsk_1"))
    assert [task.status for task in session.state.tasks] == [TaskStatus.CANCELLED] * 2


def test_an_agent_that_does_not_stop_loses_its_sandbox() -> None:
    session = ready("first")
    session.do(commands.CancelTask(task_id="tsk_1"))
    session.do(commands.FireAlarm(name="cancel_deadline"), SYSTEM)
    assert session.state and session.state.sandbox.generation == 2
    assert session.state.tasks[0].status is TaskStatus.CANCELLED
    assert session.effects[-2:] == [
        commands.KillSandbox(generation=1),
        commands.ProvisionSandbox(generation=2),
    ]


def test_a_failed_provision_says_why_and_can_be_retried() -> None:
    session = created("do it")
    session.report(facts.SandboxFailed(generation=1, failure=FAILURE))
    assert session.state and session.state.status is SessionStatus.FAILED
    assert session.state.failure == FAILURE
    session.do(commands.RetrySession())
    assert session.state.sandbox.generation == 2
    session.report(facts.SandboxReady(generation=2, base_commit="c0", work_branch="b"))
    assert session.state.running and session.state.running.id == "tsk_1"


def test_a_new_task_brings_a_failed_session_back() -> None:
    session = created()
    session.do(commands.FireAlarm(name="provision_deadline"), SYSTEM)
    assert session.state and session.state.failure and session.state.failure.code == "provision_timeout"
    session.do(commands.QueueTask(task_id="tsk_1", prompt="go"))
    assert session.state.status is SessionStatus.PROVISIONING


def test_a_lost_sandbox_ends_its_task_and_says_so() -> None:
    session = ready("first")
    session.do(commands.ReportMissing(generation=1, reason="gone"), SYSTEM)
    assert session.state and session.state.status is SessionStatus.FAILED
    assert session.state.tasks[0].failure and session.state.tasks[0].failure.code == "sandbox_lost"


def test_frames_are_taken_once_in_order_and_of_the_present_generation_only() -> None:
    session = ready("first")
    text = facts.TextFinished(task_id="tsk_1", message_id="m", part_id="p", text="hello")
    session.report(text)
    length = len(session.log)
    session.do(commands.ReportFrame(at=Cursor(generation=1, n=2), fact=text))
    assert len(session.log) == length
    with pytest.raises(Conflict, match="came before"):
        session.do(commands.ReportFrame(at=Cursor(generation=1, n=9), fact=text))
    with pytest.raises(StaleGeneration):
        session.do(commands.ReportFrame(at=Cursor(generation=2, n=1), fact=text))


@pytest.mark.parametrize(
    "fact",
    [
        facts.SessionArchived(),
        facts.TaskQueued(task_id="tsk_9", prompt="spend money", model="p/m"),
        facts.ModelCalled(task_id="tsk_1", provider="p", model="m", status=200, took_ms=1, usage=Usage()),
        facts.TextFinished(task_id="another", message_id="m", part_id="p", text="forged"),
        facts.TaskCompleted(task_id="another"),
        facts.SandboxReady(generation=1, base_commit="c", work_branch="b"),
    ],
)
def test_a_runner_that_says_what_it_may_not_is_cut_off(fact: Fact) -> None:
    session = ready("first")
    session.report(fact)
    assert session.state and session.state.sandbox.status == "lost"
    assert fact not in [record.fact for record in session.log[5:]]


def test_requests_are_answered_once_in_their_own_form() -> None:
    session = ready("first")
    session.report(
        facts.RequestAsked(task_id="tsk_1", request_id="r1", kind=RequestKind.PERMISSION, title="bash")
    )
    with pytest.raises(InvalidInput):
        session.do(commands.AnswerRequest(request_id="r1", answer=Answer(answers=(("yes",),))))
    session.do(commands.AnswerRequest(request_id="r1", answer=Answer(reply=PermissionReply.ONCE)))
    with pytest.raises(Conflict):
        session.do(commands.AnswerRequest(request_id="r1", answer=Answer(reply=PermissionReply.ONCE)))
    question = Question(question="which?", custom=False)
    session.report(
        facts.RequestAsked(
            task_id="tsk_1", request_id="r2", kind=RequestKind.QUESTION, title="?", questions=(question,)
        )
    )
    for wrong in (Answer(), Answer(answers=(("a",), ("b",))), Answer(answers=(("free text",),))):
        with pytest.raises(InvalidInput):
            session.do(commands.AnswerRequest(request_id="r2", answer=wrong))
    session.report(facts.TaskCompleted(task_id="tsk_1"))
    assert session.state and not session.state.requests
    assert "request.withdrawn" in session.types


def test_nothing_follows_an_archive() -> None:
    session = ready("first")
    session.do(commands.QueueTask(task_id="tsk_2", prompt="second"))
    session.do(commands.ArchiveSession())
    assert session.types[-1] == "session.archived"
    assert session.state and {task.status for task in session.state.tasks} == {TaskStatus.CANCELLED}
    assert session.effects[-1] == commands.KillSandbox(generation=1)
    length = len(session.log)
    session.do(commands.ArchiveSession())
    with pytest.raises(Conflict):
        session.do(commands.QueueTask(task_id="tsk_3", prompt="third"))
    assert len(session.log) == length


def test_commands_to_no_session_are_refused() -> None:
    with pytest.raises(NotFound):
        decide(None, commands.RetrySession(), ME, NOW_MS)


def test_model_calls_add_up() -> None:
    session = ready("first")
    call = facts.ModelCalled(
        task_id="tsk_1",
        provider="p",
        model="m",
        status=200,
        took_ms=5,
        usage=Usage(model_calls=1, input_tokens=7, cost_usd=0.5),
    )
    for _ in range(2):
        session.do(commands.RecordModelCall(generation=1, fact=call), SYSTEM)
    assert session.state and session.state.usage.input_tokens == 14
    assert session.state.tasks[0].usage.cost_usd == 1.0


# Any sequence of commands. Ids are drawn from a small set, so that they often meet.

TASK = st.sampled_from(["tsk_1", "tsk_2", "tsk_3"])
REQUEST = st.sampled_from(["r1", "r2"])
GENERATION = st.integers(1, 3)
TEXT = st.text(max_size=10)

REPORTED = st.one_of(
    st.builds(facts.SandboxStepStarted, generation=GENERATION, step=st.sampled_from(["clone", "agent"])),
    st.builds(facts.SandboxStepFinished, generation=GENERATION, step=st.just("clone"), took_ms=st.just(3)),
    st.builds(facts.SandboxReady, generation=GENERATION, base_commit=st.just("c"), work_branch=st.just("b")),
    st.builds(facts.SandboxFailed, generation=GENERATION, failure=st.just(FAILURE)),
    st.builds(facts.TaskCompleted, task_id=TASK),
    st.builds(facts.TaskFailed, task_id=TASK, failure=st.just(FAILURE)),
    st.builds(facts.TaskCancelled, task_id=TASK),
    st.builds(facts.TextFinished, task_id=TASK, message_id=TEXT, part_id=TEXT, text=TEXT),
    st.builds(
        facts.RequestAsked, task_id=TASK, request_id=REQUEST, kind=st.just(RequestKind.PERMISSION), title=TEXT
    ),
    st.builds(facts.RequestWithdrawn, request_id=REQUEST),
    st.builds(facts.TodosUpdated, task_id=TASK, todos=st.just(())),
    st.just(facts.SessionArchived()),
)
COMMANDS = st.one_of(
    st.builds(commands.QueueTask, task_id=TASK, prompt=TEXT, agent=st.sampled_from(AgentMode)),
    st.builds(commands.SteerTask, task_id=TASK, steer_id=TEXT, text=TEXT),
    st.builds(commands.CancelTask, task_id=TASK),
    st.builds(commands.AnswerRequest, request_id=REQUEST, answer=st.just(Answer(reply=PermissionReply.ONCE))),
    st.builds(commands.PostMessage, message_id=TEXT, text=TEXT),
    st.just(commands.RetrySession()),
    st.builds(commands.ReportMissing, generation=GENERATION, reason=TEXT),
    st.builds(
        commands.FireAlarm, name=st.sampled_from(["provision_deadline", "cancel_deadline", "sandbox_check"])
    ),
    st.builds(commands.ReportProgress, generation=GENERATION, fact=REPORTED),
    st.builds(
        commands.ReportFrame, at=st.builds(Cursor, generation=GENERATION, n=st.integers(1, 6)), fact=REPORTED
    ),
    REPORTED,
    REPORTED,
)
SEQUENCES = st.lists(st.one_of(COMMANDS, COMMANDS, COMMANDS, st.just(commands.ArchiveSession())), max_size=40)


def driven(sequence: list[Any]) -> Session:
    session = created("first")
    queued = {"tsk_1"}
    for step in sequence:
        task_id = getattr(step, "task_id", None)
        if isinstance(step, commands.QueueTask | commands.SteerTask):
            if task_id in queued:
                continue
            queued.add(task_id)
        before = len(session.log)
        try:
            if isinstance(step, Fact):
                session.report(step)
            else:
                session.do(step)
        except ShipError:
            assert len(session.log) == before
    return session


@given(SEQUENCES)
@settings(max_examples=300, deadline=None)
def test_any_sequence_keeps_the_invariants(sequence: list[Any]) -> None:
    session = driven(sequence)
    assert [record.seq for record in session.log] == list(range(1, len(session.log) + 1))
    assert "session.archived" not in session.types[:-1]
    running: set[str] = set()
    cursors = [record.frame for record in session.log if record.frame]
    assert cursors == sorted(set(cursors), key=lambda cursor: (cursor.generation, cursor.n))
    for record in session.log:
        match record.fact:
            case facts.TaskStarted(task_id=task_id):
                assert not running
                running.add(task_id)
            case (
                facts.TaskCompleted(task_id=task_id)
                | facts.TaskFailed(task_id=task_id)
                | facts.TaskCancelled(task_id=task_id)
            ):
                running.discard(task_id)
    state = session.state
    assert state is not None
    assert {task.id for task in state.tasks if task.status is TaskStatus.RUNNING} == running
    assert (state.status is SessionStatus.RUNNING) == bool(running)
    if state.status is SessionStatus.READY:
        assert not state.queue
    if not running:
        assert not state.requests


@given(SEQUENCES, st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_a_snapshot_and_the_later_events_equal_a_full_fold(sequence: list[Any], cut: int) -> None:
    session = driven(sequence)
    log = [decode(encode(record)) for record in session.log]
    assert log == session.log
    cut = cut % (len(log) + 1)
    early = fold(log[:cut])
    kept = msgspec.json.decode(msgspec.json.encode(early), type=SessionState | None)
    assert fold(log[cut:], kept) == session.state
