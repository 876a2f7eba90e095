"""A file system that is soon full."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def small_disk() -> Iterator[Path]:
    """A folder with room for 8 MiB; takes root."""
    with tempfile.TemporaryDirectory(prefix="ship-small-disk-") as name:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "small", name], check=True)
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


def fill(ballast: Path) -> None:
    """Leave no page free."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4_096)):
            pass
