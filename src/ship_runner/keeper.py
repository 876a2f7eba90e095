"""Keeps the runner alive: starts it as a child, and again whenever it dies."""

import ctypes
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_SLOWEST_RESTART_S = 10.0
_STEADY_S = 30.0


def keep(child: Callable[[], int]) -> int:
    """Run ``child`` in a process of its own until it ends with 0; its last status otherwise never comes.

    A child that dies at once again and again is started more and more slowly. SIGTERM and SIGINT end both.
    """
    pause = 0.0
    while True:
        started = time.monotonic()
        status = _run(child)
        if status == 0:
            return 0
        pause = (
            0.1 if time.monotonic() - started > _STEADY_S else min(_SLOWEST_RESTART_S, max(0.1, pause * 2))
        )
        log.error("the runner ended with status %d; starting it again in %.1f s", status, pause)
        time.sleep(pause)


def _run(child: Callable[[], int]) -> int:
    keeper = os.getpid()
    # Blocked so that no signal comes between the fork and the handlers that pass it on.
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            _die_with(keeper)
            status = child()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except (
            BaseException
        ):  # the edge of a process: whatever it was is written down, and the keeper tries again
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def pass_on(number: int, _frame: object) -> None:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        os._exit(128 + number)

    for number in signals:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    _, encoded = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(encoded)


def _die_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends: two runners must never work in one sandbox."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
