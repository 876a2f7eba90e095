"""A small real git repository with a real bug, for demonstrations and tests.

    python -m ship.testing.sample_repository FOLDER

It is a timesheet library in plain Python. Decimal hours such as ``1.5h`` are read as ``5h``, one of its tests says so and
fails; ``python3 -m unittest`` runs them. The commits are the same, byte for byte, wherever it is made.
"""

import argparse
import os
import subprocess
from pathlib import Path

PROMPT = "A test fails. Find the bug, fix it, and show that all tests pass."
"""The task that the ``demo`` scenario is written for."""

TEST_COMMAND = ("python3", "-m", "unittest")
"""Fails before the fix, passes after it."""

_README = """\
# timesheet

Adds up working times and writes invoices.

    >>> from timesheet import minutes, total
    >>> minutes("1h 30m")
    90
    >>> total(["2h", "45m"], rate=80)
    Decimal('220.00')

Run the tests with `python3 -m unittest`.
"""

_AGENTS = """\
# For agents

- Plain Python 3, no dependencies. Tests: `python3 -m unittest`.
- Money is `Decimal`, never `float`. Times are whole minutes.
- Keep changes small; every bug fix comes with a test that failed before.
"""

_INIT = """\
\"\"\"Working times and invoices.\"\"\"

from timesheet.durations import minutes
from timesheet.invoice import total

__all__ = ["minutes", "total"]
"""

_DURATIONS = """\
\"\"\"Read durations as people write them: ``1h 30m``, ``45m``, ``1.5h``.\"\"\"

import re

MINUTES = {"h": 60, "m": 1}


def minutes(text: str) -> int:
    \"\"\"The whole minutes of a duration. Raises ValueError when there is none in the text.\"\"\"
    parts = re.findall(r"(\\d+)\\s*([hm])", text.lower())
    if not parts:
        raise ValueError(f"not a duration: {text!r}")
    return sum(int(amount) * MINUTES[unit] for amount, unit in parts)
"""

_INVOICE = """\
\"\"\"Turn durations into money.\"\"\"

from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Decimal

from timesheet.durations import minutes

CENT = Decimal("0.01")


def total(durations: Iterable[str], rate: int | Decimal) -> Decimal:
    \"\"\"What the durations cost at an hourly rate, to the cent.\"\"\"
    worked = sum(minutes(duration) for duration in durations)
    return (Decimal(worked) / 60 * Decimal(rate)).quantize(CENT, ROUND_HALF_UP)
"""

_TEST_DURATIONS = """\
import unittest

from timesheet import minutes


class Durations(unittest.TestCase):
    def test_hours_and_minutes(self):
        self.assertEqual(minutes("1h 30m"), 90)

    def test_minutes_alone(self):
        self.assertEqual(minutes("45m"), 45)

    def test_capital_letters(self):
        self.assertEqual(minutes("2H"), 120)

    def test_text_without_a_duration(self):
        with self.assertRaises(ValueError):
            minutes("soon")
"""

_TEST_DECIMAL = """\

    def test_decimal_hours(self):
        self.assertEqual(minutes("1.5h"), 90)
"""

_TEST_INVOICE = """\
import unittest
from decimal import Decimal

from timesheet import total


class Invoice(unittest.TestCase):
    def test_adds_up(self):
        self.assertEqual(total(["2h", "45m"], rate=80), Decimal("220.00"))

    def test_rounds_to_the_cent(self):
        self.assertEqual(total(["20m"], rate=100), Decimal("33.33"))
"""

_COMMITS: tuple[tuple[str, dict[str, str]], ...] = (
    (
        "Start the timesheet library",
        {"README.md": _README, "AGENTS.md": _AGENTS, ".gitignore": "__pycache__/\n"},
    ),
    (
        "Read durations",
        {
            "timesheet/__init__.py": '"""Working times and invoices."""\n',
            "timesheet/durations.py": _DURATIONS,
            "tests/__init__.py": "",
            "tests/test_durations.py": _TEST_DURATIONS.replace("from timesheet", "from timesheet.durations"),
        },
    ),
    (
        "Add up invoices",
        {
            "timesheet/__init__.py": _INIT,
            "timesheet/invoice.py": _INVOICE,
            "tests/test_durations.py": _TEST_DURATIONS,
            "tests/test_invoice.py": _TEST_INVOICE,
        },
    ),
    (
        "Show that decimal hours are billed wrong",
        {"tests/test_durations.py": _TEST_DURATIONS + _TEST_DECIMAL},
    ),
)


def create(folder: Path) -> str:
    """Makes the repository in ``folder``, which must be empty or missing; gives back its head commit."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; name a new folder for the sample repository")
    _git(folder, "init", "--quiet", "--template=", "--initial-branch=main")
    for day, (message, files) in enumerate(_COMMITS, start=1):
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        _git(folder, "add", "--all")
        _git(
            folder,
            "commit",
            "--quiet",
            "--no-gpg-sign",
            "-m",
            message,
            date=f"2026-01-{day:02}T09:00:00+00:00",
        )
    return _git(folder, "rev-parse", "HEAD").strip()


def _git(folder: Path, *arguments: str, date: str = "") -> str:
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "Ada Example",
        "GIT_AUTHOR_EMAIL": "ada@example.com",
        "GIT_COMMITTER_NAME": "Ada Example",
        "GIT_COMMITTER_EMAIL": "ada@example.com",
        **({"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date} if date else {}),
    }
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Makes the sample repository in the folder that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m ship.testing.sample_repository")
    parser.add_argument("folder", type=Path)
    create(parser.parse_args().folder)


if __name__ == "__main__":
    main()
