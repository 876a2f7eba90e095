"""`make bench` goes on working: small runs of it."""

import importlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

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
    kept = tmp_path / "kept.json"
    earlier = json.loads((ROOT / "docs/performance.json").read_text())
    kept.write_text(json.dumps({name: one | {"machine": "another"} for name, one in earlier.items()}))
    ended = subprocess.run(
        [
            sys.executable,
            ROOT / "scripts/bench.py",
            *sections,
            *small,
            "--json",
            report,
            "--kept",
            kept,
            "--keep",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(report.read_text())
    assert set(figures) == set(sections)
    command = figures["sandboxes.commands"]["figures"]['commands.run("true")']
    assert (command["n"], command["unit"]) == (2, "ms")
    assert 0 < command["p50"] <= command["p99"]
    assert command["floor"]["p50"] > 0
    assert command["ratio_to_kept"] == pytest.approx(command["p50"] / command["kept"], abs=0.001)
    # What was kept names the machine that it was measured on, and what was not measured keeps its own.
    stands = json.loads(kept.read_text())
    assert {name for name, one in stands.items() if one["machine"] != "another"} == set(sections)
    assert stands["sandboxes.commands"]["figures"]['commands.run("true")']["p50"] == command["p50"]


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


def test_what_is_worse_than_the_kept_run_by_more_than_a_third_is_marked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    figures = importlib.import_module("bench_figures")
    slow, quick = figures.Figure("slow", "ms", (13.0, 14.0)), figures.Figure("quick", "/s", (80.0,))
    assert slow.plain(10.0).items() >= {"kept": 10.0, "ratio_to_kept": 1.35, "worse": True}.items()
    assert quick.plain(100.0).items() >= {"ratio_to_kept": 0.8, "worse": False}.items()
    assert quick.plain(110.0)["worse"]
    missing = figures.Figure("missing", "", (1.0,))
    assert missing.plain(0.0).items() >= {"ratio_to_kept": None, "worse": True}.items()
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(figures.table("all", (slow, quick), {"slow": 10.0, "quick": 100.0}))
    told = console.export_text()
    assert "1.35 worse" in told
    assert told.count("worse") == 1
