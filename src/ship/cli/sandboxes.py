"""Commands that look after sandboxes; ``shell`` has a module of its own."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ship import config
from ship.cli import terminal
from ship.cli.sandbox_host import sandbox_id, sandbox_ids
from ship.cli.terminal import clean, count, one_line
from ship.errors import InvalidInput, NotFound
from ship.sandboxes.e2b_console import MAX_ENTRIES, E2BConsole, LogEntry, Usage

if TYPE_CHECKING:
    from e2b import SandboxInfo

FOLLOW_INTERVAL_S = 1.0
KILLS_AT_ONCE = 16
STATES = ("running", "paused")
PLAIN_FIELDS = ("logger", "sandbox")
"""Fields of a log entry that say nothing to who has asked for the log of one sandbox."""
_STATE_STYLES = {"running": "green", "paused": "yellow"}
_LEVEL_STYLES = {"error": "red", "warn": "yellow", "warning": "yellow", "debug": "dim"}


def list_all(console: E2BConsole, *, states: Sequence[str], metadata: Sequence[str], as_json: bool) -> None:
    """``ship sandbox ls``"""
    wanted = _pairs(metadata)
    unknown = sorted(set(states) - set(STATES))
    if unknown:
        raise InvalidInput(
            f"no state {unknown[0]}", code="state_unknown", hint=f"There are {' and '.join(STATES)}."
        )
    found = asyncio.run(console.sandboxes(states, wanted))
    if as_json:
        terminal.print_json([_plain(one) for one in found])
    elif found:
        terminal.output().print(_list(found))
    else:
        terminal.output().print("No sandboxes.")


def info(console: E2BConsole, prefix: str, *, as_json: bool) -> None:
    """``ship sandbox info``"""

    async def get() -> "tuple[SandboxInfo, Usage | None]":
        found = await console.info(await sandbox_id(console, prefix))
        return found, (await console.usage([found.sandbox_id])).get(found.sandbox_id)

    found, usage = asyncio.run(get())
    if as_json:
        terminal.print_json({**_plain(found), "usage": usage})
    else:
        terminal.output().print(_description(found, usage))


def logs(console: E2BConsole, prefix: str, *, follow: bool, as_json: bool) -> None:
    """``ship sandbox logs``"""
    asyncio.run(_logs(console, prefix, follow=follow, as_json=as_json))


def top(console: E2BConsole, *, interval_s: float, as_json: bool) -> None:
    """``ship sandbox top``"""
    if as_json or not sys.stdout.isatty():
        found, usage = asyncio.run(_glance(console))
        if as_json:
            terminal.print_json([{**_plain(one), "usage": usage.get(one.sandbox_id)} for one in found])
        else:
            terminal.output().print(_usage(found, usage))
        return
    asyncio.run(_watch(console, interval_s))


def pause(console: E2BConsole, prefix: str) -> None:
    """``ship sandbox pause``"""

    async def act() -> str:
        found = await sandbox_id(console, prefix)
        return f"{found} is paused" if await console.pause(found) else f"{found} was paused already"

    terminal.output().print(asyncio.run(act()))


def resume(console: E2BConsole, prefix: str, *, timeout_s: int) -> None:
    """``ship sandbox resume``"""

    async def act() -> tuple[str, bool | None]:
        found = await sandbox_id(console, prefix)
        return found, await console.resume(found, timeout_s)

    found, kept = asyncio.run(act())
    lost = "; its processes had ended, its files are there" if kept is False else ""
    terminal.output().print(f"{found} runs{lost}")


def kill(console: E2BConsole, prefixes: Sequence[str]) -> None:
    """``ship sandbox kill``: none is ended unless all are known."""
    turns = asyncio.Semaphore(KILLS_AT_ONCE)

    async def end(name: str) -> None:
        async with turns:
            await console.kill(name)
        terminal.print_bytes(f"{name}\n".encode())

    async def act() -> None:
        await asyncio.gather(*(end(name) for name in await sandbox_ids(console, prefixes)))

    asyncio.run(act())


# What was asked for


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise InvalidInput(
                f"{name or '--metadata'} has no value", code="metadata_malformed", hint="Write it NAME=VALUE."
            )
    return {name: value for name, _, value in pairs}


async def _glance(console: E2BConsole) -> "tuple[list[SandboxInfo], dict[str, Usage]]":
    """Every sandbox, and the figures of the running ones, which are shown busiest first."""
    found = await console.sandboxes()
    running = [one.sandbox_id for one in found if one.state.value == "running"]
    usage = await console.usage(running) if running else {}
    idle = {one.sandbox_id: place for place, one in enumerate(found)}

    def rank(one: "SandboxInfo") -> tuple[float, int]:
        busy = usage.get(one.sandbox_id)
        return (-busy.cpu_used_pct if busy else 1.0, idle[one.sandbox_id])

    return sorted(found, key=rank), usage


async def _watch(console: E2BConsole, interval_s: float) -> None:
    out = terminal.output()
    # Ctrl-C is how one leaves, also where whoever started us had us ignore it, as a script does with what it puts in the background.
    left = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, left.set)
    leaving = asyncio.create_task(left.wait())
    with Live(console=out, screen=True, auto_refresh=False) as live:
        while not leaving.done():
            looking = asyncio.create_task(_glance(console))
            await asyncio.wait([looking, leaving], return_when=asyncio.FIRST_COMPLETED)
            if looking.done():
                found, usage = looking.result()
                live.update(_screen(found, usage, console.url, out.height), refresh=True)
                await asyncio.wait([leaving], timeout=interval_s)


async def _logs(console: E2BConsole, prefix: str, *, follow: bool, as_json: bool) -> None:
    found = await sandbox_id(console, prefix)
    after_ms, shown = 0, 0
    while True:
        try:
            entries = await console.log(found, after_ms)
        except NotFound:
            if after_ms == 0:
                raise
            return
        # The same millisecond is asked for again: what was shown of it is left out.
        for entry in entries[shown:]:
            _print_entry(entry, as_json=as_json)
        if entries:
            last_ms = _milliseconds(entries[-1])
            seen = sum(_milliseconds(entry) == last_ms for entry in entries)
            stuck = last_ms == after_ms and len(entries) == MAX_ENTRIES
            after_ms, shown = (last_ms + 1, 0) if stuck else (last_ms, seen)
        if len(entries) < MAX_ENTRIES:
            if not follow:
                return
            await asyncio.sleep(FOLLOW_INTERVAL_S)


def _milliseconds(entry: LogEntry) -> int:
    return int(entry.at.timestamp() * 1000)


# How it is shown


def _plain(one: "SandboxInfo") -> dict[str, Any]:
    """One sandbox for programs, by the SDK's names, without what is not known."""
    plain: dict[str, Any] = msgspec.to_builtins(one)
    return {name: value for name, value in plain.items() if value is not None}


def _list(found: "Sequence[SandboxInfo]") -> terminal.Rows:
    table = terminal.Rows("id", "state", "template", "limits", "age", "ends", "metadata")
    for one in found:
        table.add(
            one.sandbox_id,
            _state(one),
            clean(one.name or one.template_id),
            _limits(one),
            _age(one.started_at),
            _ends(one),
            _metadata(one.metadata),
        )
    return table


def _screen(found: "Sequence[SandboxInfo]", usage: Mapping[str, Usage], url: str, height: int) -> Group:
    running = sum(one.state.value == "running" for one in found)
    processors = sum(one.cpu_used_pct * one.cpu_count / 100 for one in usage.values())
    memory = sum(one.memory_used_bytes for one in usage.values())
    head = Text.assemble(
        (count(len(found), "sandbox").replace("sandboxs", "sandboxes"), "bold"),
        f", {running} running, {processors:.1f} processors, {_size(memory)} of memory",
        (f"   {url}   {time.strftime('%H:%M:%S')}   Ctrl-C leaves", "dim"),
    )
    rows = max(1, height - 4)
    hidden = len(found) - rows
    more = [Text(f"… {hidden} more", "dim")] if hidden > 0 else []
    return Group(head, Text(), _usage(found[:rows], usage), *more)


def _usage(found: "Sequence[SandboxInfo]", usage: Mapping[str, Usage]) -> terminal.Rows:
    table = terminal.Rows("id", "state", "cpu", "memory", "disk", "age", "template", "metadata")
    for one in found:
        used = usage.get(one.sandbox_id)
        table.add(
            one.sandbox_id,
            _state(one),
            *(_figures(used) if used else ("", "", "")),
            _age(one.started_at),
            clean(one.name or one.template_id),
            _metadata(one.metadata),
        )
    return table


def _figures(used: Usage) -> tuple[str, str, str]:
    return (
        f"{used.cpu_used_pct:.0f} % of {used.cpu_count}",
        f"{_size(used.memory_used_bytes)} / {_size(used.memory_total_bytes)}",
        f"{_size(used.disk_used_bytes)} / {_size(used.disk_total_bytes)}",
    )


def _description(one: "SandboxInfo", usage: Usage | None) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    rows: list[tuple[str, str | Text]] = [
        ("id", one.sandbox_id),
        ("state", _state(one)),
        ("template", clean(one.name or one.template_id)),
        ("started", f"{_moment(one.started_at)} ({_age(one.started_at)} ago)"),
        (
            "ends",
            f"{_moment(one.end_at)} ({_ends(one)})" if one.state.value == "running" else "when it is killed",
        ),
        ("limits", _limits(one)),
    ]
    if one.lifecycle:
        then = one.lifecycle["on_timeout"]
        rows.append(("at its end", then + (", resumed by use" if one.lifecycle["auto_resume"] else "")))
    if usage:
        cpu, memory, disk = _figures(usage)
        rows += [("cpu", cpu), ("memory", memory), ("disk", disk)]
    if one.allow_internet_access is not None:
        rows.append(("internet", "yes" if one.allow_internet_access else "no"))
    rows += [("metadata", clean(f"{name}={value}")) for name, value in one.metadata.items()]
    for name, value in rows:
        grid.add_row(name, value)
    return grid


def _print_entry(entry: LogEntry, *, as_json: bool) -> None:
    if as_json:
        terminal.print_bytes(msgspec.json.encode(entry) + b"\n")
        return
    fields = "  ".join(f"{name}={value}" for name, value in entry.fields.items() if name not in PLAIN_FIELDS)
    line = Text.assemble(
        (entry.at.astimezone().strftime("%Y-%m-%d %H:%M:%S"), "dim"),
        f" {entry.level:<5} ",
        (clean(entry.message).replace("\n", " "), _LEVEL_STYLES.get(entry.level, "")),
        (f"  {clean(fields)}".replace("\n", " ") if fields else "", "dim"),
    )
    terminal.output().print(line, soft_wrap=True)


def _state(one: "SandboxInfo") -> Text:
    return Text(one.state.value, _STATE_STYLES.get(one.state.value, ""))


def _limits(one: "SandboxInfo") -> str:
    return f"{one.cpu_count} cpu, {_size(one.memory_mb << 20)}"


def _metadata(metadata: Mapping[str, str]) -> str:
    return one_line(" ".join(f"{name}={value}" for name, value in metadata.items()), 60)


def _moment(at: datetime) -> str:
    return terminal.moment(int(at.timestamp() * 1000))


def _age(since: datetime) -> str:
    return _length((datetime.now(UTC) - since).total_seconds())


def _ends(one: "SandboxInfo") -> str:
    return (
        f"in {_length((one.end_at - datetime.now(UTC)).total_seconds())}"
        if one.state.value == "running"
        else ""
    )


def _length(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def _size(size_bytes: float) -> str:
    for unit, length in (("GB", 1 << 30), ("MB", 1 << 20)):
        if size_bytes >= length:
            return f"{size_bytes / length:.1f}".removesuffix(".0") + f" {unit}"
    return f"{size_bytes / 1024:.0f} kB"


def build_template(api_key: str, host: str) -> None:
    """``ship sandbox template``"""
    from ship.sandboxes import full_template

    cache = config.load(None, os.environ).cache_path
    messages = terminal.messages()

    def report(line: str) -> None:
        messages.print(Text(clean(line)), highlight=False)

    made = full_template.build(host, api_key, cache, report=report)
    terminal.output().print(
        f"Built {made.name} ({made.template_id}). Sessions start from it with SHIP_SANDBOX_TEMPLATE={made.name}."
    )
