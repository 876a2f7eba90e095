"""The data folder: where its parts lie, and the secrets that are made once."""

import json
import os
import secrets
from pathlib import Path
from typing import Any

from ship.errors import ConfigurationError


class DataFolder:
    """One data folder, made on first use, readable by its owner alone.

    Raises:
        ConfigurationError: ``data_unwritable``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.probe()
        except OSError as error:
            raise ConfigurationError(
                f"the data folder {path} cannot be written: {error.strerror}",
                code="data_unwritable",
                hint="Free some space, mend its permissions, or name another one with --data.",
            ) from error

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.path / "ship.db"

    @property
    def blobs(self) -> Path:
        """The folder of blobs."""
        return self.path / "blobs"

    @property
    def spool(self) -> Path:
        """The folder of what passes through on its way to a bucket; made if need be."""
        path = self.path / "spool"
        path.mkdir(exist_ok=True, mode=0o700)
        return path

    @property
    def repositories(self) -> Path:
        """The folder of the bare repositories that are made of uploads."""
        return self.path / "repositories"

    @property
    def sandboxes(self) -> Path:
        """The sandbox host's own data folder."""
        return self.path / "sandboxes"

    def probe(self) -> None:
        """Write a byte, as proof that it can be done. Raises OSError."""
        probe = self.path / ".probe"
        probe.write_bytes(b"1")
        probe.unlink()

    def secret(self, name: str) -> str:
        """A random secret of that name; made the first time, the same ever after."""
        path = self.path / name
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return path.read_text().strip()
        with os.fdopen(file, "w") as out:
            value = secrets.token_hex(32)
            out.write(value)
        return value

    def read_json(self, name: str) -> dict[str, Any]:
        """The object in that file, or an empty one."""
        try:
            value: dict[str, Any] = json.loads((self.path / name).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return value

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Replace that file at once; only its owner may read it."""
        aside = self.path / f".{name}.new"
        file = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(file, "w") as out:
            json.dump(value, out)
        aside.replace(self.path / name)
