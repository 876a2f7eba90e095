"""A host that is not root offers less, says so, and works."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import Host
from e2b import CommandExitException, Sandbox

import ship_sandboxd

pytestmark = pytest.mark.system
UID = "64242"


# The tests' own Python may lie where only root may go; the machine's serves everyone. The first word is the other's.
_PYTHON = 'shift; PYTHONPATH="$0" exec /usr/bin/python3 "$@"'


@pytest.fixture
def ordinary(open_path: Path) -> Iterator[Host]:
    """A host that runs as an ordinary user, also where the tests run as root."""
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:
        source = str(Path(ship_sandboxd.__file__).parent.parent)
        prefix = ("setpriv", "--reuid", UID, "--regid", UID, "--clear-groups", "sh", "-c", _PYTHON, source)
        os.chown(open_path, int(UID), int(UID))
        program = "import sys, ship_sandboxd; assert sys.version_info >= (3, 11)"
        tried = subprocess.run([*prefix, "", "-c", program], cwd="/", capture_output=True, check=False)
        if tried.returncode != 0:
            pytest.skip(
                "an ordinary user can run no host here: no new Python, or a checkout that only root reads"
            )
    host = Host(open_path / "data", prefix=prefix)
    yield host
    host.stop()
    stop = [*prefix, sys.executable, "-m", "ship_sandboxd", "--data", str(host.data), "--stop-all"]
    subprocess.run(stop, check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(host.data)


def test_a_host_that_is_not_root_makes_sandboxes_of_bound_folders(ordinary: Host) -> None:
    health = httpx.get(f"{ordinary.url}/health").json()
    assert (health["isolation"], health["root"]) == ("one uid for all sandboxes", "bound folders")
    assert health["limits"]["disk"] is False
    sandbox = ordinary.create()
    assert sandbox.commands.run("touch /workspace/a ~/b /tmp/c && id -u").stdout == "1000\n"
    with pytest.raises(CommandExitException):
        sandbox.commands.run("touch /usr/x")
    for path in (str(ordinary.data), "/root", "/home/user/.ssh"):
        assert sandbox.commands.run(f"ls -A {path} 2>/dev/null || true").stdout == ""
    ordinary.restart(kill=True)
    assert sandbox.commands.run("ls /workspace").stdout == "a\n"
    sandbox.pause()
    Sandbox.connect(sandbox.sandbox_id, **ordinary.options_of_sdk)
    assert sandbox.commands.run("ls /workspace ~").stdout == "/home/user:\nb\n\n/workspace:\na\n"
    sandbox.kill()
