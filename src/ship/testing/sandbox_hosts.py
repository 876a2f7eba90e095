"""Sandbox hosts without sandboxes, for tests of everything above them. Those that misbehave are named by how."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from ship.errors import NotFound, SandboxFailed, Unavailable
from ship.ports.sandboxes import CommandResult, FileEntry


@dataclass
class PretendSandbox:
    """What is remembered of one sandbox: ``files`` maps absolute paths to bytes, ``started`` keeps commands and environments,
    ``is_paused`` says that nothing of it runs."""

    metadata: dict[str, str]
    files: dict[str, bytes] = field(default_factory=dict)
    started: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    is_paused: bool = False


class PretendSandboxHost:
    """A ``SandboxHost`` in memory. Its only commands are ``cat PATH`` and ``exit N``; started ones run for ever."""

    def __init__(self) -> None:
        self.sandboxes: dict[str, PretendSandbox] = {}
        self._count = 0

    async def create(self, template: str, metadata: Mapping[str, str], timeout_s: int) -> str:
        """As the port says."""
        self._count += 1
        sandbox_id = f"pretend{self._count}"
        self.sandboxes[sandbox_id] = PretendSandbox(dict(metadata))
        return sandbox_id

    async def find(self, metadata: Mapping[str, str]) -> list[tuple[str, Mapping[str, str]]]:
        """As the port says."""
        return [
            (sandbox_id, sandbox.metadata)
            for sandbox_id, sandbox in self.sandboxes.items()
            if metadata.items() <= sandbox.metadata.items()
        ]

    async def extend(self, sandbox_id: str, timeout_s: int) -> None:
        """As the port says."""
        self._sandbox(sandbox_id)

    async def pause(self, sandbox_id: str) -> None:
        """As the port says."""
        self._sandbox(sandbox_id).is_paused = True

    async def resume(self, sandbox_id: str, timeout_s: int) -> None:
        """As the port says."""
        self._sandbox(sandbox_id).is_paused = False

    async def start(self, sandbox_id: str, command: str, env: Mapping[str, str]) -> None:
        """As the port says."""
        self._sandbox(sandbox_id).started.append((command, dict(env)))

    async def running(self, sandbox_id: str, command: str) -> bool:
        """As the port says."""
        return any(command in started for started, _ in self._sandbox(sandbox_id).started)

    async def run(self, sandbox_id: str, command: str, timeout_s: int) -> CommandResult:
        """As the port says."""
        sandbox = self._sandbox(sandbox_id)
        name, _, argument = command.partition(" ")
        if name == "exit":
            return CommandResult(int(argument), "", "")
        if name == "cat" and argument in sandbox.files:
            return CommandResult(0, sandbox.files[argument].decode(), "")
        return CommandResult(127, "", f"{command}: not found\n")

    async def list_files(self, sandbox_id: str, path: str) -> list[FileEntry]:
        """As the port says."""
        below = path.rstrip("/") + "/"
        entries: dict[str, FileEntry] = {}
        for file_path, content in self._sandbox(sandbox_id).files.items():
            if file_path.startswith(below):
                name, *deeper = file_path.removeprefix(below).split("/")
                kind, size_bytes = ("directory", 0) if deeper else ("file", len(content))
                entries[name] = FileEntry(name, below + name, kind, size_bytes)
        if not entries:
            raise NotFound(f"there is no {path}", code="file_not_found")
        return list(entries.values())

    async def read_file(self, sandbox_id: str, path: str) -> AsyncIterator[bytes]:
        """As the port says."""
        files = self._sandbox(sandbox_id).files
        if path not in files:
            raise NotFound(f"there is no {path}", code="file_not_found")
        yield files[path]

    async def kill(self, sandbox_id: str) -> None:
        """As the port says."""
        self.sandboxes.pop(sandbox_id, None)

    def _sandbox(self, sandbox_id: str) -> PretendSandbox:
        if sandbox_id not in self.sandboxes:
            raise NotFound("the sandbox is gone", code="sandbox_not_found")
        return self.sandboxes[sandbox_id]


class FullSandboxHost(PretendSandboxHost):
    """Has no room for another sandbox."""

    async def create(self, template: str, metadata: Mapping[str, str], timeout_s: int) -> str:
        """Raises SandboxFailed."""
        raise SandboxFailed("no room for another sandbox", code="sandbox_host_full", hint="End some.")


class AwaySandboxHost(PretendSandboxHost):
    """Does not answer the next ``away`` questions for its sandboxes."""

    away = 0

    async def find(self, metadata: Mapping[str, str]) -> list[tuple[str, Mapping[str, str]]]:
        """Raises Unavailable."""
        if self.away:
            self.away -= 1
            raise Unavailable("the sandbox host does not answer", code="sandbox_host_unreachable")
        return await super().find(metadata)


class AmnesicSandboxHost(PretendSandboxHost):
    """Keeps the files of a paused sandbox and forgets what ran in it."""

    async def pause(self, sandbox_id: str) -> None:
        """As the port says, without the memory."""
        await super().pause(sandbox_id)
        self._sandbox(sandbox_id).started.clear()


class ForgetfulSandboxHost(PretendSandboxHost):
    """Makes a sandbox, but its answer is lost; the caller must find what it made."""

    async def create(self, template: str, metadata: Mapping[str, str], timeout_s: int) -> str:
        """Raises SandboxFailed after it has made one."""
        await super().create(template, metadata, timeout_s)
        raise SandboxFailed("the answer was lost", code="sandbox_host_unreachable")
