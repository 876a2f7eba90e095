"""Every command of ``ship``: its arguments and its help. The work is done elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from ship.cli import lifecycle_commands, sandbox_commands
from ship.cli.options import (
    SERVER,
    WORK,
    Agent,
    Config,
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

app = typer.Typer(
    name="ship",
    help="Ship runs coding agents in the background, each in a sandbox of its own.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
token_app = typer.Typer(help="Make, list and revoke API tokens.", no_args_is_help=True)
app.add_typer(lifecycle_commands.app)
app.add_typer(token_app, name="token", rich_help_panel="Run the server")
app.add_typer(sandbox_commands.app, name="sandbox", rich_help_panel="Run the server")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"ship {version('ship-agents')}")
        raise typer.Exit


@app.callback()
def ship(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Ship runs coding agents in the background, each in a sandbox of its own."""


# Work with agents


@app.command(rich_help_panel=WORK)
def run(
    repository: Annotated[
        str,
        typer.Argument(metavar="REPO", help="A checkout on this machine (`.`) or a URL.", show_default=False),
    ],
    prompt: Annotated[
        str,
        typer.Argument(
            metavar="PROMPT", help="What is to be done; `-` reads it from standard input.", show_default=False
        ),
    ],
    branch: Annotated[str, typer.Option("--branch", "-b", help="Branch, tag or commit to start from.")] = "",
    model: Model = "",
    agent: Agent = None,
    ask: Annotated[
        bool, typer.Option("--ask", help="The agent asks before it edits or runs something.")
    ] = False,
    title: Annotated[str, typer.Option("--title", help="A name for the session.")] = "",
    detach: Annotated[
        bool, typer.Option("--detach/--follow", "-d", help="Print the session's id and leave.")
    ] = False,
    max_time: MaxTime = None,
    max_tokens: MaxTokens = None,
    max_cost: MaxCost = None,
    url: Url = None,
    token: Token = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Give an agent a task and watch it work.

    A checkout is sent as it stands, with what is not committed; `ship apply` brings the result back.
    """
    from ship.cli import connection, working

    working.run(
        connection.find(url, token, data),
        working.Order(
            repository,
            prompt,
            branch=branch,
            model=model,
            agent=agent,
            ask=ask,
            title=title,
            limits=limits(max_time, max_tokens, max_cost),
        ),
        detach=detach,
        as_json=json,
    )


@app.command("ls", rich_help_panel=WORK)
def list_sessions(
    all_: Annotated[bool, typer.Option("--all", "-a", help="Archived ones, too.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 30,
    url: Url = None,
    token: Token = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """List sessions, newest first."""
    from ship.cli import connection, showing

    showing.sessions(connection.find(url, token, data), archived=all_, limit=limit, as_json=json)


@app.command(rich_help_panel=WORK)
def search(
    query: Annotated[
        str,
        typer.Argument(metavar="QUERY", help='Words, "phrases", beginnings*, -not.', show_default=False),
    ],
    status: Annotated[
        str, typer.Option("--status", help="Only sessions that stand so.", show_default=False)
    ] = "",
    repository: Annotated[
        str, typer.Option("--repository", help="Only sessions of this repository.", show_default=False)
    ] = "",
    by_meaning: Annotated[
        bool,
        typer.Option("--by-meaning", help="What says something like it in whatever words."),
    ] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help="At most so many.")] = 20,
    url: Url = None,
    token: Token = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Find sessions by what was said in them, also those that are over."""
    from ship.cli import connection, finding

    finding.search(
        connection.find(url, token, data),
        query,
        by_meaning=by_meaning,
        status=status,
        repository=repository,
        limit=limit,
        as_json=json,
    )


@app.command(rich_help_panel=WORK)
def show(
    session: SessionId, url: Url = None, token: Token = None, data: Data = None, json: Json = False
) -> None:
    """Show where a session stands: its tasks, sandbox, changes and costs."""
    from ship.cli import connection, showing

    showing.session(connection.find(url, token, data), session, as_json=json)


@app.command(rich_help_panel=WORK)
def attach(
    session: SessionId,
    after: Annotated[int, typer.Option("--after", min=0, help="Begin behind this event.")] = 0,
    url: Url = None,
    token: Token = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Watch a session until nothing runs any more, and answer what the agent asks."""
    from ship.cli import connection, working

    working.attach(connection.find(url, token, data), session, after=after, as_json=json)


@app.command(rich_help_panel=WORK)
def send(
    session: SessionId,
    text: Annotated[
        str,
        typer.Argument(
            metavar="TEXT", help="What is to be done; `-` reads it from standard input.", show_default=False
        ),
    ],
    steer: Annotated[
        bool, typer.Option("--steer", help="Say it to the running task instead of queueing another.")
    ] = False,
    note: Annotated[
        bool, typer.Option("--note", help="Say it to the other people; the agent does not see it.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Watch it until it ends.")] = False,
    max_time: MaxTime = None,
    max_tokens: MaxTokens = None,
    max_cost: MaxCost = None,
    model: Model = "",
    agent: Agent = None,
    url: Url = None,
    token: Token = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Give a session its next task, or steer the running one."""
    from ship.cli import connection, working

    working.send(
        connection.find(url, token, data),
        session,
        working.FollowUp(
            text,
            steer=steer,
            note=note,
            model=model,
            agent=agent,
            limits=limits(max_time, max_tokens, max_cost),
        ),
        follow=follow,
        as_json=json,
    )


@app.command(rich_help_panel=WORK)
def stop(
    session: SessionId,
    all_: Annotated[bool, typer.Option("--all", help="The queued tasks, too.")] = False,
    url: Url = None,
    token: Token = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Stop a session's running task."""
    from ship.cli import connection, working

    working.stop(connection.find(url, token, data), session, queued=all_, as_json=json)


@app.command(rich_help_panel=WORK)
def retry(session: SessionId, url: Url = None, token: Token = None, data: Data = None) -> None:
    """Start a failed session's sandbox again."""
    from ship.cli import connection, working

    working.retry(connection.find(url, token, data), session)


@app.command(rich_help_panel=WORK)
def diff(
    session: SessionId,
    stat: Annotated[bool, typer.Option("--stat", help="Only the files and how many lines.")] = False,
    live: Annotated[
        bool, typer.Option("--live", help="The workspace as it stands now, not as the last task left it.")
    ] = False,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", metavar="ID", help="As that checkpoint kept it.")
    ] = "",
    url: Url = None,
    token: Token = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Print what a session changed, as `git apply` reads it."""
    from ship.cli import changes, connection

    changes.diff(
        connection.find(url, token, data),
        session,
        stat=stat,
        live=live,
        checkpoint_id=checkpoint,
        as_json=json,
    )


@app.command(rich_help_panel=WORK)
def apply(
    session: Annotated[
        str,
        typer.Argument(
            metavar="[ID]", help="The session. [default: the last one of this checkout]", show_default=False
        ),
    ] = "",
    check: Annotated[bool, typer.Option("--check", help="Only say whether it would apply.")] = False,
    into: Annotated[Path, typer.Option("--into", file_okay=False, help="The checkout.")] = Path(),
    url: Url = None,
    token: Token = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Bring a session's change into this checkout. Nothing is staged or committed; it applies whole or not at all."""
    from ship.cli import changes, connection

    changes.apply(connection.find(url, token, data), session, into, check=check, as_json=json)


@app.command(rich_help_panel=WORK)
def archive(session: SessionId, url: Url = None, token: Token = None, data: Data = None) -> None:
    """End a session and its sandbox for good; its log and its diff stay."""
    from ship.cli import connection, working

    working.archive(connection.find(url, token, data), session)


@app.command(rich_help_panel=WORK)
def demo(
    data: Data = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the server running at the end, until Ctrl-C.")
    ] = False,
    scripted: Annotated[
        bool, typer.Option("--scripted", help="The scripted model, even where a key is set.")
    ] = False,
    json: Json = False,
) -> None:
    """Watch an agent fix a bug in a sample repository, from nothing to a passing test."""
    from ship.cli import demonstration

    raise typer.Exit(demonstration.run(data, keep=keep, scripted=scripted, as_json=json))


# Run the server


@app.command(rich_help_panel=SERVER)
def up(
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen",
            help="HOST:PORT; port 0 takes a free one. [default: 127.0.0.1:8700]",
            show_default=False,
        ),
    ] = None,
    data: Data = None,
    config: Config = None,
    database: Annotated[
        str | None,
        typer.Option(
            "--database",
            help="postgresql:// URL that the nodes share. [default: the data folder]",
            show_default=False,
        ),
    ] = None,
    bus: Annotated[
        str | None,
        typer.Option("--bus", help="nats:// or tls:// URL of the broker between nodes.", show_default=False),
    ] = None,
    blobs: Annotated[
        str | None,
        typer.Option("--blobs", help="s3:// URL of a bucket. [default: the data folder]", show_default=False),
    ] = None,
    semantic_search: Annotated[
        bool | None,
        typer.Option(
            "--semantic-search/--no-semantic-search",
            help="Let sessions be found by meaning, too; needs the extra `semantic`.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Start Ship on this machine and print the link to open."""
    from ship.cli import server

    server.up(listen, data, config, database=database, bus=bus, blobs=blobs, semantic_search=semantic_search)


@app.command(rich_help_panel=SERVER)
def down(data: Data = None) -> None:
    """End the server, its sandbox host and every sandbox. The logs stay; work past the last checkpoint is lost."""
    from ship.cli import server

    server.end(data)


@app.command(rich_help_panel=SERVER)
def migrate(
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="URL",
            help="Copy everything into this empty store: postgresql://… or sqlite.",
            show_default=False,
        ),
    ] = None,
    data: Data = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Bring the store's tables up to date; with --to, copy everything into another store."""
    from ship.cli import storage

    storage.migrate(to, data, config, as_json=json)


@app.command(rich_help_panel=SERVER)
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.", show_default=False)],
    data: Data = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Write everything, blobs and the signing key included, into one file that only you may read. The server may be running or not."""
    from ship.cli import storage

    storage.export(file, data, config, as_json=json)


@app.command("import", rich_help_panel=SERVER)
def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="What `ship export` wrote.", show_default=False)
    ],
    data: Data = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Take everything out of an export into an empty store. It is kept whole or not at all."""
    from ship.cli import storage

    storage.import_(file, data, config, as_json=json)


@app.command("login-link", rich_help_panel=SERVER)
def login_link(data: Data = None, json: Json = False) -> None:
    """Print a link that signs one browser in, once."""
    from ship.cli import server

    server.login_link(data, as_json=json)


@app.command(rich_help_panel=SERVER)
def doctor(
    url: Url = None, token: Token = None, data: Data = None, config: Config = None, json: Json = False
) -> None:
    """Check this machine, and say what to do about what it lacks."""
    from ship.cli import doctor as examination

    raise typer.Exit(examination.run(url, token, data, config, as_json=json))


@app.command(
    rich_help_panel=SERVER,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def sandboxd(context: typer.Context) -> None:
    """Run the sandbox host by itself; `ship sandboxd --help` lists its options."""
    from ship.cli import server

    server.sandboxd(context.args)


@app.command(rich_help_panel=SERVER)
def completion(
    shell: Annotated[str, typer.Argument(metavar="bash|zsh|fish", help="The shell.", show_default=False)],
) -> None:
    """Print the completion script of a shell: `source <(ship completion bash)`."""
    from ship.cli import completion_script

    typer.echo(completion_script.of(shell))


@token_app.command("create")
def token_create(
    name: Annotated[str, typer.Option("--name", help="Whose it is; it stands beside what they do.")] = "cli",
    data: Data = None,
    json: Json = False,
) -> None:
    """Make an API token and print it, this once. The server may be running or not."""
    from ship.cli import server

    server.create_token(name, data, as_json=json)


@token_app.command("ls")
def token_list(data: Data = None, json: Json = False) -> None:
    """List the tokens by name, without the tokens themselves."""
    from ship.cli import server

    server.list_tokens(data, as_json=json)


@token_app.command("revoke")
def token_revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The token's name.", show_default=False)],
    data: Data = None,
) -> None:
    """Make a token worthless at once."""
    from ship.cli import server

    server.revoke_token(name, data)
