"""The user root, played by fakeroot: `user="root"` and `sudo`."""

import pytest
from conftest import Host, eventually
from e2b import AuthenticationException, CommandExitException, PtySize, Sandbox

pytestmark = pytest.mark.system


def out(sandbox: Sandbox, command: str, **options: object) -> str:
    return sandbox.commands.run(command, **options).stdout  # type: ignore[call-overload] # passed on as they are


def test_a_command_of_root_sees_uid_0(shared: Sandbox) -> None:
    assert out(shared, "id -u; whoami; echo $USER; grep Uid /proc/self/status", user="root") == (
        "0\nroot\nroot\nUid:\t1000\t1000\t1000\t1000\n"
    )
    assert out(shared, "id -u") == "1000\n"


def test_what_root_changes_is_there_for_the_next_command_of_root(shared: Sandbox) -> None:
    out(shared, "touch /tmp/owned && chown 33:34 /tmp/owned && mknod /tmp/null c 1 3", user="root")
    assert out(shared, "sudo stat -c '%u %g %F' /tmp/owned /tmp/null") == (
        "33 34 regular empty file\n0 0 character special file\n"
    )
    assert out(shared, "stat -c %U /tmp/owned") == "user\n"


def test_files_of_root_are_the_files_of_user(shared: Sandbox) -> None:
    shared.files.write("/tmp/of-root", "x", user="root")
    assert shared.files.read("/tmp/of-root", user="user") == "x"
    assert shared.files.get_info("/tmp/of-root", user="root").owner == "user"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("sudo id -u", "0\n"),
        ("sudo -n -- id -u", "0\n"),
        ("sudo -EHn whoami", "root\n"),
        ("sudo -u user id -u", "1000\n"),
        ("sudo -uroot id -u", "0\n"),
        ("sudo --user=root --preserve-env=X id -u", "0\n"),
        ("sudo A=1 B='2 3' sh -c 'echo $A-$B'", "1-2 3\n"),
        ("sudo sudo id -u", "0\n"),
        ("sudo sudo -u user id -u", "1000\n"),
        ("sudo -i id -u", "0\n"),
        ("sudo -s 'id -u; echo $SUDO_USER'", "0\nuser\n"),
        ("sudo -v", ""),
        ("echo in | sudo cat", "in\n"),
        ("sudo -D /tmp pwd", "/tmp\n"),
        ("sudo sh -c 'exit 3' || echo $?", "3\n"),
    ],
)
def test_sudo_takes_what_people_write(shared: Sandbox, command: str, expected: str) -> None:
    assert out(shared, command) == expected


@pytest.mark.parametrize("command", ["sudo -u postgres id", "sudo", "sudo -Z id", "sudo --nonsense id"])
def test_sudo_refuses_what_it_cannot_do(shared: Sandbox, command: str) -> None:
    with pytest.raises(CommandExitException) as raised:
        out(shared, command)
    assert raised.value.exit_code == 1
    assert "sudo" in raised.value.stderr


def test_many_first_uses_at_once_start_one_faked(host: Host) -> None:
    sandbox = host.create()
    out(sandbox, "for i in $(seq 12); do sudo true & done; wait")
    assert out(sandbox, "pgrep -c faked") == "1\n"
    sandbox.kill()


def test_what_an_earlier_life_has_left_behind_is_not_believed(host: Host) -> None:
    sandbox = host.create()
    out(sandbox, "chmod 555 /dev/shm; echo 12345:1 > /tmp/.faked")
    assert out(sandbox, "sudo id -u; sudo id -u; pgrep -c faked") == "0\n0\n1\n"
    sandbox.kill()


def test_a_terminal_of_root_works(shared: Sandbox) -> None:
    said = bytearray()
    terminal = shared.pty.create(PtySize(24, 80), user="root", timeout=20)
    shared.pty.send_stdin(terminal.pid, b"echo uid=$(id -u); exit\n")
    terminal.wait(on_pty=said.extend)
    assert b"uid=0" in said


def test_killing_a_command_of_root_leaves_nothing_of_it(shared: Sandbox) -> None:
    handle = shared.commands.run("sleep 1234", user="root", background=True)
    assert handle.kill()
    eventually(lambda: out(shared, "pgrep -f '[s]leep 1234' || echo none") == "none\n")


def test_an_unknown_user_is_refused(shared: Sandbox) -> None:
    with pytest.raises(AuthenticationException, match="invalid username: 'nobody'"):
        out(shared, "id", user="nobody")
