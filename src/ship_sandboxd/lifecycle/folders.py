"""The folders of sandboxes, and where they go when these have ended."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

_log = logging.getLogger("ship_sandboxd.lifecycle.folders")
Run = Callable[[Coroutine[None, None, None]], None]


class Folders:
    """One for each sandbox, below `data`. What is thrown away is gone at once, and deleted in the background by `run`."""

    def __init__(self, data: Path, run: Run) -> None:
        self._sandboxes = data / "sandboxes"
        self._trash = data / "trash"
        self._aside = data / "unreadable"
        self._run = run
        for folder in (self._sandboxes, self._trash, self._aside):
            folder.mkdir(mode=0o700, exist_ok=True)

    def of(self, sandbox_id: str) -> Path:
        """Where a sandbox's is, whether or not it is made yet."""
        return self._sandboxes / sandbox_id

    def all(self) -> list[Path]:
        """Every one that there is."""
        return sorted(self._sandboxes.iterdir())

    def throw_away(self, folder: Path) -> None:
        """Nobody needs it any more."""
        trash = self._trash / folder.name
        with contextlib.suppress(FileNotFoundError):
            folder.rename(trash)
        self._run(_remove_tree(trash))

    def empty_trash(self) -> None:
        """Delete what an earlier process has thrown away and not deleted."""
        for folder in list(self._trash.iterdir()):
            self._run(_remove_tree(folder))

    def put_aside(self, folder: Path) -> None:
        """Keep the files of a sandbox that this version cannot run: another may."""
        aside = self._aside / f"{folder.name}.{time.time_ns()}"
        folder.rename(aside)
        _log.error("a sandbox's record cannot be read: it is put aside", extra={"folder": str(aside)})


async def _remove_tree(folder: Path) -> None:
    """`rm` copes with any depth, and follows no link."""
    process = await asyncio.create_subprocess_exec("rm", "-rf", "--one-file-system", "--", str(folder))
    await process.wait()
