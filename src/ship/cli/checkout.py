"""A person's own checkout: what stands in it goes to a session, and the session's change comes back.

Nothing is written into the repository on the way out: the snapshot's objects, index and refs live in a temporary
repository that borrows the checkout's objects. On the way back only files of the working tree change.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ship import errors

_IDENTITY = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "Ship"), ("EMAIL", "ship@localhost"))
}
_QUIET = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "gc.auto=0")


@dataclass(frozen=True)
class Snapshot:
    """What was bundled: the commit, and whether it holds changes that the checkout has not committed."""

    commit: str
    branch: str
    dirty: bool
    shallow: bool


@dataclass(frozen=True)
class Checkout:
    """A working tree of git, by its top folder."""

    root: Path

    @classmethod
    def at(cls, folder: Path) -> "Checkout":
        """The checkout that the folder is in. Raises InvalidInput ``not_a_checkout``."""
        if not folder.is_dir():
            raise errors.InvalidInput(
                f"{folder} is not a folder", code="not_a_checkout", hint="Name a checkout or a URL."
            )
        found = _run(("rev-parse", "--show-toplevel"), folder, check=False)
        if found.returncode:
            raise errors.InvalidInput(
                f"{folder} is not a git checkout",
                code="not_a_checkout",
                hint="Run this in a checkout, or name one, or a URL.",
            )
        return cls(Path(os.fsdecode(found.stdout).rstrip("\n")))

    def bundle(self, file: Path, branch: str = "") -> Snapshot:
        """Writes a git bundle of the checkout as it stands, uncommitted and untracked files included, or of ``branch``.

        Raises:
            InvalidInput: ``no_commit`` in a repository without one, ``branch_missing``.
        """
        head = _run(
            ("rev-parse", "--verify", "--quiet", f"{branch or 'HEAD'}^{{commit}}"), self.root, check=False
        )
        if head.returncode:
            if branch:
                raise errors.InvalidInput(f"{self.root} has no branch {branch}", code="branch_missing")
            raise errors.InvalidInput(
                f"{self.root} has no commit yet", code="no_commit", hint="Commit something first."
            )
        commit = head.stdout.decode().strip()
        shallow = self._git("rev-parse", "--is-shallow-repository") == "true"
        dirty = not branch and bool(self._git("status", "--porcelain", "--ignore-submodules"))
        with self._scratch() as scratch:
            tree = scratch.worktree_tree() if dirty else self._git("rev-parse", f"{commit}^{{tree}}")
            if dirty or shallow:
                # A shallow checkout lacks the history that a bundle would need: its files go without it.
                parents = () if shallow else ("-p", commit)
                message = "Changes that were not committed" if dirty else "The files of a shallow checkout"
                commit = scratch.git("commit-tree", tree, *parents, "-m", message, env=_IDENTITY)
            name = branch or self._git("branch", "--show-current") or "main"
            ref = f"refs/heads/{name}"
            if (
                scratch.attempt("check-ref-format", ref).returncode
                or scratch.attempt("update-ref", ref, commit).returncode
            ):
                ref, name = "refs/heads/main", "main"
                scratch.git("update-ref", ref, commit)
            scratch.git("symbolic-ref", "HEAD", ref)
            scratch.git("bundle", "create", "--quiet", str(file.absolute()), "HEAD", ref)
        return Snapshot(commit, name, dirty, shallow)

    def apply(self, diff: bytes, *, check: bool = False) -> list[str]:
        """Brings a diff into the working tree, by a three-way merge where files have moved on; staged changes stay as they are.

        With ``check`` it only tries. Answers the paths that change.

        Raises:
            Conflict: ``diff_conflicts``: it does not apply; nothing was changed.
        """
        if not diff.strip():
            return []
        with self._scratch() as scratch:
            before = scratch.worktree_tree()
            patch = scratch.folder / "change.patch"
            patch.write_bytes(diff)
            self._merge(scratch, patch, before)
            after = scratch.git("write-tree")
            names = scratch.git("diff-tree", "-r", "-z", "--name-only", "--no-renames", before, after)
            change = scratch.attempt(
                "diff-tree", "-p", "--binary", "--no-renames", "--full-index", before, after
            ).stdout
            if not check and change:
                patch.write_bytes(change)
                self._git("apply", "--whitespace=nowarn", str(patch))
        return [name for name in names.split("\0") if name]

    def _merge(self, scratch: "_Scratch", patch: Path, before: str) -> None:
        exact = ("apply", "--cached", "--whitespace=nowarn", str(patch))
        if scratch.attempt(*exact).returncode == 0:
            return
        merged = scratch.attempt("apply", "--cached", "--3way", "--whitespace=nowarn", str(patch))
        if merged.returncode == 0:
            return
        conflicts = scratch.attempt("diff", "--cached", "--name-only", "--diff-filter=U", "-z").stdout.decode(
            errors="replace"
        )
        names = [name for name in conflicts.split("\0") if name]
        where = f" to {', '.join(names)}" if names else f": {_reason(merged.stderr)}"
        raise errors.Conflict(
            f"the change does not apply{where}; nothing was changed",
            code="diff_conflicts",
            hint="Check out the commit that the session started from, or put your own changes aside, and try again.",
        )

    @contextmanager
    def _scratch(self) -> Iterator["_Scratch"]:
        with tempfile.TemporaryDirectory(prefix="ship-checkout-") as name:
            folder = Path(name)
            repository = folder / "repository.git"
            _run(("init", "--quiet", "--bare", str(repository)), folder)
            objects = Path(self._git("rev-parse", "--git-path", "objects"))
            borrowed = (self.root / objects).resolve()
            (repository / "objects" / "info" / "alternates").write_text(f"{borrowed}\n")
            shallow = (self.root / self._git("rev-parse", "--git-path", "shallow")).resolve()
            if shallow.is_file():
                (repository / "shallow").write_bytes(shallow.read_bytes())
            yield _Scratch(
                self.root,
                folder,
                repository,
                (self.root / self._git("rev-parse", "--git-path", "index")).resolve(),
            )

    def _git(self, *arguments: str) -> str:
        return _run(arguments, self.root).stdout.decode(errors="surrogateescape").strip()


@dataclass(frozen=True)
class _Scratch:
    """A temporary repository that reads the checkout's objects and keeps its own."""

    root: Path
    folder: Path
    repository: Path
    checkout_index: Path
    env: dict[str, str] = field(default_factory=dict)

    def worktree_tree(self) -> str:
        """The tree of the working tree as it stands, untracked files included, ignored ones not."""
        index = self.folder / "index"
        if self.checkout_index.is_file():
            # Its cached file times spare git the reading of every file; git trusts them by the age of the index itself.
            shutil.copy2(self.checkout_index, index)
        self.env["GIT_INDEX_FILE"] = str(index)
        # The checkout's own configuration and ignore rules hold, only new objects go elsewhere.
        own = {
            "GIT_INDEX_FILE": str(index),
            "GIT_OBJECT_DIRECTORY": str(self.repository / "objects"),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": (self.repository / "objects" / "info" / "alternates")
            .read_text()
            .strip(),
        }
        _run(("-c", "advice.addEmbeddedRepo=false", "add", "--all", "--", "."), self.root, env=own)
        return self.git("write-tree")

    def git(self, *arguments: str, env: Mapping[str, str] | None = None) -> str:
        result = _run(
            arguments, self.folder, env={"GIT_DIR": str(self.repository), **self.env, **(env or {})}
        )
        return result.stdout.decode(errors="surrogateescape").strip("\n")

    def attempt(self, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
        return _run(arguments, self.folder, env={"GIT_DIR": str(self.repository), **self.env}, check=False)


def _run(
    arguments: tuple[str, ...], folder: Path, *, env: Mapping[str, str] | None = None, check: bool = True
) -> "subprocess.CompletedProcess[bytes]":
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment = {**inherited, "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", **(env or {})}
    command = ("git", *_QUIET, *arguments)
    try:
        result = subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except FileNotFoundError as error:
        raise errors.ConfigurationError(
            "git is not installed", code="git_missing", hint="Install git 2.30 or newer."
        ) from error
    if check and result.returncode:
        raise errors.InvalidInput(f"git {arguments[0]} failed: {_reason(result.stderr)}", code="git_failed")
    return result


def _reason(stderr: bytes) -> str:
    lines = [line for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    # Git tells its progress on the same stream.
    marked = [line.partition(": ")[2] for line in lines if line.startswith(("error: ", "fatal: "))]
    return next(iter(marked or lines), "git did not say why")


# Which session a checkout was last sent to


def _memory() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "ship" / "checkouts.json"


def remember(checkout: Checkout, session_id: str) -> None:
    """Notes that this checkout was sent to this session."""
    file = _memory()
    file.parent.mkdir(parents=True, exist_ok=True)
    noted = {**_noted(), str(checkout.root): session_id}
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(noted, indent=1))
    part.replace(file)


def last_session(checkout: Checkout) -> str:
    """The session that this checkout was last sent to. Raises InvalidInput ``session_unknown``."""
    known = _noted().get(str(checkout.root))
    if known is None:
        raise errors.InvalidInput(
            f"no session was started from {checkout.root}",
            code="session_unknown",
            hint="Name one: `ship apply ID`.",
        )
    return known


def _noted() -> dict[str, str]:
    file = _memory()
    if not file.is_file():
        return {}
    try:
        noted = json.loads(file.read_text())
    except ValueError:
        return {}
    return noted if isinstance(noted, dict) else {}
