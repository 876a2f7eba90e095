import re
from pathlib import Path

import typer

from ship.cli import commands
from ship.cli.exits import Exit

PAGE = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()


def command_names() -> set[str]:
    """Every command as it is typed, groups spelled out."""
    root = typer.main.get_command(commands.app)
    names = set()
    for name, command in root.commands.items():
        inner = getattr(command, "commands", None)
        names |= {f"{name} {one}" for one in inner} if inner else {name}
    return names


def test_every_command_has_its_line_on_the_page_and_the_page_names_no_other() -> None:
    rows = re.findall(r"^\| `ship ([^`]+)`", PAGE, re.MULTILINE)
    documented = {
        " ".join(row.split()[: 2 if row.startswith(("token ", "sandbox ", "queue ")) else 1]) for row in rows
    }
    assert documented == command_names()


def test_every_option_of_a_command_stands_somewhere_on_the_page() -> None:
    root = typer.main.get_command(commands.app)
    groups = [command.commands for command in root.commands.values() if hasattr(command, "commands")]
    every = [*root.commands.values(), *(command for group in groups for command in group.values())]
    options = {
        option
        for command in every
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--")
    }
    assert {option for option in options if option not in PAGE} == set()


def test_every_exit_code_is_explained() -> None:
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert documented == {code.value for code in Exit}


def test_every_command_has_help() -> None:
    for command in typer.main.get_command(commands.app).commands.values():
        assert command.help
