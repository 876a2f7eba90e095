"""The commands about a session's life: its queue, pauses, checkpoints, forks, children and its log played again."""

from typing import Annotated

import typer

from ship.cli.options import (
    WORK,
    Agent,
    Data,
    Json,
    MaxCost,
    MaxTime,
    MaxTokens,
    Model,
    SessionId,
    Token,
    Url,
    limits,
)

app = typer.Typer()
queue_app = typer.Typer(help="See and change what waits in a session.", no_args_is_help=True)
app.add_typer(queue_app, name="queue", rich_help_panel=WORK)

TaskId = Annotated[
    str, typer.Argument(metavar="TASK", help="The task, or how its id begins.", show_default=False)
]


@queue_app.command("ls")
def list_queue(
    session: SessionId, url: Url = None, token: Token = None, data: Data = None, json: Json = False
) -> None:
    """List the running task and what waits, in the order in which it will run."""
    from ship.cli import connection, lifecycle

    lifecycle.list_queue(connection.find(url, token, data), session, as_json=json)


@queue_app.command("edit")
def edit_task(
    session: SessionId,
    task: TaskId,
    prompt: Annotated[str, typer.Option("--prompt", help="What is to be done instead.")] = "",
    model: Model = "",
    agent: Agent = None,
    max_time: MaxTime = None,
    max_tokens: MaxTokens = None,
    max_cost: MaxCost = None,
    url: Url = None,
    token: Token = None,
    data: Data = None,
) -> None:
    """Change a task that waits, or the limits of the one that runs."""
    from ship.cli import connection, lifecycle

    change = lifecycle.Change(prompt, model, agent, limits(max_time, max_tokens, max_cost))
    lifecycle.edit_task(connection.find(url, token, data), session, task, change)


@queue_app.command("move")
def move_task(
    session: SessionId,
    task: TaskId,
    before: Annotated[
        str,
        typer.Option(
            "--before", metavar="TASK", help="The waiting task that it comes before. [default: the end]"
        ),
    ] = "",
    url: Url = None,
    token: Token = None,
    data: Data = None,
) -> None:
    """Let a waiting task run before another one, or last."""
    from ship.cli import connection, lifecycle

    lifecycle.move_task(connection.find(url, token, data), session, task, before)


@queue_app.command("rm")
def remove_task(
    session: SessionId, task: TaskId, url: Url = None, token: Token = None, data: Data = None
) -> None:
    """Take a waiting task out of the queue."""
    from ship.cli import connection, lifecycle

    lifecycle.remove_task(connection.find(url, token, data), session, task)


@app.command(rich_help_panel=WORK)
def pause(session: SessionId, url: Url = None, token: Token = None, data: Data = None) -> None:
    """Freeze a session's sandbox with all that runs in it; the next task, answer or steer wakes it."""
    from ship.cli import connection, lifecycle

    lifecycle.pause(connection.find(url, token, data), session)


@app.command(rich_help_panel=WORK)
def resume(session: SessionId, url: Url = None, token: Token = None, data: Data = None) -> None:
    """Let a paused session go on."""
    from ship.cli import connection, lifecycle

    lifecycle.resume(connection.find(url, token, data), session)


@app.command(rich_help_panel=WORK)
def checkpoint(
    session: SessionId, url: Url = None, token: Token = None, data: Data = None, json: Json = False
) -> None:
    """Keep the workspace as it stands, also in the middle of a task; prints the checkpoint's id when it is there."""
    from ship.cli import connection, lifecycle

    lifecycle.checkpoint(connection.find(url, token, data), session, as_json=json)


@app.command(rich_help_panel=WORK)
def checkpoints(
    session: SessionId, url: Url = None, token: Token = None, data: Data = None, json: Json = False
) -> None:
    """List what a session can be taken back to or forked from, oldest first."""
    from ship.cli import connection, lifecycle

    lifecycle.checkpoints(connection.find(url, token, data), session, as_json=json)


@app.command(rich_help_panel=WORK)
def fork(
    session: SessionId,
    prompt: Annotated[
        str, typer.Argument(metavar="[PROMPT]", help="What the new session is to do.", show_default=False)
    ] = "",
    checkpoint_id: Annotated[
        str, typer.Option("--checkpoint", metavar="ID", help="Where it begins. [default: the newest]")
    ] = "",
    model: Model = "",
    agent: Agent = None,
    title: Annotated[str, typer.Option("--title", help="A name for the session.")] = "",
    max_time: MaxTime = None,
    max_tokens: MaxTokens = None,
    max_cost: MaxCost = None,
    url: Url = None,
    token: Token = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Start a session from a checkpoint of another one, with its files and what its agent remembers, and another model if you like."""
    from ship.cli import connection, lifecycle

    change = lifecycle.Change(prompt, model, agent, limits(max_time, max_tokens, max_cost))
    lifecycle.fork(
        connection.find(url, token, data),
        session,
        change,
        checkpoint_id=checkpoint_id,
        title=title,
        as_json=json,
    )


@app.command(rich_help_panel=WORK)
def children(
    session: SessionId,
    start: Annotated[
        str, typer.Option("--start", metavar="PROMPT", help="Start one that works on this.")
    ] = "",
    model: Model = "",
    url: Url = None,
    token: Token = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """List the sessions that a session started, with their results."""
    from ship.cli import connection, lifecycle

    lifecycle.children(connection.find(url, token, data), session, start=start, model=model, as_json=json)


@app.command(rich_help_panel=WORK)
def replay(
    session: SessionId,
    to: Annotated[
        int | None,
        typer.Option("--to", metavar="SEQ", min=1, help="Stop after this event. [default: the last]"),
    ] = None,
    url: Url = None,
    token: Token = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Fold a session's log again, on this machine, and show where the session stood after any event."""
    from ship.cli import connection, replaying

    replaying.replay(connection.find(url, token, data), session, to=to, as_json=json)
