"""Where a node may be made to die: named points in the real code, armed from outside by a file, taken once by whoever gets there first.

``plant`` is called in the node's process before it serves, ``arm`` in the test's.
"""

import asyncio
import functools
import inspect
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.chaos.sandboxes import FolderSandboxHost

from ship.sessions.effects import Effects
from ship.store.postgres import PostgresStore
from ship.store.postgres import batch as postgres_batch
from ship.store.sqlite import SqliteStore
from ship.store.sqlite import store as sqlite_store

POINTS = {
    "before_append": "a command was decided, nothing is written",
    "mid_append": "its rows are in the transaction, which is not committed",
    "after_commit": "it is on disk, nobody was told",
    "effect_claimed": "effects were claimed, none was begun",
    "sandbox_made": "a sandbox was made, nobody knows of it",
    "effect_reported": "an effect has done and reported everything but is not finished",
    "alarm_claimed": "alarms were claimed, none has fired",
    "alarm_fired": "an alarm has fired and is not finished",
}


def arm(folder: Path, point: str, how: signal.Signals) -> None:
    """Let the node with this faults folder get that signal when it comes to that point next."""
    assert point in POINTS, point
    aside = folder / f".{point}"
    aside.write_text(str(int(how)))
    aside.rename(folder / point)


def reached(folder: Path, point: str) -> bool:
    """Whether it came there after it was armed last."""
    return not (folder / point).exists()


def taken_at(folder: Path, point: str) -> float:
    """When it came there, in monotonic seconds; a tick of the clock too early rather than too late."""
    return time.monotonic() - (time.time() - (folder / f".{point}.taken").stat().st_ctime)


def disarm(folder: Path) -> None:
    """Take back what was armed and not reached."""
    for point in POINTS:
        (folder / point).unlink(missing_ok=True)


def plant(folder: Path) -> None:
    """Have this process look into the folder whenever it comes to one of the points."""
    at = functools.partial(_at, folder)
    for store in (SqliteStore, PostgresStore):
        _wrap(store, "append", before=lambda: at("before_append"), after=lambda _: at("after_commit"))
        _wrap(store, "claim_effects", after=lambda due: due and at("effect_claimed"))
        _wrap(store, "claim_alarms", after=lambda due: due and at("alarm_claimed"))
        _wrap(store, "finish_alarm", before=lambda: at("alarm_fired"))
    _wrap(Effects, "perform", after=lambda _: at("effect_reported"))
    _wrap(FolderSandboxHost, "create", after=lambda _: at("sandbox_made"))
    _wrap(sqlite_store, "append_all", after=lambda _: at("mid_append"))
    # Of these, the first is a transaction of its own at times: then it is kept, and nobody is told.
    for write in ("write_all", "write_fitting"):
        _wrap(postgres_batch, write, after=lambda _: at("mid_append"))


def _at(folder: Path, point: str) -> None:
    taken = folder / f".{point}.taken"
    try:
        (folder / point).rename(taken)
    except FileNotFoundError:
        return
    os.kill(os.getpid(), int(taken.read_text()))


def _wrap(
    owner: Any,
    name: str,
    *,
    before: Callable[[], object] = lambda: None,
    after: Callable[[Any], object] = lambda _: None,
) -> None:
    real = getattr(owner, name)

    async def awaited(coming: Awaitable[Any]) -> Any:
        outcome = await coming
        after(outcome)
        return outcome

    @functools.wraps(real)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        before()
        outcome = real(*arguments, **named)
        if isinstance(
            outcome, asyncio.Future
        ):  # what waits for it already, waits on: we are told before it is
            outcome.add_done_callback(
                lambda done: done.cancelled() or done.exception() or after(done.result())
            )
            return outcome
        if inspect.isawaitable(outcome):
            return awaited(outcome)
        after(outcome)
        return outcome

    setattr(owner, name, wrapped)
