"""What survives a loss of power."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HALF_MADE = "."
"""What the name of a folder begins with whose content is still being made."""
_PLACES = ("disks", "envd", "skeletons", "tls", "tls/*")


def tidy(data: Path) -> None:
    """Delete what an earlier process, which was killed, has left half-made in the data folder. Raises OSError."""
    for place in _PLACES:
        for folder in filter(Path.is_dir, data.glob(f"{place}/{HALF_MADE}*")):
            shutil.rmtree(folder)


@contextmanager
def made(folder: Path) -> Iterator[Path]:
    """A new folder, to be filled in the block. Then it gets its name, for which it is believed from then on: so all of it is on the
    disk before. Where the name is taken meanwhile, what is there stays. Raises OSError, and then nothing is left half-made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=HALF_MADE, dir=folder.parent))
    try:
        yield scratch
        for path in (scratch, *scratch.rglob("*")):
            if not path.is_symlink():
                sync(path)
        try:
            scratch.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
        sync(folder.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sync(path: Path) -> None:
    """Bring to the disk what a file holds, or which names stand in a folder. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_files(folder: Path) -> None:
    """Bring to the disk a folder and the files in it, but not what lies in further folders. Raises OSError."""
    for path in folder.iterdir():
        if path.is_file():
            sync(path)
    sync(folder)
