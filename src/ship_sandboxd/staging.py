"""Folders made reachable for an unprivileged bubblewrap.

bubblewrap runs as the sandbox's own uid, which cannot walk into a data folder or a home that only root may read. So
the host, when it is root, moves into a mount namespace of its own at its start and binds what a sandbox needs to a
place there that everyone may walk to. Nothing of it shows in the rest of the machine.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .errors import SetupError

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 0x80000
_MNT_DETACH = 2


class Stage:
    """Where sources can be bound. Made once, before any thread is started: the namespace is that of the thread."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._count = 0

    @classmethod
    def enter(cls, folder: Path) -> "Stage":
        """Root's stage, in a mount namespace of its own."""
        folder.mkdir(mode=0o755, exist_ok=True)
        try:
            _check(_libc.unshare(_CLONE_NEWNS))
            _mount("none", "/", None, _MS_REC | _MS_SLAVE)
            _mount("tmpfs", str(folder), "tmpfs", 0, "mode=0755,size=1m")
        except OSError as error:
            raise SetupError(
                f"cannot make a mount namespace ({error.strerror}): run the sandbox host as an ordinary user, "
                "or as root with CAP_SYS_ADMIN",
                "mount_namespace_refused",
            ) from error
        return cls(folder)

    @classmethod
    def none(cls) -> "Stage":
        """For a host that is not root: bubblewrap runs as the same user and sees what it sees."""
        return cls(None)

    @contextmanager
    def bound(self, sources: list[str]) -> Iterator[list[str]]:
        """Paths under which the sources can be opened by anyone, for as long as this is entered."""
        if self._folder is None:
            yield sources
            return
        with ExitStack() as stack:
            yield [stack.enter_context(self._bind(self._folder, source)) for source in sources]

    @contextmanager
    def _bind(self, folder: Path, source: str) -> Iterator[str]:
        self._count += 1
        point = folder / str(self._count)
        if Path(source).is_dir():
            point.mkdir(mode=0o755)
        else:
            point.touch(mode=0o644)
        try:
            _mount(source, str(point), None, _MS_BIND | _MS_REC)
            try:
                yield str(point)
            finally:
                _check(_libc.umount2(os.fsencode(point), _MNT_DETACH))
        finally:
            point.rmdir() if point.is_dir() else point.unlink()


_libc = ctypes.CDLL(None, use_errno=True)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    _check(_libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
