"""Commands of the server's own machine, as far as they need no running server; `tests/system` starts real ones."""

import json
import socket
from pathlib import Path

import pytest

from ship.cli import demonstration, run
from ship.cli.exits import Exit


def test_tokens_are_made_listed_and_revoked_without_a_server(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = ("--data", str(tmp_path / "data"))
    assert run(["token", "create", "--name", "ci", *data]) == Exit.OK
    token = capfd.readouterr().out
    assert token.startswith("ship_")
    assert len(token.split()) == 1
    assert run(["token", "ls", "--json", *data]) == Exit.OK
    listed = capfd.readouterr().out
    assert [one["name"] for one in json.loads(listed)] == ["ci"]
    assert token.strip() not in listed
    assert run(["token", "revoke", "ci", *data]) == Exit.OK
    assert run(["token", "revoke", "ci", *data]) == Exit.REFUSED


def test_a_login_link_needs_a_server_that_has_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["login-link", "--data", str(tmp_path)]) == Exit.MACHINE
    assert "ship up" in capfd.readouterr().err


def test_wrong_settings_are_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "ship.toml"
    settings.write_text("colour = 'red'\n")
    assert run(["up", "--config", str(settings), "--data", str(tmp_path / "data")]) == Exit.MACHINE
    assert "colour" in capfd.readouterr().err


def test_a_port_in_use_is_said_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["up", "--listen", f"127.0.0.1:{port}", "--data", str(tmp_path / "data")]) == Exit.MACHINE
    assert f"port {port} of 127.0.0.1 is in use" in capfd.readouterr().err


def test_the_demonstration_takes_a_real_model_where_there_is_a_key() -> None:
    assert demonstration.choose_model({}, scripted=False) == (
        {"SHIP_SCRIPTED_MODEL": "true"},
        "scripted/demo",
    )
    assert demonstration.choose_model({"OPENAI_API_KEY": "sk"}, scripted=False) == ({}, "")
    chosen = {"ANTHROPIC_API_KEY": "sk", "SHIP_MODEL": "anthropic/claude-haiku-4-5"}
    assert demonstration.choose_model(chosen, scripted=False) == ({}, "anthropic/claude-haiku-4-5")
    assert demonstration.choose_model({"OPENAI_API_KEY": "sk"}, scripted=True)[1] == "scripted/demo"


# The doctor


def examined(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    code = run(["doctor", "--json", *arguments])
    report = json.loads(capfd.readouterr().out)
    assert report["ok"] is (code == Exit.OK)
    return code, {finding["name"]: finding for finding in report["findings"]}


def test_the_doctor_looks_at_everything_and_tells_what_to_do(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, findings = examined(capfd, "--data", str(tmp_path))
    wanted = [
        "system",
        "python",
        "git",
        "bubblewrap",
        "libseccomp",
        "setpriv",
        "ripgrep",
        "zstd",
        "fakeroot",
        "mmdebstrap",
        "cgroups",
        "disk",
        "port",
        "models",
        "template",
        "sandbox host",
        "server",
    ]
    assert {*wanted, "user namespaces", "data folder"} == set(findings)
    assert all(finding["advice"] for finding in findings.values() if finding["state"] != "ok")


def test_a_missing_bubblewrap_and_git_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, findings = examined(capfd, "--data", str(tmp_path))
    assert code == Exit.MACHINE
    assert findings["bubblewrap"]["state"] == findings["git"]["state"] == "missing"
    assert "apt install bubblewrap" in findings["bubblewrap"]["advice"]


def test_a_bubblewrap_that_cannot_start_a_sandbox_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'setting up uid map: Permission denied' >&2\nexit 1\n")
    broken.chmod(0o755)
    tmp_path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    code, findings = examined(capfd, "--data", str(tmp_path))
    assert code == Exit.MACHINE
    assert "Permission denied" in findings["bubblewrap"]["found"]


def test_an_old_git_a_taken_port_and_a_set_key_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "git"
    old.write_text("#!/bin/sh\necho git version 2.25.1\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("SHIP_LISTEN", f"127.0.0.1:{taken.getsockname()[1]}")
        code, findings = examined(capfd, "--data", str(tmp_path))
    assert code == Exit.MACHINE
    assert findings["git"]["state"] == "missing"
    assert findings["port"]["state"] == "warning"
    assert findings["models"] == {"name": "models", "state": "ok", "found": "openai", "advice": ""}
