"""The log of one sandbox: what happened to it, one JSON object a line, in a file that stays small."""

import json
import logging
import time
from pathlib import Path
from typing import Any

FILE_NAME = "log.jsonl"
OLDER_FILE_NAME = "log.1.jsonl"
MAX_FILE_BYTES = 512 * 1024
_MAX_TEXT = 2048
_log = logging.getLogger("ship_sandboxd.journal")


class Journal:
    """Two files at most: when the newer is full it becomes the older, and the oldest lines are gone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, event: str, level: str = "info", **facts: object) -> None:
        """Add a line: when (seconds since 1970), how bad (`info`, `warning`, `error`), what, and what belongs to it.

        A log that cannot be written (the disk is full) does not stop what it tells of.
        """
        line = {"time": time.time(), "level": level, "event": event}
        line.update(
            (key, value[:_MAX_TEXT] if isinstance(value, str) else value) for key, value in facts.items()
        )
        try:
            path = self._folder / FILE_NAME
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
                full = file.tell() > MAX_FILE_BYTES
            if full:
                path.replace(self._folder / OLDER_FILE_NAME)
        except OSError as error:
            _log.warning(
                "a sandbox's log cannot be written", extra={"folder": self._folder.name, "reason": str(error)}
            )

    def read(self) -> list[dict[str, Any]]:
        """Every line that is kept, oldest first."""
        lines: list[dict[str, Any]] = []
        for name in (OLDER_FILE_NAME, FILE_NAME):
            try:
                text = (self._folder / name).read_text(errors="replace")
            except FileNotFoundError:
                continue
            for line in text.splitlines():
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    continue  # a line that a full disk or a crash cut short
        return lines
