"""Sandboxes: isolated machines that run untrusted code."""

from collections.abc import AsyncIterator, Mapping
from typing import NamedTuple, Protocol


class CommandResult(NamedTuple):
    """How a command in a sandbox ended. A command that failed is a result, not an error."""

    exit_code: int
    stdout: str
    stderr: str


class FileEntry(NamedTuple):
    """One entry of a folder; ``kind`` is ``file``, ``directory`` or ``symlink``."""

    name: str
    path: str
    kind: str
    size_bytes: int


class SandboxHost(Protocol):
    """A service that makes sandboxes.

    Every method raises ``SandboxFailed`` when the host does not answer or cannot do it (``sandbox_host_unreachable`` when nothing
    listens), and ``NotFound`` with the code ``sandbox_not_found`` when the sandbox is gone.
    """

    async def create(self, template: str, metadata: Mapping[str, str], timeout_s: int) -> str:
        """Make one and return its id. ``metadata`` finds it again; it ends by itself after ``timeout_s``."""
        ...

    async def find(self, metadata: Mapping[str, str]) -> list[tuple[str, Mapping[str, str]]]:
        """(id, metadata) of the living sandboxes whose metadata holds all of these pairs."""
        ...

    async def extend(self, sandbox_id: str, timeout_s: int) -> None:
        """It now ends ``timeout_s`` from now."""
        ...

    async def pause(self, sandbox_id: str) -> None:
        """Freeze it with all that runs in it: it uses no CPU, does not end by itself, and is still found. One that is paused
        already stays so. Any other call but ``find``, ``kill`` and ``resume`` may wake it."""
        ...

    async def resume(self, sandbox_id: str, timeout_s: int) -> None:
        """Let it go on, and end ``timeout_s`` from now. Its started commands go on where they were, unless its memory was lost: then it
        was started anew from its files, with none of them. One that is not paused stays as it is."""
        ...

    async def start(self, sandbox_id: str, command: str, env: Mapping[str, str]) -> None:
        """Start a command that goes on by itself; returns once it runs. Nothing reads its output."""
        ...

    async def running(self, sandbox_id: str, command: str) -> bool:
        """Whether a started command whose text holds ``command`` still runs."""
        ...

    async def run(self, sandbox_id: str, command: str, timeout_s: int) -> CommandResult:
        """Run a command to its end, at most ``timeout_s`` long. ``SandboxFailed`` with ``output_too_large`` when it prints more
        than a mebibyte: large results travel as files."""
        ...

    async def list_files(self, sandbox_id: str, path: str) -> list[FileEntry]:
        """The entries of a folder, by absolute path. ``NotFound`` with ``file_not_found`` when there is none."""
        ...

    def read_file(self, sandbox_id: str, path: str) -> AsyncIterator[bytes]:
        """A file's bytes in pieces. ``NotFound`` with ``file_not_found`` when there is none."""
        ...

    async def kill(self, sandbox_id: str) -> None:
        """End it. One that is gone already is no error."""
        ...
