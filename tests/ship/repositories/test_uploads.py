import asyncio
import hashlib
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ship.blobs.folder import FolderBlobs
from ship.errors import InvalidInput, NotFound, TooLarge
from ship.repositories.uploads import Uploads, default_branch
from ship.testing import sample_repository


def git(folder: Path, *arguments: str, said: bytes = b"") -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=A", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, input=said, check=True, capture_output=True).stdout.decode().strip()


def uploads(folder: Path, limit_bytes: int, node: str = "uploads") -> Uploads:
    return Uploads(folder / node, FolderBlobs(folder / "blobs"), limit_bytes)


async def stream(content: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(content), 1000):
        yield content[at : at + 1000]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    sample_repository.create(tmp_path / "sample")
    return tmp_path / "sample"


def bundle(repository: Path, *revisions: str) -> bytes:
    git(repository, "bundle", "create", "-q", "../bundle", *revisions)
    return (repository.parent / "bundle").read_bytes()


async def test_a_bundle_becomes_a_bare_repository(repository: Path, tmp_path: Path) -> None:
    git(repository, "tag", "v1")
    content = bundle(repository, "HEAD", "--branches", "--tags")

    sha256 = await uploads(tmp_path, len(content)).store(stream(content))

    assert sha256 == hashlib.sha256(content).hexdigest()
    stored = tmp_path / "uploads" / f"{sha256}.git"
    assert git(stored, "rev-parse", "HEAD") == git(repository, "rev-parse", "HEAD")
    assert git(stored, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert git(stored, "tag") == "v1"
    assert [path.name for path in (tmp_path / "uploads").iterdir()] == [stored.name]


async def test_the_same_bundle_sent_at_once_is_kept_once(repository: Path, tmp_path: Path) -> None:
    content = bundle(repository, "--all", "HEAD")

    names = await asyncio.gather(*(uploads(tmp_path, len(content)).store(stream(content)) for _ in range(4)))

    assert len(set(names)) == 1
    assert len(list((tmp_path / "uploads").iterdir())) == 1


async def test_a_detached_head_becomes_a_branch_of_its_own(repository: Path, tmp_path: Path) -> None:
    git(repository, "checkout", "-q", "--detach", "HEAD~1")
    content = bundle(repository, "HEAD", "main")

    sha256 = await uploads(tmp_path, len(content)).store(stream(content))

    stored = tmp_path / "uploads" / f"{sha256}.git"
    assert git(stored, "symbolic-ref", "HEAD") == "refs/heads/uploaded"
    assert git(stored, "rev-parse", "HEAD") == git(repository, "rev-parse", "HEAD")


@pytest.mark.parametrize("damage", ["no bundle", "cut", "flipped", "thin"])
async def test_what_is_no_whole_bundle_is_refused_and_leaves_nothing(
    repository: Path, tmp_path: Path, damage: str
) -> None:
    content = bundle(repository, "HEAD", "main")
    match damage:
        case "no bundle":
            content = b"#!/bin/sh\necho hello\n"
        case "cut":
            content = content[: len(content) // 2]
        case "flipped":
            content = content[:-200] + bytes([content[-200] ^ 0xFF]) + content[-199:]
        case "thin":
            content = bundle(repository, "main~1..main")

    with pytest.raises(InvalidInput) as refused:
        await uploads(tmp_path, 10_000_000).store(stream(content))

    assert refused.value.code == "bundle_invalid"
    assert list((tmp_path / "uploads").iterdir()) == []


async def test_a_bundle_over_the_limit_is_refused_and_leaves_nothing(
    repository: Path, tmp_path: Path
) -> None:
    content = bundle(repository, "HEAD", "main")

    with pytest.raises(TooLarge) as refused:
        await uploads(tmp_path, len(content) - 1).store(stream(content))

    assert refused.value.code == "upload_too_large"
    assert list((tmp_path / "uploads").iterdir()) == []


async def test_a_tree_that_would_write_into_git_is_refused(repository: Path, tmp_path: Path) -> None:
    blob = git(repository, "rev-parse", "HEAD:README.md")
    inner = git(repository, "mktree", said=f"100644 blob {blob}\tconfig\n".encode())
    entry = b"40000 .git\0" + bytes.fromhex(inner)
    outer = git(repository, "hash-object", "-w", "-t", "tree", "--literally", "--stdin", said=entry)
    commit = git(repository, "commit-tree", outer, "-m", "evil")
    git(repository, "update-ref", "refs/heads/main", commit)
    content = bundle(repository, "main")

    with pytest.raises(InvalidInput) as refused:
        await uploads(tmp_path, 10_000_000).store(stream(content))

    assert "hasDotgit" in refused.value.message


@pytest.mark.parametrize(
    ("heads", "branch"),
    [
        ({"HEAD": "1", "refs/heads/a": "1"}, "a"),
        ({"HEAD": "1", "refs/heads/a": "1", "refs/heads/main": "1"}, "main"),
        ({"HEAD": "1", "refs/heads/b": "1", "refs/heads/a": "1", "refs/heads/main": "2"}, "a"),
        ({"HEAD": "3", "refs/heads/a": "1"}, ""),
        ({"refs/heads/z": "1", "refs/heads/master": "1"}, "master"),
        ({"refs/tags/v1": "1"}, ""),
    ],
)
def test_the_default_branch_is_the_one_that_head_stood_on(heads: dict[str, str], branch: str) -> None:
    assert default_branch(heads) == branch


async def test_another_node_makes_the_repository_of_the_blob(repository: Path, tmp_path: Path) -> None:
    content = bundle(repository, "HEAD", "--branches")
    sha256 = await uploads(tmp_path, len(content)).store(stream(content))
    other = uploads(tmp_path, len(content), "other")
    made = await asyncio.gather(*(other.repository(sha256) for _ in range(4)))
    assert set(made) == {tmp_path / "other" / f"{sha256}.git"}
    assert git(made[0], "rev-parse", "HEAD") == git(repository, "rev-parse", "HEAD")
    assert [path.name for path in (tmp_path / "other").iterdir()] == [f"{sha256}.git"]
    with pytest.raises(NotFound) as missing:
        await other.repository("0" * 64)
    assert missing.value.code == "repository_not_found"
