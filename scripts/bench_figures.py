"""What a measurement answers, and the table of it."""

import contextlib
import os
import platform
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

KEYS = ("best", "p50", "p95", "p99")
WORSE = 4 / 3
"""By more than a third: machines change by less from hour to hour."""
NO_CLIENT = "none"
"""Where what is measured is called, and nobody stands between it and the clock."""


@dataclass(frozen=True)
class Figure:
    """Samples of one thing, in ``unit``; ``floor`` are those of the plain thing that it is held against, ``goal`` what the median
    shall reach: at most that, or at least where the unit is a rate. ``baseline`` is another system's figure, ``client`` the most of a
    core that the client took: near 1 it has measured itself; or ``NO_CLIENT``."""

    name: str
    unit: str
    samples: tuple[float, ...]
    floor: tuple[float, ...] = ()
    goal: float | None = None
    baseline: float | None = None
    client: float | str | None = None

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

    def is_worse_than(self, kept: float) -> bool:
        """Whether the median is worse than the ``kept`` one by more than a third."""
        median = statistics.median(self.samples)
        return median * WORSE < kept if self.is_rate else median > kept * WORSE

    def ratio_to(self, kept: float) -> float | None:
        """The median by the ``kept`` one; None where that is nothing."""
        return round(statistics.median(self.samples) / kept, 3) if kept else None

    def plain(self, kept: float | None = None) -> dict[str, Any]:
        """For JSON, beside the ``kept`` median."""
        summed = {"unit": self.unit, **self.summary()}
        if self.floor:
            summed["floor"] = summary(self.floor, is_rate=self.is_rate)
        if self.goal is not None:
            summed |= {"goal": self.goal, "met": self.met}
        if self.baseline is not None:
            summed["baseline"] = self.baseline
        if self.client is not None:
            summed["client"] = self.client if isinstance(self.client, str) else round(self.client, 2)
        if kept is not None:
            summed |= {
                "kept": kept,
                "ratio_to_kept": self.ratio_to(kept),
                "worse": self.is_worse_than(kept),
            }
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


def table(section: str, figures: Sequence[Figure], kept: Mapping[str, float]) -> Table:
    """The figures for people, beside the medians ``kept`` of an earlier run, by name; what has become worse is marked."""
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
        shown.add_column("now/kept", justify="right")
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
            row += _beside(figure, kept[figure.name]) if figure.name in kept else ["", ""]
        if clients:
            row.append(f"{figure.client:.0%}" if isinstance(figure.client, float) else figure.client or "")
        shown.add_row(*row)
    return shown


class Share:
    """How much of a core this process, the client, takes while it measures."""

    def __init__(self) -> None:
        self._used_s = self._took_s = 0.0

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """It measures for as long as the block runs."""
        used, began = time.process_time(), time.perf_counter()
        yield
        self._used_s += time.process_time() - used
        self._took_s += time.perf_counter() - began

    @property
    def of_a_core(self) -> float:
        """On average over all blocks."""
        return self._used_s / self._took_s


def machine() -> str:
    """What it was measured on, and what else it did."""
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {system}, load average {os.getloadavg()[1]:.1f}"


def _beside(figure: Figure, kept: float) -> list[str]:
    ratio = figure.ratio_to(kept)
    text = "" if ratio is None else f"{ratio:.2f}"
    return [_number(kept), f"[red]{text} worse[/red]" if figure.is_worse_than(kept) else text]


def _goal(figure: Figure) -> str:
    if figure.goal is None:
        return ""
    bound = "≥" if figure.is_rate else "≤"
    colour = "green" if figure.met else "red"
    return f"[{colour}]{bound} {_number(figure.goal)}[/{colour}]"


def _number(value: float) -> str:
    return f"{value:,.2f}" if value < 10 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
