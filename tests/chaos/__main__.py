"""Faults in random order, for as long as one likes: ``python -m tests.chaos``, or ``make chaos``.

Every fault strikes once before any strikes again, under load; after every few of them all logs are held against what clients were told
and saw. A seed brings back the order; what the faults meet under way differs from run to run.
"""

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tests.chaos import faults, lab
from tests.chaos.cluster import cluster, cluster_with_cables
from tests.chaos.faults import Fault
from tests.chaos.scene import Recovery, Scene
from tests.chaos.single import single_node

from ship.testing.postgres_server import postgres_server
from ship.testing.s3_servers import moto_server

FAULTS_A_CHECK = 5
FIGURES = {"acknowledged_s": 2.0, "live_s": 2.0, "longest_s": None}
"""What a recovery is made of, and the goal for its median in seconds."""

Felt = dict[str, list[Recovery]]
Stage = Callable[[Path], AbstractAsyncContextManager[tuple[Scene, Mapping[str, Fault]]]]


def main() -> int:
    """The exit status: 1 when something was lost, twice, out of order or stuck."""
    parser = argparse.ArgumentParser(
        prog="make chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--duration",
        type=float,
        default=300,
        help="seconds in which faults begin, on one node and again on three; default 300",
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--nodes", choices=("1", "3"), help="only a single node, or only three")
    parser.add_argument("--only", default="", help="only faults whose names contain this")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(f"seed {arguments.seed}", highlight=False)
    report: dict[str, object] = {}
    found = ""
    for count, stage in (("1", _one_node), ("3", _three_nodes)):
        if arguments.nodes in (None, count) and not found:
            felt: Felt = {}
            found = _tried(stage, arguments, felt, console)
            console.print(_table(f"nodes: {count}", felt))
            report[f"recovery of {count}"] = _figures(felt)
    console.print(
        f"found: {found}" if found else "nothing lost, nothing twice, nobody stuck",
        style="red" if found else "green",
    )
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"seed": arguments.seed, "found": found, "figures": report}, indent=2) + "\n"
        )
    return 1 if found else 0


def _tried(stage: Stage, arguments: argparse.Namespace, felt: Felt, console: Console) -> str:
    """What was found, empty when all held; then the nodes' folders stay for whoever looks into it."""
    folder = Path(tempfile.mkdtemp(prefix="ship-chaos-"))
    try:
        asyncio.run(_strike(stage, folder, arguments, felt, console))
    except (AssertionError, ExceptionGroup) as error:
        console.print_exception(max_frames=20)
        console.print(f"the nodes' logs and data are in {folder}", style="dim", soft_wrap=True)
        return _innermost(error)
    shutil.rmtree(folder)
    return ""


async def _strike(
    stage: Stage, folder: Path, arguments: argparse.Namespace, felt: Felt, console: Console
) -> None:
    chance = random.Random(arguments.seed)
    async with stage(folder) as (scene, all_faults):
        chosen = [name for name in sorted(all_faults) if arguments.only in name]
        if not chosen:
            sys.exit("no fault has such a name; there are:\n" + "\n".join(sorted(all_faults)))
        await scene.begin(sessions=3, watchers=3)
        ends = time.monotonic() + arguments.duration
        order: list[str] = []
        while time.monotonic() < ends:
            async with scene.load(writers=3):
                for _ in range(FAULTS_A_CHECK):
                    order = order or chance.sample(chosen, len(chosen))
                    name = order.pop()
                    recovery = await all_faults[name]()
                    felt.setdefault(name, []).append(recovery)
                    console.print(
                        f"{name}: acknowledged after {recovery.acknowledged_s:.2f} s, live after {recovery.live_s:.2f} s",
                        highlight=False,
                        soft_wrap=True,
                    )
            await scene.check()
            console.print(f"{scene.events} events of {len(scene.sessions)} sessions hold", style="dim")


@contextlib.asynccontextmanager
async def _one_node(folder: Path) -> AsyncIterator[tuple[Scene, Mapping[str, Fault]]]:
    async with single_node(folder) as scene:
        yield scene, faults.of_one_node(scene)


@contextlib.asynccontextmanager
async def _three_nodes(folder: Path) -> AsyncIterator[tuple[Scene, Mapping[str, Fault]]]:
    with postgres_server() as postgres, moto_server() as bucket:
        running = (
            cluster(folder, postgres, bucket) if lab.possible() else cluster_with_cables(folder, postgres)
        )
        async with running as three:
            yield three.scene, faults.of_three_nodes(three.scene, postgres, three.nats, three.network)


def _table(title: str, felt: Felt) -> Table:
    shown = Table(title=title, title_justify="left")
    for heading in ("fault", "times", "acknowledged again, s", "streams live again, s", "slowest command, s"):
        shown.add_column(heading, justify="left" if heading == "fault" else "right")
    for name, recoveries in sorted(felt.items()):
        cells = [f"{statistics.median(_samples(recoveries, field)):.2f}" for field in FIGURES]
        shown.add_row(name, str(len(recoveries)), *cells)
    return shown


def _figures(felt: Felt) -> dict[str, object]:
    """In the form of `make bench`."""
    figures: dict[str, object] = {}
    for name, recoveries in sorted(felt.items()):
        for field, goal in FIGURES.items():
            samples = sorted(_samples(recoveries, field))
            median = statistics.median(samples)
            figures[f"{name}: {field}"] = {
                "unit": "s",
                "n": len(samples),
                "best": round(samples[0], 3),
                "p50": round(median, 3),
                "worst": round(samples[-1], 3),
                **({} if goal is None else {"goal": goal, "met": median <= goal}),
            }
    return figures


def _samples(recoveries: list[Recovery], field: str) -> list[float]:
    return [getattr(recovery, field) for recovery in recoveries]


def _innermost(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"[:500]


if __name__ == "__main__":
    sys.exit(main())
