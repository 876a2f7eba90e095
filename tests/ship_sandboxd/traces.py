"""What sandboxes leave behind, if they leave anything: where a leak would show."""

import contextlib
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from conftest import Host


@dataclass(frozen=True)
class Traces:
    """Counted for one host: its children and those of its fork server, its mounts, its loop devices and its sockets."""

    children: int = 1  # the fork server
    launched: int = 0
    devices: int = 0
    mounts: int = 0
    sockets: int = 0


def of(host: Host) -> Traces:
    assert host.process is not None
    proc = Path("/proc") / str(host.process.pid)
    children = _children(host.process.pid)
    return Traces(
        children=len(children),
        launched=sum(len(_children(pid)) for pid in children),
        devices=sum(str(host.data) in file for file in _loop_files()),
        mounts=sum("/run/ship-sandboxd/" in line for line in (proc / "mounts").read_text().splitlines()),
        sockets=sum(str(host.data) in line for line in Path("/proc/net/unix").read_text().splitlines()),
    )


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def processes(uids: set[int], names: set[str]) -> list[str]:
    """Processes that run as one of the uids, or have one of the names in their command line. Another host of this machine
    may have given the same uid to a sandbox of its own: that one's are not meant."""
    listed = subprocess.run(["ps", "-eo", "pid=,uid=,args="], capture_output=True, text=True, check=True)
    found = []
    for line in listed.stdout.splitlines():
        pid, uid, *words = line.split()
        if names & set(words) or (int(uid) in uids and not _is_of_others(pid, names)):
            found.append(line)
    return found


def _is_of_others(pid: str, names: set[str]) -> bool:
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text()
    except FileNotFoundError:
        return True  # it has just ended
    return bool(set(re.findall(r"/ship-sandboxd/(\w+)", groups)) - names)


def groups(names: set[str]) -> list[str]:
    """Control groups of these sandboxes, in any hierarchy."""
    return [
        str(folder)
        for parent in Path("/sys/fs/cgroup").rglob("ship-sandboxd")
        for folder in parent.iterdir()
        if folder.name in names
    ]


def fork_server(host: Host) -> int:
    assert host.process is not None
    return min(_children(host.process.pid))


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []  # it has just ended


def _loop_files() -> list[str]:
    """The files that loop devices of this machine lie on."""
    files = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # just released
            files.append(path.read_text())
    return files
