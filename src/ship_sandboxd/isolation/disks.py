"""The disk of a sandbox: what it has written, and a bound on how much.

    folder/disk.img     a sparse ext4 image as large as the sandbox may use, on a loop device while anyone uses it
    folder/disk/        the same as a plain folder, without a bound, where this machine offers no loop devices

Both hold `upper/`, what the sandbox changed below its root, and `work/`, the kernel's own. Everything in them belongs
to `STORAGE_UID`. A loop device is released by the kernel with its last user, so whatever dies leaves none behind.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from .. import durable
from ..errors import program_failed
from ..pids import ProcessIdentity
from . import mounts

STORAGE_UID = 199_998
MOUNT_OPTIONS = "noinit_itable,discard"
MOUNT_FLAGS = mounts.NOSUID | mounts.NODEV | mounts.NOATIME
IMAGE, _FOLDER = "disk.img", "disk"
_BLANKS = "disks"
_LEAST_MB = 64
_MAX_BLANKS = 16
_FORMAT = 1
_CONTROL = "/dev/loop-control"
_GET_FREE, _CONFIGURE, _GET_STATUS = 0x4C82, 0x4C0A, 0x4C05
_AUTOCLEAR = 4
_LOOP_MAJOR = 7
_SHUT_DOWN, _WITHOUT_WRITING = 0x8004587D, struct.pack("I", 2)  # EXT4_IOC_SHUTDOWN
_INFO = struct.Struct("QQQQQIIII64s64s32sQQ")  # struct loop_info64 of linux/loop.h
_CONFIG_HEAD = struct.Struct("II")
_CONFIG_TAIL = bytes(64)
_BLOCK_BYTES = 4096


class Disks:
    """Makes disks and opens them. `data` keeps an empty disk of each of the sizes that were used last; `points` is a folder to mount on, in a mount
    namespace of this process's own; None when nothing can be mounted."""

    def __init__(self, data: Path, points: Path | None, *, limited: bool) -> None:
        self._blanks = data / _BLANKS
        self._points = points
        self._count = 0
        self._devices: dict[str, str] = {}
        self.limited = limited

    async def get_ready(self, folder: Path, disk_mb: int) -> None:
        """Make what `create` copies, if there is need of it, in a thread: a large one takes its time. A failure shows in
        `create`."""
        if self.limited and not (folder / IMAGE).exists():
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._blank, disk_mb)

    def create(self, folder: Path, disk_mb: int) -> None:
        """Give a sandbox's folder a disk, unless it has one. Raises OSError, and then there is none."""
        if self.made(folder):
            return
        image = folder / IMAGE
        if not self.limited:
            _make_folder(folder / _FOLDER)
            return
        scratch = folder / f"{IMAGE}.new"
        try:
            _copy_sparsely(self._blank(disk_mb), scratch)
            scratch.replace(image)
        finally:
            scratch.unlink(missing_ok=True)
        self._devices[folder.name] = ""

    def made(self, folder: Path) -> bool:
        """Whether a sandbox's folder has a disk."""
        return (folder / IMAGE).exists() or (folder / _FOLDER).exists()

    @contextmanager
    def device(self, folder: Path) -> Iterator[int | None]:
        """The disk's loop device, held for as long as this is entered; None for a disk that is a folder."""
        image = folder / IMAGE
        if not image.exists():
            yield None
            return
        fd = self._held(image)
        try:
            yield fd
        finally:
            os.close(fd)

    def _held(self, image: Path) -> int:
        """The loop device on this image. There must never be two: only this process attaches one, so what it has
        attached last is the one, or there is none; and what an earlier process did, the machine tells."""
        known = self._devices.get(image.parent.name)
        if known is None:
            known = _find(image)
        if known:
            fd = os.open(known, os.O_RDWR | os.O_CLOEXEC)
            if _holds(fd, image):
                self._devices[image.parent.name] = known
                return fd
            os.close(fd)
        fd, self._devices[image.parent.name] = _attach(image)
        return fd

    def forget(self, folder: str) -> None:
        """Keep nothing in mind about the disk of a sandbox that has ended."""
        self._devices.pop(folder, None)

    @asynccontextmanager
    async def opened(self, folder: Path) -> AsyncIterator[Path]:
        """The folder that holds `upper`, also while the sandbox runs. What is written there is the caller's to own:
        give it to `STORAGE_UID`. Raises OSError."""
        with self.device(folder) as device:
            if device is None:
                yield folder / _FOLDER
                return
            assert self._points is not None, "an image without a place to mount it"
            self._count += 1
            point = self._points / f"disk-{self._count}"
            opening = asyncio.create_task(asyncio.to_thread(_open, device, point))
            try:
                await asyncio.shield(opening)
                yield point
            finally:
                # A thread goes on when nobody waits for it any more: what it has mounted by then has to go.
                await asyncio.wait({opening})
                if opening.exception() is None:
                    await asyncio.shield(asyncio.to_thread(_close, point))

    def abandon(self, folder: Path, holder: ProcessIdentity) -> None:
        """Let nothing more be written to a disk that nobody wants: unmounting it would write all that is in memory.
        `holder` is a process in whose mount namespace it is mounted."""
        with contextlib.suppress(OSError):  # it is not there, or is a folder: then there is nothing to save
            there = os.open(
                f"/proc/{holder.pid}/root{self._points}/disk", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            )
            try:
                if holder.alive and self._lies_on(there, folder / IMAGE):
                    fcntl.ioctl(there, _SHUT_DOWN, _WITHOUT_WRITING)
            finally:
                os.close(there)

    def _lies_on(self, mounted: int, image: Path) -> bool:
        device = os.open(f"/dev/loop{os.minor(os.fstat(mounted).st_dev)}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.major(os.fstat(mounted).st_dev) == _LOOP_MAJOR and _holds(device, image)
        finally:
            os.close(device)

    async def sync(self, folder: Path) -> None:
        """Bring what the sandbox has written so far to the machine's own disk. Raises OSError."""
        async with self.opened(folder) as path:
            await asyncio.to_thread(mounts.sync, str(path))

    def _blank(self, disk_mb: int) -> Path:
        """An empty disk of at least this size, made on first use."""
        size_mb = max(disk_mb, _LEAST_MB)
        blank = self._blanks / f"ext4-{_FORMAT}-{size_mb}.img"
        try:
            os.utime(blank)  # what was used last is kept longest
        except FileNotFoundError:
            self._blanks.mkdir(mode=0o700, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=durable.HALF_MADE, dir=self._blanks) as scratch:
                made = Path(scratch, "disk.img")
                _format(made, size_mb)
                durable.sync(made)  # one that a power cut has spoilt would be copied again and again
                made.replace(blank)
            self._forget_blanks()
        return blank

    def _forget_blanks(self) -> None:
        """Sizes are of the callers' choice: keep those that were used last."""
        blanks = sorted(self._blanks.glob("*.img"), key=lambda path: path.stat().st_mtime_ns)
        for blank in blanks[:-_MAX_BLANKS]:
            blank.unlink(missing_ok=True)


def mount(device: int, target: str) -> None:
    """Mount a disk's device. Raises OSError."""
    mounts.mount(f"/proc/self/fd/{device}", target, "ext4", MOUNT_FLAGS, MOUNT_OPTIONS)


def _open(device: int, point: Path) -> None:
    point.mkdir(mode=0o700)
    try:
        mount(device, str(point))
    except OSError:
        point.rmdir()
        raise


def _close(point: Path) -> None:
    mounts.unmount(str(point))
    point.rmdir()


def _attach(image: Path) -> tuple[int, str]:
    """A loop device for this image: its descriptor and its path."""
    with image.open("r+b") as file:
        info = _INFO.pack(*[0] * 8, _AUTOCLEAR, os.fsencode(image)[-63:], b"", b"", 0, 0)
        config = _CONFIG_HEAD.pack(file.fileno(), _BLOCK_BYTES) + info + _CONFIG_TAIL
        while True:
            path = f"/dev/loop{_free_number()}"
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # another process was faster
                    raise
            else:
                return device, path


def _find(image: Path) -> str:
    """The path of the loop device on this image; empty when there is none."""
    for device in Path("/sys/block").glob("loop*"):
        with contextlib.suppress(OSError):  # one that nobody uses has no such file
            if (device / "loop/backing_file").read_text().rstrip("\n") == str(image):
                return f"/dev/{device.name}"
    return ""


def _holds(device: int, image: Path) -> bool:
    wanted = image.stat()
    try:
        status = _INFO.unpack(fcntl.ioctl(device, _GET_STATUS, bytes(_INFO.size)))
    except OSError:
        return False
    return (status[0], status[1]) == (wanted.st_dev, wanted.st_ino)


def _free_number() -> int:
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(control, _GET_FREE)
    finally:
        os.close(control)


def _format(image: Path, disk_mb: int) -> None:
    """Make an empty disk. Its inode tables are left for later, so that it takes no room. Raises OSError."""
    program = shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise OSError(errno.ENOENT, "mkfs.ext4 is missing: install the package e2fsprogs")
    content = image.with_name(image.name + ".content")
    _make_folder(content)
    try:
        with image.open("wb") as file:
            file.truncate(disk_mb * 1024 * 1024)
        options = ["-q", "-F", "-b", str(_BLOCK_BYTES), "-m", "0", "-J", "size=16", "-O", "^resize_inode"]
        lazy = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,packed_meta_blocks=1,root_owner=0:0"
        done = subprocess.run(
            [program, *options, "-E", lazy, "-d", str(content), str(image)],
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise program_failed("mkfs.ext4 failed", done.stderr)
    finally:
        shutil.rmtree(content)


def _make_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    for name in ("upper", "work"):
        (folder / name).mkdir(mode=0o755)
        os.chown(folder / name, STORAGE_UID, STORAGE_UID)


def _copy_sparsely(source: Path, target: Path) -> None:
    with source.open("rb") as there, target.open("wb") as here:
        os.fchmod(here.fileno(), 0o600)
        here.truncate(os.fstat(there.fileno()).st_size)
        start = 0
        while True:
            try:
                start = os.lseek(there.fileno(), start, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return  # there is no more data
            end = os.lseek(there.fileno(), start, os.SEEK_HOLE)
            while start < end:
                start += os.copy_file_range(there.fileno(), here.fileno(), end - start, start, start)
