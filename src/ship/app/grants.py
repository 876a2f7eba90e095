"""What a session token allows at the gateway, by the session's own state."""

from msgspec.structs import replace

from ship.accounts.sandbox_tokens import SandboxTokens
from ship.errors import NotFound, StaleGeneration
from ship.events.facts import ModelCalled
from ship.gateway.grants import Grant
from ship.model import SYSTEM, LimitKind, Limits, TaskStatus, Usage
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
            limit=await self._limit(state, task) if task else None,
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

    async def _limit(self, state: SessionState, task: Task | None) -> LimitKind | None:
        """The limit that is reached by the task, or by a running one that it works for: each child began with all that was left then."""
        while task is not None:
            counted = state if task.limits == Limits() else await self._as_if_children_ended(state)
            used = reached(counted, task, self._sessions.now_ms())
            if task.limit or used or state.parent is None:
                return task.limit or (used.kind if used else None)
            above = state.parent
            state = await self._sessions.state(above.session_id)
            task = state.running if state.running and state.running.id == above.task_id else None
        return None

    async def _as_if_children_ended(self, state: SessionState) -> SessionState:
        """What those at work have used is in no log but their own until they end."""
        children = tuple(
            [
                replace(child, usage=await self._used(child.id))
                if child.status is TaskStatus.RUNNING
                else child
                for child in state.children
            ]
        )
        return replace(state, children=children)

    async def _used(self, session_id: str) -> Usage:
        try:
            state = await self._sessions.state(session_id)
        except NotFound:  # it has not begun yet
            return Usage()
        return (await self._as_if_children_ended(state)).used

    async def model_called(self, grant: Grant, call: ModelCalled, call_id: str) -> None:
        """As the Protocol says."""
        command = commands.RecordModelCall(generation=grant.generation, fact=call)
        key = IdempotencyKey(f"model call of {grant.session_id}", call_id, "")
        await self._sessions.execute(grant.session_id, command, SYSTEM, key)
