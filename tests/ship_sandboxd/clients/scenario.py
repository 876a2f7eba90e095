"""What a user of E2B's Python SDK does in a day, against the host that the environment names.

It is run by an interpreter that has one version of the SDK and nothing of ours.
"""

import asyncio
import os
import time
import urllib.request
from collections.abc import Callable

from e2b import (
    AsyncSandbox,
    CommandExitException,
    FilesystemEventType,
    PtySize,
    Sandbox,
    SandboxQuery,
    SandboxState,
)


def failure(action: Callable[[], object]) -> CommandExitException:
    try:
        action()
    except CommandExitException as error:
        return error
    raise AssertionError("a failing command was not told")


def commands(sandbox: Sandbox) -> None:
    seen: list[str] = []
    result = sandbox.commands.run("echo $A; echo err >&2", envs={"A": "ü"}, on_stdout=seen.append)
    assert (result.stdout, result.stderr, "".join(seen)) == ("ü\n", "err\n", "ü\n"), result
    assert failure(lambda: sandbox.commands.run("exit 3")).exit_code == 3
    reader = sandbox.commands.run("tee heard", background=True, stdin=True)
    sandbox.commands.send_stdin(reader.pid, "typed\n")
    sandbox.commands.run("until grep --quiet typed heard; do sleep 0.01; done")
    assert reader.pid in [process.pid for process in sandbox.commands.list()]
    again = sandbox.commands.connect(reader.pid)
    assert sandbox.commands.kill(reader.pid)
    assert failure(again.wait).stdout == "typed\n"


def files(sandbox: Sandbox) -> None:
    assert sandbox.files.write("folder/ü", "text", metadata={"k": "v"}).metadata == {"k": "v"}
    assert sandbox.files.read("folder/ü") == "text"
    data = bytes(range(256)) * 8192
    sandbox.files.write("folder/data", data)
    assert bytes(sandbox.files.read("folder/data", format="bytes")) == data
    assert b"".join(sandbox.files.read("folder/data", format="stream")) == data
    assert [entry.name for entry in sandbox.files.list("folder")] == ["data", "ü"]
    assert sandbox.files.rename("folder/data", "folder/moved").size == len(data)
    sandbox.files.remove("folder/moved")
    assert not sandbox.files.exists("folder/moved")
    with urllib.request.urlopen(sandbox.download_url("folder/ü")) as answer:
        assert answer.read() == b"text"
    watcher = sandbox.files.watch_dir("folder", recursive=True)
    sandbox.files.make_dir("folder/deep")
    events = [(event.name, event.type) for event in watcher.get_new_events()]
    assert events == [("deep", FilesystemEventType.CREATE)], events
    watcher.stop()


def terminal(sandbox: Sandbox) -> None:
    said = bytearray()
    handle = sandbox.pty.create(PtySize(rows=20, cols=100), timeout=20)
    sandbox.pty.resize(handle.pid, PtySize(rows=30, cols=120))
    sandbox.pty.send_stdin(handle.pid, b"stty size; exit\n")
    handle.wait(on_pty=said.extend)
    assert b"30 120" in said, said


def git(sandbox: Sandbox) -> None:
    sandbox.git.init("/workspace/repository", initial_branch="main")
    sandbox.files.write("/workspace/repository/file", "1")
    sandbox.git.add("/workspace/repository")
    sandbox.git.commit("/workspace/repository", "First", author_name="A", author_email="a@example.com")
    status = sandbox.git.status("/workspace/repository")
    assert (status.current_branch, status.is_clean) == ("main", True), status


def life(sandbox: Sandbox) -> None:
    assert sandbox.is_running()
    assert sandbox.get_info().metadata == {"scenario": "python"}
    sandbox.set_timeout(200)
    page = Sandbox.list(query=SandboxQuery(metadata={"scenario": "python"}, state=[SandboxState.RUNNING]))
    assert sandbox.sandbox_id in [info.sandbox_id for info in page.next_items()]
    counter = sandbox.commands.run("i=0; while sleep 0.05; do i=$((i+1)); echo $i; done", background=True)
    sandbox.pause()
    assert sandbox.get_info().state == SandboxState.PAUSED
    resumed = Sandbox.connect(sandbox.sandbox_id, timeout=100)
    assert resumed.commands.run("echo awake").stdout == "awake\n"
    assert counter.pid in [process.pid for process in resumed.commands.list()]


def copies(sandbox: Sandbox) -> None:
    sandbox.files.write("/workspace/state", "before")
    snapshot = sandbox.create_snapshot()
    sandbox.files.write("/workspace/state", "after")
    copy = Sandbox.create(snapshot.snapshot_id, timeout=60)
    assert copy.files.read("/workspace/state") == "before"
    copy.kill()
    assert snapshot.snapshot_id in [info.snapshot_id for info in Sandbox.list_snapshots().next_items()]
    assert Sandbox.delete_snapshot(snapshot.snapshot_id)
    (fork,) = sandbox.fork()
    assert fork.files.read("/workspace/state") == "after"
    fork.kill()


async def at_the_same_time(sandbox_id: str) -> None:
    sandbox = await AsyncSandbox.connect(sandbox_id)
    results = await asyncio.gather(*(sandbox.commands.run(f"echo {number}") for number in range(20)))
    assert [result.stdout for result in results] == [f"{number}\n" for number in range(20)]


def main() -> None:
    sandbox = Sandbox.create(timeout=100, metadata={"scenario": "python"}, envs={"B": "2"})
    chapters = [commands, files, terminal, git, life]
    if os.environ["HOST_ROOT"] == "layers":  # elsewhere a host cannot copy sandboxes
        chapters.append(copies)
    for chapter in chapters:
        began = time.monotonic()
        chapter(sandbox)
        print(f"{chapter.__name__}: {time.monotonic() - began:.2f} s")
    asyncio.run(at_the_same_time(sandbox.sandbox_id))
    assert sandbox.commands.run("echo $B; sudo id -u").stdout == "2\n0\n"
    assert sandbox.kill()
    assert not Sandbox.kill(sandbox.sandbox_id)
    print("done")


main()
