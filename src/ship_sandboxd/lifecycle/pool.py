"""Warm sandboxes: started before anybody asks for them, and handed out by one call to their daemon.

(nothing) ── made in the background ──► warm ── taken by a create ──► running
                                         └── its template changed, it died, or the host stops ──► gone
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine

from ..errors import HostError
from ..templates import Template
from .sandbox import Sandbox

Make = Callable[[Template], Awaitable[Sandbox]]
End = Callable[[Sandbox], Awaitable[None]]
_MADE_AT_ONCE = 2
_RETRY_S = 5.0
_REST_S = 0.05
"""Starting a sandbox takes the processors that the first command of the one just taken wants: that goes first."""
_REST_WITH_START_COMMAND_S = 5.0
"""The same for what a start command starts: it may take seconds, and so may what is done first with the one just taken."""
_log = logging.getLogger("ship_sandboxd.lifecycle.pool")


class Pool:
    """Keeps as many warm sandboxes of a template as its `warm` says. `make` starts one, `end` ends one that is of no
    use."""

    def __init__(self, make: Make, end: End) -> None:
        self._make = make
        self._end = end
        self._ready: dict[str, list[Sandbox]] = {}
        self._in_making: Counter[str] = Counter()
        self._turns = asyncio.Semaphore(_MADE_AT_ONCE)
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._retries: dict[str, asyncio.TimerHandle] = {}
        self._refills: dict[str, asyncio.TimerHandle] = {}
        self._closed = False

    def counts(self) -> dict[str, float]:
        """How many wait, by the template's name."""
        return {name: len(ready) for name, ready in self._ready.items()}

    def take(self, template: Template) -> Sandbox | None:
        """One that is ready, or None; another one takes its place, a moment later."""
        ready = self._ready.get(template.name, [])
        found: Sandbox | None = None
        while ready and found is None:
            candidate = ready.pop(0)
            if _is_of_use(candidate, template):
                found = candidate
            else:
                self._run(self._discard(candidate))
        if template.warm and template.name not in self._refills and not self._closed:
            rest_s = _REST_WITH_START_COMMAND_S if template.start_command else _REST_S
            timer = asyncio.get_running_loop().call_later(rest_s, self._refill, template)
            self._refills[template.name] = timer
        return found

    def fill(self, template: Template) -> None:
        """Start as many as are missing, in the background."""
        if self._closed or not template.warm:
            return
        name = template.name
        missing = template.warm - len(self._ready.setdefault(name, [])) - self._in_making[name]
        for _ in range(missing):
            self._in_making[name] += 1
            self._run(self._add(template), name)

    def lost(self, sandbox: Sandbox) -> None:
        """To be called when a warm one has ended by itself."""
        ready = self._ready.get(sandbox.record.template, [])
        if sandbox in ready:
            ready.remove(sandbox)
            self.fill(sandbox.record.made_of)

    async def forget(self, name: str) -> None:
        """End all of a template that is no more, and those in the making."""
        for timers in (self._retries, self._refills):
            if name in timers:
                timers.pop(name).cancel()
        making = [task for task, wanted_by in self._tasks.items() if wanted_by == name]
        for task in making:
            task.cancel()
        await asyncio.gather(*making, return_exceptions=True)
        self._in_making.pop(name, None)
        await asyncio.gather(*(self._discard(sandbox) for sandbox in self._ready.pop(name, [])))

    async def close(self) -> None:
        """End all that nobody has taken."""
        self._closed = True
        for timer in (*self._retries.values(), *self._refills.values()):
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        left = [sandbox for ready in self._ready.values() for sandbox in ready]
        self._ready.clear()
        await asyncio.gather(*(self._discard(sandbox) for sandbox in left))

    async def _add(self, template: Template) -> None:
        try:
            async with self._turns:
                self._ready[template.name].append(await self._make(template))
        except (HostError, OSError) as error:
            _log.error("no warm sandbox can be made", extra={"template": template.name, "reason": str(error)})
            self._retry_later(template)
        finally:
            self._in_making[template.name] -= 1

    def _retry_later(self, template: Template) -> None:
        if template.name not in self._retries:
            timer = asyncio.get_running_loop().call_later(_RETRY_S, self._retry, template)
            self._retries[template.name] = timer

    def _refill(self, template: Template) -> None:
        del self._refills[template.name]
        self.fill(template)

    def _retry(self, template: Template) -> None:
        del self._retries[template.name]
        self.fill(template)

    async def _discard(self, sandbox: Sandbox) -> None:
        await self._end(sandbox)

    def _run(self, work: Coroutine[None, None, None], making: str = "") -> None:
        """Work behind the scenes; `making` is the template's name where that is to make one."""
        task = asyncio.create_task(work)
        self._tasks[task] = making
        task.add_done_callback(self._ran)

    def _ran(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and task.exception() is not None:
            _log.error("the pool of warm sandboxes failed", exc_info=task.exception())


def _is_of_use(sandbox: Sandbox, template: Template) -> bool:
    record = sandbox.record
    return (
        record.made_of == template
        and sandbox.ending is None
        and record.init is not None
        and record.init.alive
    )
