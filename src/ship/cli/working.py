"""Commands that make agents work: ``run``, ``attach``, ``send``, ``stop``, ``retry``, ``archive``."""

import asyncio
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import typer

from ship import errors
from ship.cli import checkout, terminal
from ship.cli.connection import Address, session_id
from ship.cli.following import follow
from ship.client import Client
from ship.client.views import Session
from ship.model import NO_LIMITS, AgentMode, Approval, LimitsPatch, TaskStatus

_URL_MARKS = ("://", "upload:")


@dataclass(frozen=True)
class Order:
    """What ``ship run`` was told."""

    repository: str
    prompt: str
    branch: str = ""
    model: str = ""
    agent: AgentMode | None = None
    ask: bool = False
    title: str = ""
    limits: LimitsPatch = NO_LIMITS


@dataclass(frozen=True)
class FollowUp:
    """What ``ship send`` was told."""

    text: str
    steer: bool = False
    note: bool = False
    model: str = ""
    agent: AgentMode | None = None
    limits: LimitsPatch = NO_LIMITS


def run(address: Address, order: Order, *, detach: bool, as_json: bool) -> None:
    """``ship run``"""
    raise typer.Exit(asyncio.run(_run(address, order, detach=detach, as_json=as_json)))


async def _run(address: Address, order: Order, *, detach: bool, as_json: bool) -> int:
    prompt = _text(order.prompt)
    async with address.client() as client:
        session = await start(client, order, prompt, quiet=as_json)
        if detach:
            if as_json:
                terminal.print_json(session)
            else:
                terminal.print_bytes(f"{session.id}\n".encode())
            return 0
        if not as_json:
            terminal.messages().print(f"{session.id}  {address.url}/sessions/{session.id}", soft_wrap=True)
        code = await follow(client, session.id, task_id=session.tasks[0].id, as_json=as_json)
        if not as_json:
            _say_what_next(session.id, order.repository)
        return code


async def start(client: Client, order: Order, prompt: str, *, quiet: bool = False) -> Session:
    """Makes the session with its first task; a local checkout is sent before, as it stands."""
    local = (
        None
        if any(mark in order.repository for mark in _URL_MARKS)
        else checkout.Checkout.at(Path(order.repository))
    )
    source, branch = order.repository, order.branch
    if local:
        source, branch = await _send(client, local, order.branch, quiet), ""
    session = await client.create_session(
        source,
        branch=branch,
        prompt=prompt,
        title=order.title,
        model=order.model,
        agent=order.agent,
        approval=Approval.ASK if order.ask else None,
        limits=order.limits,
    )
    if local:
        checkout.remember(local, session.id)
    return session


async def _send(client: Client, local: checkout.Checkout, branch: str, quiet: bool) -> str:
    with tempfile.TemporaryDirectory(prefix="ship-bundle-") as folder:
        bundle = Path(folder) / "checkout.bundle"
        snapshot = await asyncio.to_thread(local.bundle, bundle, branch)
        if not quiet:
            size = bundle.stat().st_size / 1e6
            with_changes = " with what is not committed" if snapshot.dirty else ""
            without = " without its history, which is shallow" if snapshot.shallow else ""
            terminal.messages().print(
                f"Sending {local.root} at {snapshot.commit[:10]}{with_changes}{without} ({size:.1f} MB)",
                soft_wrap=True,
            )
        return await client.upload(bundle)


def _say_what_next(session: str, repository: str) -> None:
    local = not any(mark in repository for mark in _URL_MARKS)
    bring = "ship apply" if local and Path(repository).resolve() == Path.cwd() else f"ship apply {session}"
    terminal.messages().print(
        f"See it: ship diff {session}   take it: {bring}   go on: ship send {session} …", style="dim"
    )


def attach(address: Address, prefix: str, *, after: int, as_json: bool) -> None:
    """``ship attach``"""

    async def work() -> int:
        async with address.client() as client:
            return await follow(client, await session_id(client, prefix), after=after, as_json=as_json)

    raise typer.Exit(asyncio.run(work()))


def send(address: Address, prefix: str, what: FollowUp, *, follow: bool, as_json: bool) -> None:
    """``ship send``"""
    if what.steer and what.note:
        raise errors.InvalidInput(
            "a note does not steer", code="usage", hint="Use --steer or --note, not both."
        )
    raise typer.Exit(asyncio.run(_follow_up(address, prefix, what, watch=follow, as_json=as_json)))


async def _follow_up(address: Address, prefix: str, what: FollowUp, *, watch: bool, as_json: bool) -> int:
    text = _text(what.text)
    async with address.client() as client:
        session = await session_id(client, prefix)
        if what.note:
            _done(await client.post_message(session, text), f"told the people on {session}", as_json)
            return 0
        accepted = await client.add_task(
            session, text, model=what.model, agent=what.agent, steer=what.steer, limits=what.limits
        )
        if watch:
            return await follow(
                client, session, task_id=accepted.task_id, after=accepted.seq - 1, as_json=as_json
            )
        said = (
            f"steering {accepted.task_id}" if accepted.steer_id else f"queued {accepted.task_id} on {session}"
        )
        if what.steer and not accepted.steer_id:
            said += ", as nothing runs that it could steer"
        _done(accepted, said, as_json)
        return 0


def stop(address: Address, prefix: str, *, queued: bool, as_json: bool) -> None:
    """``ship stop``"""

    async def work() -> None:
        async with address.client() as client:
            session = await client.session(await session_id(client, prefix))
            wanted = (TaskStatus.QUEUED, TaskStatus.RUNNING) if queued else (TaskStatus.RUNNING,)
            # The queue first, so that none of it starts when the running one ends.
            tasks = sorted(
                (task for task in session.tasks if task.status in wanted), key=lambda task: task.status
            )
            for task in tasks:
                await client.cancel_task(session.id, task.id)
            said = f"stopping {', '.join(task.id for task in tasks)}" if tasks else _nothing_runs(session)
            _done({"session_id": session.id, "task_ids": [task.id for task in tasks]}, said, as_json)

    asyncio.run(work())


def _nothing_runs(session: Session) -> str:
    """What waits starts as soon as it can, the first task when the sandbox is ready: who wants to stop it should hear of it."""
    waiting = [task.id for task in session.tasks if task.status is TaskStatus.QUEUED]
    if not waiting:
        return f"nothing runs on {session.id}"
    return f"nothing runs yet on {session.id}, {', '.join(waiting)} will; stop that, too: ship stop --all {session.id}"


def retry(address: Address, prefix: str) -> None:
    """``ship retry``"""

    async def work() -> None:
        async with address.client() as client:
            session = await session_id(client, prefix)
            await client.retry(session)
            _done(None, f"starting {session} again; watch it: ship attach {session}", as_json=False)

    asyncio.run(work())


def archive(address: Address, prefix: str) -> None:
    """``ship archive``"""

    async def work() -> None:
        async with address.client() as client:
            session = await session_id(client, prefix)
            await client.archive(session)
            _done(None, f"archived {session}", as_json=False)

    asyncio.run(work())


def _done(value: object, said: str, as_json: bool) -> None:
    if as_json:
        terminal.print_json(value)
    else:
        terminal.output().print(said, soft_wrap=True)


def _text(argument: str) -> str:
    text = sys.stdin.read() if argument == "-" else argument
    if not text.strip():
        raise errors.InvalidInput("there is no text", code="usage", hint="Say what is to be done, in quotes.")
    return text
