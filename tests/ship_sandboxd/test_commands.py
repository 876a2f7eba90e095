"""Commands by the official SDK: run, watch, feed, end."""

import threading
import time

import pytest
from conftest import eventually
from e2b import (
    AuthenticationException,
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    PtySize,
    Sandbox,
    TimeoutException,
)

pytestmark = pytest.mark.system


def test_a_command_gives_its_output_and_its_exit_code(shared: Sandbox) -> None:
    result = shared.commands.run("echo out; echo err >&2")
    assert (result.stdout, result.stderr, result.exit_code, result.error) == ("out\n", "err\n", 0, None)


def test_a_failing_command_tells_its_exit_code(shared: Sandbox) -> None:
    with pytest.raises(CommandExitException) as raised:
        shared.commands.run("echo bad >&2; exit 7")
    assert (raised.value.exit_code, raised.value.stderr, raised.value.error) == (7, "bad\n", "exit status 7")


def test_commands_run_as_user_in_the_home_folder(shared: Sandbox) -> None:
    result = shared.commands.run("id -un; id -u; pwd; echo $HOME; echo $USER")
    assert result.stdout == "user\n1000\n/home/user\n/home/user\nuser\n"


def test_environment_folder_and_user_can_be_given(host, shared: Sandbox) -> None:
    shared.files.make_dir("/workspace/deep")
    result = shared.commands.run(
        "echo $A $B; pwd", envs={"A": "1", "B": "two words"}, cwd="/workspace/deep", user="user"
    )
    assert result.stdout == "1 two words\n/workspace/deep\n"


def test_python_is_there_by_its_short_name_until_somebody_installs_another(shared: Sandbox) -> None:
    assert shared.commands.run("python -c 'print(6 * 7)'").stdout == "42\n"
    own = "mkdir -p ~/bin; echo 'echo mine' > ~/bin/python; chmod +x ~/bin/python"
    assert shared.commands.run(f"{own}; PATH=~/bin:$PATH; python").stdout == "mine\n"


def test_variables_of_the_sandbox_reach_every_command(host) -> None:
    sandbox = host.create(envs={"COLOUR": "green", "OTHER": "sandbox"})
    result = sandbox.commands.run("echo $COLOUR $OTHER $E2B_SANDBOX_ID", envs={"OTHER": "command"})
    sandbox.kill()
    assert result.stdout == f"green command {sandbox.sandbox_id}\n"


def test_another_user_is_refused(shared: Sandbox) -> None:
    with pytest.raises(AuthenticationException, match="invalid username"):
        shared.commands.run("id", user="postgres")


def test_a_missing_folder_is_refused(shared: Sandbox) -> None:
    with pytest.raises(InvalidArgumentException, match="does not exist"):
        shared.commands.run("pwd", cwd="/nowhere")


def test_output_arrives_while_the_command_runs(shared: Sandbox) -> None:
    seen: list[str] = []
    handle = shared.commands.run("echo first; read line; echo $line", background=True, stdin=True)
    for stdout, _, _ in handle:
        seen.append(stdout or "")
        if len(seen) == 1:
            handle.send_stdin("second\n")
    assert seen == ["first\n", "second\n"]


def test_large_output_arrives_whole(shared: Sandbox) -> None:
    result = shared.commands.run("seq 1 400000")
    assert result.stdout == "".join(f"{number}\n" for number in range(1, 400001))


def test_stdin_can_be_streamed_and_closed(shared: Sandbox) -> None:
    handle = shared.commands.run("cat | wc -c", background=True, stdin=True)
    shared.commands.stream_input(handle.pid, (b"x" * 65536 for _ in range(16)))
    handle.close_stdin()
    assert handle.wait().stdout.strip() == str(16 * 65536)


def test_a_killed_command_ends_with_all_its_children(shared: Sandbox) -> None:
    handle = shared.commands.run("sleep 1001 & setsid sleep 1002 & sleep 1003", background=True)
    eventually(lambda: shared.commands.run("pgrep -c -x sleep || true").stdout == "3\n")
    assert handle.kill()
    with pytest.raises(CommandExitException) as raised:
        handle.wait()
    assert (raised.value.exit_code, raised.value.error) == (-1, "signal: killed")
    eventually(lambda: shared.commands.run("pgrep -x sleep || echo none").stdout == "none\n")
    assert not shared.commands.kill(handle.pid)


def test_a_command_is_gone_when_its_kill_is_answered(shared: Sandbox) -> None:
    # Its memory takes a while to give back.
    large = "data = b'x' * (200 << 20); print('here', flush=True); input()"
    handle = shared.commands.run(f'python3 -c "{large}"', background=True, stdin=True)
    assert next(iter(handle))[0] == "here\n"
    assert shared.commands.kill(handle.pid)
    assert handle.pid not in [process.pid for process in shared.commands.list()]


def test_the_children_of_a_command_are_gone_when_its_kill_is_answered(shared: Sandbox) -> None:
    large = "import os, time; data = b'x' * (200 << 20); print(os.getpid(), flush=True); time.sleep(1000)"
    handle = shared.commands.run(f'setsid python3 -c "{large}" & wait', background=True, timeout=0)
    child = int(next(iter(handle))[0])
    assert shared.commands.kill(handle.pid)
    assert not shared.files.exists(f"/proc/{child}")


def test_running_commands_are_listed(shared: Sandbox) -> None:
    handle = shared.commands.run("sleep 1000", background=True, envs={"A": "1"}, cwd="/tmp")
    [info] = [process for process in shared.commands.list() if process.pid == handle.pid]
    handle.kill()
    assert (info.cmd, info.args, info.envs, info.cwd) == (
        "/bin/bash",
        ["-l", "-c", "sleep 1000"],
        {"A": "1"},
        "/tmp",
    )


def test_who_connects_gets_the_output_from_its_start(shared: Sandbox) -> None:
    handle = shared.commands.run("echo one; read x; echo two", background=True, stdin=True)
    assert next(iter(handle))[0] == "one\n"
    handle.disconnect()
    again = shared.commands.connect(handle.pid)
    shared.commands.send_stdin(handle.pid, "\n")
    assert again.wait().stdout == "one\ntwo\n"


def test_who_connects_after_the_end_still_gets_everything(shared: Sandbox) -> None:
    handle = shared.commands.run("echo done; exit 3", background=True)
    handle.disconnect()
    eventually(lambda: handle.pid not in [process.pid for process in shared.commands.list()])
    with pytest.raises(CommandExitException) as raised:
        shared.commands.connect(handle.pid).wait()
    assert (raised.value.stdout, raised.value.exit_code) == ("done\n", 3)


def test_an_unknown_process_is_not_found(shared: Sandbox) -> None:
    with pytest.raises(NotFoundException):
        shared.commands.connect(999999)
    with pytest.raises(NotFoundException):
        shared.commands.send_stdin(999999, "x")


def test_a_command_past_its_timeout_is_ended(shared: Sandbox) -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutException):
        shared.commands.run("sleep 997", timeout=1)
    assert time.monotonic() - started < 5
    eventually(lambda: shared.commands.run("pgrep -f '[s]leep 997' || echo none").stdout == "none\n")


def test_a_command_that_leaves_a_server_behind_returns_at_once(shared: Sandbox) -> None:
    started = time.monotonic()
    result = shared.commands.run("sleep 996 & echo started")
    assert result.stdout == "started\n"
    assert time.monotonic() - started < 5
    eventually(lambda: shared.commands.run("pgrep -x -c sleep || true").stdout == "1\n")
    shared.commands.run("pkill -x sleep")


def test_a_command_that_nobody_watches_is_not_held_up(shared: Sandbox) -> None:
    handle = shared.commands.run("seq 1 3000000 && touch /tmp/finished", background=True)
    handle.disconnect()
    eventually(lambda: shared.files.exists("/tmp/finished"), 30)


def test_two_watchers_see_the_same(shared: Sandbox) -> None:
    first = shared.commands.run("seq 1 50000; read x; echo end", background=True, stdin=True)
    second = shared.commands.connect(first.pid)
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda handle=handle: results.append(handle.wait().stdout))
        for handle in (first, second)
    ]
    for thread in threads:
        thread.start()
    shared.commands.send_stdin(first.pid, "\n")
    for thread in threads:
        thread.join(20)
    assert len(results) == 2
    assert results[0] == results[1]
    assert results[0].endswith("end\n")


def test_a_terminal_echoes_resizes_and_ends(shared: Sandbox) -> None:
    pty = shared.pty.create(PtySize(rows=24, cols=80), timeout=30)
    seen, resized = b"", False
    shared.pty.send_stdin(pty.pid, b"stty size; tty\n")
    for _, _, data in pty:
        seen += data or b""
        if b"/dev/pts/" in seen and not resized:
            resized = True
            shared.pty.resize(pty.pid, PtySize(rows=40, cols=132))
            shared.pty.send_stdin(pty.pid, b"stty size; exit 5\n")
    with pytest.raises(CommandExitException) as raised:
        pty.wait()
    assert raised.value.exit_code == 5
    assert b"24 80" in seen
    assert b"40 132" in seen


def test_ctrl_c_interrupts_what_runs_in_a_terminal(shared: Sandbox) -> None:
    pty = shared.pty.create(PtySize(rows=24, cols=80), timeout=30)
    shared.pty.send_stdin(pty.pid, b"sleep 995\n")
    eventually(lambda: shared.commands.run("pgrep -f '[s]leep 995' || true").stdout)
    shared.pty.send_stdin(pty.pid, b"\x03")
    shared.pty.send_stdin(pty.pid, b"exit 0\n")
    pty.wait()


def test_the_daemon_cannot_be_ended_from_inside(shared: Sandbox) -> None:
    with pytest.raises(CommandExitException):
        shared.commands.run("kill -9 -1; kill -9 1; exit 4")
    assert shared.commands.run("echo alive").stdout == "alive\n"
