"""Keeps the runner alive: starts it as a child, and again whenever it dies."""

import ctypes
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_SLOWEST_RESTART_S = 10.0
_STEADY_S = 30.0
_ENDING = frozenset({signal.SIGTERM, signal.SIGINT})
_SIGNALS = _ENDING | {signal.SIGCHLD}


def keep(child: Callable[[], int]) -> int:
    """Run ``child`` in a process of its own, and again until it ends with 0; 128 + the signal when SIGTERM or SIGINT came.

    A child that dies at once again and again is started more and more slowly. The child ends with its keeper.
    """
    # Blocked and waited for, never handled: a handler could miss the moment before the wait.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    pause = 0.0
    while True:
        started = time.monotonic()
        status = _run(child)
        if status == 0 or status > 128:
            return status
        pause = (
            0.1 if time.monotonic() - started > _STEADY_S else min(_SLOWEST_RESTART_S, max(0.1, pause * 2))
        )
        log.error("the runner ended with status %d; starting it again in %.1f s", status, pause)
        if ended := signal.sigtimedwait(_ENDING, pause):
            return 128 + ended.si_signo


def _run(child: Callable[[], int]) -> int:
    """The child's status; negative when a signal ended it, 128 + the signal when one was for us."""
    keeper = os.getpid()
    pid = os.fork()
    if pid == 0:
        _be_child(child, keeper)
    while True:
        number = signal.sigwait(_SIGNALS)
        if number in _ENDING:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return 128 + number
        ended, encoded = os.waitpid(pid, os.WNOHANG)
        if ended:
            return min(os.waitstatus_to_exitcode(encoded), 1)


def _be_child(child: Callable[[], int], keeper: int) -> NoReturn:
    status = 1
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        _die_with(keeper)
        status = child()
    except (
        BaseException
    ):  # the edge of a process: whatever it was is written down, and the keeper tries again
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _die_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends: two runners must never work in one sandbox."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
