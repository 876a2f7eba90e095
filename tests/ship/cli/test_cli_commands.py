import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.ship.cli.conftest import Ship, git, subprocess_ship
from tests.ship.client.protocol_server import TOKEN, Log, ProtocolServer

from ship.cli.checkout import Checkout, last_session
from ship.cli.exits import Exit
from ship.events import facts
from ship.events.frames import Delta
from ship.model import AGENT, SYSTEM, ChangedFile, Failure, RequestKind, Usage

DIFF = b"diff --git a/README b/README\nindex ce01362..bfd6a61 100644\n--- a/README\n+++ b/README\n@@ -1 +1 @@\n-hello\n+hello, world\n"
URL = "https://example.com/repo.git"


DEADLINE_S = 20.0


def wait_until(condition: Callable[[], bool]) -> None:
    """Returns when it holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def work(log: Log, task_id: str) -> None:
    """What an agent does that succeeds."""
    ids = {"task_id": task_id, "message_id": "msg_1"}
    log.append(facts.SandboxStepFinished(generation=1, step="clone", took_ms=1234), SYSTEM)
    log.append(facts.TaskStarted(task_id=task_id), SYSTEM)
    log.say(Delta(**ids, part_id="prt_1", kind="text", offset=0, text="I will fi"))
    log.append(facts.TextFinished(**ids, part_id="prt_1", text="I will fix **it**.\x1b[31m"))
    log.append(facts.ToolStarted(**ids, part_id="prt_2", tool="bash", input={"command": "make test"}))
    log.append(facts.ToolFinished(**ids, part_id="prt_2", tool="bash", output="ran\n3 passed\n", took_ms=420))
    log.append(facts.ToolFinished(**ids, part_id="prt_3", tool="edit", title="app.py", error="no such file"))
    usage = Usage(model_calls=1, input_tokens=1000, output_tokens=234, cost_usd=0.0125)
    log.append(
        facts.ModelCalled(
            task_id=task_id, provider="scripted", model="demo", status=200, took_ms=5, usage=usage
        ),
        SYSTEM,
    )
    files = (ChangedFile(path="README", status="M", additions=1, deletions=1),)
    log.append(
        facts.CheckpointCreated(
            checkpoint_id="chk_1",
            task_id=task_id,
            commit="c",
            base_commit="b",
            files=files,
            diff_artifact="d",
        )
    )
    log.append(facts.TaskCompleted(task_id=task_id))
    log.diff = DIFF


def fail(log: Log, task_id: str) -> None:
    """What an agent does that fails."""
    log.append(facts.TaskStarted(task_id=task_id), SYSTEM)
    failure = Failure(code="model_key_refused", reason="the key was refused", hint="Check OPENAI_API_KEY.")
    log.append(facts.TaskFailed(task_id=task_id, failure=failure))


def test_run_shows_the_work_and_ends_well(
    ship: Ship, server: ProtocolServer, capfd: pytest.CaptureFixture[str]
) -> None:
    server.on_task = work
    assert ship("run", URL, "fix it", "--model", "scripted/demo", "--ask") == Exit.OK
    out, err = capfd.readouterr()
    assert server.sent("POST", "/sessions") == [
        {"repository": {"source": URL}, "prompt": "fix it", "model": "scripted/demo", "approval": "ask"}
    ]
    for line in (
        "test › fix it",
        "sandbox: clone  1.2 s",
        "I will fix **it**.",
        "✓ bash make test  3 passed  420 ms",
        "✗ edit app.py  no such file",
    ):
        assert line in out
    assert "1 file changed, +1 -1" in out
    assert "completed" in out
    assert "1,234 tokens for $0.0125" in out
    assert "\x1b" not in out
    assert f"ses_1  {server.url}/sessions/ses_1" in err
    assert "ship diff ses_1" in err


def test_run_of_a_failing_task_says_why_and_exits_with_1(
    ship: Ship, server: ProtocolServer, capfd: pytest.CaptureFixture[str]
) -> None:
    server.on_task = fail
    assert ship("run", URL, "fix it") == Exit.FAILED
    out, _ = capfd.readouterr()
    assert "✗ the task failed: the key was refused [model_key_refused]\n  Check OPENAI_API_KEY." in out


def test_run_ends_when_the_sandbox_cannot_be_made(
    ship: Ship, server: ProtocolServer, capfd: pytest.CaptureFixture[str]
) -> None:
    failure = Failure(code="clone_failed", reason="no such repository", hint="Check the address.")
    server.on_task = lambda log, task_id: log.append(facts.SessionFailed(failure=failure), SYSTEM)
    assert ship("run", URL, "fix it") == Exit.FAILED
    assert "✗ the session cannot go on: no such repository [clone_failed]" in capfd.readouterr().out


def test_run_as_json_prints_the_records_of_the_log(
    ship: Ship, server: ProtocolServer, capfd: pytest.CaptureFixture[str]
) -> None:
    server.on_task = work
    assert ship("run", URL, "fix it", "--json") == Exit.OK
    records = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [record["seq"] for record in records] == list(range(1, len(server.logs["ses_1"].records) + 1))
    assert records[-1]["type"] == "task.completed"


def test_run_detached_prints_the_id_alone(
    ship: Ship, server: ProtocolServer, capfd: pytest.CaptureFixture[str]
) -> None:
    assert ship("run", URL, "fix it", "--detach") == Exit.OK
    assert capfd.readouterr().out == "ses_1\n"


def test_run_of_a_checkout_sends_it_and_apply_brings_the_change_back(
    ship: Ship,
    server: ProtocolServer,
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(checkout)
    server.on_task = work
    (checkout / "mine.txt").write_text("not committed\n")
    assert ship("run", ".", "fix it") == Exit.OK
    assert "with what is not committed" in capfd.readouterr().err
    source = server.sent("POST", "/sessions")[0]["repository"]["source"]
    (checkout.parent / "sent").write_bytes(server.uploads[source.removeprefix("upload:")])
    git(checkout.parent, "clone", "--quiet", "sent", "clone")
    assert (checkout.parent / "clone" / "mine.txt").exists()
    assert last_session(Checkout.at(checkout)) == "ses_1"

    assert ship("apply", "--check") == Exit.OK
    assert (checkout / "README").read_text() == "hello\n"
    assert ship("apply") == Exit.OK
    assert (checkout / "README").read_text() == "hello, world\n"
    assert "Applied ses_1" in capfd.readouterr().out
    (checkout / "README").write_text("something else\n")
    assert ship("apply", "ses_1") == Exit.REFUSED
    assert "does not apply to README; nothing was changed" in capfd.readouterr().err


def test_attach_shows_the_past_and_ends_when_nothing_runs(
    ship: Ship, server: ProtocolServer, capfd: pytest.CaptureFixture[str]
) -> None:
    log = server.log("ses_abc")
    log.append(facts.TaskQueued(task_id="tsk_1", prompt="first", model="m/n"))
    fail(log, "tsk_1")
    log.append(facts.TaskQueued(task_id="tsk_2", prompt="second", model="m/n"))
    work(log, "tsk_2")
    assert ship("attach", "abc") == Exit.OK
    out = capfd.readouterr().out
    assert out.index("first") < out.index("second") < out.index("completed")
    assert ship("attach", "abc", "--after", str(len(log.records))) == Exit.OK
    assert "first" not in capfd.readouterr().out


def test_attach_says_where_to_answer_when_nobody_is_at_the_terminal(
    ship: Ship, server: ProtocolServer, capfd: pytest.CaptureFixture[str]
) -> None:
    def ask(log: Log, task_id: str) -> None:
        log.append(facts.TaskStarted(task_id=task_id), SYSTEM)
        log.append(
            facts.RequestAsked(
                task_id=task_id,
                request_id="req_1",
                kind=RequestKind.PERMISSION,
                title="Run `make`?",
                detail="make",
            )
        )
        threading.Thread(target=give_up, args=(log, task_id)).start()

    def give_up(log: Log, task_id: str) -> None:
        wait_until(lambda: bool(server.connections))
        log.append(facts.RequestWithdrawn(request_id="req_1"))
        log.append(facts.TaskCancelled(task_id=task_id))

    server.on_task = ask
    assert ship("run", URL, "fix it") == Exit.FAILED
    out = capfd.readouterr().out
    assert "? Run `make`?" in out
    assert "ship attach ses_1" in out


def test_send_queues_steers_or_notes(
    ship: Ship, server: ProtocolServer, capfd: pytest.CaptureFixture[str]
) -> None:
    log = server.log()
    assert ship("send", "ses_1", "more", "--agent", "plan") == Exit.OK
    assert ship("send", "ses_1", "this way", "--steer") == Exit.OK
    assert "queued tsk_2 on ses_1, as nothing runs that it could steer" in capfd.readouterr().out
    log.append(facts.TaskStarted(task_id="tsk_1"))
    assert ship("send", "ses_1", "this way", "--steer") == Exit.OK
    assert ship("send", "ses_1", "fyi", "--note") == Exit.OK
    assert ship("send", "ses_1", "x", "--note", "--steer") == Exit.USAGE
    assert ship("send", "ses_1", "  ") == Exit.USAGE
    assert server.sent("POST", "/sessions/ses_1/tasks") == [
        {"prompt": "more", "agent": "plan", "mode": "queue"},
        {"prompt": "this way", "mode": "steer"},
        {"prompt": "this way", "mode": "steer"},
    ]
    assert server.sent("POST", "/sessions/ses_1/messages") == [{"text": "fyi"}]


def test_send_and_follow_waits_for_that_task(
    ship: Ship, server: ProtocolServer, capfd: pytest.CaptureFixture[str]
) -> None:
    log = server.log()
    log.append(facts.TaskQueued(task_id="tsk_1", prompt="first", model="m/n"))
    fail(log, "tsk_1")
    server.on_task = work
    assert ship("send", "ses_1", "second", "--follow") == Exit.OK
    out = capfd.readouterr().out
    assert "second" in out
    assert "first" not in out


def test_stop_cancels_what_runs_and_with_all_what_waits(
    ship: Ship, server: ProtocolServer, capfd: pytest.CaptureFixture[str]
) -> None:
    log = server.log()
    assert ship("stop", "ses_1") == Exit.OK
    assert "nothing runs" in capfd.readouterr().out
    for number in (1, 2):
        log.append(facts.TaskQueued(task_id=f"tsk_{number}", prompt="p", model="m/n"))
    assert ship("stop", "ses_1") == Exit.OK
    assert "tsk_1, tsk_2 will; stop that, too: ship stop --all ses_1" in capfd.readouterr().out
    log.append(facts.TaskStarted(task_id="tsk_1"))
    assert ship("stop", "ses_1", "--json") == Exit.OK
    assert json.loads(capfd.readouterr().out)["task_ids"] == ["tsk_1"]
    assert ship("stop", "ses_1", "--all") == Exit.OK
    assert [task["status"] for task in log.tasks] == ["cancelled", "cancelled"]


def test_ls_and_show_describe_sessions(
    ship: Ship, server: ProtocolServer, capfd: pytest.CaptureFixture[str]
) -> None:
    assert ship("ls") == Exit.OK
    assert "No sessions yet" in capfd.readouterr().out
    log = server.log()
    log.append(facts.TaskQueued(task_id="tsk_1", prompt="make it better", model="m/n"), AGENT)
    assert ship("ls") == Exit.OK
    assert "example.com/repo" in capfd.readouterr().out
    assert ship("show", "1") == Exit.OK
    out = capfd.readouterr().out
    assert "make it better" in out
    assert "scripted/demo" in out
    assert ship("show", "ses_1", "--json") == Exit.OK
    assert json.loads(capfd.readouterr().out)["tasks"][0]["prompt"] == "make it better"
    assert ship("ls", "--json") == Exit.OK
    assert [one["id"] for one in json.loads(capfd.readouterr().out)] == ["ses_1"]


def test_diff_is_printed_as_it_is_and_counted_by_stat(
    ship: Ship, server: ProtocolServer, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    server.log().diff = DIFF
    assert ship("diff", "ses_1") == Exit.OK
    assert capfdbinary.readouterr().out == DIFF
    assert ship("diff", "ses_1", "--stat") == Exit.OK
    out = capfdbinary.readouterr().out.decode()
    assert "README" in out
    assert "1 file changed, +1 -1" in out
    assert ship("diff", "ses_1", "--json") == Exit.OK
    body = json.loads(capfdbinary.readouterr().out)
    assert body["files"] == [{"path": "README", "status": "M", "additions": 1, "deletions": 1}]


def test_stat_names_each_file_with_the_letter_of_git(
    ship: Ship,
    server: ProtocolServer,
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (checkout / 'naïve "x".txt').write_text("diff --git a/x b/x\n\rnew file mode 100644\n")
    (checkout / "README b").write_text("new\n")
    (checkout / "gone.txt").unlink()
    (checkout / "app.py").rename(checkout / "main.py")
    (checkout / "image.bin").write_bytes(bytes(range(255)))
    git(checkout, "add", "--all")
    command = ["git", "diff", "--cached", "--binary", "--find-renames", "HEAD"]
    diff = subprocess.run(command, cwd=checkout, capture_output=True, check=True).stdout
    server.log().diff = diff
    inner = checkout / "inner"
    inner.mkdir()
    monkeypatch.chdir(inner)

    assert ship("diff", "ses_1", "--json") == Exit.OK
    files = json.loads(capfd.readouterr().out)["files"]
    assert {file["path"]: file["status"] for file in files} == {
        'naïve "x".txt': "A",
        "README b": "A",
        "gone.txt": "D",
        "main.py": "R",
        "image.bin": "M",
    }

    server.log().diff = b"new file mode 100644\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n"
    assert ship("diff", "ses_1", "--stat") == Exit.UNEXPECTED
    assert "git cannot read the session's diff" in capfd.readouterr().err


def test_archive_and_retry_reach_the_server(ship: Ship, server: ProtocolServer) -> None:
    log = server.log()
    assert ship("retry", "ses_1") == Exit.OK
    assert ship("archive", "ses_1") == Exit.OK
    assert log.ended
    assert server.sent("POST", "/sessions/ses_1/retry") == [{}]


def test_ids_may_be_cut_short_while_they_are_unique(
    ship: Ship, server: ProtocolServer, capfd: pytest.CaptureFixture[str]
) -> None:
    server.log("ses_aaa1")
    server.log("ses_aaa2")
    server.log("ses_b")
    assert ship("show", "b") == Exit.OK
    assert ship("show", "ses_aaa2") == Exit.OK
    assert ship("show", "aaa") == Exit.USAGE
    assert "may be any of ses_aaa2, ses_aaa1" in capfd.readouterr().err
    assert ship("show", "nothing") == Exit.REFUSED


def test_no_server_no_token_and_a_wrong_one_are_told_apart(
    server: ProtocolServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from ship.cli import run

    assert run(["ls", "--data", str(tmp_path / "nowhere")]) == Exit.SERVER
    assert "no server has run on" in capfd.readouterr().err
    assert run(["ls", "--url", "http://127.0.0.1:9", "--token", "x"]) == Exit.SERVER
    assert "Start Ship with `ship up`" in capfd.readouterr().err
    assert run(["ls", "--url", server.url]) == Exit.SERVER
    assert "there is no token for" in capfd.readouterr().err
    assert run(["ls", "--url", server.url, "--token", "wrong", "--json"]) == Exit.SERVER
    assert json.loads(capfd.readouterr().err)["error"]["code"] == "unauthenticated"


def test_a_malformed_url_and_token_are_named(
    server: ProtocolServer, capfd: pytest.CaptureFixture[str]
) -> None:
    from ship.cli import run

    assert run(["ls", "--url", "localhost:8700"]) == Exit.USAGE
    assert "'localhost:8700' is no URL of a server" in capfd.readouterr().err
    assert run(["ls", "--url", server.url, "--token", "line\n"]) == Exit.USAGE
    assert "the token is malformed" in capfd.readouterr().err
    broken = os.environb | {b"SHIP_TOKEN": b"tok_\xff", b"SHIP_URL": server.url.encode()}
    command = [sys.executable, "-m", "ship.cli", "ls"]
    ended = subprocess.run(command, env=broken, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == Exit.USAGE
    assert "the token is malformed" in ended.stderr


def test_the_local_token_is_shown_to_the_local_server_only(
    ship: Ship, server: ProtocolServer, capfd: pytest.CaptureFixture[str]
) -> None:
    assert ship("ls", "--url", "http://127.0.0.1:9") == Exit.SERVER
    assert "there is no token for http://127.0.0.1:9" in capfd.readouterr().err
    assert ship("ls", "--url", server.url + "/") == Exit.OK


def test_usage_errors_exit_with_2_and_no_traceback() -> None:
    for arguments in (
        ["nonsense"],
        ["ls", "--nonsense"],
        ["run", "/nowhere", "x", "--url", "http://127.0.0.1:9", "--token", "t"],
    ):
        result = subprocess_ship(*arguments)
        assert result.returncode == Exit.USAGE
        assert "Traceback" not in result.stderr


def test_a_mistake_of_our_own_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from ship.cli import run, showing

    monkeypatch.setattr(showing, "sessions", lambda *args, **kwargs: 1 / 0)
    assert run(["ls", "--url", "http://127.0.0.1:9", "--token", "t"]) == Exit.UNEXPECTED
    assert "ship: ZeroDivisionError: division by zero" in capfd.readouterr().err


def test_help_and_version_answer_at_once_and_without_the_heavy_parts() -> None:
    result = subprocess_ship("--version")
    assert result.stdout.startswith("ship ")
    code = "import sys, ship.cli, ship.cli.commands; print([m for m in ('rich', 'httpx', 'fastapi', 'websockets', 'e2b') if m in sys.modules])"
    heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert heavy.strip() == "[]"


def test_completion_scripts_are_printed_and_complete(capfd: pytest.CaptureFixture[str]) -> None:
    from ship.cli import run

    for shell in ("bash", "zsh", "fish"):
        assert run(["completion", shell]) == Exit.OK
        assert "_SHIP_COMPLETE" in capfd.readouterr().out
    assert run(["completion", "tcsh"]) == Exit.USAGE
    completing = {"_SHIP_COMPLETE": "complete_bash", "COMP_WORDS": "ship arch", "COMP_CWORD": "1"}
    code = "import sys; sys.argv[0] = 'ship'; from ship.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**completing}, check=False
    )
    assert "archive" in result.stdout


@pytest.mark.parametrize("arguments", ["diff ses_1", "attach ses_1", "attach ses_1 --json", "ls --all"])
def test_a_reader_that_has_seen_enough_is_no_error(server: ProtocolServer, arguments: str) -> None:
    log = server.log()
    log.diff = b"x" * 5_000_000
    log.append(facts.TaskQueued(task_id="tsk_1", prompt="do it", model="p/m"), SYSTEM)
    work(log, "tsk_1")
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "ship.cli", *arguments.split(), "--url", server.url, "--token", TOKEN]
    result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (result.returncode, result.stderr) == (Exit.OK, "")


def test_ctrl_c_leaves_the_task_running(server: ProtocolServer) -> None:
    server.on_task = lambda log, task_id: log.append(facts.TaskStarted(task_id=task_id), SYSTEM)
    command = [sys.executable, "-m", "ship.cli", "run", URL, "fix it", "--url", server.url, "--token", TOKEN]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    with process:
        try:
            wait_until(lambda: bool(server.connections))
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()
    assert process.returncode == Exit.DETACHED
    assert "Come back with: ship attach ses_1" in err
    assert "Traceback" not in out + err
    assert server.logs["ses_1"].tasks[0]["status"] == "running"


def test_a_failure_that_passes_through_several_hands_is_told_once(
    ship: Ship, server: ProtocolServer, capfd: pytest.CaptureFixture[str]
) -> None:
    failure = Failure(code="clone_failed", reason="no such repository")

    def refuse(log: Log, task_id: str) -> None:
        log.append(facts.SandboxFailed(generation=1, failure=failure), SYSTEM)
        log.append(facts.SessionFailed(failure=failure), SYSTEM)

    server.on_task = refuse
    assert ship("run", URL, "fix it") == Exit.FAILED
    assert capfd.readouterr().out.count("no such repository") == 1


def test_a_model_that_stays_away_is_told_once(
    ship: Ship, server: ProtocolServer, capfd: pytest.CaptureFixture[str]
) -> None:
    failure = Failure(code="model_unreachable", reason="no connection", hint="Check the network.")

    def retry(log: Log, task_id: str) -> None:
        log.append(facts.TaskStarted(task_id=task_id), SYSTEM)
        call = facts.ModelCalled(
            task_id=task_id, provider="openai", model="m", status=0, took_ms=1, usage=Usage(), failure=failure
        )
        for attempt in (1, 2, 3):
            log.append(call, SYSTEM)
            log.append(facts.AgentRetried(task_id=task_id, attempt=attempt, reason="no connection"))
        log.append(facts.TaskFailed(task_id=task_id, failure=failure))

    server.on_task = retry
    assert ship("run", URL, "fix it") == Exit.FAILED
    out = capfd.readouterr().out
    assert out.count("no connection") == 2
    assert "attempt 3" in out
    assert "the task failed: no connection" in out


def test_a_session_that_changed_nothing_applies_as_nothing(
    ship: Ship, server: ProtocolServer, checkout: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.log()
    assert ship("apply", "ses_1", "--into", str(checkout)) == Exit.OK
    assert "changes nothing here" in capfd.readouterr().out
