"""The long form of the kill points: rounds of every fault in an order of chance, on one node with SQLite under load, and a table of it.

make chaos                                          # five minutes
make chaos ARGS="--duration 3600 --seed 7"          # an hour, with the order of seed 7
"""

import argparse
import asyncio
import random
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tests.chaos import points
from tests.chaos.scene import Recovery, Scene
from tests.chaos.single import single_node

PROVISIONING = ("effect_claimed", "sandbox_made", "effect_reported")
ALARMS = ("alarm_claimed", "alarm_fired")
HALT_S = 1.5
FAULTS = [
    *((signal.SIGKILL, point) for point in points.POINTS),
    *((signal.SIGSTOP, point) for point in points.POINTS if point not in ALARMS),
]

Fault = tuple[signal.Signals, str]


class Findings:
    """What was done, how it was felt, and what went wrong."""

    def __init__(self) -> None:
        self.felt: dict[Fault, list[Recovery]] = defaultdict(list)
        self.acknowledged = 0
        self.wrong: list[str] = []

    def table(self) -> Table:
        """One row for each fault. Seconds."""
        table = Table("fault", "at the point where", "times", title="faults, and seconds until all went on")
        for name in ("next answer p50", "most", "streams live p50", "most"):
            table.add_column(name, justify="right")
        for (how, point), felt in sorted(self.felt.items()):
            answered = [one.acknowledged_s for one in felt]
            live = [one.live_s for one in felt]
            figures = (f(of) for of in (answered, live) for f in (statistics.median, max))
            shown = (f"{figure:.2f}" for figure in figures)
            table.add_row(how.name, points.POINTS[point], str(len(felt)), *shown)
        return table


async def strike(scene: Scene, how: signal.Signals, point: str) -> Recovery:
    """Let the node die, or stand still for a while, at that point; returns when everybody is served again."""
    (node,) = scene.nodes
    await scene.acknowledged(5)
    async with asyncio.TaskGroup() as group:
        points.arm(node.faults, point, how)
        if point in PROVISIONING:
            group.create_task(scene.begin(sessions=1, watchers=1))
        if point in ALARMS:
            scene.runners.drop_links()
        await node.at(point)
        since = time.monotonic()
        if how == signal.SIGKILL:
            await node.start()
        else:
            await asyncio.sleep(HALT_S)
            node.signal(signal.SIGCONT)
        felt = await scene.recovery(since)
    await scene.acknowledged(5)
    return felt


async def one_round(order: list[Fault], found: Findings, end: float) -> None:
    """A new node and every fault once, or as many as fit before ``end`` (monotonic); then everything is held against the ledger."""
    with tempfile.TemporaryDirectory(prefix="ship-chaos-") as name:
        async with single_node(Path(name)) as scene:
            await scene.begin(sessions=2, watchers=2)
            async with scene.load(writers=3):
                for fault in order:
                    if time.monotonic() > end:
                        break
                    found.felt[fault].append(await strike(scene, *fault))
            await scene.check()
            found.acknowledged += len(scene.ledger.acked_at)


def main() -> int:
    """Runs, prints, and ends with 1 when something was found."""
    parser = argparse.ArgumentParser(
        prog="make chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--duration", type=float, default=300.0, help="seconds in which faults begin")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="of the faults' order")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(f"seed {arguments.seed}, {arguments.duration:.0f} s")
    chance = random.Random(arguments.seed)
    found = Findings()
    rounds = 0
    end = time.monotonic() + arguments.duration
    while rounds == 0 or time.monotonic() < end:
        rounds += 1
        order = chance.sample(FAULTS, len(FAULTS))
        try:
            asyncio.run(one_round(order, found, end))
        except Exception:
            found.wrong.append(f"round {rounds} of seed {arguments.seed}:\n{traceback.format_exc()}")
    console.print(found.table())
    for wrong in found.wrong:
        console.print(wrong, markup=False, highlight=False)
    console.print(
        f"seed {arguments.seed}: {rounds} rounds, {sum(map(len, found.felt.values()))} faults, {found.acknowledged} commands "
        f"acknowledged and each found once in its log; {len(found.wrong)} rounds went wrong"
    )
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
