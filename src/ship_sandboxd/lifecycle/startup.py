"""What a template has running when its sandboxes are handed out: the start command, and the check that it is ready."""

import asyncio
from collections import deque
from collections.abc import Callable

from ..errors import LaunchFailed
from ..templates import Template
from . import commands
from .sandbox import Sandbox

READY_WITHIN_S = 120.0
_RETRY_S = 0.2
_KEPT = 20


class StartFailed(LaunchFailed):
    """The start command ended with an error, or was not ready in time; the message carries its last output."""

    code = "start_command_failed"


async def start(sandbox: Sandbox, template: Template, on_output: commands.OnOutput | None = None) -> None:
    """Run a template's start command, which runs on, and wait until the template is ready: once it runs, where nothing
    else says so. Raises StartFailed."""
    if not template.start_command and not template.ready_command:
        return
    words: deque[bytes] = deque(maxlen=_KEPT)

    def heard(kind: str, data: bytes) -> None:
        words.append(data)
        if on_output is not None:
            on_output(kind, data)

    started = asyncio.Event()
    running = asyncio.create_task(_run(sandbox, template, template.start_command, heard, started.set))
    ready = asyncio.create_task(_until_ready(sandbox, template, started))
    try:
        async with asyncio.timeout(READY_WITHIN_S):
            await asyncio.wait([running, ready], return_when=asyncio.FIRST_COMPLETED)
            if not ready.done() and (status := await running) != 0:
                ended = commands.outcome(sandbox, status)
                raise StartFailed(f"the start command ended with {ended}: {_text(words)}")
            await ready
    except commands.CommandFailed as error:
        raise StartFailed(f"the start command failed: {error}") from error
    except TimeoutError as error:
        raise StartFailed(
            f"the template was not ready within {READY_WITHIN_S:.0f} s ({template.ready_command}): {_text(words)}"
        ) from error
    finally:
        for task in (running, ready):
            task.cancel()
        await asyncio.gather(running, ready, return_exceptions=True)


async def _until_ready(sandbox: Sandbox, template: Template, started: asyncio.Event) -> None:
    if not template.ready_command:
        await started.wait()
    while template.ready_command:
        if await _run(sandbox, template, template.ready_command, lambda kind, data: None) == 0:
            return
        await asyncio.sleep(_RETRY_S)


async def _run(
    sandbox: Sandbox,
    template: Template,
    command: str,
    heard: commands.OnOutput,
    started: Callable[[], None] | None = None,
) -> int:
    if not command:
        return 0
    return await commands.run(
        sandbox,
        command,
        user=template.user,
        workdir=template.workdir,
        env={},
        on_output=heard,
        on_start=started,
    )


def _text(words: deque[bytes]) -> str:
    return b"".join(words).decode(errors="replace").strip()[-2000:] or "it said nothing"
