"""E2B's official clients, unmodified, oldest and newest, as the judges of the protocol.

They are installed once into `~/.cache/ship-tests`, each version in a folder of its own.
"""

import fcntl
import hashlib
import json
import os
import pty
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from conftest import API_KEY, Host, eventually

pytestmark = pytest.mark.system

CLIENTS = Path(__file__).parent / "clients"
WITH_NODE = Path(__file__).parents[2] / "scripts" / "with-node.sh"
CACHE = Path.home() / ".cache" / "ship-tests"
SCENARIO_TIMEOUT_S = 60


@contextmanager
def _installed_once(folder: Path) -> Iterator[bool]:
    """Whether a folder is to be filled; one process does it, and others wait. What fails half-way is done anew."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / ".done"
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            yield True
            done.touch()
        else:
            yield False


def _python_with(version: str) -> Path:
    folder = CACHE / f"e2b-{version}-python{sys.version_info.major}.{sys.version_info.minor}"
    with _installed_once(folder) as needed:
        if needed:
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            pip = [folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, f"e2b=={version}"], check=True, stderr=subprocess.DEVNULL)
    return folder / "bin" / "python"


@pytest.fixture(scope="session")
def javascript() -> Path:
    """A folder with the JavaScript clients in its `node_modules`."""
    lock = (CLIENTS / "package-lock.json").read_bytes()
    folder = CACHE / f"clients-{hashlib.sha256(lock).hexdigest()[:12]}"
    with _installed_once(folder) as needed:
        if needed:
            folder.mkdir()
            for name in ("package.json", "package-lock.json"):
                shutil.copy(CLIENTS / name, folder)
            npm = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
            subprocess.run([WITH_NODE, *npm], cwd=folder, check=True)
    return folder


@pytest.fixture
def environment(host: Host) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {
        **kept,
        "E2B_API_KEY": API_KEY,
        "E2B_API_URL": host.url,
        "E2B_SANDBOX_URL": host.url,
        "HOST_ROOT": httpx.get(f"{host.url}/health").json()["root"],
        "TERM": "dumb",
        "NO_COLOR": "1",
    }


def _run(command: list[object], environment: dict[str, str], **options: object) -> str:
    """What a client prints; the test fails with all of it when the client fails."""
    done = subprocess.run(
        [str(word) for word in command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SCENARIO_TIMEOUT_S,
        check=False,
        **options,  # type: ignore[call-overload] # passed on as they are
    )
    assert done.returncode == 0, done.stdout
    return str(done.stdout)


@pytest.mark.parametrize("version", ["2.45.0", "2.63.0"])
def test_the_python_sdk_works(environment: dict[str, str], version: str) -> None:
    assert "done" in _run([_python_with(version), CLIENTS / "scenario.py"], environment)


@pytest.mark.parametrize("package", ["e2b-oldest", "e2b-newest"])
def test_the_javascript_sdk_works(environment: dict[str, str], javascript: Path, package: str) -> None:
    # A module finds the packages beside it.
    scenario = Path(shutil.copy(CLIENTS / "scenario.mjs", javascript / f"{package}.mjs"))
    assert "done" in _run([WITH_NODE, "node", scenario, package], environment)


class CommandLine:
    """`e2b` in a shell."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.program = [str(WITH_NODE), str(folder / "node_modules" / ".bin" / "e2b")]
        self.environment = environment

    def __call__(self, *words: str, stdin: str = "") -> str:
        return _run([*self.program, *words], self.environment, input=stdin)

    def in_terminal(self, *words: str, typed: bytes, until: bytes) -> None:
        """Type into it once it has shown a prompt, and wait for what that prints."""
        process, terminal = pty.fork()
        if not process:
            os.execve(self.program[0], [*self.program, *words], self.environment)
        said = bytearray()
        os.set_blocking(terminal, False)
        try:
            for wanted in (b"$ ", until):
                eventually(lambda wanted=wanted: _said(terminal, said) and wanted in said, 20)
                os.write(terminal, typed)
        finally:
            os.kill(process, 9)
            os.waitpid(process, 0)
            os.close(terminal)


def _said(terminal: int, said: bytearray) -> bool:
    try:
        said += os.read(terminal, 65_536)
    except BlockingIOError:
        time.sleep(0.02)
    return True


@pytest.fixture
def e2b(javascript: Path, environment: dict[str, str]) -> CommandLine:
    return CommandLine(javascript, environment)


def test_the_command_line_works(e2b: CommandLine) -> None:
    sandbox = e2b("sandbox", "create", "--detach", "--timeout", "100").split()[-1]

    def listed() -> list[dict[str, str]]:
        return json.loads(e2b("sandbox", "list", "--format", "json"))

    assert [info["state"] for info in listed() if info["sandboxId"] == sandbox] == ["running"]
    assert e2b("sandbox", "exec", "-e", "A=1", sandbox, "echo $A; cat", stdin="typed") == "1\ntyped"
    assert e2b("sandbox", "exec", "-u", "root", sandbox, "id -u") == "0\n"
    e2b.in_terminal("sandbox", "connect", sandbox, typed=b"echo it-is-$((6*7))\n", until=b"it-is-42")
    assert "sandbox created" in e2b("sandbox", "logs", sandbox)
    assert "Memory" in e2b("sandbox", "metrics", sandbox)
    e2b("sandbox", "pause", sandbox)
    e2b("sandbox", "resume", sandbox)
    assert "has been killed" in e2b("sandbox", "kill", sandbox)
    assert sandbox not in [info["sandboxId"] for info in listed()]
