"""Commands of the server's own machine: ``up``, ``token``, ``login-link``, ``sandboxd``."""

import os
import sys
from pathlib import Path

from rich.text import Text

from ship import config
from ship.app import down, serve, tokens
from ship.cli import terminal
from ship.cli.connection import data_folder


def settings(
    listen: str | None, data: Path | None, file: Path | None, **others: str | bool | None
) -> config.Settings:
    """The settings from the file, the environment and the command line."""
    overrides = {"listen": listen, "data": str(data) if data else None, **others}
    return config.load(file, os.environ, overrides)


def up(listen: str | None, data: Path | None, file: Path | None, **others: str | bool | None) -> None:
    """``ship up``; ``others`` are further settings by their names."""
    console = terminal.messages()

    def report(line: str) -> None:
        console.print(Text(line, "dim"), soft_wrap=True)

    def ready(url: str, link: str) -> None:
        console.print(
            Text.assemble("Ship is up at ", (url, "bold"), ". Open this link once to sign in:"),
            soft_wrap=True,
        )
        # The link alone goes to standard output, for whoever scripts it.
        terminal.print_bytes(f"{link}\n".encode())

    serve.serve(settings(listen, data, file, **others), report=report, on_ready=ready)


def end(data: Path | None) -> None:
    """``ship down``"""
    down.down(data_folder(data))
    terminal.messages().print("Ship is down; the logs stay.")


def create_token(name: str, data: Path | None, *, as_json: bool) -> None:
    """``ship token create``"""
    token = tokens.create_token(data_folder(data), name)
    if as_json:
        terminal.print_json({"name": name, "token": token})
    else:
        terminal.print_bytes(f"{token}\n".encode())


def list_tokens(data: Path | None, *, as_json: bool) -> None:
    """``ship token ls``"""
    found = tokens.list_tokens(data_folder(data))
    if as_json:
        terminal.print_json([token._asdict() for token in found])
        return
    console = terminal.output()
    for token in found:
        console.print(f"{token.name:<24} {terminal.moment(token.created_at_ms)}")
    if not found:
        console.print("No tokens yet. Make one: ship token create --name NAME")


def revoke_token(name: str, data: Path | None) -> None:
    """``ship token revoke``"""
    tokens.revoke_token(data_folder(data), name)
    terminal.output().print(f"revoked {name}")


def login_link(data: Path | None, *, as_json: bool) -> None:
    """``ship login-link``"""
    link = tokens.login_link(data_folder(data))
    if as_json:
        terminal.print_json({"link": link})
    else:
        terminal.print_bytes(f"{link}\n".encode())


def sandboxd(arguments: list[str]) -> None:
    """``ship sandboxd``: becomes that process, so that signals and the exit code are its own."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "ship_sandboxd", *arguments])  # noqa: S606 - the arguments are the operator's own
