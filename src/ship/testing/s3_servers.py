"""S3 servers of their own for tests: moto's, which believes everybody, and Ceph's radosgw, which checks every signature."""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from ship.testing.ports import free_port

START_S = 60.0
BUCKET = "ship-blobs"
_CLUSTER, _DISK = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))


class S3Server:
    """A server with one bucket. ``url`` names it for the setting ``blobs``; it ends with the process that started it."""

    def __init__(self, port: int, key: str, secret: str) -> None:
        self.port = port
        self.endpoint = f"http://127.0.0.1:{port}"
        self.key, self.secret = key, secret

    @property
    def url(self) -> str:
        """The bucket, with credentials."""
        return self.url_with(self.key, self.secret)

    def url_with(self, key: str, secret: str, bucket: str = BUCKET) -> str:
        """The same with other credentials, or another bucket."""
        return f"s3://{key}:{secret}@{bucket}/some/prefix?endpoint={self.endpoint}&region=us-east-1"


@contextlib.contextmanager
def moto_server() -> Iterator[S3Server]:
    """moto's server, for as long as the block runs."""
    server = S3Server(free_port(), "key", "secret")
    with _child(sys.executable, "-W", "ignore", "-m", "moto.server", "-p", str(server.port)):
        _until(lambda: httpx.put(f"{server.endpoint}/{BUCKET}").status_code == 200)
        yield server


def has_radosgw() -> bool:
    """Whether Debian's radosgw, ceph-mon and ceph-osd are here."""
    return os.geteuid() == 0 and all(shutil.which(name) for name in ("radosgw", "ceph-mon", "ceph-osd"))


@contextlib.contextmanager
def radosgw(folder: Path) -> Iterator[S3Server]:
    """A Ceph of one monitor and one memory disk with its S3 gateway, for as long as the block runs; takes a quarter of a minute."""
    server = S3Server(free_port(), secrets.token_hex(10), secrets.token_hex(20))
    configuration = folder / "ceph.conf"
    monitor_port, disk = free_port(), folder / "osd"
    disk.mkdir()
    configuration.write_text(
        f"""[global]
fsid = {_CLUSTER}
mon_host = [v2:127.0.0.1:{monitor_port}]
public_network = 127.0.0.0/8
keyring = {folder}/keyring
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
osd_objectstore = memstore
memstore_device_bytes = 1073741824
run_dir = {folder}
log_file = {folder}/$name.log
admin_socket = {folder}/$cluster-$name.asok
mon_data = {folder}/mon
osd_data = {disk}
rgw_frontends = beast endpoint=127.0.0.1:{server.port}
"""
    )
    ceph = ("-c", str(configuration))
    monitors, keyring = folder / "monmap", folder / "keyring"
    everything = [word for part in ("mon", "osd", "mgr") for word in ("--cap", part, "allow *")]
    _run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    for name in ("client.admin", "osd.0"):
        _run("ceph-authtool", keyring, "--gen-key", "-n", name, *everything)
    _run(
        "monmaptool",
        "--create",
        "--fsid",
        _CLUSTER,
        "--addv",
        "a",
        f"[v2:127.0.0.1:{monitor_port}]",
        monitors,
    )
    _run("ceph-mon", *ceph, "--mkfs", "-i", "a", "--monmap", monitors, "--keyring", keyring)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_child("ceph-mon", *ceph, "-f", "-i", "a"))
        _until(lambda: _succeeds("ceph", *ceph, "--connect-timeout", "5", "osd", "new", _DISK, "0"))
        _run("ceph-osd", *ceph, "--mkfs", "-i", "0", "--osd-uuid", _DISK)
        stack.enter_context(_child("ceph-osd", *ceph, "-f", "-i", "0"))
        _run(
            *("radosgw-admin", *ceph, "user", "create", "--uid", "ship", "--display-name", "Ship"),
            *("--access-key", server.key, "--secret-key", server.secret),
        )
        stack.enter_context(_child("radosgw", *ceph, "-f", "-n", "client.admin"))
        _until(lambda: httpx.get(server.endpoint).is_success)
        _make_bucket(server)
        yield server


def _make_bucket(server: S3Server) -> None:
    """By a client that no adapter of ours uses."""
    import boto3  # type: ignore[import-untyped]  # it comes with moto and has no types

    boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=server.key,
        aws_secret_access_key=server.secret,
    ).create_bucket(Bucket=BUCKET)


@contextlib.contextmanager
def _child(*command: object) -> Iterator[None]:
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *map(str, command)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _run(*command: object) -> None:
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=START_S)


def _succeeds(*command: object) -> bool:
    return subprocess.run(list(map(str, command)), check=False, capture_output=True).returncode == 0


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while True:
        with contextlib.suppress(httpx.TransportError):
            if true():
                return
        if time.monotonic() > deadline:
            raise RuntimeError("the S3 server does not start")
        time.sleep(0.1)
