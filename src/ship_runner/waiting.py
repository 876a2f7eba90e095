"""A runner that waits, with all that it needs loaded, for the one that is started: that one only hands its work over.

Loading takes longer than all else that a runner does until its repository is cloned. The process that was started, whose output and
whose end its host knows, stays: it ends as the one does that works, and that one ends with it.
"""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from ship_runner.lock import AlreadyRunning, hold_state

_SOCKET = "waiting.sock"
_OUTPUTS = (0, 1, 2)
_MESSAGE_BYTES = 1 << 20


def find(state: Path) -> socket.socket | None:
    """A connection to the runner that waits here, if one does."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.connect(str(state / _SOCKET))
    except OSError:
        link.close()
        return None
    return link


def hand_over(link: socket.socket) -> int:
    """Have it work in this process's place, with its environment, folder and outputs; its exit status when it has ended."""
    with link:
        work = json.dumps({"environment": dict(os.environ), "folder": str(Path.cwd())}) + "\n"
        try:
            socket.send_fds(link, [work.encode()], _OUTPUTS)
            status = link.recv(1)
        except OSError:
            status = b""
        return status[0] if status else 1


def wait(state: Path, work: Callable[[], int]) -> int:
    """Wait for a runner to be started, and do its work; 0 when one works here already. ``work`` is called in its environment."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = state / _SOCKET
    with listener:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(1)
        # Whoever starts takes the state first and looks for us then: either it finds us, or we see it.
        try:
            hold_state(state).close()
        except AlreadyRunning:
            path.unlink(missing_ok=True)
            return 0
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
    return True


def _end_with(link: socket.socket) -> None:
    """End when the other end does: two runners must never work in one sandbox."""
    with contextlib.suppress(OSError):
        link.recv(1)
    os._exit(1)
