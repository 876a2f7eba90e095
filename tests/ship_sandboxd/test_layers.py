"""Layers: packed and unpacked without a loss, checked, and kept for as long as any host needs them."""

import contextlib
import os
import subprocess
import time
from pathlib import Path

import pytest

from ship_sandboxd import durable
from ship_sandboxd.storage import layers as module
from ship_sandboxd.storage.blobs import FolderBlobs
from ship_sandboxd.storage.layers import LayerBroken, Layers

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="layers need root")


def make(tmp_path: Path, name: str = "here") -> Layers:
    return Layers(tmp_path / name, FolderBlobs(tmp_path / "store"))


def upper(tmp_path: Path) -> Path:
    """What overlayfs leaves: an upper folder with a whiteout, an opaque folder, links and owners."""
    folder = tmp_path / "upper"
    (folder / "opaque").mkdir(parents=True)
    (folder / "file").write_text("content")
    os.chown(folder / "file", 199_998, 199_998)
    os.mknod(folder / "gone", 0o600 | 0o020000, os.makedev(0, 0))
    os.setxattr(folder / "opaque", "trusted.overlay.opaque", b"y")
    os.setxattr(folder / "opaque", "trusted.overlay.origin", b"of this place only")
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "hard").hardlink_to(folder / "file")
    return folder


async def test_a_layer_comes_back_as_it_was(tmp_path: Path) -> None:
    layer = await make(tmp_path).pack(upper(tmp_path))
    folder = await make(tmp_path, "there").unpacked(layer.digest)
    assert (folder / "file").read_text() == "content"
    assert (folder / "file").stat().st_uid == 199_998
    assert (folder / "hard").stat().st_ino == (folder / "file").stat().st_ino
    assert (folder / "gone").stat().st_rdev == 0
    assert os.getxattr(folder / "opaque", "trusted.overlay.opaque") == b"y"
    assert os.listxattr(folder / "opaque") == ["trusted.overlay.opaque"]
    assert (folder / "link").readlink() == Path("/etc/passwd")


async def test_the_same_content_is_the_same_layer(tmp_path: Path) -> None:
    layers, folder = make(tmp_path), upper(tmp_path)
    first = await layers.pack(folder)
    (folder / "file").read_text()  # the time of its last use is none of a layer's business
    assert await layers.pack(folder) == first


async def test_the_source_is_free_again_once_it_is_read(tmp_path: Path) -> None:
    seen = []

    async def once_read() -> None:
        seen.append(True)

    await make(tmp_path).pack(upper(tmp_path), once_read)
    assert seen == [True]


async def test_a_source_that_is_not_there_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    layers = make(tmp_path)
    with pytest.raises(LayerBroken, match="No such file"):
        await layers.pack(tmp_path / "nothere")
    assert not list((tmp_path / "here").glob("new-*"))


async def test_an_archive_that_would_leave_the_folder_does_not(tmp_path: Path) -> None:
    """Somebody who may write to the store is not thereby root on the host."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "evil").write_text("evil")
    archive = tmp_path / "evil.tar"
    for name, transform in (("up", "s,evil,../../escaped,"), ("absolute", f"s,evil,{tmp_path}/escaped,")):
        archive.unlink(missing_ok=True)
        words = [
            "tar",
            "-P",
            "--create",
            f"--file={archive}",
            f"--transform={transform}",
            "-C",
            str(source),
            "evil",
        ]
        subprocess.run(words, check=True)
        subprocess.run(["zstd", "-q", "-f", str(archive)], check=True)
        packed = archive.with_suffix(".tar.zst")
        digest = subprocess.run(
            ["sha256sum", str(packed)], check=True, capture_output=True, text=True
        ).stdout[:64]
        await FolderBlobs(tmp_path / "store").put(f"layers/{digest}.tar.zst", packed)
        with contextlib.suppress(LayerBroken):
            await make(tmp_path, name).unpacked(digest)
        assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize("name", ["", "../../etc", "A" * 64, "g" * 64, "a" * 63])
async def test_what_is_no_digest_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(LayerBroken):
        await make(tmp_path).unpacked(name)


async def test_a_store_keeps_what_any_host_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = make(tmp_path), make(tmp_path, "there")
    layer = await one.pack(upper(tmp_path))
    blob = tmp_path / "store" / "layers" / f"{layer.digest}.tar.zst"
    needed = [layer.digest]
    one.add_holder(lambda: needed)
    await one.collect()
    await other.unpacked(layer.digest)
    assert await other.collect() == [layer.digest]  # its own unpacked copy, which nothing there needs
    assert blob.exists()
    monkeypatch.setattr(module, "_GRACE_S", -1.0)
    await other.collect()
    assert blob.exists()
    needed.clear()
    await one.collect()
    assert not blob.exists()


async def test_a_host_that_is_gone_needs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = make(tmp_path), make(tmp_path, "there")
    layer = await one.pack(upper(tmp_path))
    one.add_holder(lambda: [layer.digest])
    await one.collect()
    monkeypatch.setattr(module, "_GRACE_S", -1.0)
    long_ago = time.time() - 40 * 24 * 3600
    (told,) = (tmp_path / "store" / "hosts").iterdir()
    os.utime(told, (long_ago, long_ago))
    assert await other.collect() == [layer.digest]


async def test_hosts_that_a_power_cut_left_without_their_names_are_still_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(durable, "sync", lambda path: synced.append(path))
    for name in ("one", "other"):
        layers = make(tmp_path, name)
        (tmp_path / name / "host").touch()
        for _ in range(2):
            await layers.collect()
    assert len(list((tmp_path / "store" / "hosts").glob("[0-9a-f]*.json"))) == 2
    assert {tmp_path / name / "host" for name in ("one", "other")} <= set(synced)


async def test_a_layer_that_comes_to_be_needed_while_others_are_collected_stays(tmp_path: Path) -> None:
    named: list[str] = []

    class SlowStore(FolderBlobs):
        """Somebody names the layer, and has it unpacked, while this is being asked."""

        async def write(self, key: str, content: bytes) -> None:
            await super().write(key, content)
            if not named:
                named.append(digest)
                await layers.unpacked(digest)

    digest = (await make(tmp_path, "there").pack(upper(tmp_path))).digest
    layers = Layers(tmp_path / "here", SlowStore(tmp_path / "store"))
    layers.add_holder(lambda: named)
    assert await layers.collect() == []
    assert (tmp_path / "here" / digest / "file").exists()
    named[:] = ["another"]
    assert await layers.collect() == [digest]


async def test_a_layer_that_is_stored_again_while_others_are_collected_stays(tmp_path: Path) -> None:
    again: list[Path] = []

    class SlowStore(FolderBlobs):
        """Somebody stores the same layer once more while this is being asked."""

        async def write(self, key: str, content: bytes) -> None:
            await super().write(key, content)
            for folder in again:
                await layers.pack(folder)

    layers = Layers(tmp_path / "here", SlowStore(tmp_path / "store"))
    source = upper(tmp_path)
    blob = tmp_path / "store" / "layers" / f"{(await layers.pack(source)).digest}.tar.zst"
    os.utime(blob, (1e9, 1e9))
    again.append(source)
    assert await layers.collect() == []
    assert blob.exists()
    again.clear()
    os.utime(blob, (1e9, 1e9))
    await layers.collect()
    assert not blob.exists()


async def test_what_is_needed_is_not_asked_anew_for_layers_that_stay(tmp_path: Path) -> None:
    """A holder reads thousands of files, and nothing else goes on meanwhile."""
    layers, asked = make(tmp_path), []
    source = upper(tmp_path)
    digests = []
    for text in "abcdef":
        (source / "file").write_text(text)
        digests.append((await layers.pack(source)).digest)
        await layers.unpacked(digests[-1])

    def needed() -> list[str]:
        asked.append(True)
        return digests[1:]

    layers.add_holder(needed)
    assert await layers.collect() == digests[:1]
    assert len(asked) == 2
