"""What the host knows of a sandbox, in a file of its folder, so that a new host process finds it again."""

import contextlib
import errno
import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .. import durable
from ..moments import Moment
from ..pids import ProcessIdentity
from ..templates import Mount, Template

CREATING, WARM, RUNNING, PAUSED, RESUMING, ENDING = (
    "creating",
    "warm",
    "running",
    "paused",
    "resuming",
    "ending",
)
KILL, PAUSE = "kill", "pause"
DEFAULT_TENANT = "default"
FILE_NAME = "sandbox.json"
_BEGINNING = b'{"id": "'
_MORE_LINES, _MORE_BYTES = 15, 256 * 1024


@dataclass
class SandboxRecord:
    """`tenant` is whose sandbox it is; `backend` names what isolates it; `init` is its process 1 as the host sees it,
    None while no process of it is there; times are seconds since 1970.

    `made_of` is its template as it was when the sandbox was made, and `envs` what its maker added: a resume
    starts it from these. `memory_kept` says of a paused one whether its processes are still there, frozen, and of
    a running one whether they came back at its last resume. `on_timeout` is `kill` or `pause`.
    """

    id: str
    template: str
    token: str
    traffic_token: str
    started_at: float
    end: Moment
    timeout_s: int
    cpu_count: int
    memory_mb: int
    disk_mb: int
    uid: int | None
    made_of: Template
    backend: str = "bubblewrap"
    tenant: str = DEFAULT_TENANT
    metadata: dict[str, str] = field(default_factory=dict)
    envs: dict[str, str] = field(default_factory=dict)
    allow_internet: bool = True
    allow_public_traffic: bool = True
    network: dict[str, Any] = field(default_factory=dict)
    on_timeout: str = KILL
    pause_keeps_memory: bool = True
    auto_resume: bool = False
    state: str = CREATING
    paused: Moment | None = None
    memory_kept: bool = True
    init: ProcessIdentity | None = None
    monitor: ProcessIdentity | None = None
    cgroups: list[str] = field(default_factory=list)
    idempotency_key: str = ""
    request_digest: str = ""

    @property
    def end_at(self) -> float:
        return self.end.wall

    @property
    def frozen(self) -> bool:
        """Paused with its memory: no process runs, all are there. One that has processes and does not keep them was
        being parked."""
        return self.state == PAUSED and self.init is not None and self.memory_kept


class RecordFile:
    """What a sandbox's folder keeps of its record: each version is a line of JSON, and the last whole line counts.

    The file has room for several, so that saving one overwrites blank lines: the disk is done with that in a fraction of the
    time that a new file takes. Of a line that a power cut tore, any blocks may have come through: what then begins like a record
    does not end like one.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._free: range | None = None  # the blank lines; None: they are to be looked for

    def save(self, record: SandboxRecord, *, lasting: bool = True) -> None:
        """Once and whole, or not at all: a crash or a full disk leaves the version before. One that is not ``lasting`` is
        safe from the end of this process, but not from a power cut. Raises OSError."""
        # `dump` and `asdict` take ten times as long.
        line = json.dumps(vars(record), default=vars).encode() + b"\n"
        free, self._free = self._free or self._blank(), None
        if len(line) > len(free):
            self._free = self._make(line)
            return
        fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            try:
                if os.pwrite(fd, line, free.start) < len(line):  # a file system that writes nothing in place
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
                if lasting:
                    os.fdatasync(fd)
            except OSError:
                with contextlib.suppress(OSError):
                    os.pwrite(fd, b"\n" * len(line), free.start)
                raise
        finally:
            os.close(fd)
        self._free = free[len(line) :]

    def _blank(self) -> range:
        """Where the blank lines of the file are that an earlier process left, if any."""
        with contextlib.suppress(FileNotFoundError):
            content = self._path.read_bytes()
            return range(len(content.rstrip(b"\n")) + 1, len(content))
        return range(0)

    def _make(self, line: bytes) -> range:
        """A file with this line and blank ones; answers where those are."""
        scratch = self._path.with_name(f"{FILE_NAME}.new")
        size = len(line) + min(len(line) * _MORE_LINES, _MORE_BYTES)
        try:
            with scratch.open("wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(line.ljust(size, b"\n"))
                file.flush()
                os.fsync(file.fileno())  # an empty record after a power cut would cost the sandbox
            scratch.replace(self._path)
            durable.sync(self._path.parent)  # what is saved next commits data alone
        except OSError:
            scratch.unlink(missing_ok=True)
            raise
        return range(len(line), size)


def load(folder: Path) -> SandboxRecord | None:
    """The record in a sandbox's folder, without what only a later version knows; None when it was never written, or
    is none that this version can read. Raises OSError when the disk does not tell."""
    try:
        values = last_version((folder / FILE_NAME).read_bytes())
        for key in ("init", "monitor"):
            values[key] = values[key] and ProcessIdentity(**values[key])
        for key in ("end", "paused"):
            values[key] = values[key] and Moment(**values[key])
        values["made_of"] = template_of(values["made_of"])
        return SandboxRecord(**_known(SandboxRecord, values))
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def last_version(content: bytes) -> dict[str, Any]:
    """The JSON object in the last whole line of a record's file. Raises ValueError when there is none."""
    for line in reversed(content.split(b"\n")):
        if line.startswith(_BEGINNING):
            with contextlib.suppress(ValueError):
                values: dict[str, Any] = json.loads(line)
                return values
    raise ValueError("no line of this file is a record")


def template_of(values: dict[str, Any]) -> Template:
    """A template of what `dataclasses.asdict` makes of one and JSON keeps of that."""
    mounts = tuple(Mount(**mount) for mount in values["mounts"])
    return Template(
        **_known(Template, {**values, "mounts": mounts, "layers": tuple(values["layers"])}),
    )


def _known(kind: type[SandboxRecord] | type[Template], values: dict[str, Any]) -> dict[str, Any]:
    names = {known.name for known in fields(kind)}
    return {key: value for key, value in values.items() if key in names}
