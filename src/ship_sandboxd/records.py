"""What the host knows of a sandbox, one JSON file each, so that a new host process finds it again."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .pids import ProcessIdentity

CREATING, RUNNING = "creating", "running"
DEFAULT_TENANT = "default"
FILE_NAME = "sandbox.json"


@dataclass
class SandboxRecord:
    """`tenant` is whose sandbox it is; `backend` names what isolates it; `init` is its process 1 as the host sees it; times are seconds since 1970."""

    id: str
    template: str
    token: str
    traffic_token: str
    started_at: float
    end_at: float
    cpu_count: int
    memory_mb: int
    disk_mb: int
    uid: int | None
    backend: str = "bubblewrap"
    tenant: str = DEFAULT_TENANT
    metadata: dict[str, str] = field(default_factory=dict)
    allow_internet: bool = True
    allow_public_traffic: bool = True
    network: dict[str, Any] = field(default_factory=dict)
    state: str = CREATING
    init: ProcessIdentity | None = None
    monitor: ProcessIdentity | None = None
    cgroups: list[str] = field(default_factory=list)
    idempotency_key: str = ""
    request_digest: str = ""

    def save(self, folder: Path) -> None:
        """Replace the file in one step, so that a crash leaves the old one or the new one."""
        scratch = folder / f"{FILE_NAME}.new"
        with scratch.open("w") as file:
            os.fchmod(file.fileno(), 0o600)
            json.dump(asdict(self), file)
        scratch.replace(folder / FILE_NAME)


def load(folder: Path) -> SandboxRecord | None:
    """The record in a sandbox's folder; None when it was never written, or by another version."""
    try:
        values: dict[str, Any] = json.loads((folder / FILE_NAME).read_text())
        for key in ("init", "monitor"):
            if values[key] is not None:
                values[key] = ProcessIdentity(**values[key])
        return SandboxRecord(**values)
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
