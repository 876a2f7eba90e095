"""The scripts that the Makefile is made of, on machines that lack something."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[3] / "scripts"
TOOLS = ("bash", "dirname", "env", "grep", "python3", "git", "setpriv")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A PATH with few programs, and an apt-get that writes down what it is told."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        (folder / name).symlink_to(shutil.which(name) or pytest.skip(f"this machine has no {name}"))
    program(folder / "apt-get", f'echo "$@" >> {tmp_path}/apt.log')
    program(folder / "sudo", 'exec "$@"')
    return folder


def program(file: Path, line: str) -> None:
    file.write_text(f"#!/bin/sh\n{line}\n")
    file.chmod(0o755)


def run(script: str, path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": str(path), "HOME": str(path), "PYENV_ROOT": os.environ.get("PYENV_ROOT", "")}
    command = [str(SCRIPTS / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_what_is_missing_is_named_with_its_reason_and_installed(path: Path, tmp_path: Path) -> None:
    result = run("system-packages.sh", path)
    assert result.returncode == 0, result.stderr
    assert "bubblewrap       isolates the sandboxes" in result.stdout
    installed = (tmp_path / "apt.log").read_text().split()
    assert installed[-4:] == ["bubblewrap", "fakeroot", "zstd", "ripgrep"]
    assert "--yes" in installed


def test_package_lists_are_fetched_when_the_installation_needs_them(path: Path, tmp_path: Path) -> None:
    log = tmp_path / "apt.log"
    program(path / "apt-get", f'echo "$@" >> {log}; grep -q update {log}')
    assert run("system-packages.sh", path).returncode == 0
    assert [line.split()[3] for line in log.read_text().splitlines()] == ["install", "update", "install"]


def test_nothing_is_said_where_nothing_is_missing(path: Path) -> None:
    for name in ("bwrap", "rg", "fakeroot", "zstd"):
        program(path / name, "exit 0")
    result = run("system-packages.sh", path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_without_apt_the_list_is_for_hands_and_fails_only_for_what_is_essential(path: Path) -> None:
    (path / "apt-get").unlink()
    result = run("system-packages.sh", path)
    assert result.returncode == 3
    assert "bubblewrap" in result.stdout
    assert "by hand" in result.stdout
    program(path / "bwrap", "exit 0")
    result = run("system-packages.sh", path)
    assert result.returncode == 0
    assert "ripgrep" in result.stdout


def test_a_python_that_is_too_old_is_passed_over(path: Path) -> None:
    found = run("find-python.sh", path)
    assert found.returncode == 0
    (path / "python3").unlink()
    program(path / "python3", "exit 1")
    fallback = run("find-python.sh", path)
    assert fallback.stdout.strip() in ("", "/usr/bin/python3")


def test_the_systems_own_python_comes_before_one_that_was_compiled_by_hand(path: Path) -> None:
    own = Path("/usr/bin/python3")
    check = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"
    if not own.exists() or subprocess.run([own, "-c", check], check=False, capture_output=True).returncode:
        pytest.skip("this system has no Python of its own that would do")
    (path / "python3").unlink()
    program(path / "python3", "exit 0")
    assert run("find-python.sh", path).stdout.strip() == str(own)
