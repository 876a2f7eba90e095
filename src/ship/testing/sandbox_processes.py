"""The processes of a sandbox, looked up from outside."""

from pathlib import Path

RUNNER = b"/opt/ship/lib/python"
"""What keepers and runners name in their arguments."""


def processes_in(sandbox_id: str) -> dict[str, int]:
    """The pids, outside, of its ``agent``, its ``runner``, that one's ``keeper``, and of the ``sandbox``: the daemon, whose end ends
    all others. What is not there is left out."""
    needle = f"E2B_SANDBOX_ID={sandbox_id}".encode()
    found: dict[str, int] = {}
    waiting = 0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            above = Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if needle not in environment:
            continue
        pid = int(folder.name)
        if arguments[0].endswith(b"opencode"):
            found["agent"] = pid
        elif RUNNER in arguments and b"wait" in arguments:
            waiting = pid
        elif RUNNER in arguments and not {b"mcp", b"stand-by"} & {*arguments}:
            # The keeper's parent is the sandbox's own daemon, the runner's is the keeper.
            if RUNNER in above:
                found["runner"] = pid
            else:
                found |= {"keeper": pid, "sandbox": parent}
    # It works in that one's place, unless it is about to go because that one works.
    if waiting and "runner" in found and _holds_a_lock(waiting):
        found["runner"] = waiting
    return found


def _holds_a_lock(pid: int) -> bool:
    """Whether the kernel knows a lock on a file that this process holds, as a runner at work does."""
    locks = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return any(words[1] == "FLOCK" and words[4] == str(pid) for words in locks)
