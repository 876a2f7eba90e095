"""What a checkpoint brings back into a fresh clone: files, branches, index, stashes, and a chain of bundles."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.ship_runner.conftest import git
from tests.ship_runner.test_workspace import LIMIT, bootstrap

from ship_runner.failures import RunnerFailure
from ship_runner.workspace import Workspace


async def ready(*paths: Path) -> list[Path]:
    """Bundles that have come."""
    return list(paths)


Made = Callable[[str], Workspace]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Workspaces by name, each with a state folder of its own."""

    def make(name: str) -> Workspace:
        (tmp_path / name).mkdir()
        return Workspace(tmp_path / name / "repo", tmp_path / name)

    return make


def described(folder: Path) -> dict[str, str]:
    """All that a person sees of a repository."""
    return {
        "status": git(folder, "status", "--porcelain", "--untracked-files=all"),
        "head": git(folder, "rev-parse", "--symbolic-full-name", "HEAD") + git(folder, "rev-parse", "HEAD"),
        "refs": git(folder, "for-each-ref", "refs/heads", "refs/tags"),
        "stashes": git(folder, "stash", "list", "--format=%H %gs"),
        "staged": git(folder, "diff", "--cached"),
        "files": "".join(
            f"{path.relative_to(folder)} {path.lstat().st_mode & 0o111:o} {path.read_bytes()!r}\n"
            for path in sorted(folder.rglob("*"))
            if path.is_file() and ".git" not in path.relative_to(folder).parts
        ),
    }


def everything(folder: Path) -> None:
    """Branches, tags, stashes, staged and unstaged changes, untracked files."""
    (folder / "mine.txt").write_text("x\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "mine")
    for number in (1, 2):
        (folder / "README.md").write_text(f"stashed {number}\n")
        git(folder, "stash", "push", "-q", "-m", f"stash {number}")
    git(folder, "checkout", "-q", "-b", "elsewhere", "HEAD^")
    (folder / "elsewhere.txt").write_text("y\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "elsewhere")
    git(folder, "tag", "-a", "v1", "-m", "annotated")
    git(folder, "tag", "light", "HEAD^")
    git(folder, "branch", "-D", "main")
    git(folder, "checkout", "-q", "ship/work")
    (folder / "old.txt").write_text("staged\n")
    git(folder, "add", "old.txt")
    (folder / "old.txt").write_text("staged, then changed\n")
    (folder / "README.md").unlink()
    (folder / "ä file").write_text("untracked\n")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)


async def test_files_branches_index_and_stashes_come_back(repositories: Path, made: Made) -> None:
    plan = bootstrap(repositories / "sample.git")
    first, second = made("first"), made("second")
    await first.prepare(plan, "token")
    everything(first.folder)
    before = described(first.folder)
    checkpoint = await first.checkpoint(LIMIT, "ckp_1")
    assert described(first.folder) == before

    prepared = await second.prepare(plan, "token", ready(checkpoint.bundle))
    assert described(second.folder) == before
    assert prepared.base_commit == checkpoint.base_commit
    assert prepared.lost == ()
    again = await second.checkpoint(LIMIT, "ckp_2")
    assert again.diff.read_bytes() == checkpoint.diff.read_bytes()


async def test_a_chain_of_bundles_holds_each_change_once(repositories: Path, made: Made) -> None:
    plan = bootstrap(repositories / "sample.git")
    first, second = made("first"), made("second")
    await first.prepare(plan, "token")
    noise = subprocess.run(["head", "-c", "300000", "/dev/urandom"], capture_output=True, check=True).stdout
    (first.folder / "large.bin").write_bytes(noise)
    chain = [await first.checkpoint(LIMIT, "ckp_0")]
    everything(first.folder)
    for number in (1, 2):
        (first.folder / "count.txt").write_text(f"{number}\n")
        chain.append(await first.checkpoint(LIMIT, f"ckp_{number}", chain[-1].id))
    assert [link.parent for link in chain] == ["", "ckp_0", "ckp_1"]
    assert chain[0].bundle.stat().st_size > 300_000
    assert all(link.bundle.stat().st_size < 20_000 for link in chain[1:])

    await second.prepare(plan, "token", ready(*(link.bundle for link in chain)))
    assert described(second.folder) == described(first.folder)


async def test_a_parent_that_is_gone_makes_a_whole_one(repositories: Path, made: Made) -> None:
    workspace = made("first")
    await workspace.prepare(bootstrap(repositories / "sample.git"), "token")
    assert (await workspace.checkpoint(LIMIT, "ckp_1", "ckp_0")).parent == ""


async def test_a_damaged_link_brings_back_what_is_before_it(repositories: Path, made: Made) -> None:
    plan = bootstrap(repositories / "sample.git")
    first, second = made("first"), made("second")
    await first.prepare(plan, "token")
    (first.folder / "a.txt").write_text("one\n")
    whole = await first.checkpoint(LIMIT, "ckp_0")
    (first.folder / "a.txt").write_text("two\n")
    later = await first.checkpoint(LIMIT, "ckp_1", "ckp_0")
    later.bundle.write_bytes(later.bundle.read_bytes()[:-40])
    prepared = await second.prepare(plan, "token", ready(whole.bundle, later.bundle))
    assert (second.folder / "a.txt").read_text() == "one\n"
    assert any("damaged" in words for words in prepared.lost)


async def test_what_cannot_be_kept_is_named(repositories: Path, made: Made) -> None:
    plan = bootstrap(repositories / "sample.git")
    first, second = made("first"), made("second")
    await first.prepare(plan, "token")
    (first.folder / "build.log").write_text("ignored\n")
    (first.folder / "inner").mkdir()
    git(first.folder / "inner", "init", "-q")
    (first.folder / "inner" / "x").write_text("x")
    git(first.folder / "inner", "add", ".")
    git(first.folder / "inner", "commit", "-q", "-m", "x")
    git(first.folder, "checkout", "-q", "-b", "side")
    (first.folder / "old.txt").write_text("ours\n")
    git(first.folder, "commit", "-qam", "ours")
    git(first.folder, "checkout", "-q", "ship/work")
    (first.folder / "old.txt").write_text("theirs\n")
    git(first.folder, "commit", "-qam", "theirs")
    with pytest.raises(subprocess.CalledProcessError):
        git(first.folder, "merge", "side")
    checkpoint = await first.checkpoint(LIMIT, "ckp_1")
    prepared = await second.prepare(plan, "token", ready(checkpoint.bundle))
    assert set(prepared.lost) == {
        "files that git ignores (build.log)",
        "the content of repositories inside the repository (inner)",
        "what was staged",
        "an unfinished merge",
    }
    assert "<<<<<<<" in (second.folder / "old.txt").read_text()


async def test_an_empty_repository_and_a_detached_head_come_back(repositories: Path, made: Made) -> None:
    plan = bootstrap(repositories / "empty.git")
    first, second = made("first"), made("second")
    base = (await first.prepare(plan, "token")).base_commit
    (first.folder / "a.txt").write_text("a\n")
    git(first.folder, "checkout", "-q", "--detach")
    checkpoint = await first.checkpoint(LIMIT, "ckp_1")
    assert (await second.prepare(plan, "token", ready(checkpoint.bundle))).base_commit == base
    assert described(second.folder) == described(first.folder)


async def test_a_branch_without_a_commit_comes_back(repositories: Path, made: Made) -> None:
    plan = bootstrap(repositories / "sample.git")
    first, second = made("first"), made("second")
    await first.prepare(plan, "token")
    git(first.folder, "checkout", "-q", "--orphan", "fresh")
    git(first.folder, "rm", "-rqf", ".")
    (first.folder / "only.txt").write_text("x\n")
    checkpoint = await first.checkpoint(LIMIT, "ckp_1")
    await second.prepare(plan, "token", ready(checkpoint.bundle))
    assert git(second.folder, "symbolic-ref", "HEAD") == "refs/heads/fresh\n"
    assert git(second.folder, "status", "--porcelain") == "?? only.txt\n"


async def test_a_base_that_its_branch_has_left_is_asked_for(
    repositories: Path, made: Made, tmp_path: Path
) -> None:
    source = tmp_path / "source.git"
    git(tmp_path, "clone", "-q", "--bare", str(repositories / "sample.git"), str(source))
    git(source, "config", "uploadpack.allowAnySHA1InWant", "true")
    first, second = made("first"), made("second")
    await first.prepare(bootstrap(f"file://{source}"), "token")
    (first.folder / "a.txt").write_text("a\n")
    checkpoint = await first.checkpoint(LIMIT, "ckp_1")
    orphan = git(source, "commit-tree", "-m", "rewritten", "main^{tree}").strip()
    for branch in ("main", "other"):
        git(source, "update-ref", f"refs/heads/{branch}", orphan)
    await second.prepare(bootstrap(f"file://{source}"), "token", ready(checkpoint.bundle))
    assert (second.folder / "a.txt").read_text() == "a\n"
    assert git(second.folder, "rev-parse", "HEAD").strip() == checkpoint.base_commit


async def test_a_damaged_checkpoint_says_so(repositories: Path, made: Made, tmp_path: Path) -> None:
    (tmp_path / "x.bundle").write_bytes(b"nonsense")
    with pytest.raises(RunnerFailure) as failed:
        await made("first").prepare(
            bootstrap(repositories / "sample.git"), "token", ready(tmp_path / "x.bundle")
        )
    assert failed.value.code == "restore_failed"
