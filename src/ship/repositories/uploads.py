"""Repositories that clients send as git bundles: each becomes a bare repository named by the bundle's SHA-256."""

import asyncio
import hashlib
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from ship.errors import InvalidInput, NotFound, TooLarge
from ship.ports.blobs import BlobStore
from ship.repositories import git
from ship.repositories.git import GitFailed

_BUFFER_BYTES = 1024 * 1024
_UNPACK_TIMEOUT_S = 1800.0
_DANGEROUS = ("hasDot", "hasDotdot", "hasDotgit", "fullPathname")
"""Names in trees that would write outside of a checkout."""
_OLD_SINS = (
    "missingSpaceBeforeDate",
    "missingSpaceBeforeEmail",
    "missingEmail",
    "badTimezone",
    "multipleAuthors",
)
"""What git finds in real old histories and what harms nobody."""


class Uploads:
    """The uploaded repositories. A bundle is kept as a blob, which every node can read; the bare repository ``folder/<sha256>.git`` is
    made of it on the node where it is needed."""

    def __init__(self, folder: Path, blobs: BlobStore, limit_bytes: int) -> None:
        self._folder = folder
        self._blobs = blobs
        self._limit_bytes = limit_bytes

    async def store(self, stream: AsyncIterator[bytes]) -> str:
        """Keeps a bundle and gives back its SHA-256; a bundle that is there already is not kept twice.

        Its HEAD becomes the default branch. Nothing of an upload that fails stays.

        Raises:
            TooLarge: ``upload_too_large``.
            InvalidInput: ``bundle_invalid``.
            Unavailable: the blob could not be stored.
        """
        async with self._incoming() as incoming:
            bundle = incoming / "bundle"
            sha256 = await _receive(stream, bundle, self._limit_bytes)
            await self._settle(incoming, sha256)
            await self._blobs.put(_pieces(bundle), self._limit_bytes)
            return sha256

    async def repository(self, sha256: str) -> Path:
        """The bare repository, on this node.

        Raises:
            NotFound: ``repository_not_found``.
            Unavailable: the blob could not be read.
        """
        target = self._folder / f"{sha256}.git"
        if await asyncio.to_thread(target.is_dir):
            return target
        async with self._incoming() as incoming:
            try:
                await _receive(self._blobs.get(sha256), incoming / "bundle", self._limit_bytes)
            except NotFound as error:
                raise NotFound(
                    "the uploaded repository is not here any more",
                    code="repository_not_found",
                    hint="Upload it again, in a new session.",
                ) from error
            await self._settle(incoming, sha256)
        return target

    @asynccontextmanager
    async def _incoming(self) -> AsyncIterator[Path]:
        await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
        incoming = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="incoming-", dir=self._folder))
        try:
            yield incoming
        finally:
            await asyncio.to_thread(shutil.rmtree, incoming, ignore_errors=True)

    async def _settle(self, incoming: Path, sha256: str) -> None:
        target = self._folder / f"{sha256}.git"
        if not await asyncio.to_thread(target.exists):
            await _unpack(incoming / "bundle", incoming / "repository.git")
            await asyncio.to_thread(_move, incoming / "repository.git", target)


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        while piece := await asyncio.to_thread(file.read, _BUFFER_BYTES):
            yield piece


async def _receive(stream: AsyncIterator[bytes], path: Path, limit_bytes: int) -> str:
    digest = hashlib.sha256()
    pending = bytearray()
    size_bytes = 0
    file = await asyncio.to_thread(path.open, "wb")
    try:
        async for chunk in stream:
            size_bytes += len(chunk)
            if size_bytes > limit_bytes:
                raise TooLarge(
                    f"the bundle is over {limit_bytes} bytes",
                    code="upload_too_large",
                    hint="Raise repositories.upload_limit_bytes in Ship's settings, or send less history.",
                )
            pending += chunk
            if len(pending) >= _BUFFER_BYTES:
                await asyncio.to_thread(_write, file, digest, bytes(pending))
                pending.clear()
        await asyncio.to_thread(_write, file, digest, bytes(pending))
    finally:
        await asyncio.to_thread(file.close)
    return digest.hexdigest()


def _write(file: BinaryIO, digest: "hashlib._Hash", data: bytes) -> None:
    digest.update(data)
    file.write(data)


async def _unpack(bundle: Path, repository: Path) -> None:
    try:
        heads = _heads(await git.run(["bundle", "list-heads", str(bundle)], folder=bundle.parent))
        branch = default_branch(heads)
        if not branch and "HEAD" not in heads:
            raise GitFailed("the bundle has neither a branch nor HEAD")
        await git.run(
            [
                "init",
                "--quiet",
                "--bare",
                "--template=",
                f"--initial-branch={branch or 'main'}",
                str(repository),
            ],
            folder=bundle.parent,
        )
        refs = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
        if not branch and "HEAD" in heads:
            refs.append("+HEAD:refs/heads/uploaded")
        await git.run(
            ["fetch", "--quiet", "--no-write-fetch-head", "--no-tags", str(bundle), *refs],
            folder=repository,
            timeout_s=_UNPACK_TIMEOUT_S,
        )
        # git looks at each object of a fetch when asked to, but not of one from a bundle.
        levels = [f"fsck.{name}=error" for name in _DANGEROUS] + [f"fsck.{name}=warn" for name in _OLD_SINS]
        settings = [word for level in levels for word in ("-c", level)]
        await git.run(
            [*settings, "fsck", "--no-dangling", "--no-progress"],
            folder=repository,
            timeout_s=_UNPACK_TIMEOUT_S,
        )
        if not branch:
            await git.run(["symbolic-ref", "HEAD", "refs/heads/uploaded"], folder=repository)
    except GitFailed as error:
        raise InvalidInput(
            f"not a git bundle that stands alone: {error.message[-500:]}",
            code="bundle_invalid",
            hint="Make it with `git bundle create FILE HEAD --branches --tags` in a clone that is not shallow.",
        ) from error


def _heads(listing: str) -> dict[str, str]:
    """Commit by ref name."""
    lines = (line.partition(" ") for line in listing.splitlines())
    return {name: commit for commit, _, name in lines}


def default_branch(heads: dict[str, str]) -> str:
    """The branch that HEAD stood on. A bundle says only the commit: of several branches there, ``main`` and ``master`` win.

    Empty when HEAD stands on no branch.
    """
    branches = {
        name.removeprefix("refs/heads/"): commit
        for name, commit in heads.items()
        if name.startswith("refs/heads/")
    }
    wanted = heads.get("HEAD")
    there = sorted(name for name, commit in branches.items() if wanted in (None, commit))
    return next((name for name in ("main", "master") if name in there), there[0] if there else "")


def _move(repository: Path, target: Path) -> None:
    try:
        repository.rename(target)
    except OSError:
        # Another upload of the same bundle was quicker; both hold the same commits.
        if not target.exists():
            raise
