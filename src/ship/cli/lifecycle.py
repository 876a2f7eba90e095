"""Commands about a session's life: its queue, pauses, checkpoints, forks and children."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

from rich.text import Text

from ship import errors
from ship.cli import terminal
from ship.cli.connection import Address, session_id
from ship.cli.terminal import count, moment, one_line
from ship.client import Client
from ship.client.views import Child, SavedPoint, Session, Task
from ship.events import Record, facts
from ship.model import AgentMode, LimitsPatch, TaskStatus

T = TypeVar("T")

CHECKPOINT_S = 120
"""How long ``ship checkpoint`` waits for it."""


class Change(NamedTuple):
    """What is wanted of a task; what is empty stays as it is."""

    prompt: str
    model: str
    agent: AgentMode | None
    limits: LimitsPatch


def list_queue(address: Address, prefix: str, *, as_json: bool) -> None:
    """``ship queue ls``"""

    async def work(client: Client, session: str) -> Session:
        return await client.session(session)

    found = _run(address, prefix, work)
    tasks = [task for task in found.tasks if task.status in (TaskStatus.RUNNING, TaskStatus.QUEUED)]
    if as_json:
        terminal.print_json(tasks)
    elif not tasks:
        terminal.output().print(f"nothing waits in {found.id}")
    else:
        table = terminal.Rows("task", "status", "prompt", "model", "limits")
        for task in tasks:
            table.add(task.id, task.status, one_line(task.prompt, 60), task.model, _limits(task))
        terminal.output().print(table)


def edit_task(address: Address, prefix: str, task: str, change: Change) -> None:
    """``ship queue edit``"""

    async def work(client: Client, session: str) -> str:
        found = await _task_id(client, session, task)
        await client.edit_task(
            session, found, prompt=change.prompt, model=change.model, agent=change.agent, limits=change.limits
        )
        return found

    _say(f"changed {_run(address, prefix, work)}")


def move_task(address: Address, prefix: str, task: str, before: str) -> None:
    """``ship queue move``"""

    async def work(client: Client, session: str) -> str:
        found = await _task_id(client, session, task)
        await client.move_task(
            session, found, before=await _task_id(client, session, before) if before else ""
        )
        return found

    _say(f"moved {_run(address, prefix, work)}" + (f" before {before}" if before else " to the end"))


def remove_task(address: Address, prefix: str, task: str) -> None:
    """``ship queue rm``"""

    async def work(client: Client, session: str) -> str:
        found = await _task_id(client, session, task)
        queued = {one.id for one in (await client.session(session)).tasks if one.status is TaskStatus.QUEUED}
        if found not in queued:
            raise errors.Conflict(
                f"{found} does not wait", code="task_not_queued", hint=f"Stop what runs: ship stop {session}"
            )
        await client.cancel_task(session, found)
        return found

    _say(f"removed {_run(address, prefix, work)}")


def pause(address: Address, prefix: str) -> None:
    """``ship pause``"""

    async def work(client: Client, session: str) -> str:
        await client.pause(session)
        return session

    session = _run(address, prefix, work)
    _say(f"paused {session}; it goes on with its next task, or with: ship resume {session}")


def resume(address: Address, prefix: str) -> None:
    """``ship resume``"""

    async def work(client: Client, session: str) -> str:
        await client.resume(session)
        return session

    _say(f"{_run(address, prefix, work)} goes on")


def checkpoint(address: Address, prefix: str, *, as_json: bool) -> None:
    """``ship checkpoint``"""

    async def work(client: Client, session: str) -> facts.CheckpointCreated:
        asked = await client.request_checkpoint(session)
        try:
            async with asyncio.timeout(CHECKPOINT_S):
                kinds = (facts.CheckpointCreated.TYPE,)
                async for item in client.events(session, after=asked.seq, types=kinds):
                    made = item.fact if isinstance(item, Record) else None
                    if (
                        isinstance(made, facts.CheckpointCreated)
                        and made.checkpoint_id == asked.checkpoint_id
                    ):
                        return made
        except TimeoutError as error:
            raise errors.Unavailable(
                f"{asked.checkpoint_id} was not made after {CHECKPOINT_S} s",
                code="checkpoint_timeout",
                hint=f"It may come yet: ship checkpoints {session}",
            ) from error
        raise errors.Conflict("the session has ended", code="session_archived")

    made = _run(address, prefix, work)
    if as_json:
        terminal.print_json(made)
    else:
        terminal.output().print(made.checkpoint_id)


def checkpoints(address: Address, prefix: str, *, as_json: bool) -> None:
    """``ship checkpoints``"""

    async def work(client: Client, session: str) -> tuple[SavedPoint, ...]:
        return await client.checkpoints(session)

    found = _run(address, prefix, work)
    if as_json:
        terminal.print_json(found)
    elif not found:
        terminal.output().print("No checkpoints yet. One is made after each task, and by: ship checkpoint")
    else:
        table = terminal.Rows("checkpoint", "event", "made", "by", "commit", "changed")
        for one in found:
            changed = f"{count(one.files_changed, 'file')} +{one.additions} -{one.deletions}"
            table.add(one.id, str(one.seq), moment(one.at_ms), one.reason, one.commit[:10], changed)
        terminal.output().print(table)


def fork(
    address: Address, prefix: str, change: Change, *, checkpoint_id: str, title: str, as_json: bool
) -> None:
    """``ship fork``"""

    async def work(client: Client, session: str) -> Session:
        return await client.fork(
            session,
            checkpoint_id=checkpoint_id,
            title=title,
            prompt=change.prompt,
            model=change.model,
            agent=change.agent,
            limits=change.limits,
        )

    made = _run(address, prefix, work)
    if as_json:
        terminal.print_json(made)
    else:
        terminal.output().print(made.id)
        terminal.messages().print(f"Watch it: ship attach {made.id}", style="dim")


def children(address: Address, prefix: str, *, start: str, model: str, as_json: bool) -> None:
    """``ship children``"""

    async def work(client: Client, session: str) -> tuple[Child, ...]:
        if start:
            await client.start_child(session, start, model=model)
        return await client.children(session)

    found = _run(address, prefix, work)
    if as_json:
        terminal.print_json(found)
    elif not found:
        terminal.output().print("No children. Start one: ship children ID --start PROMPT")
    else:
        table = terminal.Rows("id", "status", "title", "changed", "said last")
        for one in found:
            changed = f"{count(one.files_changed, 'file')} +{one.additions} -{one.deletions}"
            said = one_line(one.summary, 60)
            table.add(one.id, one.status, one_line(one.title, 40), changed if one.files_changed else "", said)
        terminal.output().print(table)


def _run(address: Address, prefix: str, work: Callable[[Client, str], Awaitable[T]]) -> T:
    async def connected() -> T:
        async with address.client() as client:
            return await work(client, await session_id(client, prefix))

    return asyncio.run(connected())


async def _task_id(client: Client, session: str, prefix: str) -> str:
    """The one task whose id begins so, with or without ``tsk_``."""
    found = [
        task.id
        for task in (await client.session(session)).tasks
        if task.id.removeprefix("tsk_").startswith(prefix.removeprefix("tsk_"))
    ]
    if prefix in found or len(found) == 1:
        return prefix if prefix in found else found[0]
    if not found:
        raise errors.NotFound(
            f"no task {prefix} in {session}",
            code="task_not_found",
            hint=f"List them: ship queue ls {session}",
        )
    raise errors.InvalidInput(
        f"{prefix} may be any of {', '.join(found[:5])}", code="task_ambiguous", hint="Give more of the id."
    )


def _limits(task: Task) -> str:
    said = (
        f"{task.limits.time_s} s" if task.limits.time_s else "",
        f"{task.limits.tokens:,} tokens" if task.limits.tokens else "",
        f"${task.limits.cost_usd:g}" if task.limits.cost_usd else "",
    )
    return ", ".join(part for part in said if part)


def _say(text: str) -> None:
    terminal.output().print(Text(terminal.clean(text)), soft_wrap=True)
