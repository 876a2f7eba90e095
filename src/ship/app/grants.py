"""What a session token allows at the gateway, by the session's own state."""

from ship.accounts.sandbox_tokens import SandboxTokens
from ship.errors import StaleGeneration
from ship.events.facts import ModelCalled
from ship.gateway.grants import Grant
from ship.model import SYSTEM, LimitKind
from ship.sessions import commands
from ship.sessions.service import IdempotencyKey, Sessions
from ship.sessions.state import SessionState, Task
from ship.sessions.tasks import reached

AFTERWARDS_MS = 60_000
"""How long after a task's end its agent may still call models."""


class SessionGrants:
    """``gateway.grants.Grants`` over the sessions of this store."""

    def __init__(self, sessions: Sessions, tokens: SandboxTokens) -> None:
        self._sessions = sessions
        self._tokens = tokens

    async def authorize(self, token: str) -> Grant:
        """As the Protocol says."""
        session_id, generation = self._tokens.verify(token)
        state = await self._sessions.state(session_id)
        sandbox = state.sandbox
        if sandbox.generation != generation or not sandbox.is_alive:
            raise StaleGeneration("this sandbox is not the session's any more")
        running = state.running
        task = running or self._lately_ended(state)
        return Grant(
            session_id=session_id,
            generation=generation,
            task_id=task.id if task else "",
            repository=state.repository,
            limit=self._limit(state, task) if task else None,
            at_work=task is not None and not (task.cancel_requested or task.given_up),
            cost_limited=task is not None and self._names_a_cost(task),
        )

    def _names_a_cost(self, task: Task) -> bool:
        """Whether somebody asked for a limit of its cost: for who did not, a model without a price costs nothing."""
        return task.limits.cost_usd not in (0, self._sessions.policy.limits.cost_usd)

    def _lately_ended(self, state: SessionState) -> Task | None:
        """The task whose agent may have a last word to say, or a title to find."""
        latest = max(state.tasks, key=lambda task: task.ended_at_ms, default=None)
        since_ms = self._sessions.now_ms() - AFTERWARDS_MS
        return latest if latest and latest.ended_at_ms > since_ms else None

    def _limit(self, state: SessionState, task: Task) -> LimitKind | None:
        used = reached(state, task, self._sessions.now_ms())
        return task.limit or (used.kind if used else None)

    async def model_called(self, grant: Grant, call: ModelCalled, call_id: str) -> None:
        """As the Protocol says."""
        command = commands.RecordModelCall(generation=grant.generation, fact=call)
        key = IdempotencyKey(f"model call of {grant.session_id}", call_id, "")
        await self._sessions.execute(grant.session_id, command, SYSTEM, key)
