"""The repository that the agent works on: clone, restore, diff and checkpoint, without touching the user's branch."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ship_runner import gitstate
from ship_runner.control import Bootstrap
from ship_runner.failures import RunnerFailure
from ship_runner.git import Git, GitFailed, bearer_header, clone_failure

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

    ``parent`` is the checkpoint that the bundle builds on, empty for a whole one. ``files`` are ``{path, status, additions,
    deletions}``; ``diff`` and ``bundle`` are files on disk.
    """

    id: str
    parent: str
    commit: str
    base_commit: str
    files: list[dict[str, Any]]
    diff: Path
    bundle: Path


@dataclass(frozen=True, slots=True)
class Prepared:
    """A workspace that stands: the commit that the work started from, and what a restore did not bring back."""

    base_commit: str
    lost: tuple[str, ...] = ()


class Workspace:
    """One working copy, and the commit that its diff is taken against."""

    def __init__(self, folder: Path, state: Path) -> None:
        self.folder = folder
        self._state = state
        self._record = state / "workspace.json"
        self._cloned = state / "cloned-refs"

    @property
    def base_commit(self) -> str:
        """The commit that the work started from; empty before ``prepare``."""
        return self._prepared().base_commit

    def _prepared(self) -> Prepared:
        try:
            record = json.loads(self._record.read_text())
            return Prepared(record["base_commit"], tuple(record.get("lost", ())))
        except (FileNotFoundError, ValueError, KeyError):
            return Prepared("")

    async def prepare(
        self, bootstrap: Bootstrap, token: str, bundles: Awaitable[list[Path]] | None = None
    ) -> Prepared:
        """Clone, make the work branch, and bring back the checkpoint in ``bundles``, its chain with the oldest first, which may come
        while git clones.

        Does nothing when an earlier runner has done it. Raises:
            RunnerFailure: ``clone_failed``, ``branch_missing``, ``disk_full``, ``restore_failed``.
        """
        if (done := self._prepared()).base_commit:
            return done
        try:
            git, base = await self._clone(bootstrap, token)
            if bundles is not None:
                prepared = await self._restore(git, await bundles, bootstrap.work_branch)
            else:
                await git.run("checkout", "--quiet", "--no-track", "-B", bootstrap.work_branch, base)
                prepared = Prepared(base)
        except GitFailed as error:
            raise clone_failure(error, token) from error
        except OSError as error:
            said = GitFailed("clone", 0, error.strerror or "it took too long")
            raise clone_failure(said, token) from error
        partial = self._record.with_suffix(".new")
        partial.write_text(json.dumps(asdict(prepared)))
        partial.replace(self._record)
        return prepared

    async def _clone(self, bootstrap: Bootstrap, token: str) -> tuple[Git, str]:
        """The clone with nothing checked out, and the commit to start from."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        outside = Git(self.folder.parent, environment=bearer_header(bootstrap.clone_url, token))
        await outside.run(
            "clone",
            "--no-checkout",
            "--origin",
            "origin",
            "--config",
            f"user.name={_AUTHOR['GIT_AUTHOR_NAME']}",
            "--config",
            f"user.email={_AUTHOR['GIT_AUTHOR_EMAIL']}",
            "--",
            bootstrap.clone_url,
            str(self.folder),
            timeout=3600,
        )
        git = Git(self.folder, environment=bearer_header(bootstrap.clone_url, token))
        cloned = (f"{ref.object} {ref.type} {ref.name}\n" for ref in await gitstate.refs(git))
        self._cloned.write_text("".join(cloned))
        return git, await self._base(git, bootstrap.branch)

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
        # The same commit each time: a bundle that builds on it fits into the next clone.
        author = git.with_environment(**_AUTHOR, GIT_AUTHOR_DATE="@0 +0000", GIT_COMMITTER_DATE="@0 +0000")
        await author.run("hash-object", "-w", "-t", "tree", "/dev/null")
        return (await author.run("commit-tree", "-m", "Start an empty repository", _EMPTY_TREE)).strip()

    async def _restore(self, git: Git, bundles: list[Path], work_branch: str) -> Prepared:
        """Files, branches, index and stashes as the checkpoint has them."""
        try:
            manifest = await gitstate.bring_back(git, bundles, work_branch)
        except (GitFailed, ValueError, TypeError) as error:
            raise RunnerFailure(
                "restore_failed",
                f"The checkpoint could not be brought back: {error}",
                "Start a new session; the diff of this one is kept.",
            ) from error
        return Prepared(manifest.base, tuple(manifest.lost))

    async def checkpoint(self, diff_limit: int, checkpoint_id: str, parent: str = "") -> Checkpoint:
        """Keep everything that git does not ignore, and branches, index and stashes; all of them stay as they are.

        The bundle builds on the checkpoint ``parent`` where the repository still has that. Raises: GitFailed, TimeoutError,
        OSError.
        """
        base = self.base_commit
        git = Git(self.folder, environment=_AUTHOR)
        cloned = self._cloned_refs()
        state = ""
        if parent:
            name = f"{gitstate.STATES}/{parent}"
            state = (await git.run("rev-parse", "--verify", "--quiet", name, check=False)).strip()
        staged = await self._index_tree(git)
        async with self._staged(git) as index:
            files = (await index.run("write-tree")).strip()
        commit = await gitstate.capture(
            git, checkpoint_id, base=base, index=staged, files=files, cloned=cloned, parent=state
        )
        diff = self._state / f"diff-{checkpoint_id}.patch"
        bundle = self._state / f"checkpoint-{checkpoint_id}.bundle"
        changed = await self._write_diff(git, diff, diff_limit, base, commit)
        known = [base, *(ref.object for ref in cloned if ref.name.startswith("refs/heads/")), state]
        await gitstate.bundle(git, checkpoint_id, bundle, cloned, [each for each in known if each])
        return Checkpoint(checkpoint_id, parent if state else "", commit, base, changed, diff, bundle)

    def _cloned_refs(self) -> frozenset[gitstate.Ref]:
        """The branches and tags that a fresh clone has anyway."""
        try:
            return frozenset(gitstate.read_refs(self._cloned.read_text()))
        except FileNotFoundError:
            return frozenset()

    async def _index_tree(self, git: Git) -> str:
        """The index as a tree; empty when it cannot be one, as in a merge with conflicts."""
        own = Path((await git.run("rev-parse", "--path-format=absolute", "--git-path", "index")).strip())
        with tempfile.TemporaryDirectory(dir=self._state) as scratch:
            path = Path(scratch) / "index"
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(own, path)
            return (
                await git.with_environment(GIT_INDEX_FILE=str(path)).run("write-tree", check=False)
            ).strip()

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
