"""The arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from ship.model import AgentMode, LimitsPatch

WORK, SERVER = "Work with agents", "Run the server"

Url = Annotated[
    str | None,
    typer.Option("--url", envvar="SHIP_URL", help="The server. [default: the one `ship up` started]"),
]
Token = Annotated[str | None, typer.Option("--token", envvar="SHIP_TOKEN", help="An API token for it.")]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data", envvar="SHIP_DATA", file_okay=False, help="The data folder. [default: ~/.local/share/ship]"
    ),
]
Config = Annotated[
    Path | None, typer.Option("--config", exists=True, dir_okay=False, help="A settings file in TOML.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
SessionId = Annotated[
    str, typer.Argument(metavar="ID", help="The session, or how its id begins.", show_default=False)
]
Model = Annotated[
    str, typer.Option("--model", "-m", help="The model, as provider/name. [default: the server's]")
]
Agent = Annotated[
    AgentMode | None,
    typer.Option("--agent", help="`build` changes files, `plan` only reads. [default: build]"),
]
MaxTime = Annotated[
    int | None,
    typer.Option(
        "--max-time", metavar="SECONDS", min=0, help="End a task that was worked on for so long; 0: never."
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", min=0, help="End a task that used so many tokens; 0: no limit."),
]
MaxCost = Annotated[
    float | None,
    typer.Option("--max-cost", metavar="DOLLARS", min=0, help="End a task that cost so much; 0: no limit."),
]


def limits(time_s: int | None, tokens: int | None, cost_usd: float | None) -> LimitsPatch:
    """What these three say together."""
    return LimitsPatch(time_s=time_s, tokens=tokens, cost_usd=cost_usd)
