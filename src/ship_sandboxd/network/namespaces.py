"""Work in another network namespace than the host's own."""

import ctypes
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from ..pids import ProcessIdentity

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_T = TypeVar("_T")


def within(process: ProcessIdentity, work: Callable[[], _T]) -> _T:
    """What `work` makes of the network namespace of `process`. Raises OSError where that has ended, and what `work`
    raises of this kind."""
    return _in_a_thread(lambda: _enter(process), work)


def within_new(work: Callable[[], _T]) -> _T:
    """The same of a new one, which ends with whatever `work` opens in it. Raises OSError."""
    return _in_a_thread(lambda: _check(_libc.unshare(_CLONE_NEWNET)), work)


def obstacle(attempt: Callable[[], None]) -> OSError | None:
    """What an attempt fails of in a new one; None where it does not."""
    try:
        within_new(attempt)
    except OSError as error:
        return error
    return None


def _in_a_thread(enter: Callable[[], None], work: Callable[[], _T]) -> _T:
    """A thread of its own enters the namespace and ends there, so that nothing else ever runs in a wrong one."""
    results: list[_T] = []
    failures: list[OSError] = []

    def attempt() -> None:
        try:
            enter()
            results.append(work())
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=attempt, name="network-namespace")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def _enter(process: ProcessIdentity) -> None:
    fd = os.open(f"/proc/{process.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Checked after it was opened: the pid may have come to mean another process.
        own = os.stat("/proc/thread-self/ns/net")  # noqa: PTH116 - a file of the kernel's, which never blocks
        if not process.alive or os.path.samestat(os.fstat(fd), own):
            raise ProcessLookupError(f"process {process.pid} has no network namespace of its own")
        _check(_libc.setns(fd, _CLONE_NEWNET))
    finally:
        os.close(fd)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
