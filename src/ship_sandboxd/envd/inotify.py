"""Linux's inotify(7) by way of libc: Python's standard library has no binding of its own."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

MODIFY, ATTRIB = 0x002, 0x004
MOVED_FROM, MOVED_TO = 0x040, 0x080
CREATE, DELETE = 0x100, 0x200
DELETE_SELF, MOVE_SELF = 0x400, 0x800
OVERFLOW, IGNORED, IS_FOLDER = 0x4000, 0x8000, 0x4000_0000
_ONLY_FOLDERS, _NO_LINKS = 0x0100_0000, 0x0200_0000
_CHANGES = MODIFY | ATTRIB | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF
_HEAD = struct.Struct("iIII")
_READ_BYTES = 64 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


class Change(NamedTuple):
    """What inotify tells: the watch that saw it, its flags, what ties the two halves of a move together, and a name in
    the watched folder (empty: the folder itself)."""

    watch: int
    mask: int
    cookie: int
    name: str


class Inotify:
    """One descriptor and the watches on it. Watching the same folder twice gives the same watch."""

    def __init__(self) -> None:
        self.fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "")

    def watch(self, folder: str, *, follow: bool) -> int:
        """Watch a folder; `follow` says whether it may be a link to one. Raises OSError."""
        mask = _CHANGES | _ONLY_FOLDERS | (0 if follow else _NO_LINKS)
        return _checked(_libc.inotify_add_watch(self.fd, os.fsencode(folder), ctypes.c_uint32(mask)), folder)

    def forget(self, watch: int) -> None:
        _libc.inotify_rm_watch(self.fd, watch)  # it fails where the folder is gone, and the watch with it

    def read(self) -> Iterator[Change]:
        """What one read yields; nothing when nothing has changed."""
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return
        position = 0
        while position < len(data):
            watch, mask, cookie, size = _HEAD.unpack_from(data, position)
            name = data[position + _HEAD.size : position + _HEAD.size + size].rstrip(b"\0")
            position += _HEAD.size + size
            yield Change(watch, mask, cookie, os.fsdecode(name))


def _checked(result: int, path: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result
