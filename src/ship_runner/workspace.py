"""The repository that the agent works on: clone, restore, diff and checkpoint, without touching the user's branch."""

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ship_runner.control import Bootstrap
from ship_runner.failures import RunnerFailure
from ship_runner.git import Git, GitFailed, bearer_header, clone_failure

CHECKPOINTS = "refs/ship/checkpoints"
_EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
_CUT = "\n# The diff was cut here; the checkpoint holds everything.\n"
_AUTHOR = {
    "GIT_AUTHOR_NAME": "Ship",
    "GIT_AUTHOR_EMAIL": "ship@localhost",
    "GIT_COMMITTER_NAME": "Ship",
    "GIT_COMMITTER_EMAIL": "ship@localhost",
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The workspace as it stood: a commit under ``refs/ship/checkpoints``, and the files that differ from the base.

    ``files`` are ``{path, status, additions, deletions}``; ``diff`` and ``bundle`` are files on disk.
    """

    id: str
    commit: str
    base_commit: str
    files: list[dict[str, Any]]
    diff: Path
    bundle: Path


class Workspace:
    """One working copy, and the commit that its diff is taken against."""

    def __init__(self, folder: Path, state: Path) -> None:
        self.folder = folder
        self._state = state
        self._record = state / "workspace.json"

    @property
    def base_commit(self) -> str:
        """The commit that the work started from; empty before ``prepare``."""
        try:
            return str(json.loads(self._record.read_text())["base_commit"])
        except (FileNotFoundError, ValueError, KeyError):
            return ""

    async def prepare(self, bootstrap: Bootstrap, token: str, bundle: Path | None) -> str:
        """Clone, make the work branch, and bring back the checkpoint in ``bundle``; the base commit.

        Does nothing when an earlier runner has done it. Raises:
            RunnerFailure: ``clone_failed``, ``branch_missing``, ``disk_full``, ``restore_failed``.
        """
        if done := self.base_commit:
            return done
        try:
            base = await self._clone(bootstrap, token)
            git = Git(self.folder)
            await git.run("config", "user.name", _AUTHOR["GIT_AUTHOR_NAME"])
            await git.run("config", "user.email", _AUTHOR["GIT_AUTHOR_EMAIL"])
            if bundle is not None:
                base = await self._restore(git, bundle, bootstrap.work_branch) or base
        except GitFailed as error:
            raise clone_failure(error, token) from error
        except OSError as error:
            said = GitFailed("clone", 0, error.strerror or "it took too long")
            raise clone_failure(said, token) from error
        partial = self._record.with_suffix(".new")
        partial.write_text(json.dumps({"base_commit": base}))
        partial.replace(self._record)
        return base

    async def _clone(self, bootstrap: Bootstrap, token: str) -> str:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        outside = Git(self.folder.parent, environment=bearer_header(bootstrap.clone_url, token))
        await outside.run(
            "clone",
            "--no-checkout",
            "--origin",
            "origin",
            "--",
            bootstrap.clone_url,
            str(self.folder),
            timeout=3600,
        )
        git = Git(self.folder)
        base = await self._base(git, bootstrap.branch)
        await git.run("checkout", "--quiet", "--no-track", "-B", bootstrap.work_branch, base)
        return base

    async def _base(self, git: Git, branch: str) -> str:
        """The commit that a branch, a tag or a commit's name stands for; empty is the repository's own default."""
        wanted = (
            [f"refs/remotes/origin/{branch}", f"refs/tags/{branch}", branch]
            if branch
            else ["refs/remotes/origin/HEAD", "HEAD"]
        )
        for name in wanted:
            found = await git.run(
                "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}", check=False
            )
            if found.strip():
                return found.strip()
        if branch:
            raise RunnerFailure(
                "branch_missing",
                f"The repository has no branch, tag or commit {branch!r}.",
                "Name one that exists, or none for the default branch.",
            )
        heads = await git.run("for-each-ref", "--count=1", "--format=%(objectname)", "refs/remotes/origin")
        if heads.strip():
            return heads.strip()
        author = git.with_environment(**_AUTHOR)
        await author.run("hash-object", "-w", "-t", "tree", "/dev/null")
        return (await author.run("commit-tree", "-m", "Start an empty repository", _EMPTY_TREE)).strip()

    async def _restore(self, git: Git, bundle: Path, work_branch: str) -> str:
        """Lay the checkpoint of a bundle over the clone; changes that were not committed then are not committed now."""
        try:
            await git.run("fetch", "--quiet", str(bundle), f"{CHECKPOINTS}/*:{CHECKPOINTS}/*")
            listed = await git.run("bundle", "list-heads", str(bundle))
            commit = listed.split()[0]
            await git.run("checkout", "--quiet", "-B", work_branch, f"{commit}^")
            await git.run("read-tree", "-m", "-u", "HEAD", commit)
            await git.run("read-tree", "HEAD")
            message = await git.run("log", "-1", "--format=%(trailers:key=Base,valueonly)", commit)
        except (GitFailed, IndexError) as error:
            raise RunnerFailure(
                "restore_failed",
                f"The checkpoint could not be brought back: {error}",
                "Start a new session; the diff of this one is kept.",
            ) from error
        return message.strip()

    async def checkpoint(self, diff_limit: int) -> Checkpoint:
        """Commit everything that git does not ignore to a ref of its own; index and branch stay as they are.

        Raises: GitFailed, TimeoutError, OSError.
        """
        base = self.base_commit
        checkpoint_id = f"ckp_{secrets.token_hex(10)}"
        git = Git(self.folder, environment=_AUTHOR)
        async with self._staged(git) as index:
            tree = (await index.run("write-tree")).strip()
        head = (await git.run("rev-parse", "HEAD^{commit}")).strip()
        message = f"Checkpoint {checkpoint_id}\n\nBase: {base}"
        commit = (await git.run("commit-tree", "-p", head, "-m", message, tree)).strip()
        ref = f"{CHECKPOINTS}/{checkpoint_id}"
        await git.run("update-ref", ref, commit)
        diff = self._state / f"diff-{checkpoint_id}.patch"
        bundle = self._state / f"checkpoint-{checkpoint_id}.bundle"
        files = await self._write_diff(git, diff, diff_limit, base, commit)
        await git.run("bundle", "create", "--quiet", str(bundle), ref, f"^{base}")
        return Checkpoint(checkpoint_id, commit, base, files, diff, bundle)

    async def live_diff(self, path: Path, limit: int) -> None:
        """Write the diff of the workspace as it stands, untracked files included; leaves nothing behind in the repository."""
        git = Git(self.folder)
        objects = (await git.run("rev-parse", "--path-format=absolute", "--git-path", "objects")).strip()
        with tempfile.TemporaryDirectory(dir=self._state) as scratch:
            apart = git.with_environment(
                GIT_OBJECT_DIRECTORY=scratch, GIT_ALTERNATE_OBJECT_DIRECTORIES=objects, **_AUTHOR
            )
            async with self._staged(apart) as index:
                await self._write_diff(index, path, limit, "--cached", self.base_commit)

    async def _write_diff(self, git: Git, path: Path, limit: int, *range_: str) -> list[dict[str, Any]]:
        quiet = (
            "diff",
            "--no-color",
            "--no-ext-diff",
            "--no-textconv",
            "--find-renames",
            "--submodule=short",
        )
        if not await git.to_file(path, limit, *quiet, "--binary", "--full-index", *range_):
            _cut_at_a_file(path)
        return changed_files(await git.bytes(*quiet, "--raw", "--numstat", "-z", *range_))

    @asynccontextmanager
    async def _staged(self, git: Git) -> AsyncIterator[Git]:
        """A private index that holds the whole workspace; the index of the user is only read."""
        await git.disarm_filters()
        with tempfile.TemporaryDirectory(dir=self._state) as scratch:
            path = Path(scratch) / "index"
            own = Path((await git.run("rev-parse", "--path-format=absolute", "--git-path", "index")).strip())
            index = git.with_environment(GIT_INDEX_FILE=str(path))
            try:
                shutil.copyfile(own, path)
                await index.run("add", "--all", "--", ".")
            except (FileNotFoundError, GitFailed) as error:
                if isinstance(error, GitFailed) and error.disk_full:
                    raise
                path.unlink(missing_ok=True)
                await index.run("read-tree", "HEAD")
                await index.run("add", "--all", "--ignore-errors", "--", ".", check=False)
            yield index


def changed_files(listing: bytes) -> list[dict[str, Any]]:
    """``{path, status, additions, deletions}`` from ``git diff --raw --numstat -z``; a binary file counts 0 lines.

    The raw entries come first: ``:modes hashes status NUL path NUL [path NUL]``; then ``additions TAB deletions TAB path NUL``, where
    a rename has an empty path and then two: https://git-scm.com/docs/git-diff#_raw_output_format
    """
    fields = iter(listing.decode("utf-8", "replace").split("\0"))
    files: dict[str, dict[str, Any]] = {}
    for field in fields:
        if field.startswith(":"):
            status = field.rsplit(" ", 1)[1][0]
            path = next(fields)
            if status in "RC":
                path = next(fields)
            files[path] = {
                "path": path,
                "status": "A" if status == "C" else status,
                "additions": 0,
                "deletions": 0,
            }
        elif field:
            additions, deletions, path = field.split("\t", 2)
            if not path:
                next(fields)
                path = next(fields)
            if path in files and additions != "-":
                files[path].update(additions=int(additions), deletions=int(deletions))
    return list(files.values())


def _cut_at_a_file(path: Path) -> None:
    """Leave out the file that was cut in the middle, so that what remains can be applied."""
    with path.open("r+b") as file:
        content = file.read()
        last = content.rfind(b"\ndiff --git ")
        file.truncate(max(last, 0))
        file.seek(0, os.SEEK_END)
        file.write(_CUT.encode())
