"""Layers: what one sandbox or one build has changed in a root file system, as one file named by its content.

    upper folder ── tar | zstd ──► DIGEST.tar.zst in the blob store ── zstd | tar ──► DATA/layers/DIGEST/, a lower folder

A layer keeps everything that overlayfs needs to lay it over others: owners as numbers, whiteouts, opaque folders. The
digest is the SHA-256 of the compressed file, in hexadecimal.
"""

import asyncio
import contextlib
import ctypes
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from .. import durable
from ..errors import ApiError, Unsupported
from ..moments import boot_id
from .blobs import Blobs

_PREFIX, _SUFFIX = "layers/", ".tar.zst"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_BOOT_FILE, _HOST_FILE, _SYNCED = "boot", "host", ".synced"
_PIECE_BYTES = 1024 * 1024
# A layer is stored before anything names it, and a host tells only from time to time what it needs: one that nobody
# names may be about to be named.
_GRACE_S = 24 * 3600.0
_NEEDS, _NEEDS_SUFFIX = "hosts/", ".json"
# A host that has not told what it needs for so long is gone.
_HOST_GONE_S = 30 * 24 * 3600.0
_PROGRAMS = ("tar", "zstd")
# What overlayfs notes about the file system that an upper folder was made on; it means nothing on another one.
_PLACE_BOUND = ("origin", "impure", "nlink", "upper", "uuid", "protattr")
_log = logging.getLogger("ship_sandboxd.storage.layers")


class LayerBroken(ApiError):
    """A layer that could not be packed, or whose file is not what its name promises."""

    status = 500
    code = "layer_broken"


@dataclass(frozen=True)
class Layer:
    """`size_bytes` is that of the compressed file."""

    digest: str
    size_bytes: int


class Layers:
    """The layers of this host: in the blob store for everyone, and unpacked in `folder` for its own sandboxes."""

    def __init__(self, folder: Path, blobs: Blobs) -> None:
        self._folder = folder
        self._blobs = blobs
        self._unpacking: dict[str, asyncio.Task[Path]] = {}
        self._held: dict[str, int] = {}
        self._holders: list[Callable[[], Iterable[str]]] = []
        self._syncing: set[asyncio.Task[None]] = set()
        folder.mkdir(mode=0o700, exist_ok=True)
        self._clear()

    def _clear(self) -> None:
        """Delete what an earlier process left half-made, and what a power cut may have left so."""
        boot = self._folder / _BOOT_FILE
        same_boot = boot.exists() and boot.read_text() == boot_id()
        for path in self._folder.iterdir():
            if path.is_dir():
                whole = same_boot or path.with_suffix(_SYNCED).exists()
                if not (_DIGEST.fullmatch(path.name) and whole):
                    shutil.rmtree(path)
            elif path.name != _HOST_FILE and (path.suffix != _SYNCED or not path.with_suffix("").is_dir()):
                path.unlink()
        boot.write_text(boot_id())

    def add_holder(self, holder: Callable[[], Iterable[str]]) -> None:
        """Name a function that tells which layers are needed; what no holder names is collected."""
        self._holders.append(holder)

    async def pack(self, upper: Path, once_read: Callable[[], Awaitable[None]] | None = None) -> Layer:
        """Keep the content of an overlay's upper folder as a layer.

        Nobody may write to the folder until `once_read` is called: then all of it has been read, while compressing may
        still go on. Raises LayerBroken, OSError when the disk is full, Unsupported where a program is missing.
        """
        _check_programs()
        target = self._scratch(_SUFFIX)
        try:
            digest, size_bytes = await _pack(upper, target, once_read)
            async with self.holding([digest]):
                await self._blobs.put(_key(digest), target)
        finally:
            target.unlink(missing_ok=True)
        return Layer(digest, size_bytes)

    async def add(self, file: Path) -> Layer:
        """Keep a copy of a file that is a layer already. Raises OSError."""
        target = self._scratch(_SUFFIX)
        try:
            await asyncio.to_thread(shutil.copyfile, file, target)
            digest = await asyncio.to_thread(_digest_of, target)
            size_bytes = target.stat().st_size
            async with self.holding([digest]):
                await self._blobs.put(_key(digest), target)
        finally:
            target.unlink(missing_ok=True)
        return Layer(digest, size_bytes)

    async def unpacked(self, digest: str) -> Path:
        """The folder of a layer, fetched and unpacked when it is not here yet.

        Raises LayerBroken, NotFound when no store has it, OSError when the disk is full.
        """
        if not _DIGEST.fullmatch(digest):
            raise LayerBroken(f"{digest[:80]!r} is not a layer's digest")
        folder = self._folder / digest
        if folder.is_dir():
            return folder
        task = self._unpacking.get(digest)
        if task is None:
            task = asyncio.create_task(self._unpack(digest, folder))
            self._unpacking[digest] = task
            task.add_done_callback(lambda _: self._unpacking.pop(digest, None))
        return await asyncio.shield(task)

    async def _unpack(self, digest: str, folder: Path) -> Path:
        _check_programs()
        file, scratch = self._scratch(_SUFFIX), self._scratch(".d")
        try:
            await self._blobs.fetch(_key(digest), file)
            # The whole file is checked before tar sees any of it.
            if await asyncio.to_thread(_digest_of, file) != digest:
                raise LayerBroken(f"the layer {digest} is damaged in the store: delete what was made from it")
            scratch.mkdir(mode=0o700)
            await _extract(file, scratch)
            scratch.rename(folder)
        finally:
            file.unlink(missing_ok=True)
            if scratch.exists():
                await asyncio.to_thread(shutil.rmtree, scratch)
        self._sync_later(folder)
        return folder

    def _sync_later(self, folder: Path) -> None:
        """Note when all of a layer has come to the disk: nobody has to wait for that, but before then a power cut could
        leave files of it empty."""

        async def sync() -> None:
            await asyncio.to_thread(_sync_file_system, folder)
            folder.with_suffix(_SYNCED).touch()

        task = asyncio.create_task(sync())
        self._syncing.add(task)
        task.add_done_callback(self._synced)

    def _synced(self, task: asyncio.Task[None]) -> None:
        self._syncing.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.warning("a layer could not be synced", extra={"reason": str(task.exception())})

    @asynccontextmanager
    async def holding(self, digests: Iterable[str]) -> AsyncIterator[None]:
        """Keep layers from being collected while somebody is about to name them."""
        held = list(digests)
        for digest in held:
            self._held[digest] = self._held.get(digest, 0) + 1
        try:
            yield
        finally:
            for digest in held:
                self._held[digest] -= 1
                if not self._held[digest]:
                    del self._held[digest]

    async def collect(self) -> list[str]:
        """Delete what nothing on this host needs, and from the store what no host needs; answers the digests."""
        stored = await self._blobs.keys(_PREFIX)
        needed_by_any = await self._tell_needs(self._needed())
        gone = await self._collect_unpacked()
        for key, written in stored.items():
            digest = key.removeprefix(_PREFIX).removesuffix(_SUFFIX)
            if digest not in needed_by_any and _is_old(written) and await self._delete_stored(key, digest):
                gone.append(digest)
        if gone:
            _log.info("layers collected", extra={"count": len(set(gone))})
        return sorted(set(gone))

    async def _collect_unpacked(self) -> list[str]:
        """All are put out of sight in one go: nothing can come to be needed meanwhile, or be found half-deleted."""
        needed, hidden = self._needed(), {}
        for path in list(self._folder.iterdir()):
            if _DIGEST.fullmatch(path.name) and path.name not in needed:
                path.with_suffix(_SYNCED).unlink(missing_ok=True)
                hidden[path.name] = path.rename(self._scratch(".d"))
        for scratch in hidden.values():
            await asyncio.to_thread(shutil.rmtree, scratch)
        return list(hidden)

    async def _delete_stored(self, key: str, digest: str) -> bool:
        """Delete an old blob, unless it was stored again or came to be needed since it was listed."""
        written = await self._blobs.written(key)
        if written is None or not _is_old(written) or digest in self._needed():
            return False
        await self._blobs.delete(key)
        return True

    def _needed(self) -> set[str]:
        """What this host needs at this moment."""
        named = {digest for holder in self._holders for digest in holder()}
        return named | set(self._held) | set(self._unpacking)

    async def _tell_needs(self, needed: set[str]) -> set[str]:
        """Let the other hosts on the store know; answers what any of them needs."""
        await self._blobs.write(
            f"{_NEEDS}{self._host_id()}{_NEEDS_SUFFIX}", json.dumps(sorted(needed)).encode()
        )
        found = set(needed)
        for key, written in (await self._blobs.keys(_NEEDS)).items():
            if time.time() - written > _HOST_GONE_S:
                await self._blobs.delete(key)
            else:
                found |= set(json.loads(await self._blobs.read(key)))
        return found

    def _host_id(self) -> str:
        """What tells this host from the others on the store, or they would overwrite what each other needs. A power cut may
        have left it empty before it was used."""
        path = self._folder / _HOST_FILE
        known = path.read_text() if path.exists() else ""
        if not known:
            known = secrets.token_hex(8)
            path.write_text(known)
            durable.sync(path)
        return known

    def _scratch(self, suffix: str) -> Path:
        return self._folder / f"new-{secrets.token_hex(8)}{suffix}"


def _is_old(written: float) -> bool:
    return time.time() - written > _GRACE_S


def _key(digest: str) -> str:
    return f"{_PREFIX}{digest}{_SUFFIX}"


def _check_programs() -> None:
    if os.geteuid() != 0:
        raise Unsupported("layers (snapshots, forks, builds) need a sandbox host that runs as root")
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        raise Unsupported(f"layers need the program {' and '.join(missing)}: apt install {' '.join(missing)}")


async def _pack(
    upper: Path, target: Path, once_read: Callable[[], Awaitable[None]] | None
) -> tuple[str, int]:
    words = ["tar", "--create", "--file=-", "--format=posix", "--pax-option=delete=atime,delete=ctime"]
    words += ["--numeric-owner", "--sort=name", "--sparse", "--one-file-system", "--warning=no-file-ignored"]
    words += ["--xattrs", "--xattrs-include=*"]
    words += [f"--xattrs-exclude=trusted.overlay.{name}" for name in _PLACE_BOUND]
    async with _piped([*words, "--directory", str(upper), "."], ["zstd", "-q", "-1", "-T0", "-c"]) as (
        tar,
        zstd,
    ):
        storing = asyncio.create_task(_store(zstd, target))
        try:
            tar_error = await _last_words(tar)
            if once_read is not None:
                await once_read()
            digest, size_bytes = await storing
        finally:
            storing.cancel()
            await asyncio.gather(storing, return_exceptions=True)
        zstd_error = await _last_words(zstd)
    if tar_error is not None or zstd_error is not None:
        raise LayerBroken(f"packing failed: {tar_error or zstd_error}")
    return digest, size_bytes


async def _store(zstd: asyncio.subprocess.Process, target: Path) -> tuple[str, int]:
    """Write what zstd says to a file; answers its digest and its length."""
    assert zstd.stdout is not None
    digest, size_bytes = hashlib.sha256(), 0
    with await asyncio.to_thread(target.open, "xb", 0) as file:
        while piece := await zstd.stdout.read(_PIECE_BYTES):
            digest.update(piece)
            size_bytes += len(piece)
            await asyncio.to_thread(file.write, piece)
    return digest.hexdigest(), size_bytes


async def _extract(file: Path, folder: Path) -> None:
    words = ["tar", "--extract", "--file=-", "--numeric-owner", "--same-owner", "--same-permissions"]
    words += ["--xattrs", "--xattrs-include=*", "--delay-directory-restore", "--directory", str(folder)]
    async with _piped(["zstd", "-q", "-d", "-c", str(file)], words) as (zstd, tar):
        tar_error, zstd_error = await _last_words(tar), await _last_words(zstd)
    if tar_error is not None or zstd_error is not None:
        if os.strerror(errno.ENOSPC) in f"{tar_error} {zstd_error}":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise LayerBroken(f"unpacking failed: {tar_error or zstd_error}")


Process = asyncio.subprocess.Process


@asynccontextmanager
async def _piped(first: list[str], second: list[str]) -> AsyncIterator[tuple[Process, Process]]:
    """Two programs, the output of the first being the input of the second; they are ended when this is left."""
    source, sink = os.pipe()
    started: list[Process] = []
    try:
        try:
            started.append(await _start(first, subprocess.DEVNULL, sink))
            started.append(await _start(second, source, subprocess.PIPE))
        finally:
            os.close(source)
            os.close(sink)
        yield started[0], started[1]
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        for process in started:
            # Read to the end, too: asyncio tells of a process's end only after that of its output.
            await process.communicate()


async def _start(words: list[str], stdin: int, stdout: int) -> Process:
    return await asyncio.create_subprocess_exec(
        *words, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, env={**os.environ, "LC_ALL": "C"}
    )


async def _last_words(process: Process) -> str | None:
    """Wait for a program's end; None when all went well, else the end of what it complained of."""
    assert process.stderr is not None
    kept = b""
    while piece := await process.stderr.read(4096):
        kept = (kept + piece)[-2000:]
    if await process.wait() == 0:
        return None
    return kept.decode(errors="replace").strip() or f"exit status {process.returncode}"


def _digest_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sync_file_system(path: Path) -> None:
    """Make what was written there survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(fd)


_libc = ctypes.CDLL(None, use_errno=True)
