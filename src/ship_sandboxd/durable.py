"""What survives a loss of power."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Bring to the disk what a file holds, or which names stand in a folder. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
