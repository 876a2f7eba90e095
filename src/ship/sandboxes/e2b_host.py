"""Sandboxes over E2B's protocol, by the official SDK: our own sandbox host or E2B's cloud."""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ship.errors import InvalidInput, NotFound, SandboxFailed, ShipError
from ship.ports.sandboxes import CommandResult, FileEntry

if TYPE_CHECKING:
    from e2b import AsyncSandbox
    from e2b.connection_config import ApiParams

T = TypeVar("T")

OUTPUT_LIMIT = 1 << 20
CONNECTED = 1_000
"""To so many sandboxes a connection is kept in mind."""


class E2BHost:
    """A ``SandboxHost``. Empty URLs mean E2B's cloud. The SDK is imported on first use: it is large."""

    def __init__(self, api_key: str, api_url: str = "", sandbox_url: str = "") -> None:
        self._options: ApiParams = {"api_key": api_key}
        if api_url:
            self._options["api_url"] = api_url
            self._options["sandbox_url"] = sandbox_url or api_url
        self._open: OrderedDict[str, AsyncSandbox] = OrderedDict()

    async def create(self, template: str, metadata: Mapping[str, str], timeout_s: int) -> str:
        """As the port says."""
        from e2b import AsyncSandbox

        sandbox = await translated(
            AsyncSandbox.create(
                template=template, metadata=dict(metadata), timeout=timeout_s, **self._options
            )
        )
        self._keep(sandbox)
        return sandbox.sandbox_id

    async def find(self, metadata: Mapping[str, str]) -> list[tuple[str, Mapping[str, str]]]:
        """As the port says."""
        from e2b import AsyncSandbox, SandboxQuery

        pages = AsyncSandbox.list(query=SandboxQuery(metadata=dict(metadata)), **self._options)
        found: list[tuple[str, Mapping[str, str]]] = []
        while pages.has_next:
            found += [(info.sandbox_id, info.metadata) for info in await translated(pages.next_items())]
        return found

    async def extend(self, sandbox_id: str, timeout_s: int) -> None:
        """As the port says."""
        sandbox = await self._sandbox(sandbox_id)
        try:
            await self._gone_is_forgotten(sandbox_id, sandbox.set_timeout(timeout_s))
        except NotFound:
            # The SDK leaves out what the API says to this; what the sandbox's own address says it does tell, if that answers.
            with contextlib.suppress(SandboxFailed):
                await translated(sandbox.commands.list())
            raise

    async def pause(self, sandbox_id: str) -> None:
        """As the port says."""
        from e2b import AsyncSandbox

        self._open.pop(sandbox_id, None)
        await translated(AsyncSandbox.pause(sandbox_id, **self._options))

    async def resume(self, sandbox_id: str, timeout_s: int) -> None:
        """As the port says."""
        from e2b import AsyncSandbox

        sandbox = await translated(AsyncSandbox.connect(sandbox_id, timeout=timeout_s, **self._options))
        self._keep(sandbox)

    async def start(self, sandbox_id: str, command: str, env: Mapping[str, str]) -> None:
        """As the port says."""
        sandbox = await self._sandbox(sandbox_id)
        handle = await self._gone_is_forgotten(
            sandbox_id, sandbox.commands.run(command, background=True, envs=dict(env), timeout=0)
        )
        await handle.disconnect()

    async def running(self, sandbox_id: str, command: str) -> bool:
        """As the port says."""
        sandbox = await self._sandbox(sandbox_id)
        processes = await self._gone_is_forgotten(sandbox_id, sandbox.commands.list())
        return any(command in part for process in processes for part in (process.cmd, *process.args))

    async def run(self, sandbox_id: str, command: str, timeout_s: int) -> CommandResult:
        """As the port says."""
        from e2b import CommandExitException

        sandbox = await self._sandbox(sandbox_id)
        output = _Bounded()
        handle = await self._gone_is_forgotten(
            sandbox_id,
            sandbox.commands.run(
                command, background=True, timeout=timeout_s, on_stdout=output.add, on_stderr=output.add
            ),
        )
        ending = asyncio.ensure_future(self._gone_is_forgotten(sandbox_id, handle.wait()))
        either: set[asyncio.Future[Any]] = {ending, output.exceeded}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            ending.cancel()
            await handle.kill()
            raise SandboxFailed(
                f"the command printed more than {OUTPUT_LIMIT} characters", code="output_too_large"
            )
        output.exceeded.cancel()
        try:
            result = ending.result()
        except CommandExitException as ended:
            return CommandResult(ended.exit_code, ended.stdout, ended.stderr)
        return CommandResult(result.exit_code, result.stdout, result.stderr)

    async def list_files(self, sandbox_id: str, path: str) -> list[FileEntry]:
        """As the port says."""
        sandbox = await self._sandbox(sandbox_id)
        entries = await self._gone_is_forgotten(sandbox_id, sandbox.files.list(path), path)
        return [
            FileEntry(
                entry.name,
                entry.path,
                "symlink"
                if entry.symlink_target
                else "directory"
                if entry.type and entry.type.value == "dir"
                else "file",
                entry.size,
            )
            for entry in entries
        ]

    async def read_file(self, sandbox_id: str, path: str) -> AsyncIterator[bytes]:
        """As the port says."""
        sandbox = await self._sandbox(sandbox_id)
        pieces = await self._gone_is_forgotten(sandbox_id, sandbox.files.read(path, format="stream"), path)
        async for piece in pieces:
            yield piece

    async def kill(self, sandbox_id: str) -> None:
        """As the port says."""
        from e2b import AsyncSandbox

        self._open.pop(sandbox_id, None)
        await translated(AsyncSandbox.kill(sandbox_id, **self._options))

    async def _sandbox(self, sandbox_id: str) -> "AsyncSandbox":
        from e2b import AsyncSandbox

        sandbox = self._open.get(sandbox_id)
        if sandbox is None:
            sandbox = await translated(AsyncSandbox.connect(sandbox_id, timeout=3_600, **self._options))
        self._keep(sandbox)
        return sandbox

    def _keep(self, sandbox: "AsyncSandbox") -> None:
        """It is connected. Another node may end it, so what was not used for long is forgotten."""
        self._open[sandbox.sandbox_id] = sandbox
        self._open.move_to_end(sandbox.sandbox_id)
        if len(self._open) > CONNECTED:
            self._open.popitem(last=False)

    async def _gone_is_forgotten(self, sandbox_id: str, call: Awaitable[T], path: str = "") -> T:
        try:
            return await translated(call, path)
        except NotFound as error:
            if error.code == "sandbox_not_found":
                self._open.pop(sandbox_id, None)
            raise


class _Bounded:
    """Counts what a command prints; ``exceeded`` is done when that is too much. The SDK itself keeps everything."""

    def __init__(self) -> None:
        self.exceeded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._characters = 0

    def add(self, text: str) -> None:
        self._characters += len(text)
        if self._characters > OUTPUT_LIMIT and not self.exceeded.done():
            self.exceeded.set_result(None)


async def translated(call: Awaitable[T], path: str = "") -> T:
    """The call's answer, with the SDK's and the network's errors turned into ours."""
    import httpcore
    import httpx
    from e2b import (
        AuthenticationException,
        CommandExitException,
        FileNotFoundException,
        InvalidArgumentException,
        NotFoundException,
        SandboxException,
        TimeoutException,
    )

    try:
        return await call
    except CommandExitException:
        raise
    except FileNotFoundException as error:
        raise NotFound(f"there is no {path}", code="file_not_found") from error
    except NotFoundException as error:
        if path and "sandbox" not in str(error).lower():
            raise NotFound(f"there is no {path}", code="file_not_found") from error
        raise _gone(error) from error
    except InvalidArgumentException as error:
        raise InvalidInput(f"the sandbox refuses {path}: {error}", code="path_invalid") from error
    except AuthenticationException as error:
        raise SandboxFailed(
            "the sandbox host refuses our key",
            code="sandbox_key_refused",
            hint="Set SHIP_SANDBOX_API_KEY to a key of that host.",
        ) from error
    except TimeoutException as error:
        gone = "was not found" in str(error) or "end of life" in str(error)
        failure: ShipError = (
            _gone(error)
            if gone
            else SandboxFailed(f"the sandbox did not answer in time: {error}", code="sandbox_timeout")
        )
        raise failure from error
    except (httpx.TransportError, httpcore.NetworkError) as error:
        raise SandboxFailed(
            f"the sandbox host does not answer: {type(error).__name__}",
            code="sandbox_host_unreachable",
            hint="`ship doctor` says whether it runs.",
        ) from error
    except SandboxException as error:
        raise SandboxFailed(f"the sandbox host could not do it: {error}") from error


def _gone(error: Exception) -> NotFound:
    """What became of the sandbox, as far as its host has said."""
    starved = "ran out of memory" in str(error)
    reason = "the sandbox ran out of memory" if starved else "the sandbox host does not have it any more"
    return NotFound(reason, code="sandbox_not_found")
