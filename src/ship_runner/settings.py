"""What the runner takes from its environment, read once."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class SettingMissing(Exception):
    """A variable that the runner cannot do without is not set."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting of the runner; ``docs/runner.md`` has the table.

    ``state`` holds spool and state files, ``workspace`` is where the repository is cloned to, ``program`` is how this program was
    started, without its arguments. Sizes are bytes, times seconds.
    """

    url: str
    token: str
    state: Path
    workspace: Path
    opencode: str = "opencode"
    hung_after_s: float = 600.0
    checkpoint_every_s: float = 300.0
    agent_memory_bytes: int = 2 << 30
    diff_bytes: int = 20 << 20
    program: tuple[str, ...] = ("ship-runner",)

    @classmethod
    def load(cls, environment: Mapping[str, str]) -> "Settings":
        """Raises: SettingMissing, with what to set."""
        for name in ("SHIP_URL", "SHIP_TOKEN"):
            if not environment.get(name):
                raise SettingMissing(f"{name} is not set; Ship sets it when it starts the runner")
        return cls(
            url=environment["SHIP_URL"].rstrip("/"),
            token=environment["SHIP_TOKEN"],
            state=state_folder(environment),
            workspace=Path(environment.get("SHIP_WORKSPACE", "/workspace/repo")),
            opencode=environment.get("SHIP_OPENCODE", "opencode"),
            hung_after_s=float(environment.get("SHIP_AGENT_HUNG_AFTER_S", "600")),
            checkpoint_every_s=float(environment.get("SHIP_CHECKPOINT_EVERY_S", "300")),
            agent_memory_bytes=int(environment.get("SHIP_AGENT_MEMORY_MB", "2048")) << 20,
            program=_program(),
        )


def _program() -> tuple[str, ...]:
    return (sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1])


def state_folder(environment: Mapping[str, str]) -> Path:
    """Where the runner keeps its state."""
    return Path(environment.get("SHIP_STATE") or "/home/user/.ship")
