"""What a sandbox uses, and what happened to it."""

import asyncio
import json
from typing import Any

from ..errors import BadRequest
from ..lifecycle.sandbox import Sandbox
from ..lifecycle.sandboxes import Sandboxes
from ..telemetry import logbook
from ..telemetry.logbook import LEVELS, Entry
from ..telemetry.usage import Sample, Usage
from .call import Answer, Call, Route, parse_number, timestamp

MAX_SANDBOXES = 100
MAX_ENTRIES = 1000
_MAX_SEARCH = 256
_DIRECTIONS = ("forward", "backward")


class TelemetryRoutes:
    def __init__(self, sandboxes: Sandboxes, usage: Usage) -> None:
        self._sandboxes = sandboxes
        self._usage = usage

    def table(self) -> list[Route]:
        one = "/sandboxes/{sandboxID}"
        return [
            Route("GET", f"{one}/metrics", self._metrics),
            Route("GET", "/sandboxes/metrics", self._last_metrics),
            Route("GET", f"{one}/logs", self._logs),
            Route("GET", f"/v2{one}/logs", self._logs_v2),
        ]

    async def _metrics(self, call: Call) -> Answer:
        """The samples from `start` to `end`, in seconds since 1970, both included."""
        start, end = _moment(call, "start"), _moment(call, "end")
        sandbox = self._sandboxes.get(call.sandbox_id, call.tenant)
        samples = await self._usage.samples(sandbox.record, sandbox.folder)
        wanted = [
            sample
            for sample in samples
            if (start is None or int(sample.time) >= start) and (end is None or int(sample.time) <= end)
        ]
        return Answer(200, [_metric(sandbox, sample) for sample in wanted])

    async def _last_metrics(self, call: Call) -> Answer:
        """The newest sample of each; those of sandboxes that are not there are left out."""
        wanted = {name.partition("-")[0] for name in call.query.get("sandbox_ids", "").split(",") if name}
        if not 0 < len(wanted) <= MAX_SANDBOXES:
            raise BadRequest(f"sandbox_ids must name 1 to {MAX_SANDBOXES} sandboxes, with commas between")
        found = {}
        for sandbox in self._sandboxes.all():
            if sandbox.id in wanted and sandbox.record.tenant == call.tenant:
                samples = await self._usage.samples(sandbox.record, sandbox.folder)
                if samples:
                    found[sandbox.id] = _metric(sandbox, samples[-1])
        return Answer(200, {"sandboxes": found})

    async def _logs(self, call: Call) -> Answer:
        start, limit = _moment(call, "start") or 0, _limit(call)
        found = [entry for entry in await self._entries(call) if entry.time_ms >= start][:limit]
        return Answer(
            200, {"logs": [_line(entry) for entry in found], "logEntries": [_entry(entry) for entry in found]}
        )

    async def _logs_v2(self, call: Call) -> Answer:
        """From `cursor` on (in milliseconds since 1970), forward from the oldest or backward from the newest."""
        cursor, limit = _moment(call, "cursor"), _limit(call)
        direction = _choice(call, "direction", _DIRECTIONS, "forward")
        least = LEVELS.index(_choice(call, "level", LEVELS, LEVELS[0]))
        search = call.query.get("search", "")
        if len(search) > _MAX_SEARCH:
            raise BadRequest(f"search must have at most {_MAX_SEARCH} characters")
        found = [
            entry
            for entry in await self._entries(call)
            if LEVELS.index(entry.level) >= least and search in entry.message
        ]
        if direction == "backward":
            found = [entry for entry in reversed(found) if cursor is None or entry.time_ms <= cursor]
        elif cursor is not None:
            found = [entry for entry in found if entry.time_ms >= cursor]
        return Answer(200, {"logs": [_entry(entry) for entry in found[:limit]]})

    async def _entries(self, call: Call) -> list[Entry]:
        sandbox = self._sandboxes.get(call.sandbox_id, call.tenant)
        return await asyncio.to_thread(logbook.read, sandbox.folder, sandbox.record.started_at)


def _metric(sandbox: Sandbox, sample: Sample) -> dict[str, Any]:
    return {
        "timestamp": timestamp(int(sample.time)),
        "timestampUnix": int(sample.time),
        "cpuCount": sandbox.record.cpu_count,
        "cpuUsedPct": round(sample.cpu_pct, 2),
        "memTotal": sandbox.record.memory_mb * 1024 * 1024,
        "memUsed": sample.memory_used,
        "memCache": sample.memory_cache,
        "diskTotal": sample.disk_total,
        "diskUsed": sample.disk_used,
    }


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "timestamp": timestamp(entry.time_ms / 1000),
        "level": entry.level,
        "message": entry.message,
        "fields": {"logger": entry.logger, **entry.fields},
    }


def _line(entry: Entry) -> dict[str, str]:
    """As E2B's command line reads it: JSON within JSON."""
    line = {**entry.fields, "level": entry.level, "logger": entry.logger, "message": entry.message}
    return {"timestamp": timestamp(entry.time_ms / 1000), "line": json.dumps(line)}


def _moment(call: Call, name: str) -> int | None:
    text = call.query.get(name)
    return None if text is None else parse_number(text, name, digits=16)


def _limit(call: Call) -> int:
    return min(parse_number(call.query.get("limit", str(MAX_ENTRIES)), "limit"), MAX_ENTRIES)


def _choice(call: Call, name: str, choices: tuple[str, ...], default: str) -> str:
    value = call.query.get(name, default)
    if value not in choices:
        raise BadRequest(f"{name} must be one of {', '.join(choices)}")
    return value
