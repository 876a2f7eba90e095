"""Every command of ``ship sandbox``: its arguments and its help. The work is done elsewhere."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Look after the sandboxes of a host that speaks E2B's protocol: the one of `ship up`, or any other.",
    no_args_is_help=True,
)

COMPLETION_TIMEOUT_S = 2


def _known(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """What the shell may complete an id to. A host that does not answer offers nothing."""
    from ship.cli import sandbox_host
    from ship.errors import ShipError

    given = context.params

    async def collect() -> list[tuple[str, str]]:
        console = sandbox_host.find(given.get("url"), given.get("api_key"), given.get("data"))
        return [
            (one.sandbox_id, f"{one.name or one.template_id}, {one.state.value}")
            for one in await console.sandboxes()
            if one.sandbox_id.startswith(incomplete)
        ]

    try:
        return asyncio.run(asyncio.wait_for(collect(), COMPLETION_TIMEOUT_S))
    except (ShipError, TimeoutError):
        return []


Url = Annotated[
    str | None,
    typer.Option("--url", help="The host; also E2B_API_URL. [default: the one of `ship up`]"),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key", help="Its key; better in E2B_API_KEY, as options show in the list of processes."
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        envvar="SHIP_DATA",
        file_okay=False,
        help="The data folder of `ship up`. [default: ~/.local/share/ship]",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Id = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="The sandbox, or how its id begins.", show_default=False, autocompletion=_known
    ),
]
Ids = Annotated[
    list[str],
    typer.Argument(
        metavar="ID…", help="Sandboxes, or how their ids begin.", show_default=False, autocompletion=_known
    ),
]


@app.command("ls")
def list_sandboxes(
    state: Annotated[
        list[str] | None, typer.Option("--state", help="Only `running` or `paused` ones; repeatable.")
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option("--metadata", "-m", metavar="NAME=VALUE", help="Only those that carry it; repeatable."),
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """List sandboxes, newest first."""
    from ship.cli import sandbox_host, sandboxes

    sandboxes.list_all(
        sandbox_host.find(url, api_key, data), states=state or [], metadata=metadata or [], as_json=json
    )


@app.command()
def info(sandbox: Id, url: Url = None, api_key: ApiKey = None, data: Data = None, json: Json = False) -> None:
    """Show one sandbox: its state, times, limits, network, metadata, and what it uses."""
    from ship.cli import sandbox_host, sandboxes

    sandboxes.info(sandbox_host.find(url, api_key, data), sandbox, as_json=json)


@app.command()
def shell(sandbox: Id, url: Url = None, api_key: ApiKey = None, data: Data = None) -> None:
    """Open a shell in a sandbox; a paused one is resumed. Press Ctrl-] three times to leave one that hangs.

    Where standard input is not a terminal, it is run as a script.
    """
    from ship.cli import sandbox_host, sandbox_shell

    raise typer.Exit(sandbox_shell.run(sandbox_host.find(url, api_key, data), sandbox))


@app.command()
def logs(
    sandbox: Id,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait for more, until the sandbox ends.")
    ] = False,
    url: Url = None,
    api_key: ApiKey = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Print what happened to a sandbox: its life cycle, refusals, out of memory."""
    from ship.cli import sandbox_host, sandboxes

    sandboxes.logs(sandbox_host.find(url, api_key, data), sandbox, follow=follow, as_json=json)


@app.command()
def top(
    interval_s: Annotated[
        float, typer.Option("--interval", min=0.5, help="Seconds between two looks.")
    ] = 2.0,
    url: Url = None,
    api_key: ApiKey = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Watch what sandboxes use of processors, memory and disk; once where the output is not a terminal."""
    from ship.cli import sandbox_host, sandboxes

    sandboxes.top(sandbox_host.find(url, api_key, data), interval_s=interval_s, as_json=json)


@app.command()
def pause(sandbox: Id, url: Url = None, api_key: ApiKey = None, data: Data = None) -> None:
    """Freeze a sandbox; its files stay, and its memory for a while."""
    from ship.cli import sandbox_host, sandboxes

    sandboxes.pause(sandbox_host.find(url, api_key, data), sandbox)


@app.command()
def resume(
    sandbox: Id,
    timeout_s: Annotated[
        int, typer.Option("--timeout", min=0, help="Seconds that it lives at least from now.")
    ] = 300,
    url: Url = None,
    api_key: ApiKey = None,
    data: Data = None,
) -> None:
    """Let a paused sandbox go on."""
    from ship.cli import sandbox_host, sandboxes

    sandboxes.resume(sandbox_host.find(url, api_key, data), sandbox, timeout_s=timeout_s)


@app.command()
def kill(sandbox: Ids, url: Url = None, api_key: ApiKey = None, data: Data = None) -> None:
    """End sandboxes with all that is in them."""
    from ship.cli import sandbox_host, sandboxes

    sandboxes.kill(sandbox_host.find(url, api_key, data), sandbox)


@app.command()
def template(url: Url = None, api_key: ApiKey = None, data: Data = None) -> None:
    """Build the template `ship-full`: a Debian of its own with the agent, an editor, a browser and compilers."""
    from ship.cli import sandbox_host, sandboxes

    sandboxes.build_template(*sandbox_host.address(url, api_key, data))
