"""A runner that waits, with all that it needs loaded, for the one that is started: that one only hands its work over.

Loading takes longer than all else that a runner does until its repository is cloned. The process that was started, whose output and
whose end its host knows, stays: it ends as the one does that works, and that one ends with it.
"""

import contextlib
import json
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from ship_runner.lock import AlreadyRunning, hold_state

TAKEN_ON_S = 10.0
"""How long one that waits may take to say that it works; it may still be loading."""
_SOCKET = "waiting.sock"
_OUTPUTS = (0, 1, 2)
_MESSAGE_BYTES = 1 << 20
_TAKEN_ON = b"+"


def find(state: Path) -> socket.socket | None:
    """A connection to the runner that waits here, if one does."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.settimeout(TAKEN_ON_S)
    try:
        link.connect(str(state / _SOCKET))
    except OSError:
        link.close()
        return None
    return link


def hand_over(link: socket.socket) -> int | None:
    """Have it work in this process's place, with its environment, folder and outputs; its exit status when it has ended. None when it
    does not take the work on; then it is no more."""
    with link:
        work = json.dumps({"environment": dict(os.environ), "folder": str(Path.cwd())}) + "\n"
        try:
            socket.send_fds(link, [work.encode()], _OUTPUTS)
            if link.recv(1) != _TAKEN_ON:
                return None
        except TimeoutError:
            _end(link)
            return None
        except OSError:
            return None
        link.settimeout(None)
        with contextlib.suppress(OSError):
            if status := link.recv(1):
                return status[0]
        return 1


def _end(link: socket.socket) -> None:
    """End the process at the other end."""
    pid, _, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def wait(state: Path, load: Callable[[], None], work: Callable[[], int]) -> int:
    """Wait for a runner to be started, and do its work; 0 when one works or waits here already. ``work`` is called in its environment,
    after ``load``."""
    try:
        lock = hold_state(state)
    except AlreadyRunning:
        return 0
    # The state is ours from now on, so whoever starts looks for our socket, and nobody else makes one.
    path = state / _SOCKET
    with lock:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            listener.listen(1)
            load()
            link, _ = listener.accept()
            path.unlink(missing_ok=True)
        with link:
            if not _take(link):
                return 1
            threading.Thread(target=_end_with, args=(link,), daemon=True).start()
            status = work()
            with contextlib.suppress(OSError):
                link.send(bytes([status]))
            return status


def _take(link: socket.socket) -> bool:
    """Become what the other end was started as; whether it has said all of that."""
    message, outputs, _, _ = socket.recv_fds(link, _MESSAGE_BYTES, len(_OUTPUTS))
    while message and not message.endswith(b"\n"):
        piece = link.recv(_MESSAGE_BYTES)
        message = message + piece if piece else b""
    if not message or len(outputs) != len(_OUTPUTS):
        return False
    for theirs, ours in zip(outputs, _OUTPUTS, strict=True):
        os.dup2(theirs, ours)
        os.close(theirs)
    said = json.loads(message)
    os.environ.clear()
    os.environ.update(said["environment"])
    os.chdir(said["folder"])
    link.send(_TAKEN_ON)
    return True


def _end_with(link: socket.socket) -> None:
    """End when the other end does: two runners must never work in one sandbox."""
    with contextlib.suppress(OSError):
        link.recv(1)
    os._exit(1)
