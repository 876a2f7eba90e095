"""The sockets in a sandbox's network namespace that lead out of it. Its daemon opens them and hands them over, so that
they stay, and what comes waits in their backlogs, while the host is restarted."""

import contextlib
import os
import socket
from dataclasses import dataclass

from ..errors import LaunchFailed

PROXY_PORT = 3128
REDIRECTED_PORT = 3129
NAMES_PORT = 3153
OPENED: tuple[tuple[str, int], ...] = (
    ("tcp", PROXY_PORT),
    ("tcp", REDIRECTED_PORT),
    ("tcp", NAMES_PORT),
    ("udp", NAMES_PORT),
)
"""What the daemon opens on the sandbox's 127.0.0.1, in the order in which it hands them over."""

_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


@dataclass(frozen=True)
class Listeners:
    """`proxy` takes requests to a proxy, `redirected` connections that were meant for elsewhere, `names` and `names_udp`
    questions to a name server. A sandbox that an older host has started has only the first."""

    proxy: socket.socket
    redirected: socket.socket | None = None
    names: socket.socket | None = None
    names_udp: socket.socket | None = None

    @classmethod
    def of(cls, descriptors: list[int]) -> "Listeners":
        """Descriptors that came out of a sandbox, once they have proved to be what they should be; else they are
        closed. Raises LaunchFailed."""
        sockets: list[socket.socket] = []
        try:
            if len(descriptors) not in (1, len(OPENED)):
                raise LaunchFailed("the sandbox did not hand over its listeners")
            for (kind, _), descriptor in zip(OPENED, descriptors, strict=False):
                sockets.append(_checked(descriptor, kind))
        except LaunchFailed:
            for item in sockets:
                item.close()
            for descriptor in descriptors[len(sockets) :]:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
            raise
        return cls(*sockets)

    @classmethod
    def opened(cls, proxy: socket.socket) -> "Listeners":
        """`proxy`, which is closed where this raises OSError, and the others, opened in the network namespace of the thread
        that asks."""
        with contextlib.ExitStack() as opened:
            sockets = [opened.enter_context(proxy)]
            for kind, port in OPENED[1:]:
                listener = opened.enter_context(socket.socket(socket.AF_INET, _KINDS[kind]))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(("", port))
                if kind == "tcp":
                    listener.listen(128)
                listener.setblocking(False)
                sockets.append(listener)
            opened.pop_all()
        return cls(*sockets)

    def close(self) -> None:
        for item in (self.proxy, self.redirected, self.names, self.names_udp):
            if item is not None:
                item.close()


def _checked(descriptor: int, kind: str) -> socket.socket:
    """The socket behind a descriptor, which stays open where this raises LaunchFailed."""
    listener = None
    try:
        listener = socket.socket(fileno=descriptor)
        fits = listener.family == socket.AF_INET and listener.type == _KINDS[kind]
        if kind == "tcp":
            fits = fits and bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError as error:
        if listener is not None:
            listener.detach()
        raise LaunchFailed("the sandbox handed over something else than a socket") from error
    if not fits:
        listener.detach()
        raise LaunchFailed("the sandbox handed over something else than its listeners")
    listener.setblocking(False)
    return listener
