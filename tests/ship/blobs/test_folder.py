"""Blobs in a folder."""

import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ship.blobs import folder
from ship.blobs.folder import FolderBlobs
from ship.errors import Unavailable
from ship.testing.contracts import check_blob_store


async def test_it_keeps_the_contract(tmp_path: Path) -> None:
    await check_blob_store(FolderBlobs(tmp_path / "blobs"))
    assert not list((tmp_path / "blobs").glob(".incoming-*"))


async def test_a_full_disk_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def one() -> AsyncIterator[bytes]:
        yield b"bytes"

    monkeypatch.setattr(folder.os, "fsync", full)
    with pytest.raises(Unavailable) as refused:
        await FolderBlobs(tmp_path).put(one(), 100)
    assert refused.value.code == "disk_full"
    assert not list(tmp_path.iterdir())
