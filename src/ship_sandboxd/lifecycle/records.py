"""What the host knows of a sandbox, one JSON file each, so that a new host process finds it again."""

import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

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

    def save(self, folder: Path) -> None:
        """Replace the file in one step, so that a crash or a full disk leaves the old one or the new one. Raises OSError."""
        scratch = folder / f"{FILE_NAME}.new"
        try:
            with scratch.open("w") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(json.dumps(vars(self), default=vars))  # `dump` and `asdict` take ten times as long
                file.flush()
                os.fsync(file.fileno())  # an empty record after a power cut would cost the sandbox
            scratch.replace(folder / FILE_NAME)
        except OSError:
            scratch.unlink(missing_ok=True)
            raise


def load(folder: Path) -> SandboxRecord | None:
    """The record in a sandbox's folder, without what only a later version knows; None when it was never written, or
    cannot be read."""
    try:
        values: dict[str, Any] = json.loads((folder / FILE_NAME).read_text())
        for key in ("init", "monitor"):
            values[key] = values[key] and ProcessIdentity(**values[key])
        for key in ("end", "paused"):
            values[key] = values[key] and Moment(**values[key])
        values["made_of"] = template_of(values["made_of"])
        return SandboxRecord(**_known(SandboxRecord, values))
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def template_of(values: dict[str, Any]) -> Template:
    """A template of what `dataclasses.asdict` makes of one and JSON keeps of that."""
    mounts = tuple(Mount(**mount) for mount in values["mounts"])
    return Template(
        **_known(Template, {**values, "mounts": mounts, "layers": tuple(values["layers"])}),
    )


def _known(kind: type[SandboxRecord] | type[Template], values: dict[str, Any]) -> dict[str, Any]:
    names = {known.name for known in fields(kind)}
    return {key: value for key, value in values.items() if key in names}
