"""Numbers about the host for Prometheus, in its text format
(https://prometheus.io/docs/instrumenting/exposition_formats/)."""

import os
import resource
import shutil
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "ship_sandboxd_"
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
LATENCIES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Counter:
    """Goes up only; one number for each combination of its labels."""

    def __init__(self, name: str, about: str, labels: tuple[str, ...] = ()) -> None:
        self._name, self._about, self._labels = _PREFIX + name, about, labels
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0}

    def add(self, *labels: str, amount: float = 1) -> None:
        self._values[labels] = self._values.get(labels, 0) + amount

    def lines(self) -> Iterable[str]:
        yield from _head(self._name, self._about, "counter")
        for labels, value in sorted(self._values.items()):
            yield _line(self._name, zip(self._labels, labels, strict=True), value)


class Histogram:
    """How long things take, in seconds."""

    def __init__(self, name: str, about: str, labels: tuple[str, ...] = ()) -> None:
        self._name, self._about, self._labels = _PREFIX + name, about, labels
        self._values: dict[tuple[str, ...], tuple[list[int], float]] = {}

    def observe(self, seconds: float, *labels: str) -> None:
        counts, total = self._values.get(labels) or ([0] * (len(LATENCIES_S) + 1), 0.0)
        counts[bisect_left(LATENCIES_S, seconds)] += 1
        self._values[labels] = (counts, total + seconds)

    def lines(self) -> Iterable[str]:
        yield from _head(self._name, self._about, "histogram")
        for labels, (counts, total) in sorted(self._values.items()):
            own = list(zip(self._labels, labels, strict=True))
            below = 0
            for bound, count in zip((*map(str, LATENCIES_S), "+Inf"), counts, strict=True):
                below += count
                yield _line(f"{self._name}_bucket", [*own, ("le", bound)], below)
            yield _line(f"{self._name}_sum", own, total)
            yield _line(f"{self._name}_count", own, below)


Reading = Callable[[], Mapping[str, float]]


class Metrics:
    """All that is counted in this process, and readings that are taken when somebody asks."""

    def __init__(self, data: Path) -> None:
        self.requests = Counter("requests_total", "Requests to the REST API", ("method", "path", "status"))
        self.request_seconds = Histogram(
            "request_seconds",
            "Time to the end of the answer, of requests to the REST API",
            ("method", "path"),
        )
        self.create_seconds = Histogram("create_seconds", "Time to make a sandbox that answers")
        self.command_seconds = Histogram("command_seconds", "Time from a request for a command to its start")
        self.forwarded = Counter("forwarded_total", "Requests passed on to sandboxes", ("to", "status"))
        self._data = data
        self._started = time.time()
        self._readings: list[tuple[str, str, str, str, Reading]] = []

    def read(self, name: str, about: str, label: str, reading: Reading, kind: str = "gauge") -> None:
        """Tell what `reading` answers at the time: a number for each value of `label`. `kind` is `gauge`, or `counter`
        for what only goes up."""
        self._readings.append((_PREFIX + name, about, kind, label, reading))

    def text(self) -> bytes:
        lines: list[str] = []
        for counted in (
            self.requests,
            self.request_seconds,
            self.create_seconds,
            self.command_seconds,
            self.forwarded,
        ):
            lines += counted.lines()
        for name, about, kind, label, reading in self._readings:
            lines += _head(name, about, kind)
            lines += [_line(name, [(label, value)], number) for value, number in sorted(reading().items())]
        for name, about, kind, number in self._own():
            lines += [*_head(name, about, kind), _line(name, (), number)]
        return ("\n".join(lines) + "\n").encode()

    def _own(self) -> list[tuple[str, str, str, float]]:
        disk, used = shutil.disk_usage(self._data), resource.getrusage(resource.RUSAGE_SELF)
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
        return [
            (_PREFIX + "data_free_bytes", "Room left on the disk of the data folder", "gauge", disk.free),
            (_PREFIX + "data_size_bytes", "Size of the disk of the data folder", "gauge", disk.total),
            (
                "process_open_fds",
                "Descriptors that the host holds",
                "gauge",
                sum(1 for _ in Path("/proc/self/fd").iterdir()),
            ),
            (
                "process_max_fds",
                "Descriptors that the host may hold",
                "gauge",
                resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            ),
            ("process_resident_memory_bytes", "Memory of the host process", "gauge", resident),
            (
                "process_cpu_seconds_total",
                "Processor time of the host process",
                "counter",
                used.ru_utime + used.ru_stime,
            ),
            ("process_start_time_seconds", "When the host started", "gauge", self._started),
        ]


def _head(name: str, about: str, kind: str) -> list[str]:
    return [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]


def _line(name: str, labels: Iterable[tuple[str, str]], value: float) -> str:
    shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
    return f"{name}{{{shown}}} {value!r}" if shown else f"{name} {value!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
