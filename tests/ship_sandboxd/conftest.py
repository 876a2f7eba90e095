"""A real sandbox host as a child process, and sandboxes in it made by the official SDK."""

import contextlib
import fcntl
import importlib.util
import ipaddress
import json
import os
import select
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from e2b import Sandbox

from ship_sandboxd.builds import debian
from ship_sandboxd.lifecycle.records import last_version

API_KEY = "e2b_" + "7" * 40
START_TIMEOUT_S = 60.0
BACKENDS = [
    pytest.param(
        "bubblewrap",
        marks=pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
    ),
    pytest.param(
        "gvisor",
        marks=pytest.mark.skipif(
            shutil.which("runsc") is None or os.geteuid() != 0,
            reason="runsc is not installed, or this is not root",
        ),
    ),
]
needs_s3 = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("obstore", "moto")),
    reason="obstore and moto[server] are not installed",
)


class Host:
    """`python -m ship_sandboxd` on a data folder, which can be killed and started again."""

    def __init__(self, data: Path, options: tuple[str, ...] = (), prefix: tuple[str, ...] = ()) -> None:
        data.parent.mkdir(parents=True, exist_ok=True)
        self.data = data
        self.options = options
        self.prefix = prefix
        self.listen = "127.0.0.1:0"
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.start()

    def start(self) -> None:
        with (self.data.parent / "host.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self.prefix,
                    sys.executable,
                    "-m",
                    "ship_sandboxd",
                    "--listen",
                    self.listen,
                    "--data",
                    str(self.data),
                    *self.options,
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "SHIP_SANDBOXD_API_KEY": API_KEY},
            )
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], START_TIMEOUT_S)[0], (
            "the host did not start in time"
        )
        line = self.process.stdout.readline()
        assert line, f"the host ended: {self.log()}"
        self.url = json.loads(line)["url"]
        self.listen = self.url.removeprefix("http://")

    def stop(self, *, kill: bool = False) -> None:
        assert self.process is not None
        self.process.kill() if kill else self.process.terminate()
        self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def restart(self, *, kill: bool = False) -> None:
        self.stop(kill=kill)
        self.start()

    def log(self) -> str:
        return (self.data.parent / "host.log").read_text()

    @property
    def options_of_sdk(self) -> dict[str, Any]:
        return {"api_key": API_KEY, "api_url": self.url, "sandbox_url": self.url}

    def create(self, **options: Any) -> Sandbox:
        return Sandbox.create(**{"timeout": 120, **options}, **self.options_of_sdk)

    def record(self, sandbox_id: str) -> dict[str, Any]:
        return last_version((self.data / "sandboxes" / sandbox_id / "sandbox.json").read_bytes())

    def records(self) -> list[dict[str, Any]]:
        """Those of all sandboxes, of whatever tenant."""
        return [last_version(path.read_bytes()) for path in (self.data / "sandboxes").glob("*/sandbox.json")]

    def close(self) -> None:
        self.stop()
        if not any((self.data / "sandboxes").iterdir()):
            return
        subprocess.run(
            [sys.executable, "-m", "ship_sandboxd", "--data", str(self.data), "--stop-all"],
            check=True,
            capture_output=True,
        )


def eventually(condition: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """Wait until a condition holds; answers its value."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)
    return value


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """The URL of an empty bucket."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "moto.server", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    endpoint = f"http://127.0.0.1:{port}"

    def up() -> bool:
        try:
            return httpx.put(f"{endpoint}/layers-bucket").status_code == 200
        except httpx.TransportError:
            return False

    eventually(up, 30)
    yield f"s3://layers-bucket/some/prefix?endpoint={endpoint}&region=us-east-1"
    server.terminate()
    server.wait()


@pytest.fixture(params=["folder", pytest.param("s3", marks=needs_s3)])
def store_url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where blobs may be: a folder, and a bucket of a real S3 server where the libraries for it are."""
    if request.param == "folder":
        return str(tmp_path / "store")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    return str(request.getfixturevalue("bucket")).replace("prefix?", f"{tmp_path.name}?")


@pytest.fixture
def open_path(tmp_path: Path) -> Path:
    """A folder of the test's own that every user of this machine may enter."""
    for folder in (tmp_path, *tmp_path.parents):
        mode = stat.S_IMODE(folder.stat().st_mode)
        if not mode & stat.S_IXOTH:
            folder.chmod(mode | 0o055)
    return tmp_path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 96 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Use up the disk that a folder lies on, to the last block; answers the file that does it."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host that many tests share."""
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    host = Host(tmp_path_factory.mktemp("host") / "data")
    yield host
    host.close()


@pytest.fixture
def own_host(tmp_path: Path) -> Iterator[Callable[..., Host]]:
    """Makes hosts of a test's own, which it may kill. Nothing runs in them but what it makes, unless its options say so."""
    hosts: list[Host] = []

    def make(*options: str) -> Host:
        hosts.append(Host(tmp_path / f"host{len(hosts)}" / "data", ("--spares", "0", *options)))
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()


@pytest.fixture
def sandbox(host: Host) -> Iterator[Sandbox]:
    made = host.create()
    yield made
    made.kill()


@pytest.fixture(scope="module")
def shared(host: Host) -> Iterator[Sandbox]:
    """A sandbox that the tests of one module share."""
    made = host.create(timeout=600)
    yield made
    made.kill()


def mirror_options() -> list[str]:
    """What lets sandboxes reach this machine's package servers, where those have addresses of their own."""
    hosts = {urlsplit(line.split()[1]).hostname or "" for line in debian.sources()}
    found = {
        str(item[4][0])
        for host in hosts
        for item in socket.getaddrinfo(host, 80, socket.AF_INET, socket.SOCK_STREAM)
    }
    private = sorted(address for address in found if not ipaddress.ip_address(address).is_global)
    return [word for address in private for word in ("--allow-private", f"{address}:80")]


@pytest.fixture(scope="session")
def builder_options(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The options of a host that builds templates. The Debian root is made once, and kept for later runs."""
    kept = Path("~/.cache/ship-tests").expanduser() / f"debian-{debian.recipe()}.tar.zst"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several processes may run tests at the same time
        if not kept.exists():
            _keep_debian(kept, tmp_path_factory.mktemp("debian") / "data")
    return ("--debian-root", str(kept), *mirror_options())


def _keep_debian(kept: Path, data: Path) -> None:
    for program in ("mmdebstrap", "zstd"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    host = Host(data)
    host.create(template="debian", request_timeout=600).kill()
    (layer,) = (host.data / "blobs" / "layers").glob("*.tar.zst")
    scratch = kept.with_suffix(f".{os.getpid()}")
    shutil.copyfile(layer, scratch)
    scratch.replace(kept)
    host.close()


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory, builder_options: tuple[str, ...]) -> Iterator[Host]:
    """A host that builds templates, which many tests share."""
    host = Host(tmp_path_factory.mktemp("builder") / "data", builder_options)
    yield host
    host.close()
