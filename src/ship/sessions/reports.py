"""What follows from what a runner, or an effect on its sandbox, reports. Most facts simply stand in the log."""

from functools import singledispatch

import msgspec
from msgspec import structs

from ship.errors import Conflict
from ship.events import Cursor, Fact, facts
from ship.model import AGENT, SYSTEM, CheckpointReason, Failure
from ship.sessions import recovery, tasks
from ship.sessions.draft import Draft
from ship.sessions.recovery import lose
from ship.sessions.state import Sandbox

OPEN_REQUESTS, REQUESTS_BYTES = 50, 4 * 1024**2
STEPS = 16
TEXT_CHARACTERS = 8_000
"""How much a state has room for of why something failed, or of what a step is about; an honest runner says less."""
NAME_CHARACTERS = 1_000
CHAIN = 50
"""How many checkpoints may build on each other; then one has to be whole."""

REPORTABLE: tuple[type[Fact], ...] = (
    facts.SandboxStepStarted,
    facts.SandboxStepFinished,
    facts.SandboxReady,
    facts.SandboxFailed,
    facts.TaskCompleted,
    facts.TaskFailed,
    facts.TaskCancelled,
    facts.TextFinished,
    facts.ReasoningFinished,
    facts.ToolStarted,
    facts.ToolFinished,
    facts.TodosUpdated,
    facts.RequestAsked,
    facts.RequestWithdrawn,
    facts.AgentRetried,
    facts.AgentRestarted,
    facts.CheckpointCreated,
    facts.CheckpointFailed,
    facts.SandboxRestored,
)
"""What a runner may say; everything else from it is a breach of the protocol."""


def hear(draft: Draft, fact: Fact, at: Cursor) -> None:
    """A runner's frame: taken once, in order; a breach of the protocol costs the sandbox. Raises Conflict (``frame_gap``)."""
    expected = draft.state.cursor.n + 1
    if at.n < expected:
        return
    if at.n > expected:
        raise Conflict(f"frame {at.n} came before frame {expected}", code="frame_gap")
    if not isinstance(fact, REPORTABLE):
        lose(draft, f"its runner reported {fact.TYPE}, which no runner may report")
        return
    report(_shortened(fact), draft, at)


def _shortened(fact: Fact) -> Fact:
    """What is cut would stay in the state, and in the list of sessions, for as long as they last."""
    if isinstance(fact, facts.TaskFailed | facts.SandboxFailed):
        code, reason, hint = (text[:TEXT_CHARACTERS] for text in structs.astuple(fact.failure))
        return structs.replace(fact, failure=Failure(code=code, reason=reason, hint=hint))
    if isinstance(fact, facts.SandboxStepStarted | facts.SandboxStepFinished):
        return structs.replace(fact, detail=fact.detail[:TEXT_CHARACTERS])
    return fact


def _is_endless(*names: str) -> bool:
    """Whether one of them is longer than anything is named."""
    return max(map(len, names)) > NAME_CHARACTERS


def is_told(fact: Fact, sandbox: Sandbox) -> bool:
    """Whether the log says so, or says something else that came first: an effect that is done again reports again."""
    if isinstance(fact, facts.SandboxCreated):
        return bool(sandbox.sandbox_id)
    if isinstance(fact, facts.SandboxStepStarted):
        return any(known.step == fact.step for known in sandbox.steps)
    if isinstance(fact, facts.SandboxStepFinished):
        return all(known.step != fact.step or known.status != "running" for known in sandbox.steps)
    return False


@singledispatch
def report(fact: Fact, draft: Draft, frame: Cursor | None) -> None:
    """What follows from a fact about the sandbox or the agent. Most simply stand in the log."""
    task_id = getattr(fact, "task_id", "")
    if task_id and draft.state.task(task_id) is None:
        lose(draft, f"its runner spoke of a task {task_id[:80]!r} that this session does not have")
        return
    draft.add(fact, actor=AGENT if frame else SYSTEM, frame=frame)


@report.register
def _(fact: facts.SandboxReady, draft: Draft, frame: Cursor | None) -> None:
    if draft.state.sandbox.status != "creating" or fact.generation != draft.state.sandbox.generation:
        lose(draft, "its runner reported that it is ready at the wrong time")
        return
    if _is_endless(fact.base_commit, fact.work_branch):
        lose(draft, "its runner named a commit or a branch without end")
        return
    draft.add(fact, actor=SYSTEM, frame=frame)
    draft.alarm("provision_deadline", None)
    tasks.start_next(draft)


@report.register(facts.SandboxStepStarted)
@report.register(facts.SandboxStepFinished)
def _(fact: facts.SandboxStepStarted | facts.SandboxStepFinished, draft: Draft, frame: Cursor | None) -> None:
    known = {step.step for step in draft.state.sandbox.steps}
    if _is_endless(fact.step) or len(known | {fact.step}) > STEPS:
        lose(draft, f"its runner reported more than {STEPS} steps, or one whose name has no end")
        return
    draft.add(fact, actor=AGENT if frame else SYSTEM, frame=frame)
    if draft.state.sandbox.status == "creating":
        _, deadline_ms = recovery.awaited(draft.state.sandbox)
        draft.alarm("provision_deadline", deadline_ms)


@report.register
def _(fact: facts.RequestAsked, draft: Draft, frame: Cursor | None) -> None:
    running = draft.state.running
    if running is None or running.id != fact.task_id:
        lose(draft, "its runner asked something for a task that does not run")
        return
    asked = (*draft.state.requests, fact)
    if len(asked) > OPEN_REQUESTS or len(msgspec.json.encode(asked)) > REQUESTS_BYTES:
        lose(
            draft,
            f"its agent asked more than {OPEN_REQUESTS} things at once, or more than {REQUESTS_BYTES} bytes of them",
        )
        return
    draft.add(fact, actor=AGENT, frame=frame)


@report.register
def _(fact: facts.SandboxFailed, draft: Draft, frame: Cursor | None) -> None:
    recovery.fail(draft, fact.failure, frame)


@report.register(facts.TaskCompleted)
@report.register(facts.TaskFailed)
@report.register(facts.TaskCancelled)
def _(
    fact: facts.TaskCompleted | facts.TaskFailed | facts.TaskCancelled, draft: Draft, frame: Cursor | None
) -> None:
    running = draft.state.running
    if running is None or running.id != fact.task_id:
        lose(draft, f"its runner ended a task that does not run: {fact.task_id[:80]!r}")
        return
    tasks.end(draft, fact, frame=frame)
    tasks.start_next(draft)


@report.register
def _(fact: facts.CheckpointCreated, draft: Draft, frame: Cursor | None) -> None:
    state = draft.state
    if fact.task_id and state.task(fact.task_id) is None:
        lose(draft, f"its runner kept a task {fact.task_id[:80]!r} that this session does not have")
        return
    names = (fact.checkpoint_id, fact.commit, fact.base_commit, fact.parent_id)
    if _is_endless(*names, fact.diff_artifact, fact.bundle_artifact, fact.agent_artifact):
        lose(draft, "its runner gave a checkpoint a name without end")
        return
    chain = len(state.chain(fact.parent_id)) + 1 if fact.parent_id else 1
    if fact.reason is CheckpointReason.FORK or (fact.parent_id and chain == 1) or chain > CHAIN:
        lose(draft, f"its runner made a checkpoint that builds on {fact.parent_id[:80]!r}, {chain} deep")
        return
    draft.add(fact, actor=AGENT, frame=frame)
    if draft.state.wanted_checkpoint is None:
        recovery.freeze(draft)


@report.register
def _(fact: facts.CheckpointFailed, draft: Draft, frame: Cursor | None) -> None:
    if fact.task_id and draft.state.task(fact.task_id) is None:
        lose(draft, f"its runner spoke of a task {fact.task_id[:80]!r} that this session does not have")
        return
    draft.add(fact, actor=AGENT, frame=frame)
    if draft.state.wanted_checkpoint is None:
        recovery.freeze(draft)


@report.register
def _(fact: facts.SandboxRestored, draft: Draft, frame: Cursor | None) -> None:
    if draft.state.sandbox.status != "creating" or fact.generation != draft.state.sandbox.generation:
        lose(draft, "its runner reported at the wrong time what it restored")
        return
    draft.add(fact, actor=SYSTEM, frame=frame)
