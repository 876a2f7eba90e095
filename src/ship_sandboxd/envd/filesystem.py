"""`filesystem.Filesystem`: look at, make, move and remove files.

All of it runs inside the sandbox with the rights of its user, so a symbolic link leads nowhere that the user could not
go by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import grp
import os
import pwd
import shutil
import stat
import time
from collections.abc import Callable

from .account import Account
from .rpc import Call, Message, RpcError

METADATA_PREFIX = "user.e2b."
MAX_DEPTH = 64
MAX_ENTRIES = 100_000
_CODES = {
    errno.ENOENT: "not_found",
    errno.EEXIST: "already_exists",
    errno.EACCES: "permission_denied",
    errno.EPERM: "permission_denied",
    errno.EROFS: "permission_denied",
    errno.ENOTDIR: "invalid_argument",
    errno.EISDIR: "invalid_argument",
    errno.ENAMETOOLONG: "invalid_argument",
    errno.ELOOP: "invalid_argument",
    errno.EINVAL: "invalid_argument",
    errno.ENOTEMPTY: "failed_precondition",
    errno.EBUSY: "failed_precondition",
    errno.ENOSPC: "resource_exhausted",
    errno.EDQUOT: "resource_exhausted",
}


class Filesystem:
    """The unary methods of the service. Each works in a thread, as a slow disk must not stop the daemon."""

    def __init__(self, account: Account) -> None:
        self._account = account

    async def stat(self, call: Call, message: Message) -> Message:
        return {"entry": await self._run(entry, self._path(call, message, "path"))}

    async def make_dir(self, call: Call, message: Message) -> Message:
        return {"entry": await self._run(_make_dir, self._path(call, message, "path"))}

    async def move(self, call: Call, message: Message) -> Message:
        source, destination = (self._path(call, message, key) for key in ("source", "destination"))
        return {"entry": await self._run(_move, source, destination)}

    async def remove(self, call: Call, message: Message) -> Message:
        await self._run(_remove, self._path(call, message, "path"))
        return {}

    async def list_dir(self, call: Call, message: Message) -> Message:
        try:
            depth = min(int(message.get("depth") or 1), MAX_DEPTH)
        except (TypeError, ValueError):
            raise RpcError("invalid_argument", "depth is not a number") from None
        return {"entries": await self._run(_list_dir, self._path(call, message, "path"), depth)}

    def _path(self, call: Call, message: Message, key: str) -> str:
        return self._account.path(str(message.get(key) or ""), self._account.require(call.username))

    async def _run(self, function: Callable[..., object], *arguments: object) -> object:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(None, lambda: function(*arguments))
        except OSError as error:
            raise rpc_error(error) from error


def rpc_error(error: OSError) -> RpcError:
    path = f" '{error.filename}'" if error.filename else ""
    text = "file not found" if error.errno == errno.ENOENT else (error.strerror or str(error)).lower()
    return RpcError(_CODES.get(error.errno or 0, "internal"), f"{text}:{path}" if path else text)


def entry(path: str) -> Message:
    """An EntryInfo; of a symbolic link, `type` describes what it leads to."""
    info = os.lstat(path)
    is_symlink = stat.S_ISLNK(info.st_mode)
    target_mode = info.st_mode
    if is_symlink:
        with contextlib.suppress(OSError):  # one that leads nowhere is described as itself
            target_mode = os.stat(path).st_mode
    message: Message = {
        "name": os.path.basename(path) or "/",
        "type": _file_type(target_mode),
        "path": path,
        "size": str(info.st_size),
        "mode": stat.S_IMODE(info.st_mode),
        "permissions": stat.filemode(info.st_mode),
        "owner": _user_name(info.st_uid),
        "group": _group_name(info.st_gid),
        "modifiedTime": _timestamp(info.st_mtime_ns),
    }
    if is_symlink:
        message["isSymlink"] = True
        message["symlinkTarget"] = os.path.realpath(path)
    metadata = read_metadata(path) if stat.S_ISREG(info.st_mode) else {}
    if metadata:
        message["metadata"] = metadata
    return message


def read_metadata(path: str) -> dict[str, str]:
    """The user's own metadata of a file, kept in extended attributes."""
    try:
        names = [name for name in os.listxattr(path) if name.startswith(METADATA_PREFIX)]
        return {
            name[len(METADATA_PREFIX) :]: os.getxattr(path, name).decode("utf-8", "replace") for name in names
        }
    except OSError:
        return {}  # the file system has none


def _file_type(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "FILE_TYPE_DIRECTORY"
    if stat.S_ISREG(mode):
        return "FILE_TYPE_FILE"
    return "FILE_TYPE_SYMLINK" if stat.S_ISLNK(mode) else "FILE_TYPE_UNSPECIFIED"


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _timestamp(ns: int) -> str:
    seconds, rest = divmod(ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:09d}Z"


def _make_dir(path: str) -> Message:
    if os.path.lexists(path):
        if os.path.isdir(path):
            raise RpcError("already_exists", f"directory already exists: {path}")
        raise RpcError("invalid_argument", f"path already exists but it is not a directory: {path}")
    os.makedirs(path)
    return entry(path)


def _move(source: str, destination: str) -> Message:
    os.lstat(source)
    os.makedirs(os.path.dirname(destination), exist_ok=True)
    try:
        os.rename(source, destination)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.move(source, destination)
    return entry(destination)


def _remove(path: str) -> None:
    try:
        is_folder = stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if is_folder:
        shutil.rmtree(path)
    else:
        os.remove(path)


def _list_dir(path: str, depth: int) -> list[Message]:
    if not os.path.isdir(path):
        os.stat(path)
        raise RpcError("invalid_argument", f"path is not a directory: {path}")
    entries: list[Message] = []
    _collect(path, depth, entries)
    return entries


def _collect(folder: str, depth: int, entries: list[Message]) -> None:
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        try:
            found = entry(path)
        except FileNotFoundError:
            continue  # removed while we were listing
        entries.append(found)
        if len(entries) > MAX_ENTRIES:
            raise RpcError(
                "resource_exhausted", f"the listing has more than {MAX_ENTRIES} entries: ask for less depth"
            )
        if depth > 1 and found["type"] == "FILE_TYPE_DIRECTORY" and not found.get("isSymlink"):
            try:
                _collect(path, depth - 1, entries)
            except PermissionError:
                continue
