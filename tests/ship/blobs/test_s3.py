"""Blobs in a bucket: the contract on two real servers, large ones, and what goes wrong."""

import hashlib
import os
import resource
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ship.blobs import s3
from ship.blobs.s3 import S3Blobs
from ship.errors import ConfigurationError, Unavailable
from ship.testing.contracts import check_blob_store
from ship.testing.ports import free_port
from ship.testing.s3_servers import S3Server, has_radosgw, moto_server, radosgw

needs_radosgw = pytest.mark.skipif(not has_radosgw(), reason="radosgw, ceph-mon and ceph-osd are not here")


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with moto_server() as server:
        yield server


@pytest.fixture(scope="module")
def rados() -> Iterator[S3Server]:
    with tempfile.TemporaryDirectory(prefix="ship-ceph-") as folder, radosgw(Path(folder)) as server:
        yield server


@pytest.fixture(params=["moto", pytest.param("rados", marks=needs_radosgw)])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(request.param)
    return found


async def random_pieces(count: int) -> AsyncIterator[bytes]:
    for number in range(count):
        yield hashlib.sha256(b"%d" % number).digest() * (32 * 1024)


async def test_it_keeps_the_contract(server: S3Server, tmp_path: Path) -> None:
    blobs = S3Blobs(server.url, tmp_path)
    await blobs.open()
    await check_blob_store(blobs)
    assert not list(tmp_path.iterdir())


async def test_a_large_blob_travels_in_parts_and_little_memory(server: S3Server, tmp_path: Path) -> None:
    blobs = S3Blobs(server.url, tmp_path)
    await blobs.open()
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stored = await blobs.put(random_pieces(100), 1 << 30)
    assert stored.size_bytes == 100 << 20
    digest = hashlib.sha256()
    async for piece in blobs.get(stored.sha256):
        digest.update(piece)
    assert digest.hexdigest() == stored.sha256
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
    assert grown < 70 * 1024, f"{grown} KiB more"


@needs_radosgw
async def test_wrong_credentials_are_refused_and_not_shown(rados: S3Server, tmp_path: Path) -> None:
    for url in (
        rados.url_with(rados.key, "a-guessed-secret"),
        rados.url_with("nobody", "a-guessed-secret"),
        rados.url_with(rados.key, rados.secret, "another-bucket"),
    ):
        with pytest.raises(ConfigurationError) as refused:
            await S3Blobs(url, tmp_path).open()
        assert refused.value.code == "blobs_refused"
        assert "guessed" not in str(refused.value)
        assert rados.secret not in str(refused.value)


async def test_a_bucket_that_is_not_there_is_said_at_the_start(moto: S3Server, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        await S3Blobs(moto.url_with("key", "secret", "another-bucket"), tmp_path).open()
    assert refused.value.code == "blobs_refused"


async def test_a_server_that_is_not_there_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "RETRY_S", 1)
    blobs = S3Blobs(f"s3://k:s@bucket?endpoint=http://127.0.0.1:{free_port()}&region=r", tmp_path)
    with pytest.raises(Unavailable) as refused:
        await blobs.put(random_pieces(1), 1 << 30)
    assert refused.value.code == "blobs_unavailable"
    with pytest.raises(Unavailable):
        await anext(aiter(blobs.get("0" * 64)))


async def test_a_full_disk_is_said(moto: S3Server) -> None:
    if not Path("/dev/full").exists() or os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
        try:
            with pytest.raises(Unavailable) as refused:
                await S3Blobs(moto.url, Path(folder)).put(random_pieces(3), 1 << 30)
            assert refused.value.code == "disk_full"
        finally:
            subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(
    "url", ["", "s3://", "http://bucket", "s3://bucket?secret=x", "s3://key@bucket", "s3://[bucket"]
)
def test_a_url_that_names_no_bucket_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        S3Blobs(url, tmp_path)
    assert refused.value.code == "blobs_url_invalid"
