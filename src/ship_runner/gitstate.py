"""Everything that git knows of a workspace as two commits, and back again.

``refs/ship/checkpoints/<id>`` holds the files, all that git does not ignore; its parent is HEAD. ``refs/ship/states/<id>`` has as
parents whatever else must not get lost: the index, branches, tags, stashes. Its message is the manifest that says which is which.
"""

import json
from collections.abc import Set
from dataclasses import asdict, dataclass
from pathlib import Path

from ship_runner.git import Git, GitFailed

CHECKPOINTS = "refs/ship/checkpoints"
STATES = "refs/ship/states"
_NAMED = 8
"""How many of the paths that cannot be kept are named."""
_UNFINISHED = {
    "MERGE_HEAD": "an unfinished merge",
    "CHERRY_PICK_HEAD": "an unfinished cherry-pick",
    "REVERT_HEAD": "an unfinished revert",
    "rebase-merge": "an unfinished rebase",
    "rebase-apply": "an unfinished rebase",
    "BISECT_LOG": "an unfinished bisection",
}


@dataclass(frozen=True, slots=True)
class Manifest:
    """``head`` is the branch's full name, empty when detached; ``head_commit`` is empty when it has none yet. ``index`` is a
    commit with the index's tree, empty when the index is as HEAD. ``stashes`` are ``[commit, message]``, oldest first. ``lost``
    says in plain words what a restore does not bring back."""

    base: str
    head: str
    head_commit: str
    index: str
    refs: dict[str, str]
    stashes: list[list[str]]
    lost: list[str]

    @classmethod
    def parse(cls, message: str) -> "Manifest":
        """Raises: ValueError or TypeError when it is not a manifest."""
        return cls(**json.loads(message))


@dataclass(frozen=True, slots=True)
class Ref:
    """A branch or a tag; ``type`` is ``tag`` for an annotated one, ``commit`` else."""

    name: str
    object: str
    type: str


async def refs(git: Git) -> list[Ref]:
    """Branches and tags."""
    listed = await git.run(
        "for-each-ref", "--format=%(objectname) %(objecttype) %(refname)", "refs/heads", "refs/tags"
    )
    return read_refs(listed)


def read_refs(listing: str) -> list[Ref]:
    """From lines of ``object type name``."""
    rows = (line.split(" ", 2) for line in listing.splitlines())
    return [Ref(name, object_, type_) for object_, type_, name in rows]


async def head(git: Git) -> tuple[str, str]:
    """HEAD's branch and its commit; either may be empty."""
    branch = await git.run("symbolic-ref", "--quiet", "HEAD", check=False)
    commit = await git.run("rev-parse", "--verify", "--quiet", "HEAD^{commit}", check=False)
    return branch.strip(), commit.strip()


async def capture(
    git: Git, checkpoint_id: str, *, base: str, index: str, files: str, cloned: Set[Ref], parent: str
) -> str:
    """Make both commits of a checkpoint, under their refs; the one with the files.

    ``index`` and ``files`` are trees, ``index`` may be empty. Tags of ``cloned`` need no mention: a fresh clone has them. ``parent``
    is the state of the checkpoint that the bundle will build on, or empty: git leaves out only what a parent's tree holds.
    Raises: GitFailed, TimeoutError, OSError.
    """
    branch, commit = await head(git)
    start = commit or base
    message = f"Checkpoint {checkpoint_id}\n\nBase: {base}"
    workspace = (await git.run("commit-tree", "-p", start, "-m", message, files)).strip()
    staged = ""
    if index and index != (await git.run("rev-parse", f"{start}^{{tree}}")).strip():
        staged = (await git.run("commit-tree", "-m", "Index", index)).strip()
    kept = [ref for ref in await refs(git) if ref.name.startswith("refs/heads/") or ref not in cloned]
    listed = await git.run("stash", "list", "--format=%H%x00%gs", check=False)
    stashes = [line.split("\0", 1) for line in reversed(listed.splitlines())]
    manifest = Manifest(
        base=base,
        head=branch,
        head_commit=commit,
        index=staged,
        refs={ref.name: ref.object for ref in kept},
        stashes=stashes,
        lost=await _lost(git, files, index),
    )
    tips = [workspace, parent, staged, *(stash for stash, _ in stashes)]
    tips += [ref.object for ref in kept if ref.type == "commit"]
    parents = [word for tip in dict.fromkeys(tips) if tip for word in ("-p", tip)]
    state = await git.run(
        "commit-tree", *parents, "-F", "-", files, stdin=json.dumps(asdict(manifest)).encode()
    )
    await git.run("update-ref", f"{CHECKPOINTS}/{checkpoint_id}", workspace)
    await git.run("update-ref", f"{STATES}/{checkpoint_id}", state.strip())
    return workspace


async def bundle(git: Git, checkpoint_id: str, path: Path, cloned: Set[Ref], known: list[str]) -> None:
    """Write the checkpoint to a file, without what the commits in ``known`` reach. Raises as ``capture``."""
    tags = [ref.name for ref in await refs(git) if ref.type == "tag" and ref not in cloned]
    own = (f"{CHECKPOINTS}/{checkpoint_id}", f"{STATES}/{checkpoint_id}")
    exclude = [f"^{commit}" for commit in known]
    await git.run("bundle", "create", "--quiet", str(path), *own, *tags, *exclude)


async def _lost(git: Git, files: str, index: str) -> list[str]:
    """What the two commits do not hold."""
    lost = []
    ignored = await git.run(
        "ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory", check=False
    )
    if named := _some(ignored.split("\0")):
        lost.append(f"files that git ignores ({named})")
    entries = (await git.run("ls-tree", "-r", "-z", files)).split("\0")
    links = [entry.partition("\t")[2] for entry in entries if entry.startswith("160000 ")]
    if named := _some([path for path in links if (git.folder / path / ".git").exists()]):
        lost.append(f"the content of repositories inside the repository ({named})")
    if not index:
        lost.append("what was staged")
    folder = Path((await git.run("rev-parse", "--absolute-git-dir")).strip())
    lost += sorted({words for name, words in _UNFINISHED.items() if (folder / name).exists()})
    return lost


def _some(paths: list[str]) -> str:
    """The first of them in a line."""
    named = [path for path in paths if path]
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return ", ".join(named[:_NAMED]) + more


async def bring_back(git: Git, bundles: list[Path], work_branch: str) -> Manifest:
    """Lay a checkpoint over a fresh clone that has nothing checked out; ``bundles`` are its chain, oldest first.

    Where a later link of the chain is damaged, the last whole one is brought back, and the manifest's ``lost`` says so.
    Raises: GitFailed, TimeoutError, OSError, ValueError.
    """
    checkpoint_id, damaged = "", []
    for number, path in enumerate(bundles):
        try:
            checkpoint_id = await _fetch(git, path)
        except GitFailed:
            if number == 0:
                raise
            damaged = ["the changes since an earlier checkpoint: the later ones are damaged"]
            break
    manifest = await _manifest(git, checkpoint_id, work_branch)
    await _set_refs(git, manifest)
    await git.run("read-tree", "--reset", "-u", f"{CHECKPOINTS}/{checkpoint_id}")
    # With -m, what git knows of the files on disk is kept: they need not all be read again.
    staged = manifest.index or manifest.head_commit
    await git.run("read-tree", *(("-m", staged) if staged else ("--empty",)))
    return Manifest(**{**asdict(manifest), "lost": [*manifest.lost, *damaged]})


async def _fetch(git: Git, path: Path) -> str:
    """Take a bundle in; the id of its checkpoint."""
    await _fetch_missing(git, path)
    await git.run(
        "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", str(path), "+refs/ship/*:refs/ship/*"
    )
    listed = await git.run("bundle", "list-heads", str(path))
    for line in listed.splitlines():
        if (name := line.split(" ", 1)[1]).startswith(CHECKPOINTS):
            return name.removeprefix(f"{CHECKPOINTS}/")
    raise GitFailed("bundle", 0, "it holds no checkpoint")


async def _fetch_missing(git: Git, path: Path) -> None:
    """Ask the origin for commits that a bundle builds on and that its branches do not lead to any more.

    They stand in the bundle's head, one a line with ``-`` before it: https://git-scm.com/docs/gitformat-bundle
    """
    wanted = []
    with path.open("rb") as file:
        for line in iter(file.readline, b"\n"):
            if not line:
                break
            if line.startswith(b"-"):
                wanted.append(line[1:].split(b" ")[0].decode("ascii", "replace").strip())
    for commit in wanted:
        if not await git.run("cat-file", "-t", commit, check=False):
            await git.run("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "origin", commit)


async def _manifest(git: Git, checkpoint_id: str, work_branch: str) -> Manifest:
    state = f"{STATES}/{checkpoint_id}"
    if await git.run("rev-parse", "--verify", "--quiet", state, check=False):
        return Manifest.parse(await git.run("log", "-1", "--format=%B", state))
    # A checkpoint from before there were states.
    workspace = f"{CHECKPOINTS}/{checkpoint_id}"
    commit = (await git.run("rev-parse", f"{workspace}^")).strip()
    base = (await git.run("log", "-1", "--format=%(trailers:key=Base,valueonly)", workspace)).strip()
    branch = f"refs/heads/{work_branch}"
    return Manifest(base, branch, commit, "", {branch: commit}, [], [])


async def _set_refs(git: Git, manifest: Manifest) -> None:
    """Branches, tags, HEAD and stashes as they were."""
    now = {ref.name: ref.object for ref in await refs(git)}
    gone = [name for name in now if name.startswith("refs/heads/") and name not in manifest.refs]
    await git.run(
        "update-ref", "--stdin", "-z", stdin=b"".join(f"delete {name}\0\0".encode() for name in gone)
    )
    updates = [
        f"update {name}\0{object_}\0\0" for name, object_ in manifest.refs.items() if now.get(name) != object_
    ]
    await git.run("update-ref", "--stdin", "-z", stdin="".join(updates).encode())
    if manifest.head:
        await git.run("symbolic-ref", "HEAD", manifest.head)
    else:
        await git.run("update-ref", "--no-deref", "HEAD", manifest.head_commit)
    for commit, message in manifest.stashes:
        await git.run("stash", "store", "-m", message, commit)
