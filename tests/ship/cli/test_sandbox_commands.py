"""`ship sandbox` against a real host, with a person at a real terminal where it takes one."""

import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from e2b import Sandbox
from tests.ship.cli.conftest import subprocess_ship
from tests.ship.cli.terminals import Terminal
from tests.ship_sandboxd.conftest import API_KEY, Host, eventually

from ship.cli import run
from ship.cli.exits import Exit

pytestmark = pytest.mark.system
Commands = Callable[..., int]


@pytest.fixture(scope="module")
def sandbox_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    host = Host(tmp_path_factory.mktemp("host") / "data")
    yield host
    host.close()


@pytest.fixture(autouse=True)
def named_by_the_environment(sandbox_host: Host, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("E2B_API_URL", sandbox_host.url)
    monkeypatch.setenv("E2B_API_KEY", API_KEY)


@pytest.fixture
def sandbox(sandbox_host: Host) -> Iterator[Sandbox]:
    made = sandbox_host.create(metadata={"purpose": "a test"})
    yield made
    made.kill()


@contextmanager
def at_shell(sandbox: Sandbox) -> Iterator[Terminal]:
    person = Terminal("sandbox", "shell", sandbox.sandbox_id)
    try:
        person.wait_for("$ ")
        yield person
    finally:
        person.close()


def listed(capfd: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert run(["sandbox", "ls", "--json", *arguments]) == Exit.OK
    return [one["sandbox_id"] for one in json.loads(capfd.readouterr().out)]


def test_sandboxes_are_listed_for_people_and_for_programs(
    sandbox: Sandbox, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["sandbox", "ls"]) == Exit.OK
    shown = capfd.readouterr().out
    assert re.search(rf"{sandbox.sandbox_id} +running +base .*purpose=a test", shown)
    assert sandbox.sandbox_id in listed(capfd)
    assert listed(capfd, "--metadata", "purpose=another") == []
    assert listed(capfd, "--metadata", "purpose=a test", "--state", "running") == [sandbox.sandbox_id]
    assert listed(capfd, "--metadata", "purpose=a test", "--state", "paused") == []


@pytest.mark.parametrize("wrong", [("--metadata", "purpose"), ("--state", "asleep")])
def test_a_filter_that_means_nothing_is_refused(
    wrong: tuple[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["sandbox", "ls", *wrong]) == Exit.USAGE
    assert "ship: " in capfd.readouterr().err


def test_an_id_may_be_cut_short_while_it_is_unique(
    sandbox_host: Host, capfd: pytest.CaptureFixture[str]
) -> None:
    made = [sandbox_host.create() for _ in range(2)]
    one, other = (each.sandbox_id for each in made)
    shared = "".join(
        a for a, b in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=True))
    )
    try:
        assert run(["sandbox", "kill", shared]) == (Exit.USAGE if shared else Exit.REFUSED)
        assert run(["sandbox", "kill", one[: len(shared) + 1], "nothing"]) == Exit.REFUSED
        assert {one, other} <= set(listed(capfd)), "none ends unless all are known"
        assert run(["sandbox", "kill", one[:-1], other[:-1], one]) == Exit.OK
        assert sorted(capfd.readouterr().out.split()) == sorted([one, other])
        assert not {one, other} & set(listed(capfd))
    finally:
        for each in made:
            each.kill()


def test_a_host_is_found_by_option_environment_or_the_folder_of_ship_up(
    sandbox_host: Host,
    sandbox: Sandbox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run(["sandbox", "ls", "--api-key", "wrong"]) == Exit.SERVER
    assert run(["sandbox", "ls", "--url", "http://127.0.0.1:9"]) == Exit.SERVER
    assert "no sandbox host answers at http://127.0.0.1:9" in capfd.readouterr().err
    monkeypatch.delenv("E2B_API_KEY")
    assert run(["sandbox", "ls"]) == Exit.SERVER
    assert "E2B_API_KEY" in capfd.readouterr().err
    assert sandbox.sandbox_id in listed(capfd, "--api-key", API_KEY)
    monkeypatch.setenv("SHIP_SANDBOXD_API_KEY", API_KEY)
    assert sandbox.sandbox_id in listed(capfd)
    monkeypatch.delenv("E2B_API_URL")
    assert run(["sandbox", "ls", "--data", str(tmp_path)]) == Exit.SERVER
    assert "ship up" in capfd.readouterr().err


def test_the_host_of_ship_up_needs_neither_url_nor_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "ship"
    data.mkdir()
    (data / "sandboxd.key").write_text("0123456789" * 5)
    monkeypatch.setattr("tests.ship_sandboxd.conftest.API_KEY", "e2b_" + "0123456789" * 4)
    host = Host(data / "sandboxes")
    try:
        assert host.process
        (data / "sandboxd.json").write_text(json.dumps({"url": host.url, "pid": host.process.pid}))
        monkeypatch.delenv("E2B_API_URL")
        assert listed(capfd, "--data", str(data)) == []
        run(["doctor", "--json", "--data", str(data)])
        findings = {one["name"]: one for one in json.loads(capfd.readouterr().out)["findings"]}
        assert host.url in findings["sandbox host"]["found"]
        # The key of this machine's host is shown to no other.
        assert run(["sandbox", "ls", "--data", str(data), "--url", "http://127.0.0.1:9"]) == Exit.SERVER
        assert "no sandbox host answers" in capfd.readouterr().err
    finally:
        host.close()


def test_one_sandbox_is_shown_with_what_it_uses(sandbox: Sandbox, capfd: pytest.CaptureFixture[str]) -> None:
    eventually(lambda: sandbox.get_metrics())
    assert run(["sandbox", "info", sandbox.sandbox_id]) == Exit.OK
    shown = capfd.readouterr().out
    assert re.search(r"limits +2 cpu, 4 GB", shown)
    assert re.search(r"memory +[\d.]+ MB / 4 GB", shown)
    assert "purpose=a test" in shown
    assert run(["sandbox", "info", sandbox.sandbox_id, "--json"]) == Exit.OK
    text = capfd.readouterr().out
    detail = json.loads(text)
    assert (detail["sandbox_id"], detail["state"]) == (sandbox.sandbox_id, "running")
    assert 0 < detail["usage"]["memory_used_bytes"] < detail["usage"]["memory_total_bytes"]
    token = str(sandbox._envd_access_token)
    assert len(token) > 20
    assert token not in text, "whoever looks at a sandbox need not see the key to it"


def test_the_busiest_sandbox_is_on_top(
    sandbox_host: Host, sandbox: Sandbox, capfd: pytest.CaptureFixture[str]
) -> None:
    busy = sandbox_host.create()
    try:
        busy.commands.run("while :; do :; done", background=True)

        def glance() -> list[dict[str, Any]]:
            assert run(["sandbox", "top", "--json"]) == Exit.OK
            return json.loads(capfd.readouterr().out)

        eventually(lambda: glance()[0]["sandbox_id"] == busy.sandbox_id, 20)
        top = glance()
        assert top[0]["usage"]["cpu_used_pct"] > 5
        assert {busy.sandbox_id, sandbox.sandbox_id} <= {one["sandbox_id"] for one in top}
        assert run(["sandbox", "top"]) == Exit.OK
        assert re.search(rf"{busy.sandbox_id} +running +\d+ % of 2", capfd.readouterr().out)
    finally:
        busy.kill()


def test_top_goes_on_at_a_terminal_until_it_is_left(sandbox_host: Host, sandbox: Sandbox) -> None:
    person = Terminal("sandbox", "top", "--interval", "0.5")
    try:
        person.wait_for(sandbox.sandbox_id)
        later = sandbox_host.create()
        person.wait_for(later.sandbox_id)
        later.kill()
        person.type("\x03")
        assert person.ends_with() == Exit.OK
    finally:
        person.close()


def test_the_log_says_what_was_refused(sandbox: Sandbox, capfd: pytest.CaptureFixture[str]) -> None:
    sandbox.commands.run("curl -s http://10.0.0.1/ || true")
    assert run(["sandbox", "logs", sandbox.sandbox_id]) == Exit.OK
    assert re.search(r"refused .*target=http://10.0.0.1/", capfd.readouterr().out)
    assert run(["sandbox", "logs", sandbox.sandbox_id, "--json"]) == Exit.OK
    entries = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [entry for entry in entries if entry["fields"].get("target") == "http://10.0.0.1/"]


def test_a_log_that_is_followed_ends_with_its_sandbox(sandbox: Sandbox) -> None:
    person = Terminal("sandbox", "logs", "-f", sandbox.sandbox_id)
    try:
        for port in (81, 82):
            sandbox.commands.run(f"curl -s http://10.0.0.1:{port}/ || true")
            person.wait_for(f"target=http://10.0.0.1:{port}/")
        sandbox.kill()
        assert person.ends_with() == Exit.OK
        assert person.shown.count("http://10.0.0.1:81/") == 1, "an entry is shown once"
    finally:
        person.close()


def test_a_sandbox_is_paused_and_goes_on_where_it_was(
    sandbox: Sandbox, capfd: pytest.CaptureFixture[str]
) -> None:
    counting = "i=0; while sleep 0.05; do i=$((i+1)); echo $i > count; done"
    sandbox.commands.run(counting, background=True, timeout=0)
    eventually(lambda: sandbox.files.exists("count"))
    assert run(["sandbox", "pause", sandbox.sandbox_id]) == Exit.OK
    assert run(["sandbox", "pause", sandbox.sandbox_id[:12]]) == Exit.OK
    assert re.findall(r"paused.*", capfd.readouterr().out) == ["paused", "paused already"]
    assert sandbox.sandbox_id in listed(capfd, "--state", "paused")
    assert run(["sandbox", "resume", sandbox.sandbox_id, "--timeout", "90"]) == Exit.OK
    assert capfd.readouterr().out == f"{sandbox.sandbox_id} runs\n"
    before = sandbox.files.read("count")
    eventually(lambda: sandbox.files.read("count") not in ("", before))


def test_resuming_without_memory_is_said(sandbox: Sandbox, capfd: pytest.CaptureFixture[str]) -> None:
    sandbox.files.write("kept", "still here")
    sandbox.pause(keep_memory=False)
    assert run(["sandbox", "resume", sandbox.sandbox_id]) == Exit.OK
    assert "its processes had ended, its files are there" in capfd.readouterr().out
    assert sandbox.files.read("kept") == "still here"


def test_a_shell_wakes_a_paused_sandbox(sandbox: Sandbox) -> None:
    sandbox.pause()
    with at_shell(sandbox) as person:
        person.type("echo awake-$((1 + 1))\r")
        person.wait_for("awake-2")


def test_a_shell_is_a_terminal_and_keeps_its_exit_code(sandbox: Sandbox) -> None:
    with at_shell(sandbox) as person:
        person.type("tty; stty size; echo $TERM\r")
        person.wait_for("30 100")
        person.wait_for("xterm")
        assert "/dev/pts/" in person.shown
        person.type("exit 7\r")
        assert person.ends_with() == 7


def test_a_shell_follows_the_size_of_the_window(sandbox: Sandbox) -> None:
    with at_shell(sandbox) as person:
        person.resize(132, 43)
        person.type("while [ \"$(stty size)\" != '43 132' ]; do sleep 0.05; done; echo it-is-$((40 + 3))\r")
        person.wait_for("it-is-43")


def test_ctrl_c_in_a_shell_ends_what_runs_in_it_and_not_the_shell(sandbox: Sandbox) -> None:
    with at_shell(sandbox) as person:
        person.type("bash -c 'echo begun-$((1 + 1)); exec sleep 600'\r")
        person.wait_for("begun-2")
        person.type("\x03")
        person.type("echo $((100 + 30))-was-the-code-of-it\r")
        person.wait_for("130-was-the-code-of-it")


def test_a_long_paste_arrives_whole_and_in_order(sandbox: Sandbox) -> None:
    with at_shell(sandbox) as person:
        person.type("stty -echo; cat > pasted; echo copied-$((1 + 1))\r")
        lines = [f"line {number} " + "x" * 60 for number in range(3_000)]
        for start in range(0, len(lines), 20):
            person.type("".join(f"{line}\r" for line in lines[start : start + 20]))
        person.type("\x04")
        person.wait_for("copied-2")
    assert sandbox.files.read("pasted").splitlines() == lines


def test_a_shell_that_hangs_can_be_left_and_is_ended(sandbox: Sandbox) -> None:
    with at_shell(sandbox) as person:
        person.type("trap '' INT; sleep 600\r")
        person.wait_for("sleep 600")
        person.type("\x1d\x1d\x1d")
        assert person.ends_with() == Exit.DETACHED
        assert "left the shell" in person.shown
    eventually(lambda: sandbox.commands.list() == [])


def test_a_shell_ends_with_its_sandbox(sandbox: Sandbox) -> None:
    with at_shell(sandbox) as person:
        sandbox.kill()
        assert person.ends_with() == Exit.REFUSED
        assert "there is no sandbox" in person.shown


def test_a_script_runs_where_there_is_no_terminal(sandbox: Sandbox) -> None:
    ended = subprocess_ship("sandbox", "shell", sandbox.sandbox_id, stdin="echo out; echo err >&2\nexit 3\n")
    assert (ended.stdout, ended.stderr, ended.returncode) == ("out\n", "err\n", 3)


def test_ids_are_completed(sandbox: Sandbox) -> None:
    ended = subprocess_ship(
        env={
            "_SHIP_COMPLETE": "complete_zsh",
            "_TYPER_COMPLETE_ARGS": f"ship sandbox info {sandbox.sandbox_id[:6]}",
        }
    )
    assert sandbox.sandbox_id in ended.stdout
