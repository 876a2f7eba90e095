"""The rules of a session's life: limits, the queue, recovery, pauses, checkpoints, silence, children."""

import msgspec
import pytest
from tests.ship.sessions.driven import FAILURE, ME, Session, created, ready

from ship.errors import Conflict, NotFound
from ship.events import Fact, facts, frames
from ship.model import (
    AGENT,
    SYSTEM,
    Answer,
    CheckpointReason,
    LimitKind,
    Limits,
    LimitsPatch,
    Origin,
    Parent,
    PermissionReply,
    Question,
    Repository,
    RequestKind,
    SessionStatus,
    TaskStatus,
    Usage,
)
from ship.sessions import commands
from ship.sessions.fold import CHECKPOINTS, ENDED_TASKS, PROMPT_CHARACTERS, fold
from ship.sessions.instructions import instructions
from ship.sessions.policy import Policy
from ship.sessions.reports import CHAIN
from ship.sessions.state import Task
from ship.sessions.tasks import left

ASKED = facts.RequestAsked(task_id="tsk_1", request_id="r1", kind=RequestKind.PERMISSION, title="bash")
YES = commands.AnswerRequest(request_id="r1", answer=Answer(reply=PermissionReply.ONCE))
QUESTION = facts.RequestAsked(
    task_id="tsk_1",
    request_id="req_1",
    kind=RequestKind.QUESTION,
    title="t",
    questions=(Question(question="Which colour?"),),
)
BLUE = commands.AnswerRequest(request_id="req_1", answer=Answer(answers=(("blue",),)))


def limited(**limits: float) -> Session:
    session = ready()
    patch = msgspec.convert(limits, LimitsPatch)
    session.do(commands.QueueTask(task_id="tsk_1", prompt="do it", limits=patch))
    return session


def called(session: Session, tokens: int = 0, cost_usd: float = 0.0) -> None:
    usage = Usage(model_calls=1, input_tokens=tokens, cost_usd=cost_usd)
    fact = facts.ModelCalled(task_id="tsk_1", provider="p", model="m", status=200, took_ms=1, usage=usage)
    session.do(commands.RecordModelCall(generation=1, fact=fact), SYSTEM)


def checkpoint(number: int, parent: str = "", task_id: str = "tsk_1") -> facts.CheckpointCreated:
    return facts.CheckpointCreated(
        checkpoint_id=f"ckp_{number}",
        task_id=task_id,
        commit=f"c{number}",
        base_commit="c0",
        files=(),
        diff_artifact=f"diff-{number}",
        bundle_artifact=f"bundle-{number}",
        parent_id=parent,
    )


def task(session: Session, task_id: str = "tsk_1") -> Task:
    found = session.state.task(task_id)
    assert found is not None
    return found


def last(session: Session, kind: type[Fact]) -> Fact:
    return next(record.fact for record in reversed(session.log) if type(record.fact) is kind)


# Limits


def test_limits_come_from_the_task_then_the_session_then_the_policy() -> None:
    session = Session(Policy(limits=Limits(time_s=9, tokens=8, cost_usd=7.0)))
    session.do(
        commands.CreateSession(
            title="t", repository=Repository(source="/r"), model="p/m", limits=LimitsPatch(tokens=5)
        )
    )
    session.do(commands.QueueTask(task_id="tsk_1", prompt="x", limits=LimitsPatch(cost_usd=0)))
    assert task(session).limits == Limits(time_s=9, tokens=5, cost_usd=0.0)


@pytest.mark.parametrize(
    ("limits", "kind", "value"),
    [({"tokens": 100}, LimitKind.TOKENS, 120.0), ({"cost_usd": 0.5}, LimitKind.COST, 0.6)],
)
def test_a_task_that_used_up_a_limit_is_ended_and_says_which(
    limits: dict[str, float], kind: LimitKind, value: float
) -> None:
    session = limited(**limits)
    called(session, tokens=60, cost_usd=0.3)
    assert instructions(session.state).keys() == {"prompt:tsk_1"}
    called(session, tokens=60, cost_usd=0.3)
    reached = last(session, facts.TaskLimitReached)
    assert isinstance(reached, facts.TaskLimitReached)
    assert (reached.limit, reached.value) == (kind, value)
    assert instructions(session.state).keys() == {"cancel:tsk_1"}
    session.report(facts.TaskCancelled(task_id="tsk_1"))
    assert task(session).status is TaskStatus.FAILED
    assert task(session).failure and task(session).failure.code == "limit_reached"  # type: ignore[union-attr] # seen just before
    assert session.state.status is SessionStatus.READY


def test_a_task_that_is_done_when_its_limit_is_reached_is_completed() -> None:
    session = limited(tokens=10)
    called(session, tokens=10)
    session.report(facts.TaskCompleted(task_id="tsk_1"))
    assert task(session).status is TaskStatus.COMPLETED


def test_an_agent_that_goes_on_past_its_limit_loses_its_sandbox() -> None:
    session = limited(tokens=10)
    called(session, tokens=10)
    assert session.pass_time(60) == ["cancel_deadline"]
    assert task(session).failure and task(session).failure.code == "limit_reached"  # type: ignore[union-attr] # seen just before
    assert session.state.sandbox.generation == 2


def test_a_runner_that_is_there_may_take_longer_to_keep_what_the_agent_left() -> None:
    session = ready("first")
    session.do(commands.ReportEnding(generation=1), SYSTEM)
    assert "cancel_deadline" not in session.alarms
    session.do(commands.CancelTask(task_id="tsk_1"))
    session.do(commands.ReportEnding(generation=2), SYSTEM)
    for _ in range(19):
        session.do(commands.ReportEnding(generation=1), SYSTEM)
        assert session.pass_time(30) == []
    session.do(commands.ReportEnding(generation=1), SYSTEM)
    # Not for ever, however often it says so.
    session.pass_time(40)
    session.do(commands.ReportEnding(generation=1), SYSTEM)
    assert session.pass_time(30) == ["cancel_deadline"]
    assert session.state.sandbox.generation == 2


def test_time_counts_while_the_agent_works_and_not_while_it_waits() -> None:
    session = limited(time_s=100)
    session.pass_time(60)
    session.report(ASKED)
    session.pass_time(500)
    session.do(YES)
    assert task(session).worked(session.now_ms) == 60_000
    assert "time_limit" not in session.pass_time(30)
    assert session.pass_time(15) == ["time_limit"]
    assert isinstance(last(session, facts.TaskLimitReached), facts.TaskLimitReached)


def test_a_paused_task_uses_no_time() -> None:
    session = limited(time_s=100)
    session.pass_time(60)
    session.do(commands.PauseSession(checkpoint_id="ckp_p"))
    session.report(checkpoint_of_pause())
    session.do(commands.ReportFrozen(generation=1), SYSTEM)
    session.pass_time(3_600)
    session.do(commands.ResumeSession())
    session.pass_time(50)
    session.do(commands.ReportThawed(generation=1, memory=True), SYSTEM)
    assert session.pass_time(39) == []
    assert session.pass_time(2) == ["time_limit"]


def test_a_clock_that_went_back_takes_no_time_away_and_an_early_alarm_waits() -> None:
    session = limited(time_s=100)
    session.now_ms -= 500
    session.do(commands.FireAlarm(name="time_limit"), SYSTEM)
    assert task(session).worked(session.now_ms) == 0
    session.pass_time(99)
    assert task(session).limit is None
    session.pass_time(2)
    assert task(session).limit is LimitKind.TIME


def test_the_limits_of_a_running_task_can_be_raised_and_lowered() -> None:
    session = limited(time_s=10, tokens=100)
    session.do(commands.EditTask(task_id="tsk_1", limits=LimitsPatch(time_s=50)))
    assert session.pass_time(40) == []
    called(session, tokens=60)
    session.do(commands.EditTask(task_id="tsk_1", limits=LimitsPatch(tokens=50)))
    assert task(session).limit is LimitKind.TOKENS


# The queue


def test_waiting_tasks_are_edited_and_moved_and_run_in_their_new_order() -> None:
    session = ready("first")
    for name in ("tsk_2", "tsk_3", "tsk_4"):
        session.do(commands.QueueTask(task_id=name, prompt=name))
    session.do(commands.MoveTask(task_id="tsk_4", before="tsk_2"))
    session.do(commands.MoveTask(task_id="tsk_2"))
    session.do(commands.EditTask(task_id="tsk_4", prompt="another", model="p/other"))
    assert [waiting.id for waiting in session.state.queue] == ["tsk_4", "tsk_3", "tsk_2"]
    session.report(facts.TaskCompleted(task_id="tsk_1"))
    prompt = instructions(session.state)["prompt:tsk_4"]
    assert isinstance(prompt, frames.Prompt)
    assert (prompt.text, prompt.model) == ("another", "p/other")


def test_what_changes_nothing_is_not_written_down() -> None:
    session = ready("first")
    for name in ("tsk_2", "tsk_3"):
        session.do(commands.QueueTask(task_id=name, prompt=name))
    length = len(session.log)
    session.do(commands.MoveTask(task_id="tsk_2", before="tsk_3"))
    session.do(commands.MoveTask(task_id="tsk_3", before="tsk_3"))
    session.do(commands.MoveTask(task_id="tsk_3"))
    session.do(commands.EditTask(task_id="tsk_2", prompt="tsk_2"))
    assert len(session.log) == length


def test_what_has_begun_is_not_moved_or_rewritten() -> None:
    session = ready("first")
    session.do(commands.QueueTask(task_id="tsk_2", prompt="second"))
    for refused in (
        commands.EditTask(task_id="tsk_1", prompt="else"),
        commands.MoveTask(task_id="tsk_1"),
        commands.MoveTask(task_id="tsk_2", before="tsk_1"),
    ):
        with pytest.raises(Conflict, match=r"cannot be changed|only a waiting"):
            session.do(refused)
    session.report(facts.TaskCompleted(task_id="tsk_1"))
    with pytest.raises(Conflict):
        session.do(commands.EditTask(task_id="tsk_1", limits=LimitsPatch(tokens=5)))


def test_an_edit_and_steers_find_the_queue_full_too() -> None:
    session = ready("first")
    session.do(commands.QueueTask(task_id="tsk_2", prompt="x" * 9_000_000))
    session.do(commands.EditTask(task_id="tsk_2", prompt="y" * 16_000_000))
    session.do(commands.EditTask(task_id="tsk_2", prompt="y" * 9_000_000))
    session.do(commands.SteerTask(task_id="tsk_3", steer_id="str_1", text="x" * 7_000_000))
    for refused in (
        commands.EditTask(task_id="tsk_2", prompt="z" * 10_000_000),
        commands.SteerTask(task_id="tsk_3", steer_id="str_2", text="x" * 1_000_000),
        commands.QueueTask(task_id="tsk_3", prompt="x" * 1_000_000),
    ):
        with pytest.raises(Conflict) as full:
            session.do(refused)
        assert full.value.code == "queue_full"


def test_the_task_that_ended_first_is_forgotten_first() -> None:
    session = ready("first")
    for number in range(2, ENDED_TASKS + 2):
        session.do(commands.QueueTask(task_id=f"tsk_{number}", prompt="more"))
        session.now_ms += 1
        session.do(commands.CancelTask(task_id=f"tsk_{number}"))
    session.now_ms += 1
    session.report(facts.TaskCompleted(task_id="tsk_1"))
    assert session.state.task("tsk_1") is not None
    assert session.state.task("tsk_2") is None


def test_the_queue_has_an_end() -> None:
    session = ready("first")
    session.do(commands.QueueTask(task_id="tsk_2", prompt="x" * 16_000_000))
    with pytest.raises(Conflict) as refused:
        session.do(commands.QueueTask(task_id="tsk_3", prompt="x" * 16_000_000))
    assert refused.value.code == "queue_full"


# Recovery


def test_an_answer_whose_sandbox_died_is_told_to_the_agent_in_the_next_one() -> None:
    session = ready("first")
    session.report(QUESTION)
    session.do(BLUE)
    session.do(commands.ReportMissing(generation=1, reason="gone"), SYSTEM)
    session.report(facts.SandboxReady(generation=2, base_commit="c0", work_branch="ship/x"))
    steers = [said for said in instructions(session.state).values() if isinstance(said, frames.Steer)]
    assert "Which colour? The answer: blue" in steers[0].text
    assert len(steers) == 1


def test_a_task_whose_sandbox_died_goes_on_in_the_next_one() -> None:
    session = ready("first")
    session.report(ASKED)
    session.do(commands.ReportMissing(generation=1, reason="gone"), SYSTEM)
    assert task(session).status is TaskStatus.RUNNING
    assert session.state.status is SessionStatus.PROVISIONING
    assert not session.state.requests
    assert instructions(session.state) == {}
    session.report(facts.SandboxRestored(generation=2, checkpoint_id="ckp", conversation=True, lost=("a",)))
    session.report(facts.SandboxReady(generation=2, base_commit="c0", work_branch="b"))
    assert session.state.status is SessionStatus.RUNNING
    prompt = instructions(session.state)["prompt:tsk_1"]
    assert isinstance(prompt, frames.Prompt)
    assert prompt.recovered
    assert session.state.sandbox.restored
    session.report(facts.TaskCompleted(task_id="tsk_1"))
    assert session.state.losses == 0


def test_a_sandbox_that_is_lost_again_and_again_needs_a_person() -> None:
    session = ready("first", Policy(recoveries=2))
    for generation in (1, 2, 3):
        assert session.state.sandbox.generation == generation
        session.do(commands.ReportMissing(generation=generation, reason="gone"), SYSTEM)
    assert session.state.status is SessionStatus.FAILED
    failure = task(session).failure
    assert failure and failure.code == "sandbox_lost"
    assert "3 times" in failure.reason
    session.do(commands.RetrySession())
    session.do(commands.ReportMissing(generation=4, reason="gone"), SYSTEM)
    assert session.state.status is SessionStatus.PROVISIONING


def test_an_idle_session_gets_a_new_sandbox_too() -> None:
    session = ready()
    session.do(commands.ReportMissing(generation=1, reason="gone"), SYSTEM)
    session.report(facts.SandboxReady(generation=2, base_commit="c0", work_branch="b"))
    assert session.state.status is SessionStatus.READY


def test_a_task_that_was_being_cancelled_ends_with_its_sandbox() -> None:
    session = ready("first")
    session.do(commands.CancelTask(task_id="tsk_1"))
    session.do(commands.ReportMissing(generation=1, reason="gone"), SYSTEM)
    assert task(session).status is TaskStatus.CANCELLED
    assert session.state.sandbox.generation == 2


def test_a_cancel_during_a_recovery_ends_the_task_at_once() -> None:
    session = ready("first")
    session.do(commands.ReportMissing(generation=1, reason="gone"), SYSTEM)
    session.do(commands.CancelTask(task_id="tsk_1"))
    assert task(session).status is TaskStatus.CANCELLED
    session.report(facts.SandboxReady(generation=2, base_commit="c0", work_branch="b"))
    assert session.state.status is SessionStatus.READY


# Pauses


def checkpoint_of_pause() -> facts.CheckpointCreated:
    return msgspec.structs.replace(checkpoint(1), checkpoint_id="ckp_p", reason=CheckpointReason.PAUSE)


def frozen(session: Session) -> None:
    session.do(commands.ReportFrozen(generation=1), SYSTEM)
    assert session.state.sandbox.status == "paused"


def test_a_sandbox_that_was_frozen_again_to_make_sure_is_told_once() -> None:
    session = ready()
    session.do(commands.PauseSession(checkpoint_id="ckp_p"))
    frozen(session)
    frozen(session)
    assert session.types.count("sandbox.paused") == 1
    session.do(commands.ResumeSession())
    frozen(session)
    assert session.effects[-2:] == [commands.ResumeSandbox(generation=1, sandbox_id="")] * 2


def test_a_session_without_work_is_paused_and_a_task_brings_it_back() -> None:
    session = ready()
    session.pass_time(300)
    session.do(commands.PostMessage(message_id="m", text="I am here"))
    assert session.pass_time(400) == ["idle_pause"]
    assert session.state.status is SessionStatus.READY
    assert session.pass_time(300) == ["idle_pause"]
    assert session.state.pause_reason == "idle"
    assert session.effects[-1] == commands.PauseSandbox(generation=1, sandbox_id="")
    frozen(session)
    session.do(commands.QueueTask(task_id="tsk_1", prompt="go"))
    assert session.effects[-1] == commands.ResumeSandbox(generation=1, sandbox_id="")
    assert session.state.status is SessionStatus.RUNNING
    assert instructions(session.state) == {}
    session.do(commands.ReportThawed(generation=1, memory=True), SYSTEM)
    assert instructions(session.state).keys() == {"prompt:tsk_1"}


def test_a_task_is_kept_before_its_session_is_paused() -> None:
    session = ready("first")
    session.do(commands.PauseSession(checkpoint_id="ckp_p"))
    assert session.state.status is SessionStatus.PAUSED
    assert instructions(session.state)["checkpoint:ckp_p"] == frames.Checkpoint(
        checkpoint_id="ckp_p", reason=CheckpointReason.PAUSE
    )
    assert not any(isinstance(effect, commands.PauseSandbox) for effect in session.effects)
    session.report(checkpoint_of_pause())
    assert isinstance(session.effects[-1], commands.PauseSandbox)
    frozen(session)
    assert task(session).status is TaskStatus.RUNNING
    session.do(commands.ResumeSession())
    assert session.state.status is SessionStatus.RUNNING


def test_a_pause_does_not_wait_for_ever_for_its_checkpoint() -> None:
    session = ready("first")
    session.do(commands.PauseSession(checkpoint_id="ckp_p"))
    assert session.pass_time(20) == ["pause_deadline"]
    assert isinstance(session.effects[-1], commands.PauseSandbox)


def test_an_agent_that_waits_for_a_person_is_paused_and_its_answer_brings_it_back() -> None:
    session = ready("first")
    session.report(ASKED)
    assert "idle_pause" in session.pass_time(700)
    assert session.state.status is SessionStatus.PAUSED
    session.pass_time(20)
    frozen(session)
    session.pass_time(3 * 24 * 3_600)
    session.do(YES)
    session.do(commands.ReportThawed(generation=1, memory=True), SYSTEM)
    assert session.state.status is SessionStatus.RUNNING
    assert instructions(session.state).keys() >= {"prompt:tsk_1", "answer:r1"}


def test_an_agent_that_lost_its_memory_in_a_pause_is_told_the_answer_and_waits_for_nobody() -> None:
    session = ready("first")
    session.report(QUESTION)
    session.report(ASKED)
    session.pass_time(720)
    frozen(session)
    session.do(BLUE)
    for _ in range(2):
        session.do(commands.ReportThawed(generation=1, memory=False), SYSTEM)
    (steer,) = task(session).steers
    assert steer.text.endswith("- Which colour? The answer: blue")
    assert session.state.requests == ()
    assert session.state.is_working


def test_a_cancel_wakes_the_session_so_that_the_agent_can_stop() -> None:
    session = ready("first")
    session.do(commands.PauseSession(checkpoint_id="ckp_p"))
    session.report(checkpoint_of_pause())
    frozen(session)
    session.do(commands.CancelTask(task_id="tsk_1"))
    assert session.state.status is SessionStatus.RUNNING
    assert "cancel_deadline" in session.alarms


def test_pause_and_resume_that_overtake_each_other_end_as_was_asked_last() -> None:
    session = ready()
    session.do(commands.PauseSession(checkpoint_id="ckp_p"))
    session.do(commands.ResumeSession())
    frozen(session)
    assert isinstance(session.effects[-1], commands.ResumeSandbox)
    session.do(commands.PauseSession(checkpoint_id="ckp_p"))
    session.do(commands.ReportThawed(generation=1, memory=True), SYSTEM)
    assert isinstance(session.effects[-1], commands.PauseSandbox)


def test_a_sandbox_that_is_lost_during_a_pause_is_replaced_when_it_is_wanted() -> None:
    session = ready("first")
    session.do(commands.PauseSession(checkpoint_id="ckp_p"))
    session.report(checkpoint_of_pause())
    frozen(session)
    session.do(commands.ReportMissing(generation=1, reason="gone"), SYSTEM)
    assert (session.state.status, session.state.sandbox.generation) == (SessionStatus.PAUSED, 1)
    session.do(commands.ResumeSession())
    assert (session.state.status, session.state.sandbox.generation) == (SessionStatus.PROVISIONING, 2)
    assert task(session).recovered


@pytest.mark.parametrize(
    ("kind", "status"),
    [("pause_sandbox", SessionStatus.READY), ("resume_sandbox", SessionStatus.PAUSED)],
)
def test_a_host_that_cannot_pause_or_resume_leaves_the_session_as_it_was(
    kind: str, status: SessionStatus
) -> None:
    session = ready()
    session.do(commands.PauseSession(checkpoint_id="ckp_p"))
    if kind == "resume_sandbox":
        frozen(session)
        session.do(commands.ResumeSession())
    fact = facts.EffectFailed(effect_id="e", kind=kind, attempts=4, failure=FAILURE)
    session.do(commands.RecordEffectFailure(fact=fact, generation=1, failure=FAILURE), SYSTEM)
    assert session.state.status is status


@pytest.mark.parametrize(
    ("kind", "status"),
    [("provision_sandbox", SessionStatus.FAILED), ("check_sandbox", SessionStatus.PROVISIONING)],
)
def test_only_what_makes_a_sandbox_fails_one_that_is_being_made(kind: str, status: SessionStatus) -> None:
    session = created("first")
    fact = facts.EffectFailed(effect_id="e", kind=kind, attempts=6, failure=FAILURE)
    session.do(commands.RecordEffectFailure(fact=fact, generation=1, failure=FAILURE), SYSTEM)
    assert session.state.status is status


def test_what_is_not_there_or_ends_cannot_be_paused() -> None:
    session = created("first")
    with pytest.raises(Conflict):
        session.do(commands.PauseSession(checkpoint_id="ckp_p"))
    session.report(facts.SandboxReady(generation=1, base_commit="c0", work_branch="b"))
    session.do(commands.CancelTask(task_id="tsk_1"))
    with pytest.raises(Conflict):
        session.do(commands.PauseSession(checkpoint_id="ckp_p"))


# Checkpoints and forks


def test_a_checkpoint_on_demand_is_asked_for_once() -> None:
    session = ready("first")
    session.do(commands.RequestCheckpoint(checkpoint_id="ckp_1"))
    again = session.do(commands.RequestCheckpoint(checkpoint_id="ckp_2"))
    assert again.answer["checkpoint_id"] == "ckp_1"
    assert "checkpoint:ckp_1" in instructions(session.state)
    session.report(checkpoint(1))
    assert session.state.wanted_checkpoint is None
    session.report(facts.TaskCompleted(task_id="tsk_1"))
    session.do(commands.RequestCheckpoint(checkpoint_id="ckp_3"))
    assert instructions(session.state).keys() == {"checkpoint:ckp_3"}


def test_a_chain_of_checkpoints_restores_in_order_and_has_an_end() -> None:
    session = ready("first")
    session.report(checkpoint(1))
    for number in range(2, CHAIN + 1):
        session.report(checkpoint(number, parent=f"ckp_{number - 1}"))
    assert [point.id for point in session.state.chain("ckp_3")] == ["ckp_1", "ckp_2", "ckp_3"]
    session.report(checkpoint(CHAIN + 1, parent=f"ckp_{CHAIN}"))
    assert session.state.sandbox.generation == 2


def test_a_checkpoint_that_builds_on_nothing_costs_the_sandbox() -> None:
    session = ready("first")
    session.report(checkpoint(2, parent="ckp_1"))
    assert session.state.sandbox.generation == 2


def test_a_fork_begins_with_a_checkpoint_of_another_session() -> None:
    origin = Origin(session_id="ses_0", checkpoint_id="ckp_1", seq=9)
    fact = msgspec.structs.replace(checkpoint(1), reason=CheckpointReason.FORK)
    session = Session()
    session.do(
        commands.CreateSession(
            title="t",
            repository=Repository(source="/r"),
            model="p/other",
            origin=origin,
            inherited=(
                facts.ArtifactStored(name="bundle-1", sha256="0", size_bytes=1, media_type="x"),
                fact,
            ),
        )
    )
    assert session.state.origin == origin
    assert session.state.checkpoint and session.state.checkpoint.id == "ckp_1"
    assert [artifact.name for artifact in session.state.artifacts] == ["bundle-1"]


def test_a_state_stays_small_however_long_its_log_is() -> None:
    session = ready("first")
    for number in range(1, CHECKPOINTS + 60):
        for name in (f"diff-{number}", f"bundle-{number}"):
            session.do(commands.StoreArtifact(name=name, sha256="0", size_bytes=1, media_type="x"))
        parent = f"ckp_{number - 1}" if number % 20 else ""
        session.report(checkpoint(number, parent=parent if number > 1 else "", task_id=f"tsk_{number}"))
        session.report(facts.TaskCompleted(task_id=f"tsk_{number}"))
        session.do(commands.QueueTask(task_id=f"tsk_{number + 1}", prompt="x" * 2 * PROMPT_CHARACTERS))
    state = session.state
    assert CHECKPOINTS <= len(state.checkpoints) < CHECKPOINTS + 20
    assert len(state.artifacts) == 2 * len(state.checkpoints)
    assert len(state.tasks) == ENDED_TASKS + 1
    assert {len(known.prompt) for known in state.tasks if known.ended_at_ms} == {PROMPT_CHARACTERS}
    oldest = state.checkpoints[-CHECKPOINTS]
    assert state.chain(oldest.id)[0].parent_id == ""
    assert fold(session.log) == state


# Silence


def test_a_silent_task_is_told_of_and_then_ended() -> None:
    session = ready("first")
    assert session.pass_time(901) == ["stuck"]
    assert session.state.stuck
    assert session.pass_time(900) == ["stuck"]
    assert instructions(session.state).keys() == {"cancel:tsk_1"}
    session.report(facts.TaskCancelled(task_id="tsk_1"))
    failure = task(session).failure
    assert failure and failure.code == "task_stuck"


def test_a_word_of_the_agent_starts_the_silence_anew() -> None:
    session = ready("first")
    session.pass_time(901)
    session.report(facts.TextFinished(task_id="tsk_1", message_id="m", part_id="p", text="still here"))
    assert not session.state.stuck
    session.pass_time(900)
    assert not task(session).given_up
    session.pass_time(900)
    assert session.state.stuck


def test_who_waits_for_a_person_or_a_child_is_not_stuck() -> None:
    session = ready("first", Policy(idle_pause_s=0))
    session.report(ASKED)
    assert session.pass_time(3_600) == ["stuck"]
    assert not session.state.stuck
    session.do(YES)
    session.do(commands.StartChild(child_id="ses_c", title="t", prompt="p"), AGENT)
    session.pass_time(3_600)
    assert not session.state.stuck
    finished = facts.ChildFinished(child_id="ses_c", status=TaskStatus.COMPLETED, summary="done")
    session.do(commands.FinishChild(fact=finished), SYSTEM)
    session.pass_time(1_000)
    assert session.state.stuck


# Children


def test_children_are_bounded_in_number_and_depth() -> None:
    session = ready("first", Policy(children=3, children_at_once=2, child_depth=2))
    for number in (1, 2):
        session.do(commands.StartChild(child_id=f"ses_{number}", title="t", prompt="p"), AGENT)
    assert session.state.children[0].task_id == "tsk_1"
    with pytest.raises(Conflict) as refused:
        session.do(commands.StartChild(child_id="ses_3", title="t", prompt="p"), AGENT)
    assert refused.value.code == "too_many_children_at_once"
    finished = facts.ChildFinished(child_id="ses_1", status=TaskStatus.COMPLETED, summary="done")
    session.do(commands.FinishChild(fact=finished), SYSTEM)
    session.do(commands.FinishChild(fact=finished), SYSTEM)
    assert session.types.count("child.finished") == 1
    session.do(commands.StartChild(child_id="ses_3", title="t", prompt="p"))
    assert session.state.children[2].task_id == ""
    with pytest.raises(Conflict) as refused:
        session.do(commands.StartChild(child_id="ses_4", title="t", prompt="p"))
    assert refused.value.code == "too_many_children"
    with pytest.raises(NotFound):
        session.do(commands.FinishChild(fact=msgspec.structs.replace(finished, child_id="ses_9")), SYSTEM)


def test_what_a_child_uses_counts_against_its_parents_task_and_bounds_the_next() -> None:
    session = limited(tokens=1_000, cost_usd=2.0, time_s=600)
    session.do(commands.StartChild(child_id="ses_1", title="t", prompt="p"), AGENT)
    called(session, tokens=300, cost_usd=0.5)
    finished = facts.ChildFinished(
        child_id="ses_1",
        status=TaskStatus.COMPLETED,
        summary="done",
        usage=Usage(output_tokens=400, cost_usd=0.25),
    )
    session.do(commands.FinishChild(fact=finished), SYSTEM)
    assert left(session.state, task(session), session.now_ms) == Limits(time_s=600, tokens=300, cost_usd=1.25)
    # Told again with more, as after a follow-up: the whole counts, once.
    more = msgspec.structs.replace(finished, usage=Usage(output_tokens=700, cost_usd=0.25))
    session.do(commands.FinishChild(fact=more), SYSTEM)
    assert session.types[-1] == "task.limit_reached"
    assert task(session).limit is LimitKind.TOKENS
    assert left(session.state, task(session), session.now_ms).tokens == 1


def test_a_paused_parent_is_ended_by_its_limit_when_it_goes_on() -> None:
    session = limited(tokens=500)
    session.do(commands.StartChild(child_id="ses_1", title="t", prompt="p"), AGENT)
    session.do(commands.PauseSession(checkpoint_id="ckp_1"))
    session.do(commands.ReportFrozen(generation=1), SYSTEM)
    usage = Usage(model_calls=1, output_tokens=600)
    finished = facts.ChildFinished(child_id="ses_1", status=TaskStatus.COMPLETED, summary="", usage=usage)
    session.do(commands.FinishChild(fact=finished), SYSTEM)
    assert (task(session).limit, session.state.sandbox.status) == (None, "paused")
    session.do(commands.ResumeSession())
    session.do(commands.ReportThawed(generation=1, memory=True), SYSTEM)
    called(session, tokens=1)
    assert task(session).limit is LimitKind.TOKENS


def test_a_limit_that_is_reached_while_a_sandbox_is_made_ends_the_task_at_once() -> None:
    session = limited(tokens=500)
    session.do(commands.StartChild(child_id="ses_1", title="t", prompt="p"), AGENT)
    session.do(commands.ReportMissing(generation=1, reason="gone"), SYSTEM)
    usage = Usage(model_calls=1, output_tokens=600)
    finished = facts.ChildFinished(child_id="ses_1", status=TaskStatus.COMPLETED, summary="", usage=usage)
    session.do(commands.FinishChild(fact=finished), SYSTEM)
    assert task(session).status is TaskStatus.FAILED
    assert "cancel_deadline" not in session.alarms


def test_what_a_grandchild_uses_after_its_parent_has_reported_is_reported_again() -> None:
    session = child(1)
    session.do(commands.StartChild(child_id="ses_g", title="t", prompt="p"), AGENT)
    session.report(facts.TaskCompleted(task_id="tsk_1"))
    told = commands.ReportToParent(generation=1)
    assert session.effects.count(told) == 1
    usage = Usage(model_calls=2, output_tokens=9)
    finished = facts.ChildFinished(child_id="ses_g", status=TaskStatus.COMPLETED, summary="", usage=usage)
    session.do(commands.FinishChild(fact=finished), SYSTEM)
    assert session.effects.count(told) == 2
    older = msgspec.structs.replace(finished, usage=Usage(model_calls=1), status=TaskStatus.FAILED)
    session.do(commands.FinishChild(fact=older), SYSTEM)
    assert session.state.children[0].usage == usage


def child(depth: int) -> Session:
    session = Session()
    parent = Parent(session_id="ses_p", task_id="tsk_p", depth=depth)
    session.do(
        commands.CreateSession(
            title="t",
            repository=Repository(source="/r"),
            model="p/m",
            prompt="go",
            task_id="tsk_1",
            parent=parent,
        ),
        ME,
    )
    session.report(facts.SandboxReady(generation=1, base_commit="c0", work_branch="b"))
    return session


def test_a_child_says_when_it_has_nothing_left_to_do() -> None:
    session = child(depth=1)
    session.report(facts.TextFinished(task_id="tsk_1", message_id="m", part_id="p", text="All done."))
    session.do(commands.QueueTask(task_id="tsk_2", prompt="more"))
    session.report(facts.TaskCompleted(task_id="tsk_1"))
    told = commands.ReportToParent(generation=1)
    assert told not in session.effects
    session.report(facts.TaskCompleted(task_id="tsk_2"))
    assert session.effects.count(told) == 1
    assert session.state.last_text == "All done."


def test_a_child_that_cannot_go_on_says_so_too() -> None:
    session = child(depth=1)
    for _ in range(4):
        generation = session.state.sandbox.generation
        session.do(commands.ReportMissing(generation=generation, reason="gone"), SYSTEM)
    assert commands.ReportToParent(generation=4) in session.effects


def test_a_grandchild_of_the_last_generation_starts_nobody() -> None:
    session = child(depth=3)
    with pytest.raises(Conflict) as refused:
        session.do(commands.StartChild(child_id="ses_c", title="t", prompt="p"), AGENT)
    assert refused.value.code == "child_too_deep"


@pytest.mark.parametrize("end", [commands.CancelTask(task_id="tsk_1"), commands.ArchiveSession()])
def test_children_end_with_what_they_were_started_for(end: commands.Command) -> None:
    session = ready("first")
    session.do(commands.StartChild(child_id="ses_c", title="t", prompt="p"), AGENT)
    session.do(end)
    if isinstance(end, commands.CancelTask):
        session.report(facts.TaskCancelled(task_id="tsk_1"))
    assert session.effects.count(commands.EndChildren(generation=1, child_ids=("ses_c",))) == 1
    if isinstance(end, commands.ArchiveSession):
        assert session.state.children[0].status is TaskStatus.CANCELLED, "no event could say so later"
