"""`make bench` goes on working: small runs of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.system
def test_the_sandbox_host_is_measured_beside_its_floor(tmp_path: Path) -> None:
    report = tmp_path / "figures.json"
    sections = (
        "sandboxes.warm",
        "sandboxes.commands",
        "sandboxes.pause",
        "sandboxes.many",
        "sandboxes.files",
    )
    small = ("--rounds", "2", "--count", "4", "--size-mb", "8")
    ended = subprocess.run(
        [sys.executable, ROOT / "scripts/bench.py", *sections, *small, "--json", report],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(report.read_text())["figures"]
    assert set(figures) == set(sections)
    command = figures["sandboxes.commands"]['commands.run("true")']
    assert (command["n"], command["unit"]) == (2, "ms")
    assert 0 < command["p50"] <= command["p99"]
    assert command["floor"]["p50"] > 0


@pytest.mark.system
def test_a_section_that_there_is_not_is_refused() -> None:
    ended = subprocess.run(
        [sys.executable, ROOT / "scripts/bench.py", "sandcastles"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "sandboxes.start" in ended.stderr
