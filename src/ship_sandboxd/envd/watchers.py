"""`filesystem.Filesystem`, its watching half: what changes below a folder, as a stream or kept until it is asked for.

One inotify descriptor serves all watchers. It is read, and folders are walked, in a thread, as a slow disk must not
stop the daemon; a lock holds the tables together.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from .account import Account
from .filesystem import entry, rpc_error
from .rpc import Call, Message, RpcError

if TYPE_CHECKING:
    from .inotify import Change, Inotify

MAX_WATCHERS = 8192
MAX_FOLDERS = 65_536
MAX_KEPT = 4096
MAX_KEPT_IN_ALL = 65_536
_READS = 64  # bounds one turn, so that a busy writer cannot keep a thread here
_VANISHED = (FileNotFoundError, NotADirectoryError, PermissionError)
_Result = TypeVar("_Result")


class Watcher:
    """One watched folder: the inotify watches of it and of what is below, and the events that nobody has taken yet."""

    def __init__(self, path: str, recursive: bool, include_entry: bool) -> None:
        self.path = path
        self.recursive = recursive
        self.include_entry = include_entry
        self.folders: dict[int, str] = {}
        self.moving: tuple[int, str] | None = None
        self.events: list[Message] = []
        self.lost = False
        self.changed = asyncio.Event()


class Watchers:
    """The four methods of the service that watch."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._lock = threading.Lock()
        self._inotify: Inotify | None = None
        self._loop: asyncio.AbstractEventLoop
        self._watchers: set[Watcher] = set()
        self._watched: dict[int, set[Watcher]] = {}
        self._by_id: dict[str, Watcher] = {}
        self._kept = 0

    async def create(self, call: Call, message: Message) -> Message:
        """Watch from now on and keep the events for `take`."""
        watcher = await self._begin(call, message)
        watcher_id = os.urandom(16).hex()
        self._by_id[watcher_id] = watcher
        return {"watcherId": watcher_id}

    async def take(self, call: Call, message: Message) -> Message:
        """The events since the last call. Fails once with `resource_exhausted` when some of them were lost."""
        watcher = self._select(message)
        return {"events": await self._in_thread(lambda: self._take(watcher))}

    async def remove(self, call: Call, message: Message) -> Message:
        watcher = self._select(message)
        del self._by_id[str(message["watcherId"])]
        await self._in_thread(lambda: self._end(watcher))
        return {}

    async def watch(self, call: Call, message: Message) -> AsyncGenerator[Message, None]:
        """Stream the events as they come. Ends with `resource_exhausted` when some of them were lost."""
        deadline = time.monotonic() + call.timeout_s if call.timeout_s is not None else None
        watcher = await self._begin(call, message)
        try:
            yield {"start": {}}
            while True:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise RpcError("deadline_exceeded", "the stream reached its timeout")
                wait_s = call.keepalive_s if left is None else min(left, call.keepalive_s)
                try:
                    await asyncio.wait_for(watcher.changed.wait(), wait_s)
                except asyncio.TimeoutError:
                    yield {"keepalive": {}}
                    continue
                watcher.changed.clear()
                for event in await self._in_thread(lambda: self._take(watcher)):
                    yield {"filesystem": event}
        finally:
            await self._in_thread(lambda: self._end(watcher))

    def _select(self, message: Message) -> Watcher:
        watcher = self._by_id.get(str(message.get("watcherId")))
        if watcher is None:
            raise RpcError("not_found", f"watcher with id {message.get('watcherId')} not found")
        return watcher

    async def _begin(self, call: Call, message: Message) -> Watcher:
        user = self._account.require(call.username)
        path = self._account.path(str(message.get("path") or ""), user)
        watcher = Watcher(path, bool(message.get("recursive")), bool(message.get("includeEntry")))
        if len(self._watchers) >= MAX_WATCHERS:
            raise RpcError("resource_exhausted", f"there are {MAX_WATCHERS} watchers already: remove some")
        self._open()
        self._watchers.add(watcher)
        try:
            await self._in_thread(lambda: self._follow_root(watcher))
        except BaseException:
            await self._in_thread(lambda: self._end(watcher))
            raise
        return watcher

    def _open(self) -> None:
        if self._inotify is None:
            from .inotify import (
                Inotify,
            )  # ctypes takes milliseconds to load, and most sandboxes watch nothing

            try:
                self._inotify = Inotify()
            except OSError as error:
                raise _watch_error(error) from error
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._inotify.fd, self._readable)

    def _readable(self) -> None:
        """Something has changed: read it in a thread, and listen again when that is done."""
        assert self._inotify is not None
        self._loop.remove_reader(self._inotify.fd)
        self._loop.create_task(self._in_thread(self._read)).add_done_callback(self._has_read)

    def _has_read(self, reading: asyncio.Task[None]) -> None:
        assert self._inotify is not None
        self._loop.add_reader(self._inotify.fd, self._readable)
        reading.result()

    async def _in_thread(self, function: Callable[[], _Result]) -> _Result:
        """Run one of the methods below, which all need the lock."""

        def locked() -> _Result:
            with self._lock:
                return function()

        return await asyncio.get_running_loop().run_in_executor(None, locked)

    def _take(self, watcher: Watcher) -> list[Message]:
        self._read(watcher)
        events, watcher.events = watcher.events, []
        self._kept -= len(events)
        if watcher.lost:
            watcher.lost = False
            raise RpcError(
                "resource_exhausted", f"changes below {watcher.path} were lost: there were too many at once"
            )
        return events

    def _end(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)
        self._kept -= len(watcher.events)
        watcher.events = []
        self._unfollow(watcher, "")

    def _follow_root(self, watcher: Watcher) -> None:
        try:
            self._watch(watcher, "")
        except FileNotFoundError:
            raise RpcError("not_found", f"path {watcher.path} not found") from None
        except NotADirectoryError:
            raise RpcError("invalid_argument", f"path {watcher.path} is not a directory") from None
        except OSError as error:
            raise _watch_error(error) from error
        if watcher.recursive:
            try:
                self._follow_below(watcher, "")
            except OSError as error:
                raise _watch_error(error) from error

    def _watch(self, watcher: Watcher, name: str) -> None:
        assert self._inotify is not None
        if len(self._watched) >= MAX_FOLDERS:
            raise OSError(errno.ENOSPC, f"more than {MAX_FOLDERS} folders")
        watch = self._inotify.watch(os.path.join(watcher.path, name), follow=not name)
        self._watched.setdefault(watch, set()).add(watcher)
        watcher.folders[watch] = name

    def _follow_below(self, watcher: Watcher, folder: str) -> list[str]:
        """Watch every folder below one that is watched; answers the names of all that is there."""
        found = []
        pending = [folder]
        while pending:
            name = pending.pop()
            with contextlib.suppress(*_VANISHED), os.scandir(os.path.join(watcher.path, name)) as items:
                for item in items:
                    below = os.path.join(name, item.name)
                    found.append(below)
                    if item.is_dir(follow_symlinks=False):
                        with contextlib.suppress(*_VANISHED):
                            self._watch(watcher, below)
                            pending.append(below)
        return found

    def _unfollow(self, watcher: Watcher, folder: str) -> None:
        for watch, name in list(watcher.folders.items()):
            if not folder or name == folder or name.startswith(f"{folder}/"):
                self._unwatch(watcher, watch)

    def _unwatch(self, watcher: Watcher, watch: int) -> None:
        del watcher.folders[watch]
        others = self._watched[watch]
        others.discard(watcher)
        if not others:
            del self._watched[watch]
            if self._inotify is not None:
                self._inotify.forget(watch)

    def _read(self, taker: Watcher | None = None) -> None:
        """Read what has changed, and wake the watchers that it concerns, but for the one whose events are about to be taken."""
        assert self._inotify is not None
        concerned: set[Watcher] = set()
        for _ in range(_READS):
            changes = list(self._inotify.read())
            for change in changes:
                concerned |= self._spread(change)
            if not changes:
                break
        for watcher in concerned:
            self._finish_move(watcher)
        self._loop.call_soon_threadsafe(_wake, concerned - {taker})

    def _spread(self, change: Change) -> set[Watcher]:
        from .inotify import OVERFLOW

        if change.mask & OVERFLOW:
            for watcher in self._watchers:
                self._lose(watcher)
            return set(self._watchers)
        watchers = set(self._watched.get(change.watch, ()))
        for watcher in watchers:
            self._tell(watcher, change)
        return watchers

    def _tell(self, watcher: Watcher, change: Change) -> None:
        from . import inotify

        folder = watcher.folders[change.watch]
        name = os.path.join(folder, change.name) if change.name else folder
        if change.mask & inotify.IGNORED:
            self._unwatch(watcher, change.watch)
            return
        if not change.name and folder:
            return  # the folder above tells it, too
        is_new = change.mask & (inotify.CREATE | inotify.MOVED_TO)
        self._keep(watcher, name or ".", _event_type(change.mask))
        if watcher.recursive and change.mask & inotify.IS_FOLDER and change.name:
            if change.mask & inotify.MOVED_FROM:
                self._finish_move(watcher)
                watcher.moving = (change.cookie, name)
            elif is_new:
                self._follow_new(watcher, change, name)

    def _follow_new(self, watcher: Watcher, change: Change, name: str) -> None:
        if watcher.moving is not None and watcher.moving[0] == change.cookie:
            self._rename(watcher, watcher.moving[1], name)
            watcher.moving = None
            return
        try:
            self._watch(watcher, name)
            found = self._follow_below(watcher, name)
        except _VANISHED:
            return
        except OSError:
            self._lose(watcher)  # what happens in there cannot be seen
            return
        if not change.cookie:
            for below in found:  # it came before we could look
                self._keep(watcher, below, "EVENT_TYPE_CREATE")
                if _has_content(os.path.join(watcher.path, below)):
                    self._keep(watcher, below, "EVENT_TYPE_WRITE")

    def _rename(self, watcher: Watcher, old: str, new: str) -> None:
        for watch, name in watcher.folders.items():
            if name == old or name.startswith(f"{old}/"):
                watcher.folders[watch] = new + name[len(old) :]

    def _finish_move(self, watcher: Watcher) -> None:
        """A folder that was moved away and did not come back is none of ours any more."""
        if watcher.moving is not None:
            self._unfollow(watcher, watcher.moving[1])
            watcher.moving = None

    def _keep(self, watcher: Watcher, name: str, kind: str) -> None:
        if watcher.lost:
            return
        if len(watcher.events) >= MAX_KEPT or self._kept >= MAX_KEPT_IN_ALL:
            self._lose(watcher)
            return
        event: Message = {"name": name, "type": kind}
        if watcher.include_entry:
            with contextlib.suppress(OSError):  # it is gone again
                event["entry"] = entry(os.path.normpath(os.path.join(watcher.path, name)))
        watcher.events.append(event)
        self._kept += 1

    def _lose(self, watcher: Watcher) -> None:
        self._kept -= len(watcher.events)
        watcher.events = []
        watcher.lost = True


def _wake(watchers: Iterable[Watcher]) -> None:
    for watcher in watchers:
        watcher.changed.set()


def _event_type(mask: int) -> str:
    from . import inotify

    if mask & (inotify.CREATE | inotify.MOVED_TO):
        return "EVENT_TYPE_CREATE"
    if mask & (inotify.DELETE | inotify.DELETE_SELF):
        return "EVENT_TYPE_REMOVE"
    if mask & (inotify.MOVED_FROM | inotify.MOVE_SELF):
        return "EVENT_TYPE_RENAME"
    return "EVENT_TYPE_WRITE" if mask & inotify.MODIFY else "EVENT_TYPE_CHMOD"


def _has_content(path: str) -> bool:
    try:
        return os.path.isfile(path) and os.path.getsize(path) > 0
    except OSError:
        return False


def _watch_error(error: OSError) -> RpcError:
    if error.errno in (errno.ENOSPC, errno.EMFILE, errno.ENFILE):
        return RpcError("resource_exhausted", f"no more folders can be watched: {error.strerror}")
    return rpc_error(error)
