"""A sandbox outlives its host process, and nothing of it outlives the sandbox."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Host, eventually
from e2b import CommandExitException, Sandbox

from ship_sandboxd.errors import LaunchFailed
from ship_sandboxd.isolation import bubblewrap
from ship_sandboxd.isolation.bubblewrap import short_path
from ship_sandboxd.pids import ProcessIdentity

pytestmark = pytest.mark.system

MakeHost = Callable[..., Host]


def test_a_command_survives_a_kill_of_the_host_and_its_output_is_not_lost(own_host: MakeHost) -> None:
    host = own_host()
    sandbox = host.create()
    handle = sandbox.commands.run(
        "for i in $(seq 1 100); do echo line $i; sleep 0.02; done; echo end >&2", background=True, timeout=0
    )
    assert next(iter(handle))[0] == "line 1\n"
    host.restart(kill=True)
    again = Sandbox.connect(sandbox.sandbox_id, **host.options_of_sdk)
    assert [process.pid for process in again.commands.list()] == [handle.pid]
    result = again.commands.connect(handle.pid).wait()
    assert result.stdout == "".join(f"line {number}\n" for number in range(1, 101))
    assert (result.stderr, result.exit_code) == ("end\n", 0)


def test_a_command_that_ended_while_the_host_was_away_tells_how(own_host: MakeHost) -> None:
    host = own_host()
    sandbox = host.create()
    handle = sandbox.commands.run("sleep 1; echo went; exit 9", background=True, timeout=0)
    uid = host.record(sandbox.sandbox_id)["uid"]
    host.stop(kill=True)
    if uid is not None:
        eventually(lambda: "echo went" not in _command_lines(uid))
    host.start()
    with pytest.raises(CommandExitException) as raised:
        sandbox.commands.connect(handle.pid).wait()
    assert (raised.value.stdout, raised.value.exit_code) == ("went\n", 9)


def _command_lines(uid: int) -> str:
    return subprocess.run(
        ["ps", "-U", str(uid), "-o", "args"], capture_output=True, text=True, check=False
    ).stdout


def test_a_sandbox_keeps_its_time_over_a_restart(own_host: MakeHost) -> None:
    host = own_host()
    kept, over = host.create(timeout=300), host.create(timeout=1)
    end = kept.get_info().end_at
    host.stop()
    host.start()
    assert kept.get_info().end_at == end
    eventually(lambda: not over.is_running())
    assert kept.commands.run("echo alive").stdout == "alive\n"


def test_a_sandbox_that_died_meanwhile_is_cleared_away(own_host: MakeHost) -> None:
    host = own_host()
    sandbox = host.create()
    init = host.record(sandbox.sandbox_id)["init"]["pid"]
    host.stop()
    os.kill(init, signal.SIGKILL)
    eventually(lambda: not _alive(init))
    host.start()
    assert not sandbox.is_running()
    assert list((host.data / "sandboxes").iterdir()) == []


def test_a_half_made_sandbox_is_cleared_away(own_host: MakeHost) -> None:
    host = own_host()
    sandbox = host.create()
    path = host.data / "sandboxes" / sandbox.sandbox_id / "sandbox.json"
    init = host.record(sandbox.sandbox_id)["init"]["pid"]
    host.stop(kill=True)
    half = {**host.record(sandbox.sandbox_id), "state": "creating", "init": None, "monitor": None}
    path.write_text(json.dumps(half))
    host.start()
    assert not _alive(init)
    assert not sandbox.is_running()
    assert list((host.data / "sandboxes").iterdir()) == []


def test_a_sandbox_that_dies_is_noticed_at_once(own_host: MakeHost) -> None:
    host = own_host()
    sandbox = host.create()
    os.kill(host.record(sandbox.sandbox_id)["init"]["pid"], signal.SIGKILL)
    eventually(lambda: not sandbox.is_running())
    eventually(lambda: list((host.data / "sandboxes").iterdir()) == [])


def test_two_hosts_on_one_data_folder_are_refused(own_host: MakeHost) -> None:
    host = own_host()
    second = subprocess.run(
        [sys.executable, "-m", "ship_sandboxd", "--listen", "127.0.0.1:0", "--data", str(host.data)],
        env={**os.environ, "SHIP_SANDBOXD_API_KEY": "x"},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert second.returncode == 2
    assert "data_in_use" in second.stderr


def test_stop_all_ends_every_sandbox(own_host: MakeHost) -> None:
    host = own_host()
    sandboxes = [host.create() for _ in range(2)]
    inits = [host.record(sandbox.sandbox_id)["init"]["pid"] for sandbox in sandboxes]
    host.stop()
    assert all(_alive(init) for init in inits)
    subprocess.run(
        [sys.executable, "-m", "ship_sandboxd", "--data", str(host.data), "--stop-all"],
        check=True,
        capture_output=True,
    )
    assert not any(_alive(init) for init in inits)
    host.start()


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in (Path("/proc") / str(pid) / "status").read_text()
    except FileNotFoundError:
        return False


def test_a_record_of_a_later_version_is_read_as_far_as_it_is_known(own_host: MakeHost) -> None:
    host = own_host()
    sandbox = host.create()
    host.stop()
    path = host.data / "sandboxes" / sandbox.sandbox_id / "sandbox.json"
    path.write_text(json.dumps({**host.record(sandbox.sandbox_id), "colour": "green"}))
    host.start()
    assert sandbox.commands.run("echo here").stdout == "here\n"


def test_a_sandbox_whose_record_cannot_be_read_is_put_aside_and_not_deleted(own_host: MakeHost) -> None:
    host = own_host()
    sandbox = host.create()
    init = ProcessIdentity(**host.record(sandbox.sandbox_id)["init"])
    host.stop()
    (host.data / "sandboxes" / sandbox.sandbox_id / "sandbox.json").write_text("")
    (host.data / "sandboxes" / "halfmade").mkdir()
    host.start()
    eventually(lambda: not init.alive)
    (aside,) = (host.data / "unreadable").iterdir()
    assert aside.name.startswith(sandbox.sandbox_id)
    assert (aside / "sandbox.json").exists()
    assert list((host.data / "sandboxes").iterdir()) == []


def test_a_daemon_that_never_answers_does_not_hold_up_the_start_of_the_host(own_host: MakeHost) -> None:
    host = own_host()
    sandbox = host.create()
    host.stop()
    path = host.data / "sandboxes" / sandbox.sandbox_id / "envd.sock"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as silent, short_path(path.parent, path.name) as short:
        silent.bind(short)
        silent.listen()
        host.start()
        told = (path.parent / "log.jsonl").read_text()
        assert "no way out for this sandbox" not in told, "it was waited for"
        assert sandbox.kill()


async def test_daemons_that_never_answer_hold_no_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bubblewrap, "_HANDOVER_TIMEOUT_S", 0.5)
    backend = object.__new__(bubblewrap.Bubblewrap)
    init = ProcessIdentity.of(os.getpid())
    with contextlib.ExitStack() as opened:
        folders = [tmp_path / str(number) for number in range(100)]
        for folder in folders:
            folder.mkdir()
            silent = opened.enter_context(socket.socket(socket.AF_UNIX))
            silent.bind(str(folder / "envd.sock"))
            silent.listen()
        before = threading.active_count()
        asking = [asyncio.create_task(backend.listeners(folder, "token", init)) for folder in folders]
        await asyncio.sleep(0)
        assert threading.active_count() == before
        failures = await asyncio.gather(*asking, return_exceptions=True)
        assert {type(failure) for failure in failures} == {TimeoutError}


async def test_a_launch_that_takes_too_long_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap, "_READY_TIMEOUT_S", 0.01)
    backend = object.__new__(bubblewrap.Bubblewrap)
    backend._waiting = {}
    backend._roots = SimpleNamespace(disks=SimpleNamespace(forget=lambda name: None))
    spec = SimpleNamespace(id="nothing-of-this-name", folder=tmp_path, cgroups=[])
    with pytest.raises(LaunchFailed, match="it did not answer within 0 s; nothing was logged"):
        async with backend._within_time(spec):
            await asyncio.Event().wait()


def test_a_process_of_this_boot_is_never_taken_for_one_of_the_boot_before(own_host: MakeHost) -> None:
    """It may have the same pid and have been started at the same time after the boot."""
    host = own_host()
    sandbox = host.create()
    record = host.record(sandbox.sandbox_id)
    sandbox.kill()
    host.stop()
    with subprocess.Popen(["sleep", "1000"], process_group=0) as stranger:
        try:
            taken = vars(ProcessIdentity.of(stranger.pid)) | {"boot": "the one before"}
            folder = host.data / "sandboxes" / sandbox.sandbox_id
            folder.mkdir()
            (folder / "sandbox.json").write_text(json.dumps({**record, "init": taken, "monitor": taken}))
            host.start()
            assert not sandbox.is_running()
            eventually(lambda: not folder.exists())
            assert stranger.poll() is None
        finally:
            stranger.kill()
