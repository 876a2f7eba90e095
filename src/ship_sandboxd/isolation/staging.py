"""The place where this host mounts things, in a mount namespace of its own: nothing of it shows in the rest of the
machine, and it is gone with the host.

The processes that become sandboxes take their own namespaces from it (see forkserver.py), and mount at the same place
what bubblewrap must reach: it runs as the sandbox's uid, which cannot walk into a data folder that only root may read.
"""

from pathlib import Path

from ..errors import SetupError
from . import mounts


def enter(folder: Path) -> str:
    """Make the place; to be called once, before any thread is started: the namespace is that of the thread. Raises
    SetupError `mount_namespace_refused`."""
    folder.mkdir(mode=0o755, exist_ok=True)
    try:
        mounts.own_namespace()
        mounts.mount("tmpfs", str(folder), "tmpfs", mounts.NOSUID | mounts.NODEV, "mode=0755,size=1m")
    except OSError as error:
        raise SetupError(
            f"cannot make a mount namespace ({error.strerror}): run the sandbox host as an ordinary user, "
            "or as root with CAP_SYS_ADMIN",
            "mount_namespace_refused",
        ) from error
    return str(folder)
