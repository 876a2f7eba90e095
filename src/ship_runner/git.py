"""Git as the runner uses it: on a workspace whose content and configuration are not to be trusted."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from ship_runner.failures import RunnerFailure

_CAREFUL = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.quotePath=false",
    # Time is dearer than space: the search for deltas took five times as long as all the rest of a checkpoint.
    "core.compression=1",
    "pack.window=0",
    "commit.gpgSign=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "protocol.ext.allow=never",
    "safe.directory=*",
    "advice.addEmbeddedRepo=false",
    "submodule.recurse=false",
)
_STDERR_LIMIT = 64 * 1024


class GitFailed(Exception):
    """A git command ended with an error; ``stderr`` is its tail."""

    def __init__(self, command: str, status: int, stderr: str) -> None:
        super().__init__(f"git {command} ended with {status}: {stderr.strip()[-600:]}")
        self.stderr = stderr

    @property
    def disk_full(self) -> bool:
        return "No space left on device" in self.stderr or "Disk quota exceeded" in self.stderr


class Git:
    """Runs git in one folder without hooks, file system monitors, filters or the user's configuration."""

    def __init__(self, folder: Path, *, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._environment = _environment(environment or {})
        self._filters: tuple[str, ...] = ()

    def with_environment(self, **more: str) -> "Git":
        """The same, with more variables; ``GIT_INDEX_FILE`` for one."""
        other = Git(self.folder, environment={**self._environment, **more})
        other._filters = self._filters
        return other

    async def disarm_filters(self) -> None:
        """Turn off every clean, smudge and process filter that the repository's configuration defines."""
        listed = await self.run("config", "--name-only", "--get-regexp", r"^filter\.", check=False)
        names = {line.rpartition(".")[0] for line in listed.splitlines() if "=" not in line}
        self._filters = tuple(
            f"{name}.{field}"
            for name in sorted(names)
            for field in ("clean=", "smudge=", "process=", "required=false")
        )

    async def run(
        self, *arguments: str, check: bool = True, timeout: float = 600, stdin: bytes | None = None
    ) -> str:
        """Standard output as text; raises GitFailed, and TimeoutError after ``timeout`` seconds."""
        output = await self.bytes(*arguments, check=check, timeout=timeout, stdin=stdin)
        return output.decode("utf-8", "replace")

    async def bytes(
        self, *arguments: str, check: bool = True, timeout: float = 600, stdin: bytes | None = None
    ) -> bytes:
        """Standard output; as ``run``."""
        process = await self._start(arguments, reads=stdin is not None)
        try:
            async with asyncio.timeout(timeout):
                output, stderr = await process.communicate(stdin)
        except BaseException:
            await _end(process)
            raise
        if check and process.returncode:
            raise _failed(arguments, process.returncode, stderr)
        return output

    async def to_file(self, path: Path, limit: int, *arguments: str, timeout: float = 600) -> bool:
        """Write standard output to a file, at most ``limit`` bytes; whether that was all of it."""
        process = await self._start(arguments)
        assert process.stdout is not None
        assert process.stderr is not None
        reading = asyncio.create_task(process.stderr.read(_STDERR_LIMIT))
        room = limit
        try:
            async with asyncio.timeout(timeout):
                with path.open("wb") as file:
                    while room > 0 and (chunk := await process.stdout.read(min(room, 1 << 18))):
                        file.write(chunk)
                        room -= len(chunk)
                whole = room > 0 or not await process.stdout.read(1)
                if whole:
                    await process.wait()
        finally:
            await _end(process)
            stderr = await reading
        if whole and process.returncode:
            raise _failed(arguments, process.returncode, stderr)
        return whole

    async def _start(self, arguments: Sequence[str], *, reads: bool = False) -> asyncio.subprocess.Process:
        careful = [word for setting in (*_CAREFUL, *self._filters) for word in ("-c", setting)]
        return await asyncio.create_subprocess_exec(
            "git",
            *careful,
            *arguments,
            cwd=self.folder,
            env=self._environment,
            stdin=asyncio.subprocess.PIPE if reads else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )


def bearer_header(url: str, token: str) -> dict[str, str]:
    """Variables that make git send the token to the host of ``url``, and to no other; nothing is written to disk."""
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"http.{_host(url)}.extraHeader",
        "GIT_CONFIG_VALUE_0": f"Authorization: Bearer {token}",
    }


def bearer_configuration(url: str, token: str) -> str:
    """The same as the text of a configuration file."""
    return f'[http "{_host(url)}"]\n\textraHeader = "Authorization: Bearer {token}"\n'


def _host(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/"


def clone_failure(error: GitFailed, token: str) -> RunnerFailure:
    """What a person is told when a clone fails: the end of git's own words, and a hint."""
    said = error.stderr.replace(token, "…").strip()[-1000:] if token else error.stderr.strip()[-1000:]
    if error.disk_full:
        return RunnerFailure(
            "disk_full", f"The sandbox's disk is full: {said}", "Give sandboxes more disk space."
        )
    hint = "Check the repository's address, and that Ship may read it; then retry."
    lowered = said.lower()
    if "not found" in lowered or "does not appear to be a git repository" in lowered:
        hint = "Check the repository's address: nothing was found there. Then retry."
    elif "401" in lowered or "403" in lowered or "authentication failed" in lowered:
        hint = "Ship's credentials for this repository were refused; check them, then retry."
    elif "could not resolve" in lowered or "timed out" in lowered or "502" in lowered:
        hint = "The host of the repository cannot be reached from here; check its address and the network, then retry."
    return RunnerFailure("clone_failed", said or str(error), hint)


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GIT_", "SHIP_", "OPENCODE_"))
    }
    return {
        **kept,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        "LC_ALL": "C",
        **more,
    }


def _failed(arguments: Sequence[str], status: int | None, stderr: bytes) -> GitFailed:
    return GitFailed(arguments[0], status or 0, stderr[-_STDERR_LIMIT:].decode("utf-8", "replace"))


async def _end(process: asyncio.subprocess.Process) -> None:
    """With all that it started; a transport helper would keep our pipes open."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
