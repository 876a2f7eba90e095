"""One contract for every store of blobs: a folder, and a bucket of a real S3 server where the libraries for it are."""

import os
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import needs_s3

from ship_sandboxd.errors import SetupError
from ship_sandboxd.storage import s3
from ship_sandboxd.storage.blobs import BlobMissing, Blobs, FolderBlobs
from ship_sandboxd.storage.s3 import S3Blobs


@pytest.fixture
def blobs(store_url: str) -> Blobs:
    return S3Blobs(store_url) if store_url.startswith("s3:") else FolderBlobs(Path(store_url))


async def test_what_was_put_is_there_whole(blobs: Blobs, tmp_path: Path) -> None:
    content = os.urandom(20 * 1024 * 1024 + 7)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    await blobs.put("layers/big.tar.zst", source)
    await blobs.fetch("layers/big.tar.zst", target)
    assert target.read_bytes() == content


async def test_a_small_blob_is_replaced_and_deleted(blobs: Blobs, tmp_path: Path) -> None:
    await blobs.write("snapshots/a.json", b"1")
    await blobs.write("snapshots/a.json", b"2")
    assert await blobs.read("snapshots/a.json") == b"2"
    await blobs.delete("snapshots/a.json")
    await blobs.delete("snapshots/a.json")
    with pytest.raises(BlobMissing):
        await blobs.read("snapshots/a.json")
    with pytest.raises(BlobMissing):
        await blobs.fetch("snapshots/a.json", tmp_path / "nothing")


async def test_keys_are_listed_by_prefix_with_their_age(blobs: Blobs) -> None:
    for key in ("one/a.json", "one/b.json", "other/c.json"):
        await blobs.write(key, b"x")
    found = await blobs.keys("one/")
    assert set(found) == {"one/a.json", "one/b.json"}
    assert all(abs(time.time() - written) < 60 for written in found.values())
    assert await blobs.keys("none/") == {}
    assert await blobs.written("one/a.json") == found["one/a.json"]
    assert await blobs.written("one/none.json") is None


@needs_s3
async def test_a_bucket_that_does_not_answer_is_an_error_of_the_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    blobs = S3Blobs(f"s3://bucket?endpoint=http://127.0.0.1:{port}&region=us-east-1")
    with pytest.raises(OSError, match="store of blobs"):
        await blobs.read("snapshots/a.json")


class SlowBucket(BaseHTTPRequestHandler):
    """A bucket at the end of a thin link, which breaks once."""

    protocol_version = "HTTP/1.1"
    content = os.urandom(4 * 1024 * 1024 + 7)
    broken = False

    def do_HEAD(self) -> None:
        self.head(200, len(self.content))

    def do_GET(self) -> None:
        span = re.fullmatch(
            r"bytes=(\d+)-(\d+)", self.headers.get("Range", f"bytes=0-{len(self.content) - 1}")
        )
        assert span is not None
        start, last = int(span[1]), int(span[2])
        self.head(206, last + 1 - start, ("Content-Range", f"bytes {start}-{last}/{len(self.content)}"))
        for at in range(start, last + 1, 65536):
            time.sleep(0.03)
            if at > len(self.content) * 3 // 4 and not SlowBucket.broken:
                SlowBucket.broken = self.close_connection = True
                return
            self.wfile.write(self.content[at : min(at + 65536, last + 1)])

    def head(self, status: int, length: int, *fields: tuple[str, str]) -> None:
        self.send_response(status)
        same = (
            ("ETag", '"x"'),
            ("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("Content-Length", str(length)),
        )
        for name, value in (*same, *fields):
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        pass


@needs_s3
async def test_a_blob_may_take_longer_than_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_REQUEST_S", 1)
    monkeypatch.setattr(s3, "_RETRY_S", 1)
    monkeypatch.setattr(s3, "_PART_BYTES", 64 * 1024)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with ThreadingHTTPServer(("127.0.0.1", 0), SlowBucket) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            endpoint = f"http://127.0.0.1:{server.server_port}"
            blobs = S3Blobs(f"s3://bucket?endpoint={endpoint}&region=us-east-1")
            began = time.monotonic()
            await blobs.fetch("layers/big.tar.zst", tmp_path / "target")
            assert time.monotonic() - began > s3._REQUEST_S
        finally:
            server.shutdown()
    assert (tmp_path / "target").read_bytes() == SlowBucket.content
    assert SlowBucket.broken


@needs_s3
@pytest.mark.parametrize("url", ["s3://", "http://bucket/x", "s3://bucket?secret=x"])
def test_a_wrong_address_is_refused(url: str) -> None:
    with pytest.raises(SetupError, match="is not s3://"):
        S3Blobs(url)
