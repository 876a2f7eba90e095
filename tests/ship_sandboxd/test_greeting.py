"""What the host says when it is ready; that a program gets one line of JSON is what every other test here starts with."""

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

from e2b import Sandbox
from tests.ship_sandboxd.conftest import API_KEY, eventually


def test_the_command_of_ship_is_the_host(tmp_path: Path) -> None:
    options = ("--listen", "127.0.0.1:0", "--data", str(tmp_path / "data"), "--api-key", API_KEY)
    host = subprocess.Popen(
        [sys.executable, "-m", "ship.cli", "sandboxd", *options],
        stdout=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "SHIP_SANDBOXD_API_KEY"},
    )
    try:
        assert host.stdout is not None
        with host.stdout:
            told = json.loads(host.stdout.readline())
        assert told["pid"] == host.pid, "signals are for the host itself"
        made = Sandbox.create(api_key=API_KEY, api_url=told["url"], sandbox_url=told["url"])
        assert made.commands.run("echo hello").stdout == "hello\n"
        made.kill()
    finally:
        host.terminate()
        assert host.wait(10) == 0


def test_a_person_is_told_what_to_do_next_and_it_works(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "ship_sandboxd",
        "--listen",
        "127.0.0.1:0",
        "--data",
        str(tmp_path / "data"),
    ]
    environment = {**os.environ, "SHIP_SANDBOXD_API_KEY": API_KEY}
    host = subprocess.Popen(command, stdout=slave, stderr=subprocess.DEVNULL, env=environment)
    os.close(slave)
    os.set_blocking(master, False)
    shown = b""

    def told() -> bool:
        nonlocal shown
        with contextlib.suppress(BlockingIOError):
            shown += os.read(master, 65536)
        return b"Ctrl-C" in shown

    try:
        eventually(told)
        text = shown.decode()
        assert API_KEY not in text
        exported = next(line for line in text.splitlines() if "export " in line)
        settings = dict(word.split("=", 1) for word in exported.split()[1:])
        assert settings.pop("E2B_API_KEY") == '"$SHIP_SANDBOXD_API_KEY"'
        made = Sandbox.create(
            api_key=API_KEY, api_url=settings["E2B_API_URL"], sandbox_url=settings["E2B_SANDBOX_URL"]
        )
        assert made.commands.run("echo hello").stdout == "hello\n"
        made.kill()
    finally:
        host.terminate()
        host.wait(10)
        os.close(master)
