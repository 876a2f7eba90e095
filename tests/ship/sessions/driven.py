"""A session driven by hand: commands in, log out."""

from typing import Any

from ship.events import Cursor, Fact, Record, facts
from ship.model import SYSTEM, Actor, ActorKind, Failure, Repository
from ship.sessions import commands
from ship.sessions.machine import Decision, decide
from ship.sessions.policy import Policy
from ship.sessions.state import SessionState

ME = Actor(kind=ActorKind.USER, name="me")
FAILURE = Failure(code="x", reason="why", hint="so")
NOW_MS = 1_000


class Session:
    """``alarms`` are those that are set, with the time at which each is due; ``pass_time`` fires what comes due."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.policy = policy or Policy()
        self.log: list[Record] = []
        self.known: SessionState | None = None
        self.effects: list[Any] = []
        self.alarms: dict[str, int] = {}
        self.now_ms = NOW_MS

    @property
    def state(self) -> SessionState:
        assert self.known is not None
        return self.known

    def do(self, command: commands.Command, actor: Actor = ME) -> Decision:
        decision = decide(self.known, command, actor, self.now_ms, self.policy)
        self.log += decision.records
        self.effects += decision.effects
        self.known = decision.state
        for alarm in decision.alarms:
            self.alarms.pop(alarm.name, None)
            if alarm.after_ms is not None:
                self.alarms[alarm.name] = self.now_ms + alarm.after_ms
        return decision

    def pass_time(self, seconds: float) -> list[str]:
        """Let the clock go on; the names of the alarms that fired, in order. ``sandbox_check`` is left out."""
        end_ms, fired = self.now_ms + int(seconds * 1000), []
        while due := [(at_ms, name) for name, at_ms in self.alarms.items() if at_ms <= end_ms]:
            at_ms, name = min(due)
            del self.alarms[name]
            if name == "sandbox_check":
                continue
            self.now_ms = max(self.now_ms, at_ms)
            self.do(commands.FireAlarm(name=name, checkpoint_id=f"ckp_{self.now_ms}"), SYSTEM)
            fired.append(name)
        self.now_ms = end_ms
        return fired

    def report(self, fact: Fact) -> Decision:
        cursor = self.state.cursor
        return self.do(
            commands.ReportFrame(at=Cursor(generation=cursor.generation, n=cursor.n + 1), fact=fact)
        )

    @property
    def types(self) -> list[str]:
        return [record.fact.TYPE for record in self.log]


def created(prompt: str = "", policy: Policy | None = None) -> Session:
    session = Session(policy)
    repository = Repository(source="/tmp/repo")
    session.do(
        commands.CreateSession(title="t", repository=repository, model="p/m", prompt=prompt, task_id="tsk_1")
    )
    return session


def ready(prompt: str = "", policy: Policy | None = None) -> Session:
    session = created(prompt, policy)
    session.report(facts.SandboxReady(generation=1, base_commit="c0", work_branch="ship/x"))
    return session
