"""Commands that show what there is: ``ls`` and ``show``."""

import asyncio
import time

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ship.cli import terminal
from ship.cli.connection import Address, session_id
from ship.cli.terminal import clean, count, duration, one_line, source_name
from ship.cli.transcript import files_changed
from ship.client.views import Session, SessionSummary, Task
from ship.model import Failure, SessionStatus

_STYLES = {
    "running": "cyan",
    "ready": "green",
    "paused": "dim",
    "completed": "green",
    "failed": "red",
    "archived": "dim",
    "cancelled": "yellow",
}
ID_CHARACTERS = 16
"""How much of an id a list shows: enough to tell sessions of the same millisecond apart."""


def sessions(address: Address, *, archived: bool, limit: int, as_json: bool) -> None:
    """``ship ls``"""

    async def collect() -> list[SessionSummary]:
        found: list[SessionSummary] = []
        async with address.client() as client:
            async for one in client.all_sessions():
                if archived or one.status is not SessionStatus.ARCHIVED:
                    found.append(one)
                if len(found) == limit:
                    break
        return found

    found = asyncio.run(collect())
    if as_json:
        terminal.print_json(found)
    elif found:
        terminal.output().print(_list(found))
    else:
        terminal.output().print('No sessions yet. Start one: ship run . "what is to be done"')


def _list(found: list[SessionSummary]) -> terminal.Rows:
    table = terminal.Rows("id", "status", "title", "repository", "changed", "age", folded=("title",))
    for one in found:
        changed = (
            f"{count(one.files_changed, 'file')} +{one.additions} -{one.deletions}"
            if one.files_changed
            else ""
        )
        status = Text(one.status, _STYLES.get(one.status, ""))
        if one.open_requests:
            status.append(" asks", "bold yellow")
        source = one.repository.source
        place = (
            "upload" if source.startswith("upload:") else clean(source).removesuffix(".git").split("://")[-1]
        )
        table.add(
            one.id[: ID_CHARACTERS + 4],
            status,
            one_line(one.title, 60),
            place[-40:],
            changed,
            _age(one.updated_at_ms),
        )
    return table


def _age(at_ms: int) -> str:
    seconds = max(0, time.time() - at_ms / 1000)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return "now"


def session(address: Address, prefix: str, *, as_json: bool) -> None:
    """``ship show``"""

    async def get() -> Session:
        async with address.client() as client:
            return await client.session(await session_id(client, prefix))

    found = asyncio.run(get())
    if as_json:
        terminal.print_json(found)
    else:
        describe(terminal.output(), found, address.url)


def describe(console: Console, session: Session, url: str) -> None:
    """Where the session stands, for people."""
    console.print(Text(clean(session.title), "bold"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    branch = f" @ {session.repository.branch}" if session.repository.branch else ""
    work_branch = f" → {session.work_branch}" if session.work_branch else ""
    rows: list[tuple[str, str | Text]] = [
        ("id", session.id),
        ("status", _status(session)),
        ("repository", clean(f"{source_name(session.repository.source)}{branch}{work_branch}")),
        ("model", session.model),
        ("approval", session.approval),
        ("sandbox", _sandbox(session)),
        (
            "used",
            f"{session.usage.input_tokens + session.usage.output_tokens:,} tokens, ${session.usage.cost_usd:.4f}",
        ),
        ("page", f"{url}/sessions/{session.id}"),
    ]
    if session.origin:
        rows.insert(1, ("forked from", f"{session.origin.session_id} at event {session.origin.seq}"))
    if session.parent:
        rows.insert(1, ("started by", session.parent.session_id))
    for name, value in rows:
        grid.add_row(name, value)
    console.print(grid)
    if session.failure:
        console.print(_reason(session.failure))
    for task in session.tasks:
        console.print(_task(task))
        if task.failure:
            console.print(_reason(task.failure))
    for child in session.children:
        console.print(
            Text.assemble(
                (f"{child.status:<10}", _STYLES.get(child.status, "")),
                one_line(child.title, 60),
                (f"  {child.id}", "dim"),
            )
        )
    for request in session.requests:
        console.print(
            Text.assemble(
                ("? ", "bold yellow"), clean(request.title), (f"  answer it: ship attach {session.id}", "dim")
            )
        )
    if session.checkpoint and session.checkpoint.files:
        console.print(files_changed(session.checkpoint.files))


def _status(session: Session) -> Text:
    status = Text(session.status, _STYLES.get(session.status, ""))
    if session.pause_reason:
        status.append(f" ({session.pause_reason})", "dim")
    if session.stuck:
        status.append(" nothing was heard of the agent for long", "bold yellow")
    return status


def _sandbox(session: Session) -> str:
    steps = [
        f"{step.step} {duration(step.took_ms) if step.took_ms else step.status}"
        for step in session.sandbox.steps
    ]
    return session.sandbox.status + (f" ({', '.join(steps)})" if steps else "")


def _task(task: Task) -> Text:
    took = (
        f"  {duration(task.ended_at_ms - task.started_at_ms)}"
        if task.ended_at_ms and task.started_at_ms
        else ""
    )
    return Text.assemble(
        (f"{task.status:<10}", _STYLES.get(task.status, "")),
        one_line(task.prompt, 100),
        (f"  {task.author}  {task.id}{took}", "dim"),
    )


def _reason(failure: Failure) -> Text:
    return Text(
        clean(f"  {failure.reason} [{failure.code}]" + (f"\n  {failure.hint}" if failure.hint else "")), "red"
    )
