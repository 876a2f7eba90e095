"""What a person asks of a sandbox host that speaks E2B's protocol: which sandboxes there are, how they fare, a terminal in one.

The official SDK answers most of it. It has no call for logs, nor one for the figures of many sandboxes, so those two are plain
requests to the routes of E2B's public API.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from ship.errors import Conflict, InvalidInput, NotFound, SandboxFailed, Unauthenticated, Unavailable
from ship.sandboxes.e2b_host import translated

if TYPE_CHECKING:
    import httpx
    from e2b import AsyncSandbox, SandboxInfo
    from e2b.connection_config import ApiParams

T = TypeVar("T")

TERMINAL_TIMEOUT_S = 300
"""How long a sandbox lives on after its last terminal has died without a word."""
MAX_IDS = 100
"""Sandboxes in one request for figures, as E2B's API bounds it."""
MAX_ENTRIES = 1000
"""Log entries in one answer, as E2B's API bounds it."""


@dataclass(frozen=True)
class Usage:
    """What a sandbox uses at a time: percent of all processors that it may use, bytes of memory and disk."""

    at: datetime
    cpu_count: int
    cpu_used_pct: float
    memory_used_bytes: int
    memory_total_bytes: int
    disk_used_bytes: int
    disk_total_bytes: int


@dataclass(frozen=True)
class LogEntry:
    """One line of a sandbox's log."""

    at: datetime
    level: str
    message: str
    fields: Mapping[str, str]


class E2BConsole:
    """One sandbox host, asked by a person who holds its API key. The SDK is imported on first use: it is large.

    ``sandbox_url`` is where the sandboxes themselves are reached; without it they have host names of their own.

    Every method raises ``Unavailable`` (``sandbox_host_unreachable``) when nothing answers, ``Unauthenticated``
    (``sandbox_key_refused``) for a wrong key, ``NotFound`` (``sandbox_not_found``) when there is no such sandbox, and ``Conflict``
    (``sandbox_refused``) when the host will not do it.
    """

    def __init__(self, api_key: str, api_url: str, sandbox_url: str = "") -> None:
        self.url = api_url.rstrip("/")
        self._api_key = api_key
        self._options: ApiParams = {"api_key": api_key, "api_url": self.url}
        if sandbox_url:
            self._options["sandbox_url"] = sandbox_url

    async def sandboxes(
        self, states: Sequence[str] = (), metadata: Mapping[str, str] | None = None
    ) -> "list[SandboxInfo]":
        """All of them that are in one of these states and carry this metadata, the newest first."""
        from e2b import AsyncSandbox, SandboxQuery, SandboxState

        query = SandboxQuery(metadata=dict(metadata or {}), state=[SandboxState(state) for state in states])
        pages = AsyncSandbox.list(query=query, **self._options)
        found: list[SandboxInfo] = []
        while pages.has_next:
            found += await self.asked(pages.next_items())
        return found

    async def info(self, sandbox_id: str) -> "SandboxInfo":
        """One sandbox."""
        from e2b import AsyncSandbox

        return await self.asked(AsyncSandbox.get_info(sandbox_id, **self._options), sandbox_id)

    async def usage(self, sandbox_ids: Sequence[str]) -> dict[str, Usage]:
        """The newest figures of each sandbox that has any."""
        groups = [sandbox_ids[start : start + MAX_IDS] for start in range(0, len(sandbox_ids), MAX_IDS)]
        found: dict[str, Usage] = {}
        for group in groups:
            answer = await self._get("/sandboxes/metrics", {"sandbox_ids": ",".join(group)})
            found |= {name: _usage(figures) for name, figures in answer.get("sandboxes", {}).items()}
        return found

    async def log(self, sandbox_id: str, after_ms: int = 0) -> list[LogEntry]:
        """The oldest entries of its log that are not older than ``after_ms``, at most ``MAX_ENTRIES``."""
        query = {"cursor": str(after_ms), "limit": str(MAX_ENTRIES), "direction": "forward"}
        answer = await self._get(f"/v2/sandboxes/{sandbox_id}/logs", query, sandbox_id)
        return [_entry(entry) for entry in answer["logs"]]

    async def pause(self, sandbox_id: str) -> bool:
        """Freeze it; answers whether it was running."""
        from e2b import AsyncSandbox

        return await self.asked(AsyncSandbox.pause(sandbox_id, **self._options), sandbox_id)

    async def resume(self, sandbox_id: str, timeout_s: int) -> bool | None:
        """Let it go on for at least ``timeout_s`` more; answers whether its processes go on as they were, None where the host does not
        say."""
        await self._connect(sandbox_id, timeout_s)
        kept = (await self._get(f"/sandboxes/{sandbox_id}", {}, sandbox_id)).get("memoryKept")
        return kept if isinstance(kept, bool) else None

    async def kill(self, sandbox_id: str) -> bool:
        """End it; answers whether there was one."""
        from e2b import AsyncSandbox

        return await self.asked(AsyncSandbox.kill(sandbox_id, **self._options), sandbox_id)

    @contextlib.asynccontextmanager
    async def terminal(
        self,
        sandbox_id: str,
        size: tuple[int, int],
        on_output: Callable[[bytes], None],
        env: Mapping[str, str],
    ) -> "AsyncIterator[Terminal]":
        """A login shell at a terminal of (columns, rows); a paused sandbox is resumed. Leaving it ends the shell."""
        from e2b import PtySize

        sandbox = await self._connect(sandbox_id, TERMINAL_TIMEOUT_S)
        columns, rows = size
        handle = await self.asked(
            sandbox.pty.create(PtySize(rows=rows, cols=columns), on_output, envs=dict(env), timeout=0),
            sandbox_id,
        )
        living = asyncio.create_task(self._keep_alive(sandbox_id))
        try:
            yield Terminal(self, sandbox, handle)
        finally:
            living.cancel()
            if handle.exit_code is None:
                # It may be gone with its sandbox by now; then there is nothing to end.
                with contextlib.suppress(NotFound, Unavailable, Conflict):
                    await self.asked(handle.kill(), sandbox_id)

    async def run(
        self, sandbox_id: str, script: str, on_stdout: Callable[[str], None], on_stderr: Callable[[str], None]
    ) -> int:
        """Run a script in a login shell to its end; answers the exit code. A paused sandbox is resumed."""
        from e2b import CommandExitException

        sandbox = await self._connect(sandbox_id, TERMINAL_TIMEOUT_S)
        living = asyncio.create_task(self._keep_alive(sandbox_id))
        try:
            running = sandbox.commands.run(script, on_stdout=on_stdout, on_stderr=on_stderr, timeout=0)
            return (await self.asked(running, sandbox_id)).exit_code
        except CommandExitException as ended:
            return ended.exit_code
        finally:
            living.cancel()

    async def _connect(self, sandbox_id: str, timeout_s: int) -> "AsyncSandbox":
        from e2b import AsyncSandbox

        return await self.asked(
            AsyncSandbox.connect(sandbox_id, timeout=timeout_s, **self._options), sandbox_id
        )

    async def _keep_alive(self, sandbox_id: str) -> None:
        """Its time does not run out while somebody sits at it."""
        while True:
            await asyncio.sleep(TERMINAL_TIMEOUT_S / 3)
            with contextlib.suppress(NotFound, Unavailable, Conflict):
                await self._connect(sandbox_id, TERMINAL_TIMEOUT_S)

    async def _get(self, path: str, query: Mapping[str, str], sandbox_id: str = "") -> dict[str, Any]:
        import httpx

        headers = {"X-API-KEY": self._api_key}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=30) as client:
            answer = await self.asked(client.get(path, params=dict(query)), sandbox_id)
        if not answer.is_success:
            raise _refusal(answer, sandbox_id)
        body: dict[str, Any] = answer.json()
        return body

    async def asked(self, call: Awaitable[T], sandbox_id: str = "") -> T:
        """The answer of one of the SDK's calls, its errors turned into ours."""
        try:
            return await translated(call)
        except NotFound as error:
            raise _no_sandbox(sandbox_id) from error
        except SandboxFailed as error:
            if error.code == "sandbox_key_refused":
                raise _key_refused() from error
            if error.code == "sandbox_host_unreachable":
                raise Unavailable(
                    f"no sandbox host answers at {self.url}",
                    code=error.code,
                    hint="`ship up` and `ship sandboxd` start one on this machine.",
                ) from error
            raise Conflict(error.message, code="sandbox_refused") from error


class Terminal:
    """A shell at a terminal in a sandbox."""

    def __init__(self, console: E2BConsole, sandbox: "AsyncSandbox", handle: Any) -> None:
        self._console = console
        self._sandbox = sandbox
        self._handle = handle

    async def type(self, keys: bytes) -> None:
        """Press keys. One call at a time: the order of two at once is not kept."""
        await self._console.asked(
            self._sandbox.pty.send_stdin(self._handle.pid, keys), self._sandbox.sandbox_id
        )

    async def resize(self, columns: int, rows: int) -> None:
        """The window has another size now."""
        from e2b import PtySize

        await self._console.asked(
            self._sandbox.pty.resize(self._handle.pid, PtySize(rows=rows, cols=columns)),
            self._sandbox.sandbox_id,
        )

    async def exit_code(self) -> int:
        """Waits until the shell has ended."""
        from e2b import CommandExitException

        try:
            ended = await self._console.asked(self._handle.wait(), self._sandbox.sandbox_id)
        except CommandExitException as failed:
            return failed.exit_code
        return int(ended.exit_code)


def _usage(figures: Mapping[str, Any]) -> Usage:
    return Usage(
        at=datetime.fromisoformat(figures["timestamp"]),
        cpu_count=figures["cpuCount"],
        cpu_used_pct=figures["cpuUsedPct"],
        memory_used_bytes=figures["memUsed"],
        memory_total_bytes=figures["memTotal"],
        disk_used_bytes=figures["diskUsed"],
        disk_total_bytes=figures["diskTotal"],
    )


def _entry(entry: Mapping[str, Any]) -> LogEntry:
    return LogEntry(
        at=datetime.fromisoformat(entry["timestamp"]),
        level=entry["level"],
        message=entry["message"],
        fields=entry.get("fields") or {},
    )


def _refusal(answer: "httpx.Response", sandbox_id: str) -> Exception:
    if answer.status_code in (401, 403):
        return _key_refused()
    if answer.status_code == 404 and sandbox_id:
        return _no_sandbox(sandbox_id)
    try:
        message = str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        message = f"it answers {answer.status_code}"
    if answer.status_code == 400:
        return InvalidInput(f"the sandbox host does not accept it: {message}", code="sandbox_refused")
    return Conflict(f"the sandbox host could not do it: {message}", code="sandbox_refused")


def _no_sandbox(sandbox_id: str) -> NotFound:
    return NotFound(
        f"there is no sandbox {sandbox_id}".rstrip(),
        code="sandbox_not_found",
        hint="List them with `ship sandbox ls`.",
    )


def _key_refused() -> Unauthenticated:
    return Unauthenticated(
        "the sandbox host refuses the key",
        code="sandbox_key_refused",
        hint="Give its API key with --api-key or E2B_API_KEY.",
    )
