"""A sandbox host in a folder, which all nodes share and which none of them takes along when it dies."""

import json
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from ship.errors import NotFound
from ship.ports.sandboxes import CommandResult, FileEntry


class FolderSandboxHost:
    """A ``SandboxHost`` whose sandboxes are files: what they are called, and the environment of the runner once it is started."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def create(self, template: str, metadata: Mapping[str, str], timeout_s: int) -> str:
        """As the port says."""
        sandbox_id = uuid.uuid4().hex[:12]
        self._write(sandbox_id, {"metadata": dict(metadata), "runner": None})
        return sandbox_id

    async def find(self, metadata: Mapping[str, str]) -> list[tuple[str, Mapping[str, str]]]:
        """As the port says."""
        return [
            (sandbox_id, sandbox["metadata"])
            for sandbox_id, sandbox in self.all().items()
            if metadata.items() <= sandbox["metadata"].items()
        ]

    async def extend(self, sandbox_id: str, timeout_s: int) -> None:
        """As the port says."""
        self._read(sandbox_id)
        with (self._folder / ".checks").open("ab") as checks:
            checks.write(b".")

    async def start(self, sandbox_id: str, command: str, env: Mapping[str, str]) -> None:
        """As the port says; a second runner in one sandbox ends at once, as the real one does."""
        sandbox = self._read(sandbox_id)
        if sandbox["runner"] is None:
            self._write(sandbox_id, {**sandbox, "runner": dict(env)})

    async def running(self, sandbox_id: str, word: str) -> bool:
        """As the port says."""
        return self._read(sandbox_id)["runner"] is not None

    async def run(self, sandbox_id: str, command: str, timeout_s: int) -> CommandResult:
        """As the port says; it has no commands."""
        self._read(sandbox_id)
        return CommandResult(127, "", f"{command}: not found\n")

    async def list_files(self, sandbox_id: str, path: str) -> list[FileEntry]:
        """As the port says; it has no files."""
        raise NotFound(f"there is no {path}", code="file_not_found")

    async def read_file(self, sandbox_id: str, path: str) -> AsyncIterator[bytes]:
        """As the port says; it has no files."""
        raise NotFound(f"there is no {path}", code="file_not_found")
        yield b""

    async def kill(self, sandbox_id: str) -> None:
        """As the port says."""
        (self._folder / sandbox_id).unlink(missing_ok=True)

    def checks(self) -> int:
        """How often any sandbox was looked after."""
        try:
            return (self._folder / ".checks").stat().st_size
        except FileNotFoundError:
            return 0

    def all(self) -> dict[str, dict[str, Any]]:
        """Every sandbox that lives, by its id."""
        found = {}
        for path in self._folder.iterdir():
            if path.name.isalnum():
                try:
                    found[path.name] = self._read(path.name)
                except NotFound:
                    continue  # it was killed while we looked
        return found

    def _read(self, sandbox_id: str) -> dict[str, Any]:
        try:
            sandbox: dict[str, Any] = json.loads((self._folder / sandbox_id).read_text())
        except FileNotFoundError as error:
            raise NotFound("the sandbox is gone", code="sandbox_not_found") from error
        return sandbox

    def _write(self, sandbox_id: str, sandbox: dict[str, Any]) -> None:
        aside = self._folder / f".{sandbox_id}.{uuid.uuid4().hex}"
        aside.write_text(json.dumps(sandbox))
        aside.rename(self._folder / sandbox_id)
