"""Measures real servers on this machine and prints tables and JSON.

make bench                                            # everything
make bench ARGS="sessions --rounds 5 --json figures.json"
make bench ARGS="load.append load.fan_out"            # some scenarios of what one control plane bears
make bench ARGS="load --beside-workerd"               # beside the baseline itself, on this machine
make bench ARGS=cluster                               # three nodes on PostgreSQL and NATS
make bench ARGS="sandboxes.start sandboxes.commands"  # some sections of the sandbox host's
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_load
import bench_recovery
import bench_runner
import bench_sandboxes
import bench_sessions
from bench_figures import Figure, machine, table
from bench_servers import NODES, contest
from rich.console import Console

KEPT = Path(__file__).parents[1] / "docs" / "performance.json"
SECTIONS = [
    "sessions",
    "runner",
    "recovery",
    *(f"load.{name}" for name in bench_load.SECTIONS),
    *(f"cluster.{name}" for name in bench_load.CLUSTER),
    *(f"sandboxes.{name}" for name in bench_sandboxes.SECTIONS),
]


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sections", nargs="*", help=f"any of load, cluster, sandboxes, {', '.join(SECTIONS)}; default all"
    )
    parser.add_argument("--rounds", type=int, default=0, help="how often; the default depends on what it is")
    parser.add_argument("--count", type=int, default=200, help="sandboxes at once, commands at once")
    parser.add_argument("--size-mb", type=int, default=1024, help="of the file that goes in and out")
    parser.add_argument("--backend", default="", help="the sandbox host's, by its option")
    parser.add_argument(
        "--beside-workerd",
        action="store_true",
        help="measure the baseline of load and cluster here, too, instead of holding it against what was published",
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument(
        "--kept", type=Path, default=KEPT, help=f"what to hold them against; default {KEPT.name}"
    )
    parser.add_argument("--keep", action="store_true", help="let these sections stand there for the next run")
    arguments = parser.parse_args()
    chosen = [name for name in SECTIONS if _is_chosen(name, arguments.sections)]
    if not chosen:
        parser.error(f"no such section; there are {', '.join(SECTIONS)}")
    console = Console(width=None if sys.stdout.isatty() else 120)
    report: dict[str, dict[str, object]] = {}
    kept: dict[str, dict[str, Any]] = json.loads(arguments.kept.read_text())
    for name in chosen:
        figures, before = _measurement(name, arguments)(), kept.get(name, {"machine": "", "figures": {}})
        medians = {known: figure["p50"] for known, figure in before["figures"].items()}
        console.print(table(name, figures, medians))
        console.print(f"now:  {machine()}", style="dim")
        if medians:
            console.print(f"kept: {before['machine']}", style="dim")
        plain = {figure.name: figure.plain(medians.get(figure.name)) for figure in figures}
        report[name] = {"machine": machine(), "figures": plain}
        if arguments.keep:
            kept[name] = {
                "machine": machine(),
                "figures": {figure.name: figure.plain() for figure in figures},
            }
            arguments.kept.write_text(json.dumps(kept, indent=2) + "\n")
    text = json.dumps(report, indent=None if not arguments.json else 2)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    else:
        sys.stdout.write(text + "\n")


def _is_chosen(name: str, sections: list[str]) -> bool:
    return not sections or any(name == section or name.startswith(f"{section}.") for section in sections)


def _measurement(name: str, arguments: argparse.Namespace) -> Callable[[], list[Figure]]:
    if name == "sessions":
        return lambda: bench_sessions.measure(arguments.rounds or 3)
    if name == "runner":
        return lambda: bench_runner.measure(arguments.rounds or 3)
    if name == "recovery":
        return lambda: bench_recovery.measure(arguments.rounds or 3)
    kind, _, section = name.partition(".")
    if kind in ("load", "cluster"):
        measured = bench_load.SECTIONS if kind == "load" else bench_load.CLUSTER
        nodes = 1 if kind == "load" else NODES
        it = contest(arguments.rounds or 3, nodes=nodes, beside_workerd=arguments.beside_workerd)
        return lambda: measured[section](it)
    measure = bench_sandboxes.SECTIONS[section]
    plan = bench_sandboxes.Plan(arguments.rounds, arguments.count, arguments.size_mb, arguments.backend)
    return lambda: measure(plan)


if __name__ == "__main__":
    main()
