"""A decision in the making, and what it comes to."""

from ship.events import Cursor, Fact, Record
from ship.model import Actor, SessionStatus, TaskStatus, Value
from ship.sessions.commands import Alarm, AnyEffect, ReportToParent
from ship.sessions.fold import evolve
from ship.sessions.policy import Policy
from ship.sessions.state import SessionState


class Decision(Value, frozen=True):
    """What follows from a command: events to append, effects and alarms to keep with them, the caller's answer,
    and the state after it all."""

    records: tuple[Record, ...]
    effects: tuple[AnyEffect, ...]
    alarms: tuple[Alarm, ...]
    answer: dict[str, str | int]
    state: SessionState


class Draft:
    """Each fact is folded at once, so that what follows sees it."""

    def __init__(self, state: SessionState | None, actor: Actor, now_ms: int, policy: Policy) -> None:
        self.before = state
        self.actor = actor
        self.now_ms = now_ms
        self.policy = policy
        self.records: list[Record] = []
        self.effects: list[AnyEffect] = []
        self.answer: dict[str, str | int] = {}
        self._alarms: dict[str, int | None] = {}
        self._state = state

    @property
    def state(self) -> SessionState:
        """After all facts so far."""
        assert self._state is not None
        return self._state

    def add(self, fact: Fact, *, actor: Actor | None = None, frame: Cursor | None = None) -> None:
        """One more fact; the one who asked is its actor where no other is named."""
        record = Record(
            seq=(self._state.head_seq if self._state else 0) + 1,
            at_ms=self.now_ms,
            actor=actor or self.actor,
            fact=fact,
            frame=frame,
        )
        self.records.append(record)
        self._state = evolve(self._state, record)

    def alarm(self, name: str, after_ms: int | None) -> None:
        """Wake the session in ``after_ms``, or (None) not at all."""
        self._alarms[name] = after_ms

    def decision(self) -> Decision:
        """What it came to."""
        self._set_clocks()
        self._report_to_parent()
        return Decision(
            records=tuple(self.records),
            effects=tuple(self.effects),
            alarms=tuple(Alarm(name=name, after_ms=after_ms) for name, after_ms in self._alarms.items()),
            answer={**self.answer, "seq": self.state.head_seq},
            state=self.state,
        )

    def _set_clocks(self) -> None:
        """Start the alarms that belong to a state when it is entered. One that fires when the state is left finds nothing to do."""
        before, after, policy = self.before, self.state, self.policy
        if after is before:
            return
        if after.is_working:
            task, known = after.running, before.running if before and before.is_working else None
            assert task is not None
            if known is None or known.id != task.id:
                self._start("stuck", policy.stuck_s * 1000)
            if known is None or known.id != task.id or known.limits != task.limits:
                left_ms = task.limits.time_s * 1000 - task.worked(self.now_ms)
                self._start("time_limit", max(1, left_ms) if task.limits.time_s else 0)
        if after.is_waiting and not (before and before.is_waiting):
            self._start("idle_pause", policy.idle_pause_s * 1000)

    def _start(self, name: str, after_ms: int) -> None:
        if after_ms:
            self._alarms.setdefault(name, after_ms)

    def report_again(self) -> None:
        """A child that has told how its work ended has more to tell: what its own children used."""
        if self.state.parent and self.before and outcome(self.before) and outcome(self.state):
            self.effects.append(ReportToParent(generation=self.state.sandbox.generation))

    def _report_to_parent(self) -> None:
        """A child that has nothing left to do says so."""
        if self.state.parent is None or self.before is None or outcome(self.state) is None:
            return
        if outcome(self.before) is None:
            self.effects.append(ReportToParent(generation=self.state.sandbox.generation))


def outcome(state: SessionState) -> TaskStatus | None:
    """How a session's work ended; None while there is some left to do."""
    if state.status is SessionStatus.FAILED:
        return TaskStatus.FAILED
    if state.running or state.queue:
        return None
    ended = [task for task in state.tasks if task.ended_at_ms]
    return max(ended, key=lambda task: task.ended_at_ms).status if ended else None
