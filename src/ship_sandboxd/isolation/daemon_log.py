"""What a sandbox's daemon says, in a file of its folder that stays small.

The daemon writes to it by a descriptor of its own, so that its words are kept while no host runs. A tenant may own the
program that the daemon is run by: the file is untrusted, and so is how fast it grows.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE_NAME = "envd.log"
MAX_BYTES = 1024 * 1024
INTERVAL_S = 1.0
_KEPT_BYTES = MAX_BYTES // 2
_LAST_WORDS_BYTES = 2000
_log = logging.getLogger("ship_sandboxd.isolation.daemon_log")


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    """A descriptor for a daemon to write by. What an earlier one has written is cut first, if it is too much."""
    fd = os.open(folder / FILE_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        cut(folder)
        yield fd
    finally:
        os.close(fd)


def last_words(folder: Path) -> str:
    """The end of what the backend and the daemon have said."""
    with contextlib.suppress(OSError), (folder / FILE_NAME).open("rb") as file:
        text = _end(file.fileno(), _LAST_WORDS_BYTES).decode(errors="replace").strip()
        return text or "nothing was logged"
    return "nothing was logged"


def cut(folder: Path) -> None:
    """Leave only the end of a log that has grown too long. Raises OSError.

    In place, as the daemon goes on writing to this very file; what it says in this moment may be lost.
    """
    path = folder / FILE_NAME
    if path.stat().st_size <= MAX_BYTES:
        return
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    try:
        kept = _end(fd, _KEPT_BYTES)
        os.ftruncate(fd, 0)
        os.write(fd, kept.partition(b"\n")[2] or kept)
    finally:
        os.close(fd)


async def keep_short(sandboxes: Path) -> None:
    """Cut the logs of all sandboxes for ever: of those that are being started as well, and whoever's they are."""
    while True:
        try:
            await asyncio.to_thread(_cut_all, sandboxes)
        except OSError as error:
            _log.warning("the daemons' logs cannot be cut", extra={"reason": str(error)})
        await asyncio.sleep(INTERVAL_S)


def _cut_all(sandboxes: Path) -> None:
    for folder in sandboxes.iterdir():
        try:
            cut(folder)
        except (FileNotFoundError, NotADirectoryError):
            continue  # it has none yet, or is just being deleted
        except OSError as error:
            _log.warning("a daemon's log cannot be cut", extra={"sandbox": folder.name, "reason": str(error)})


def _end(fd: int, count: int) -> bytes:
    return os.pread(fd, count, max(0, os.fstat(fd).st_size - count))
