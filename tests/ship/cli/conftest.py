import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.ship.client.protocol_server import TOKEN, ProtocolServer, serving

from ship import cli

Ship = Callable[..., int]


@pytest.fixture(scope="session")
def running() -> Iterator[ProtocolServer]:
    with serving() as server:
        yield server


@pytest.fixture
def server(running: ProtocolServer) -> ProtocolServer:
    running.forget()
    return running


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, and nothing of the machine's settings."""
    for name in list(os.environ):
        if name.startswith(("SHIP_", "XDG_", "OPENAI_", "ANTHROPIC_", "GIT_", "E2B_", "COLUMNS")):
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return folder


@pytest.fixture
def ship(server: ProtocolServer, home: Path) -> Ship:
    """Runs a command line in this process against the server that `ship up` is said to have started."""
    data = home / ".local" / "share" / "ship"
    data.mkdir(parents=True)
    (data / "cli.json").write_text(json.dumps({"url": server.url, "token": TOKEN}))
    return lambda *arguments: cli.run([str(argument) for argument in arguments])


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with two commits, a binary file and an ignore rule."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=trunk")
    (folder / "app.py").write_text("".join(f"line {number}\n" for number in range(1, 21)))
    (folder / "gone.txt").write_text("to be deleted\n")
    (folder / "image.bin").write_bytes(bytes(range(256)))
    (folder / ".gitignore").write_text("*.log\n")
    commit(folder, "first")
    (folder / "README").write_text("hello\n")
    commit(folder, "second")
    return folder


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Test", "-c", "user.email=test@localhost")
    result = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def commit(folder: Path, message: str) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)


def subprocess_ship(
    *arguments: str, env: dict[str, str] | None = None, stdin: str = ""
) -> "subprocess.CompletedProcess[str]":
    """`ship` as a process of its own."""
    command = [sys.executable, "-m", "ship.cli", *arguments]
    environment = {**os.environ, **(env or {})}
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, env=environment, timeout=30, check=False
    )
