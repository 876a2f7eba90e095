"""Archives of COPY steps: kept for each tenant, uploaded by a signed link."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ship_sandboxd import durable
from ship_sandboxd.builds import uploads
from ship_sandboxd.builds.uploads import TooLarge, Uploads
from ship_sandboxd.errors import BadRequest, QuotaExceeded, Unauthorized
from ship_sandboxd.quotas import Quotas

HASH = "1" * 64


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def test_an_archive_is_kept_for_its_own_tenant(tmp_path: Path) -> None:
    made = Uploads(tmp_path / "files", Quotas(tmp_path))
    asyncio.run(made.store("one", HASH, pieces(b"a", b"b")))
    assert made.path("one", HASH).read_bytes() == b"ab"
    assert not made.path("two", HASH).exists()


def test_an_archive_is_on_the_disk_before_it_is_there_for_anyone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    made = Uploads(tmp_path / "files", Quotas(tmp_path))

    def note(path: Path) -> None:
        assert not made.path("one", HASH).exists()
        synced.append(path.read_bytes())

    monkeypatch.setattr(durable, "sync", note)
    asyncio.run(made.store("one", HASH, pieces(b"a", b"b")))
    assert synced == [b"ab"]


@pytest.mark.parametrize("files_hash", ["", "..", "../" * 20 + "x", "A" * 64, "1" * 63])
def test_a_hash_cannot_be_a_path(tmp_path: Path, files_hash: str) -> None:
    with pytest.raises(BadRequest):
        Uploads(tmp_path / "files", Quotas(tmp_path)).path("one", files_hash)


def test_a_link_holds_for_its_template_and_hash_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Uploads(tmp_path / "files", Quotas(tmp_path))
    query = made.query("t1", HASH)
    made.check("t1", HASH, query)
    for template, files_hash, given in (
        ("t2", HASH, query),
        ("t1", "2" * 64, query),
        ("t1", HASH, {**query, "expires": str(int(query["expires"]) + 1)}),
        ("t1", HASH, {}),
        ("t1", HASH, {**query, "signature": "é"}),
    ):
        with pytest.raises(Unauthorized):
            made.check(template, files_hash, given)
    monkeypatch.setattr(uploads, "_LINK_S", -1.0)
    with pytest.raises(Unauthorized, match="expired"):
        made.check("t1", HASH, made.query("t1", HASH))


def test_an_upload_past_the_bound_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_UPLOAD_BYTES", 3)
    made = Uploads(tmp_path / "files", Quotas(tmp_path))
    with pytest.raises(TooLarge):
        asyncio.run(made.store("one", HASH, pieces(b"ab", b"cd")))
    assert [path for path in (tmp_path / "files").rglob("*") if path.is_file()] == []


def test_the_archives_that_waited_longest_give_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_STORED_BYTES", 5)
    made = Uploads(tmp_path / "files", Quotas(tmp_path))
    for digit in "123":
        asyncio.run(made.store("one", digit * 64, pieces(b"abc")))
    kept = [digit for digit in "123" if made.path("one", digit * 64).exists()]
    assert kept == ["3"]


def test_the_tenant_with_most_gives_way_to_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_STORED_BYTES", 8)
    made = Uploads(tmp_path / "files", Quotas(tmp_path))
    asyncio.run(made.store("modest", "0" * 64, pieces(b"abc")))
    for digit in "123":
        asyncio.run(made.store("greedy", digit * 64, pieces(b"abc")))
    assert made.path("modest", "0" * 64).exists()
    assert [digit for digit in "123" if made.path("greedy", digit * 64).exists()] == ["3"]


def test_a_tenant_uploads_no_more_than_its_quota_and_the_old_gives_way(tmp_path: Path) -> None:
    (tmp_path / "quotas.json").write_text('{"one": {"upload_mb": 4}}')
    made = Uploads(tmp_path / "files", Quotas(tmp_path, tmp_path / "quotas.json"))
    two_mb = bytes(2 * 1024 * 1024)
    for digit in "12":
        asyncio.run(made.store("one", digit * 64, pieces(two_mb)))
    with pytest.raises(QuotaExceeded, match="4 of 4 MB of uploaded files"):
        asyncio.run(made.store("one", "3" * 64, pieces(two_mb)))
    with pytest.raises(QuotaExceeded):
        asyncio.run(made.store("one", "4" * 64, pieces(*[two_mb] * 3)))
    asyncio.run(made.store("other", "3" * 64, pieces(*[two_mb] * 3)))
    asyncio.run(made.store("one", "2" * 64, pieces(two_mb)))  # anew: it takes its own place
    long_ago = time.time() - 2 * uploads._LINK_S
    os.utime(made.path("one", "1" * 64), (long_ago, long_ago))
    asyncio.run(made.store("one", "3" * 64, pieces(two_mb)))
    assert [digit for digit in "1234" if made.path("one", digit * 64).exists()] == ["2", "3"]
    assert [path for path in (tmp_path / "files").rglob("*") if path.suffix == ".new"] == []
