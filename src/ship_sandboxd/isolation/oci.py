"""What an OCI runtime reads of a sandbox: `config.json` in its bundle.

Source: Open Container Initiative, runtime specification 1.0.2.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import layout

INSIDE_ID = 1000
# The root of a sandbox's user namespace is an id of the machine that owns nothing, another one for each sandbox.
ROOT_OFFSET = 100_000
_CAPABILITY_SETS = ("bounding", "effective", "inheritable", "permitted", "ambient")
_NAMESPACES = ("pid", "ipc", "uts", "mount", "user")


def write_config(
    bundle: Path,
    root: str,
    mounts: Sequence[tuple[str, str, str]],
    command: Sequence[str],
    uid: int,
    limits: dict[str, int],
    network: str = "",
) -> None:
    """Write it. The command runs as `user` without a capability, and no other user than this and `uid` exists in the
    sandbox or outside. `mounts` are folders of the root that need a mount of their own, (folder, where it shows, `ro` or `rw`); `limits` go by
    the names of rlimits; `network` is the path of a network namespace, of a new one if it is empty."""
    ids = [
        {"containerID": 0, "hostID": uid + ROOT_OFFSET, "size": 1},
        {"containerID": INSIDE_ID, "hostID": uid, "size": 1},
    ]
    config: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "hostname": layout.HOSTNAME,
        "root": {"path": root, "readonly": False},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]},  # noqa: S108 (the sandbox's own)
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
            *(_bind(root + folder, place, mode) for folder, place, mode in mounts),
        ],
        "process": {
            "terminal": False,
            "user": {"uid": INSIDE_ID, "gid": INSIDE_ID},
            "args": list(command),
            "env": [],
            "cwd": "/home/user",
            "capabilities": {name: [] for name in _CAPABILITY_SETS},
            "noNewPrivileges": True,
            "rlimits": [{"type": name, "hard": limit, "soft": limit} for name, limit in limits.items()],
        },
        "linux": {
            "namespaces": [
                *({"type": kind} for kind in _NAMESPACES),
                {"type": "network", **({"path": network} if network else {})},
            ],
            "uidMappings": ids,
            "gidMappings": ids,
        },
    }
    bundle.mkdir(mode=0o700, exist_ok=True)
    (bundle / "config.json").write_text(json.dumps(config))


def _bind(source: str, place: str, mode: str) -> dict[str, Any]:
    return {
        "destination": place,
        "type": "bind",
        "source": source,
        "options": ["rbind", mode, "nosuid", "nodev"],
    }
