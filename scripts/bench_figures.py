"""What a measurement answers, and the table of it."""

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

KEYS = ("best", "p50", "p95", "p99")


@dataclass(frozen=True)
class Figure:
    """Samples of one thing, in ``unit``; ``floor`` are those of the plain thing that it is held against, ``goal`` what the median
    shall reach: at most that, or at least where the unit is a rate. ``baseline`` is another system's figure, ``client`` the most of a
    core that the client took: near 1 it has measured itself."""

    name: str
    unit: str
    samples: tuple[float, ...]
    floor: tuple[float, ...] = ()
    goal: float | None = None
    baseline: float | None = None
    client: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the goal; None without one."""
        if self.goal is None:
            return None
        median = statistics.median(self.samples)
        return median >= self.goal if self.is_rate else median <= self.goal

    @property
    def is_rate(self) -> bool:
        """More is better."""
        return self.unit.endswith("/s")

    def summary(self) -> dict[str, float]:
        """Of its samples, see ``summary``."""
        return summary(self.samples, is_rate=self.is_rate)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        summed = {"unit": self.unit, **self.summary()}
        if self.floor:
            summed["floor"] = summary(self.floor, is_rate=self.is_rate)
        if self.goal is not None:
            summed |= {"goal": self.goal, "met": self.met}
        if self.baseline is not None:
            summed["baseline"] = self.baseline
        if self.client is not None:
            summed["client"] = round(self.client, 2)
        return summed


def summary(values: Sequence[float], *, is_rate: bool = False) -> dict[str, float]:
    """How many, the best, the median, and what 95 and 99 of a hundred are at least as good as."""
    ordered = sorted(values, reverse=is_rate)

    def at(share: float) -> float:
        return round(ordered[round(share * (len(ordered) - 1))], 3)

    return {
        "n": len(ordered),
        "best": round(ordered[0], 3),
        "p50": round(statistics.median(ordered), 3),
        "p95": at(0.95),
        "p99": at(0.99),
    }


def table(section: str, figures: Sequence[Figure], kept: Mapping[str, Any]) -> Table:
    """The figures for people, beside the medians of the run that is ``kept``."""
    floors, goals = (
        any(figure.floor for figure in figures),
        any(figure.goal is not None for figure in figures),
    )
    baselines, clients = any(f.baseline is not None for f in figures), any(f.client for f in figures)
    shown = Table(title=section, title_justify="left", title_style="bold")
    for heading in ("figure", "n", "best", "median", "p95", "p99", "unit"):
        shown.add_column(heading, justify="left" if heading in ("figure", "unit") else "right")
    if floors:
        shown.add_column("plain", justify="right")
    if baselines:
        shown.add_column("baseline", justify="right")
    if goals:
        shown.add_column("goal", justify="right")
    if kept:
        shown.add_column("kept", justify="right")
    if clients:
        shown.add_column("client", justify="right")
    for figure in figures:
        of = figure.summary()
        row = [figure.name, str(of["n"]), *(_number(of[key]) for key in KEYS), figure.unit]
        if floors:
            row.append(_number(statistics.median(figure.floor)) if figure.floor else "")
        if baselines:
            row.append("" if figure.baseline is None else _number(figure.baseline))
        if goals:
            row.append(_goal(figure))
        if kept:
            row.append(_number(kept[figure.name]["p50"]) if figure.name in kept else "")
        if clients:
            row.append(f"{figure.client:.0%}" if figure.client else "")
        shown.add_row(*row)
    return shown


def machine() -> str:
    """What it was measured on, and what else it did."""
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {system}, load average {os.getloadavg()[1]:.1f}"


def _goal(figure: Figure) -> str:
    if figure.goal is None:
        return ""
    bound = "≥" if figure.is_rate else "≤"
    colour = "green" if figure.met else "red"
    return f"[{colour}]{bound} {_number(figure.goal)}[/{colour}]"


def _number(value: float) -> str:
    return f"{value:,.2f}" if value < 10 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
