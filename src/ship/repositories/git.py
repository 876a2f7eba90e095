"""Git on our side of the boundary: on repositories whose content and settings nobody vouches for."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ship.errors import ShipError

_SETTINGS = (
    "safe.directory=*",
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "protocol.allow=never",
    "protocol.file.allow=always",
    "gc.auto=0",
    "maintenance.auto=false",
    "uploadpack.allowFilter=true",
)
_WORDS_LIMIT = 2000


class GitFailed(ShipError):
    """Git ended with an error; the message is the end of what it said."""

    code = "git_failed"


def command(*arguments: str) -> list[str]:
    """The command line of git that runs no hooks and reaches no network."""
    return ["git", *(word for setting in _SETTINGS for word in ("-c", setting)), *arguments]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for it: nothing of the user's settings."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_LAZY_FETCH": "1",
        **(more or {}),
    }


async def run(arguments: Sequence[str], *, folder: Path, timeout_s: float = 60.0) -> str:
    """What git prints. Raises ``GitFailed``, also when it takes longer than ``timeout_s``."""
    process = await asyncio.create_subprocess_exec(
        *command(*arguments),
        cwd=folder,
        env=environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(timeout_s):
            output, words = await process.communicate()
    except TimeoutError as error:
        raise GitFailed(f"git took longer than {timeout_s:.0f} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise GitFailed(
            words.decode(errors="replace").strip()[-_WORDS_LIMIT:] or f"git {arguments[0]} failed"
        )
    return output.decode(errors="replace")
