"""What the commands print, and how: colours and width for people, plain text and JSON for programs."""

import os
import re
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ship.errors import ShipError

_KEPT_COLUMNS = 2
PLAIN_WIDTH = 160
"""Columns when nobody says how wide the output is: wide enough that tables are not cut."""

# Agents, repositories and models write what we print: no escape sequence of theirs may reach the terminal,
# and no character that turns the order of a line around.
_CONTROLS = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)


def clean(text: str) -> str:
    """The text without anything that a terminal would obey; newlines and tabs stay."""
    return _CONTROLS.sub("", text.replace("\r\n", "\n"))


def one_line(text: str, limit: int) -> str:
    """The first line that says something, cleaned and cut to ``limit`` characters."""
    line = next((line.strip() for line in clean(text).splitlines() if line.strip()), "")
    return line if len(line) <= limit else line[: limit - 1] + "…"


def output() -> Console:
    """Standard output."""
    return _console(stderr=False)


def messages() -> Console:
    """Standard error: what is said about the work, as against its result."""
    return _console(stderr=True)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Whoever read our output has seen enough, which ``cli.run`` knows what to do about. A SystemExit, as others raise here, would be
        told of as a crash of the task that it is raised in."""
        self.quiet = True
        raise BrokenPipeError


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PLAIN_WIDTH
    return _Console(stderr=stderr, width=width, highlight=False, soft_wrap=False, emoji=False)


class Rows(Table):
    """A table without lines. Its first column is what people copy into the next command, its second how it stands: however narrow the
    terminal, the others are cut first. Those in ``folded`` go on in a second line instead of being cut."""

    def __init__(self, *headings: str, folded: tuple[str, ...] = ()) -> None:
        super().__init__(box=None, pad_edge=False, header_style="dim")
        self._folded = {number for number, heading in enumerate(headings) if heading in folded}
        for number, heading in enumerate(headings):
            # Only what may be wrapped is made narrower before all else is.
            self.add_column(heading, no_wrap=number < _KEPT_COLUMNS)

    def add(self, *cells: str | Text) -> None:
        """One row."""
        self.add_row(*(self._cell(number, cell) for number, cell in enumerate(cells)))

    def _cell(self, number: int, cell: str | Text) -> Text:
        text = Text(cell) if isinstance(cell, str) else cell
        text.no_wrap = number not in self._folded
        text.overflow = "ellipsis" if text.no_wrap else "fold"
        return text


def interactive() -> bool:
    """Whether a person is there to be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    sys.stdout.flush()


def print_bytes(content: bytes) -> None:
    """The bytes as they are."""
    sys.stdout.buffer.write(content)
    sys.stdout.flush()


def report(error: ShipError, *, as_json: bool = False) -> None:
    """One red line that says what is wrong, and what to do about it; as JSON it is an object on standard error."""
    if as_json:
        body = {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
        sys.stderr.write(msgspec.json.encode(body).decode() + "\n")
        return
    console = messages()
    console.print(Text.assemble(("ship: ", "bold red"), (clean(error.message), "red")), soft_wrap=True)
    if error.hint:
        console.print(Text.assemble("      ", clean(error.hint)), soft_wrap=True)


def duration(milliseconds: float) -> str:
    """A length of time for people: ``85 ms``, ``4.2 s``, ``3 min 5 s``."""
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def moment(at_ms: int) -> str:
    """A time for people, in this machine's time zone."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def source_name(source: str) -> str:
    """A repository's source for people: an upload is known by the beginning of its hash."""
    return source[: len("upload:") + 10] if source.startswith("upload:") else clean(source)


def count(number: int, noun: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
