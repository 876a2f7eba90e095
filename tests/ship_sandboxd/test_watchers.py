"""Watching folders by the official SDK: kept events and streams, recursive, across a restart of the host, and too much."""

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from conftest import Host, eventually
from e2b import (
    AsyncSandbox,
    FileNotFoundException,
    FilesystemEvent,
    FilesystemEventType,
    InvalidArgumentException,
    Sandbox,
    SandboxException,
    WatchHandle,
)

from ship_sandboxd.envd.account import Account
from ship_sandboxd.envd.rpc import Call
from ship_sandboxd.envd.watchers import MAX_KEPT, Watchers

pytestmark = pytest.mark.system
CREATE, WRITE, REMOVE, RENAME, CHMOD = (
    FilesystemEventType.CREATE,
    FilesystemEventType.WRITE,
    FilesystemEventType.REMOVE,
    FilesystemEventType.RENAME,
    FilesystemEventType.CHMOD,
)


def told(handle: WatchHandle) -> list[tuple[str, FilesystemEventType]]:
    return [(event.name, event.type) for event in handle.get_new_events()]


class AnyCall(Call):
    """Of the sandbox's user, without a deadline."""

    def __init__(self) -> None:
        self.username, self.timeout_s, self.keepalive_s = "", None, 60.0


async def test_what_one_caller_reads_wakes_the_others(tmp_path: Path) -> None:
    watchers, call = Watchers(Account(home=str(tmp_path))), AnyCall()
    taking = await watchers.create(call, {"path": "."})
    stream = watchers.watch(call, {"path": "."})
    assert await anext(stream) == {"start": {}}
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    (tmp_path / "new").touch()
    # Before the loop has heard of it.
    events = (await watchers.take(call, taking))["events"]
    assert events[0] == {"name": "new", "type": "EVENT_TYPE_CREATE"}
    assert await asyncio.wait_for(waiting, 10) == {"filesystem": events[0]}
    await stream.aclose()


@pytest.fixture
def folder(shared: Sandbox, request: pytest.FixtureRequest) -> str:
    path = f"/workspace/{request.node.name}"
    shared.files.make_dir(path)
    return path


def test_every_kind_of_change_is_told_once(shared: Sandbox, folder: str) -> None:
    handle = shared.files.watch_dir(folder)
    shared.commands.run(f"cd {folder} && echo x > a && chmod 600 a && mv a b && rm b && mkdir c && rmdir c")
    assert told(handle) == [
        ("a", CREATE),
        ("a", WRITE),
        ("a", CHMOD),
        ("a", RENAME),
        ("b", CREATE),
        ("b", REMOVE),
        ("c", CREATE),
        ("c", REMOVE),
    ]
    assert told(handle) == []
    handle.stop()
    with pytest.raises(SandboxException, match="stopped"):
        handle.get_new_events()


def test_what_is_uploaded_is_told_as_envd_tells_it(shared: Sandbox, folder: str) -> None:
    handle = shared.files.watch_dir(folder, include_entry=True)
    shared.files.write(f"{folder}/new", "12345")
    events = handle.get_new_events()
    assert [(event.name, event.type) for event in events] == [("new", CREATE), ("new", CHMOD), ("new", WRITE)]
    assert events[-1].entry is not None
    assert (events[-1].entry.path, events[-1].entry.size) == (f"{folder}/new", 5)
    shared.files.remove(f"{folder}/new")
    assert [(event.type, event.entry) for event in handle.get_new_events()] == [(REMOVE, None)]
    handle.stop()


def test_only_a_recursive_watcher_looks_below(shared: Sandbox, folder: str) -> None:
    shared.files.make_dir(f"{folder}/old")
    flat = shared.files.watch_dir(folder)
    deep = shared.files.watch_dir(folder, recursive=True)
    shared.commands.run(f"cd {folder} && touch old/a && mkdir -p new/er && touch new/er/b")
    assert told(flat) == [("new", CREATE)]
    events = told(deep)
    assert events[:2] == [("old/a", CREATE), ("old/a", CHMOD)]
    assert {("new", CREATE), ("new/er", CREATE), ("new/er/b", CREATE)} <= set(events)
    for handle in (flat, deep):
        handle.stop()


def test_a_folder_that_is_moved_is_followed_under_its_new_name(shared: Sandbox, folder: str) -> None:
    shared.files.make_dir(f"{folder}/a/b")
    handle = shared.files.watch_dir(folder, recursive=True)
    shared.commands.run(f"cd {folder} && mv a z && touch z/b/file")
    assert told(handle) == [("a", RENAME), ("z", CREATE), ("z/b/file", CREATE), ("z/b/file", CHMOD)]
    shared.commands.run(f"mv {folder}/z {folder}.gone")
    assert told(handle) == [("z", RENAME)]
    shared.commands.run(f"touch {folder}.gone/b/other")
    assert told(handle) == []
    handle.stop()


def test_a_watched_folder_that_goes_is_told(shared: Sandbox, folder: str) -> None:
    handle = shared.files.watch_dir(folder)
    shared.files.remove(folder)
    assert (".", REMOVE) in told(handle)
    shared.files.make_dir(folder)
    assert told(handle) == []
    handle.stop()


def test_watching_what_is_no_folder_is_refused(shared: Sandbox, folder: str) -> None:
    shared.files.write(f"{folder}/file", "")
    with pytest.raises(InvalidArgumentException, match="not a directory"):
        shared.files.watch_dir(f"{folder}/file")
    with pytest.raises(FileNotFoundException):
        shared.files.watch_dir(f"{folder}/none")


def test_lost_events_are_told_and_the_watcher_goes_on(shared: Sandbox, folder: str) -> None:
    handle = shared.files.watch_dir(folder)
    shared.commands.run(f"cd {folder} && for i in $(seq {MAX_KEPT + 1}); do : > $i; done")
    with pytest.raises(SandboxException, match="were lost"):
        handle.get_new_events()
    shared.commands.run(f"touch {folder}/after")
    assert ("after", CREATE) in told(handle)
    handle.stop()


def test_a_thousand_watchers_see_the_same_change(host: Host, shared: Sandbox, folder: str) -> None:
    headers = {"E2b-Sandbox-Id": shared.sandbox_id, "X-Access-Token": str(shared._envd_access_token)}
    with httpx.Client(base_url=f"{host.url}/filesystem.Filesystem", headers=headers) as client:

        def call(method: str, **message: object) -> dict[str, object]:
            answer = client.post(f"/{method}", json=message)
            assert answer.status_code == 200, answer.text
            return answer.json()

        made = [call("CreateWatcher", path=folder)["watcherId"] for _ in range(1000)]
        shared.commands.run(f"mkdir {folder}/x")
        expected = {"events": [{"name": "x", "type": "EVENT_TYPE_CREATE"}]}
        assert all(call("GetWatcherEvents", watcherId=watcher) == expected for watcher in made)
        for watcher in made:
            call("RemoveWatcher", watcherId=watcher)
        assert client.post("/GetWatcherEvents", json={"watcherId": made[0]}).status_code == 404


def test_kept_events_survive_a_restart_of_the_host(own_host: Callable[..., Host]) -> None:
    host = own_host()
    sandbox = host.create()
    handle = sandbox.files.watch_dir("/workspace")
    sandbox.commands.run("touch /workspace/before")
    host.restart(kill=True)
    sandbox.commands.run("touch /workspace/after")
    assert told(handle) == [("before", CREATE), ("before", CHMOD), ("after", CREATE), ("after", CHMOD)]
    sandbox.kill()


async def test_a_stream_tells_changes_as_they_come_and_ends_when_stopped(host: Host) -> None:
    sandbox = await AsyncSandbox.create(timeout=60, **host.options_of_sdk)
    try:
        events: asyncio.Queue[FilesystemEvent] = asyncio.Queue()
        handle = await sandbox.files.watch_dir("/workspace", on_event=events.put_nowait, recursive=True)
        for name in ("one", "two"):
            await sandbox.files.make_dir(f"/workspace/{name}")
            event = await asyncio.wait_for(events.get(), 5)
            assert (event.name, event.type) == (name, CREATE)
        await handle.stop()
        await sandbox.files.make_dir("/workspace/three")
        assert events.empty()
    finally:
        await sandbox.kill()


def test_an_idle_daemon_has_not_opened_inotify(host: Host) -> None:
    if os.geteuid() != 0:
        pytest.skip("nobody but root sees the descriptors of the daemon")
    sandbox = host.create()
    folder = Path(f"/proc/{host.record(sandbox.sandbox_id)['init']['pid']}/fd")
    assert "anon_inode:inotify" not in _targets(folder)
    handle = sandbox.files.watch_dir("/workspace")
    eventually(lambda: "anon_inode:inotify" in _targets(folder))
    handle.stop()
    sandbox.kill()


def _targets(folder: Path) -> list[str]:
    found = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # just closed
            found.append(str(path.readlink()))
    return found
