"""What an agent is told when it is given work. OpenCode and git read it when they first need it, so it can come late."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_MEMORY = Path("/dev/shm")  # noqa: S108 (the folder in there is ours alone)
_CONFIGURATION, _TOKEN, _GIT, _CATALOGUE = "opencode.json", "token", "git.config", "models.json"
TOKEN = f"{{file:./{_TOKEN}}}"
"""Stands for the token in OpenCode's configuration."""


@dataclass(frozen=True, slots=True)
class Terms:
    """OpenCode's configuration, the session's token, and the configuration with which the agent's git shows the token."""

    configuration: Mapping[str, Any]
    token: str
    git: str

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


class TermsFolder:
    """Where one agent's terms are: in memory where the machine has such a folder, since they hold the token."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def make(cls, elsewhere: Path) -> "TermsFolder":
        """A new one, without terms; ``elsewhere`` is a folder to make it in where none is in memory."""
        for parent in (_MEMORY, elsewhere):
            try:
                folder = Path(tempfile.mkdtemp(prefix="ship-agent-", dir=parent))
            except OSError:
                if parent is elsewhere:
                    raise
            else:
                close_configuration_folder(folder)
                # The configuration names all models. Reading thousands of others takes 4 s of processor time in each workspace.
                (folder / _CATALOGUE).write_text("{}")
                break
        return cls(folder)

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which OpenCode and git find what is here, or will be."""
        return {
            "OPENCODE_CONFIG_DIR": str(self.path),
            "OPENCODE_MODELS_PATH": str(self.path / _CATALOGUE),
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "include.path",
            "GIT_CONFIG_VALUE_0": str(self.path / _GIT),
        }

    def write(self, terms: Terms) -> None:
        """Raises OSError."""
        self.path.chmod(0o700)
        contents = {_TOKEN: terms.token, _GIT: terms.git, _CONFIGURATION: json.dumps(terms.configuration)}
        for name, text in contents.items():
            path = self.path / name
            path.touch(0o600)
            path.write_text(text)
        self.path.chmod(0o500)

    def remove(self) -> None:
        """Nothing is wrong with one that is gone."""
        if self.path.is_dir():
            self.path.chmod(0o700)
            shutil.rmtree(self.path, ignore_errors=True)


def close_configuration_folder(folder: Path) -> None:
    """OpenCode installs a package from the network into a configuration folder, unless it looks as if it were there."""
    (folder / "node_modules").mkdir(parents=True)
    lock = {"packages": {"": {"dependencies": {"@opencode-ai/plugin": "*"}}}}
    (folder / "package-lock.json").write_text(json.dumps(lock))
    (folder / ".gitignore").write_text("*\n")
