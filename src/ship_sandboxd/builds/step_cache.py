"""The layers of steps that were done, each under its key; the ones that were not used for long are forgotten."""

import json
from pathlib import Path

MAX_ENTRIES = 2000


class StepCache:
    """One small file for each key."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, exist_ok=True)

    def get(self, key: str) -> str | None:
        """The layer that was kept under a key, if it was."""
        path = self._folder / key
        layer = _read(path)
        if layer is not None:
            path.touch()
        return layer

    def put(self, key: str, layer: str) -> None:
        """Raises OSError when the disk is full."""
        scratch = self._folder / f"{key}.new"
        try:
            scratch.write_text(json.dumps({"layer": layer}))
            scratch.replace(self._folder / key)
        finally:
            scratch.unlink(missing_ok=True)
        kept = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in kept[:-MAX_ENTRIES]:
            path.unlink(missing_ok=True)

    def layers(self) -> set[str]:
        """All that are kept; telling them is no use of them."""
        return {layer for path in self._folder.iterdir() if (layer := _read(path)) is not None}


def _read(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text())["layer"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
