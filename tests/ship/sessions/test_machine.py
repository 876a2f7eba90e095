"""The machine under any sequence of commands, and its single rules."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ship.sessions.driven import FAILURE, ME, NOW_MS, Session, created, ready

from ship.errors import Conflict, InvalidInput, NotFound, ShipError, StaleGeneration
from ship.events import Cursor, Fact, decode, encode, facts
from ship.model import (
    AGENT,
    SYSTEM,
    AgentMode,
    Answer,
    CheckpointReason,
    Failure,
    LimitsPatch,
    PermissionReply,
    Question,
    RequestKind,
    SessionStatus,
    TaskStatus,
    Usage,
    Value,
)
from ship.sessions import commands
from ship.sessions.fold import fold
from ship.sessions.machine import ALARMS, ARTIFACTS, decide
from ship.sessions.reports import REQUESTS_BYTES, STEPS, TEXT_CHARACTERS
from ship.sessions.state import SessionState


def test_a_new_session_asks_for_a_sandbox_and_starts_its_task_when_that_is_ready() -> None:
    session = created("do it")
    assert session.state.status is SessionStatus.PROVISIONING
    assert [type(effect) for effect in session.effects] == [commands.ProvisionSandbox]
    session.report(facts.SandboxReady(generation=1, base_commit="c0", work_branch="ship/x"))
    assert session.state.status is SessionStatus.RUNNING
    assert session.types[-2:] == ["sandbox.ready", "task.started"]


def test_follow_ups_wait_and_run_one_at_a_time() -> None:
    session = ready("first")
    session.do(commands.QueueTask(task_id="tsk_2", prompt="second"))
    assert [task.id for task in session.state.queue] == ["tsk_2"]
    session.report(facts.TaskCompleted(task_id="tsk_1"))
    assert session.state.running and session.state.running.id == "tsk_2"


def test_a_steer_reaches_the_running_task_or_becomes_a_task() -> None:
    session = ready("first")
    steered = session.do(commands.SteerTask(task_id="tsk_2", steer_id="str_1", text="more"))
    assert steered.answer["task_id"] == "tsk_1"
    session.report(facts.TaskCompleted(task_id="tsk_1"))
    cheaply = LimitsPatch(tokens=7)
    started = session.do(commands.SteerTask(task_id="tsk_3", steer_id="str_2", text="again", limits=cheaply))
    assert started.answer["task_id"] == "tsk_3"
    assert session.state.running and session.state.running.id == "tsk_3"
    assert session.state.running.limits.tokens == 7


def test_a_queued_task_is_cancelled_at_once_and_a_running_one_by_its_agent() -> None:
    session = ready("first")
    session.do(commands.QueueTask(task_id="tsk_2", prompt="second"))
    session.do(commands.CancelTask(task_id="tsk_2"))
    session.do(commands.CancelTask(task_id="tsk_1"))
    again = session.do(commands.CancelTask(task_id="tsk_1"))
    assert not again.records
    assert session.state.running and session.state.running.cancel_requested
    session.report(facts.TaskCancelled(task_id="tsk_1"))
    assert [task.status for task in session.state.tasks] == [TaskStatus.CANCELLED] * 2


def test_an_agent_that_does_not_stop_loses_its_sandbox() -> None:
    session = ready("first")
    session.do(commands.CancelTask(task_id="tsk_1"))
    session.do(commands.FireAlarm(name="cancel_deadline"), SYSTEM)
    assert session.state.sandbox.generation == 2
    assert session.state.tasks[0].status is TaskStatus.CANCELLED
    assert session.effects[-2:] == [
        commands.KillSandbox(generation=1),
        commands.ProvisionSandbox(generation=2),
    ]


def test_a_failed_provision_says_why_and_can_be_retried() -> None:
    session = created("do it")
    session.report(facts.SandboxFailed(generation=1, failure=FAILURE))
    assert session.state.status is SessionStatus.FAILED
    assert session.state.failure == FAILURE
    session.do(commands.RetrySession())
    assert session.state.sandbox.generation == 2
    session.report(facts.SandboxReady(generation=2, base_commit="c0", work_branch="b"))
    assert session.state.running and session.state.running.id == "tsk_1"


def test_a_new_task_brings_a_failed_session_back() -> None:
    session = created()
    session.do(commands.FireAlarm(name="provision_deadline"), SYSTEM)
    assert session.state.failure and session.state.failure.code == "provision_timeout"
    session.do(commands.QueueTask(task_id="tsk_1", prompt="go"))
    assert session.state.status is SessionStatus.PROVISIONING


def test_each_step_of_a_sandbox_has_its_time_and_a_clone_has_more() -> None:
    def started(step: str) -> facts.SandboxStepStarted:
        return facts.SandboxStepStarted(generation=1, step=step)

    session = created("do it")
    for step in ("clone", "agent"):
        session.report(started(step))
        session.pass_time(170)
    session.report(facts.SandboxStepFinished(generation=1, step="agent", took_ms=1))
    session.pass_time(3_000)
    assert session.state.status is SessionStatus.PROVISIONING
    session.report(facts.SandboxStepFinished(generation=1, step="clone", took_ms=1))
    assert session.pass_time(200) == ["provision_deadline"]
    assert session.state.status is SessionStatus.FAILED
    session.do(commands.RetrySession())
    session.report(facts.SandboxStepStarted(generation=2, step="clone"))
    session.pass_time(3_700)
    assert session.state.failure and "the step clone took more than 3660 s" in session.state.failure.reason


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
        facts.SandboxStepStarted(generation=1, step="x" * 1_001),
        facts.CheckpointCreated(
            checkpoint_id="ckp_1",
            task_id="tsk_1",
            commit="c1",
            base_commit="c0",
            files=(),
            diff_artifact="d" * 1_001,
        ),
    ],
)
def test_a_runner_that_says_what_it_may_not_is_cut_off(fact: Fact) -> None:
    session = ready("first")
    session.report(fact)
    assert "sandbox.lost" in session.types
    assert session.state.sandbox.generation == 2
    assert fact not in [record.fact for record in session.log[5:]]


def test_a_runner_cannot_fill_the_state_with_steps_or_failures() -> None:
    session = created("do it")
    for number in range(STEPS):
        session.report(facts.SandboxStepStarted(generation=1, step=f"step {number}", detail="x" * 100_000))
    assert session.state.sandbox.generation == 1
    assert len(encode_state(session)) < STEPS * 9_000
    session.report(facts.SandboxStepFinished(generation=1, step="step 1", took_ms=1))
    assert session.state.sandbox.generation == 1
    session.report(facts.SandboxStepStarted(generation=1, step="one more"))
    assert session.state.sandbox.generation == 2
    failure = Failure(code="x", reason="y" * 100_000, hint="z" * 100_000)
    session.report(facts.SandboxFailed(generation=2, failure=failure))
    assert session.state.failure and len(session.state.failure.reason) == TEXT_CHARACTERS
    session = ready("do it")
    session.report(facts.TaskFailed(task_id="tsk_1", failure=failure))
    assert len(encode_state(session)) < 3 * TEXT_CHARACTERS


def test_a_runner_cannot_fill_the_state_with_names_of_its_branch_or_with_requests() -> None:
    session = created("do it")
    session.report(facts.SandboxReady(generation=1, base_commit="c", work_branch="b" * 1_001))
    assert session.state.sandbox.generation == 2
    session = ready("do it")
    for number in range(20):
        asked = facts.RequestAsked(
            task_id="tsk_1",
            request_id=f"req_{number}",
            kind=RequestKind.PERMISSION,
            title="t",
            detail="x" * 250_000,
        )
        session.report(asked)
        assert len(encode_state(session)) < REQUESTS_BYTES + 10_000
    assert session.state.sandbox.generation == 2


def encode_state(session: Session) -> bytes:
    return msgspec.json.encode(session.state)


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
    assert not session.state.requests
    assert "request.withdrawn" in session.types


def test_a_session_full_of_artifacts_still_takes_its_runners() -> None:
    session = ready("first")
    for number in range(ARTIFACTS):
        session.do(stored(f"a{number}"))
    with pytest.raises(Conflict) as refused:
        session.do(stored("one more"))
    assert refused.value.code == "too_many_artifacts"
    session.do(stored("a7"))
    session.do(stored("checkpoint-ckp_1.bundle"), AGENT)
    assert len(session.state.artifacts) == ARTIFACTS + 1


def test_what_a_checkpoint_consists_of_is_replaced_by_nobody_but_its_runner() -> None:
    session = ready("first")
    for name in ("bundle-1", "diff-1"):
        session.do(stored(name), AGENT)
    point = facts.CheckpointCreated(
        checkpoint_id="ckp_1",
        task_id="tsk_1",
        commit="c1",
        base_commit="c0",
        files=(),
        diff_artifact="diff-1",
        bundle_artifact="bundle-1",
    )
    session.report(point)
    for name in ("bundle-1", "diff-1"):
        with pytest.raises(Conflict) as refused:
            session.do(stored(name))
        assert refused.value.code == "artifact_of_checkpoint"
    session.do(stored("bundle-1"), AGENT)
    session.do(stored("bundle-2"))


def stored(name: str) -> commands.StoreArtifact:
    return commands.StoreArtifact(name=name, sha256="0" * 64, size_bytes=1, media_type="x/y")


def test_nothing_follows_an_archive() -> None:
    session = ready("first")
    session.do(commands.QueueTask(task_id="tsk_2", prompt="second"))
    session.do(commands.ArchiveSession())
    assert session.types[-1] == "session.archived"
    assert {task.status for task in session.state.tasks} == {TaskStatus.CANCELLED}
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
    assert session.state.usage.input_tokens == 14
    assert session.state.tasks[0].usage.cost_usd == 1.0


class Wait(Value, frozen=True):
    """Time passes, and alarms fire."""

    seconds: int


# Any sequence of commands. Ids are drawn from a small set, so that they often meet.

TASK = st.sampled_from(["tsk_1", "tsk_2", "tsk_3"])
REQUEST = st.sampled_from(["r1", "r2"])
GENERATION = st.integers(1, 3)
CHECKPOINT = st.sampled_from(["ckp_1", "ckp_2"])
CHILD = st.sampled_from(["ses_1", "ses_2"])
LIMITS = st.builds(LimitsPatch, time_s=st.sampled_from([None, 0, 30]), tokens=st.sampled_from([None, 0, 50]))
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
    st.builds(
        facts.SandboxRestored, generation=GENERATION, checkpoint_id=CHECKPOINT, conversation=st.booleans()
    ),
    st.builds(
        facts.CheckpointCreated,
        checkpoint_id=CHECKPOINT,
        task_id=st.sampled_from(["", "tsk_1"]),
        commit=st.just("c"),
        base_commit=st.just("b"),
        files=st.just(()),
        diff_artifact=st.sampled_from(["a1", "a2"]),
        parent_id=st.sampled_from(["", "ckp_1"]),
        reason=st.sampled_from(CheckpointReason),
    ),
    st.just(facts.SessionArchived()),
)
COMMANDS = st.one_of(
    st.builds(commands.QueueTask, task_id=TASK, prompt=TEXT, agent=st.sampled_from(AgentMode), limits=LIMITS),
    st.builds(commands.EditTask, task_id=TASK, prompt=st.none() | TEXT, limits=LIMITS),
    st.builds(commands.MoveTask, task_id=TASK, before=st.sampled_from(["", "tsk_1", "tsk_2", "tsk_3"])),
    st.builds(commands.PauseSession, checkpoint_id=CHECKPOINT),
    st.just(commands.ResumeSession()),
    st.builds(commands.RequestCheckpoint, checkpoint_id=CHECKPOINT),
    st.builds(commands.ReportFrozen, generation=GENERATION),
    st.builds(commands.ReportThawed, generation=GENERATION, memory=st.booleans()),
    st.builds(commands.ReportEnding, generation=GENERATION),
    st.builds(commands.StartChild, child_id=CHILD, title=TEXT, prompt=TEXT),
    st.builds(
        commands.FinishChild,
        fact=st.builds(
            facts.ChildFinished,
            child_id=CHILD,
            status=st.just(TaskStatus.FAILED),
            summary=TEXT,
            usage=st.builds(Usage, input_tokens=st.integers(0, 40)),
        ),
    ),
    st.builds(
        commands.RecordModelCall,
        generation=GENERATION,
        fact=st.builds(
            facts.ModelCalled,
            task_id=TASK,
            provider=TEXT,
            model=TEXT,
            status=st.just(200),
            took_ms=st.just(1),
            usage=st.builds(Usage, input_tokens=st.integers(0, 40)),
        ),
    ),
    st.builds(
        commands.RecordEffectFailure,
        fact=st.builds(
            facts.EffectFailed,
            effect_id=TEXT,
            kind=st.sampled_from(["pause_sandbox", "resume_sandbox", "provision_sandbox"]),
            attempts=st.just(4),
            failure=st.just(FAILURE),
        ),
        generation=GENERATION,
        failure=st.just(FAILURE),
    ),
    st.builds(Wait, seconds=st.sampled_from([1, 40, 1_000])),
    st.builds(commands.SteerTask, task_id=TASK, steer_id=TEXT, text=TEXT),
    st.builds(commands.CancelTask, task_id=TASK),
    st.builds(commands.AnswerRequest, request_id=REQUEST, answer=st.just(Answer(reply=PermissionReply.ONCE))),
    st.builds(commands.PostMessage, message_id=TEXT, text=TEXT),
    st.just(commands.RetrySession()),
    st.builds(commands.ReportMissing, generation=GENERATION, reason=TEXT),
    st.builds(commands.FireAlarm, name=st.sampled_from(ALARMS), checkpoint_id=CHECKPOINT),
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
            if isinstance(step, Wait):
                session.pass_time(step.seconds)
            elif isinstance(step, Fact):
                session.report(step)
            else:
                session.do(step)
        except ShipError:
            assert len(session.log) == before or isinstance(step, Wait)
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
    assert {task.id for task in state.tasks if task.status is TaskStatus.RUNNING} == running
    rests = (SessionStatus.PAUSED, SessionStatus.PROVISIONING)
    assert (state.status is SessionStatus.RUNNING) == bool(running) or (running and state.status in rests)
    assert (state.pause_reason != "") == (state.status is SessionStatus.PAUSED)
    for task in state.tasks:
        is_clocked = state.is_working and task.status is TaskStatus.RUNNING
        assert bool(task.working_since_ms) == is_clocked
        assert 0 <= task.worked_ms <= session.now_ms - NOW_MS
        if task.ending and task.status is TaskStatus.RUNNING:
            assert "cancel_deadline" in session.alarms
    if state.is_waiting and state.status is SessionStatus.READY:
        assert "idle_pause" in session.alarms
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
