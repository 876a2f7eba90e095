"""The kernel's mount calls: trees cloned, given another owner, made read-only and put in their place.

Sources: open_tree(2), mount_setattr(2), move_mount(2), openat2(2), pivot_root(2), setns(2), user_namespaces(7). Every function raises OSError.
"""

import ctypes
import errno
import os
import signal
import struct
from collections.abc import Iterable
from pathlib import Path

NOSUID, NODEV, NOATIME = 0x2, 0x4, 0x400
_BIND, _REC, _SLAVE = 0x1000, 0x4000, 0x80000
_DETACH = 2
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_PR_SET_PDEATHSIG = 1
_AT_FDCWD = -100
_AT_EMPTY_PATH, _AT_RECURSIVE = 0x1000, 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_EMPTY_PATHS = 0x4 | 0x40
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _ATTR_IDMAP = 0x1, 0x2, 0x4, 0x00100000
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10

_libc = ctypes.CDLL(None, use_errno=True)
# The same on every architecture but alpha.
_OPEN_TREE, _MOVE_MOUNT, _OPENAT2, _MOUNT_SETATTR = 428, 429, 437, 442


def own_namespace() -> None:
    """Give this process a mount namespace of its own: what is unmounted outside goes here too, and nothing the other
    way."""
    _check(_libc.unshare(_CLONE_NEWNS))
    mount("none", "/", None, _REC | _SLAVE)


def enter_namespace(process: int) -> None:
    """Let this process, which has one thread, see the mounts that another one sees, whose pidfd is given."""
    _check(_libc.setns(process, _CLONE_NEWNS))


def move(source: str, target: int) -> None:
    """Take a mount, with all below it, to what the descriptor is open on."""
    fd = os.open(source, os.O_PATH | os.O_CLOEXEC)
    try:
        _call(_MOVE_MOUNT, fd, b"", target, b"", _MOVE_EMPTY_PATHS)
    finally:
        os.close(fd)


def change_root(root: int) -> None:
    """Make a mount the root of this mount namespace, for all whose root or current folder the old one was; the old one
    goes."""
    os.fchdir(root)
    _check(_libc.pivot_root(b".", b"."))
    unmount(".")
    os.chdir("/")


def mount(source: str, target: str, kind: str | None, flags: int = 0, options: str | None = None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    _check(_libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]))


def unmount(target: str) -> None:
    """Take a mount and all below it out of sight at once; it ends when its last user does."""
    _check(_libc.umount2(os.fsencode(target), _DETACH))


def sync(folder: str) -> None:
    """Write out the file system that a folder lies on; blocks."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check(_libc.syncfs(fd))
    finally:
        os.close(fd)


class Tree:
    """A copy of a mount that is nowhere yet. To be used in a `with`: one that was never placed is gone then."""

    def __init__(self, source: str, *, recursive: bool = False) -> None:
        flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
        self._fd = _call(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), flags)
        self._recursive = _AT_RECURSIVE if recursive else 0

    def restrict(self, *, read_only: bool) -> None:
        """No programs that change their user, no devices; and no writing, if asked."""
        self._set(_ATTR_NOSUID | _ATTR_NODEV | (_ATTR_RDONLY if read_only else 0))

    def map_owners(self, user_namespace: int) -> None:
        """Show files as owned by whom the namespace maps their owner to."""
        self._set(_ATTR_IDMAP, user_namespace)

    def place(self, target: int) -> None:
        """Mount it on what the descriptor is open on."""
        _call(_MOVE_MOUNT, self._fd, b"", target, b"", _MOVE_EMPTY_PATHS)

    def __enter__(self) -> "Tree":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def _set(self, attributes: int, user_namespace: int = 0) -> None:
        value = struct.pack("QQQQ", attributes, 0, 0, user_namespace)
        _call(_MOUNT_SETATTR, self._fd, b"", _AT_EMPTY_PATH | self._recursive, value, len(value))


def bind(source: str, target: str) -> None:
    mount(source, target, None, _BIND | _REC)


def hide(folder: str, stage: str) -> None:
    """Show a folder of /proc as an empty one. A whole /proc stays at `stage`/proc: where there is none, the kernel lets no
    user namespace mount one of its own."""
    point = Path(stage, "proc")
    point.mkdir()
    bind("/proc", str(point))
    mount("tmpfs", folder, "tmpfs", NOSUID | NODEV, "mode=0555,size=1m")


def owners(pairs: Iterable[tuple[int, int]]) -> int:
    """A user namespace that says who is shown as whom: pairs of an owner on disk and the one to show. Answers its
    descriptor."""
    text = "".join(f"{stored} {shown} 1\n" for stored, shown in pairs)
    ready, ready_there = os.pipe()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        try:
            _check(_libc.unshare(_CLONE_NEWUSER))
            # After that: a change of credentials takes it back.
            _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))
            if os.getppid() != parent:
                os._exit(1)
            os.write(ready_there, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.close(ready_there)
    try:
        if not os.read(ready, 1):
            raise OSError(errno.EPERM, "no user namespace can be made")
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{name}").write_text(text)
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def open_below(root: int, path: str, flags: int = os.O_PATH) -> int:
    """Open a path as a process would whose root folder is `root`: no link in it leads out. Answers a descriptor."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    return _call(_OPENAT2, root, os.fsencode(path), how, len(how))


def _call(number: int, *arguments: int | bytes) -> int:
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *words))
    _check(min(result, 0))
    return result


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
