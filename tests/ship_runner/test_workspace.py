"""Clone, checkpoint and diff, on real git repositories, friendly and not."""

import subprocess
from pathlib import Path

import pytest
from tests.ship_runner.conftest import git

from ship_runner.control import Bootstrap
from ship_runner.failures import RunnerFailure
from ship_runner.git import Git, GitFailed, bearer_configuration, bearer_header, clone_failure
from ship_runner.workspace import Checkpoint, Workspace, changed_files

LIMIT = 1 << 20


def bootstrap(source: Path | str, branch: str = "") -> Bootstrap:
    return Bootstrap("ses", 1, "t", str(source), branch, "ship/work", None, "auto", "", ())


@pytest.fixture
async def workspace(repositories: Path, tmp_path: Path) -> Workspace:
    state = tmp_path / "state"
    state.mkdir()
    workspace = Workspace(tmp_path / "workspace" / "repo", state)
    await workspace.prepare(bootstrap(repositories / "sample.git"), "token")
    return workspace


def listed(checkpoint: Checkpoint) -> dict[str, tuple[str, int, int]]:
    return {file["path"]: (file["status"], file["additions"], file["deletions"]) for file in checkpoint.files}


async def test_the_checkpoint_holds_what_git_does_not_ignore(workspace: Workspace, tmp_path: Path) -> None:
    folder = workspace.folder
    (folder / "new file ä.txt").write_text("1\n2\n")
    (folder / "ignored.log").write_text("x")
    (folder / "README.md").unlink()
    (folder / "binary").write_bytes(bytes(range(256)))
    (folder / "script.sh").write_text("#!/bin/sh\n")
    (folder / "script.sh").chmod(0o755)
    git(folder, "add", "script.sh")
    before = git(folder, "status", "--porcelain")
    head = git(folder, "rev-parse", "HEAD")

    checkpoint = await workspace.checkpoint(LIMIT, "ckp_1")
    assert listed(checkpoint) == {
        "README.md": ("D", 0, 1),
        "binary": ("A", 0, 0),
        "new file ä.txt": ("A", 2, 0),
        "script.sh": ("A", 1, 0),
    }
    assert git(folder, "status", "--porcelain") == before
    assert git(folder, "rev-parse", "HEAD") == head
    assert git(folder, "branch", "--format=%(refname:short)").split() == ["main", "ship/work"]

    other = tmp_path / "other"
    git(tmp_path, "clone", "-q", str(folder), str(other))
    git(other, "apply", "--index", str(checkpoint.diff))
    assert (other / "binary").read_bytes() == bytes(range(256))
    assert (
        git(other, "write-tree").strip() == git(folder, "rev-parse", f"{checkpoint.commit}^{{tree}}").strip()
    )


async def test_what_the_agent_committed_is_in_the_diff(workspace: Workspace) -> None:
    (workspace.folder / "mine.txt").write_text("x\n")
    git(workspace.folder, "add", ".")
    git(workspace.folder, "commit", "-q", "-m", "mine")
    checkpoint = await workspace.checkpoint(LIMIT, "ckp_1")
    assert listed(checkpoint) == {"mine.txt": ("A", 1, 0)}
    assert git(workspace.folder, "rev-parse", f"{checkpoint.commit}^") == git(
        workspace.folder, "rev-parse", "HEAD"
    )


async def test_nothing_of_the_repository_is_run(workspace: Workspace, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    folder = workspace.folder
    for hook in ("pre-commit", "post-index-change", "reference-transaction", "post-checkout"):
        path = folder / ".git" / "hooks" / hook
        path.write_text(f"#!/bin/sh\ntouch {trap}\n")
        path.chmod(0o755)
    spring = f"touch {trap}; cat"
    for name, value in {
        "core.fsmonitor": f"touch {trap}",
        "filter.evil.clean": spring,
        "filter.evil.smudge": spring,
        "filter.evil.required": "true",
        "diff.evil.textconv": spring,
        "diff.evil.command": spring,
        "diff.external": spring,
    }.items():
        git(folder, "config", name, value)
    (folder / ".gitattributes").write_text("*.txt filter=evil diff=evil\n")
    (folder / "old.txt").write_text("changed\n")
    checkpoint = await workspace.checkpoint(LIMIT, "ckp_1")
    await workspace.live_diff(tmp_path / "live", LIMIT)
    assert "old.txt" in listed(checkpoint)
    assert b"+changed" in checkpoint.diff.read_bytes()
    assert not trap.exists()


async def test_the_live_diff_leaves_nothing_behind(workspace: Workspace, tmp_path: Path) -> None:
    (workspace.folder / "new.txt").write_text("unique content\n")
    before = sorted((workspace.folder / ".git" / "objects").rglob("*"))
    await workspace.live_diff(tmp_path / "live", LIMIT)
    assert b"+unique content" in (tmp_path / "live").read_bytes()
    assert sorted((workspace.folder / ".git" / "objects").rglob("*")) == before


async def test_a_diff_that_is_too_long_is_cut_at_a_file_and_can_still_be_applied(
    workspace: Workspace, tmp_path: Path
) -> None:
    (workspace.folder / "a.txt").write_text("small\n")
    (workspace.folder / "b.txt").write_text("large line\n" * 10_000)
    checkpoint = await workspace.checkpoint(2000, "ckp_1")
    assert set(listed(checkpoint)) == {"a.txt", "b.txt"}
    assert checkpoint.diff.stat().st_size < 2100
    other = tmp_path / "other"
    git(tmp_path, "clone", "-q", str(workspace.folder), str(other))
    git(other, "apply", str(checkpoint.diff))
    assert (other / "a.txt").read_text() == "small\n"
    assert not (other / "b.txt").exists()


async def test_a_broken_index_does_not_matter(workspace: Workspace) -> None:
    (workspace.folder / "new.txt").write_text("x\n")
    (workspace.folder / ".git" / "index").write_bytes(b"nonsense")
    assert listed(await workspace.checkpoint(LIMIT, "ckp_1")) == {"new.txt": ("A", 1, 0)}


@pytest.mark.parametrize("branch", ["other", "v1", "commit"])
async def test_a_branch_a_tag_or_a_commit_can_be_the_base(
    repositories: Path, tmp_path: Path, branch: str
) -> None:
    source = tmp_path / "source"
    git(tmp_path, "clone", "-q", "--branch", "other", str(repositories / "sample.git"), str(source))
    git(source, "tag", "v1")
    wanted = git(source, "rev-parse", "other").strip()
    state = tmp_path / "state"
    state.mkdir()
    workspace = Workspace(tmp_path / "repo", state)
    prepared = await workspace.prepare(bootstrap(source, wanted if branch == "commit" else branch), "token")
    assert prepared.base_commit == wanted
    assert git(workspace.folder, "rev-parse", "--abbrev-ref", "HEAD").strip() == "ship/work"


async def test_an_empty_repository_gets_a_beginning(repositories: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "repo", tmp_path)
    await workspace.prepare(bootstrap(repositories / "empty.git"), "token")
    (workspace.folder / "first.txt").write_text("x\n")
    assert listed(await workspace.checkpoint(LIMIT, "ckp_1")) == {"first.txt": ("A", 1, 0)}


@pytest.mark.parametrize("branch", ["--upload-pack=touch x", "nothing", "a..b"])
async def test_a_branch_that_is_not_there_is_named(repositories: Path, tmp_path: Path, branch: str) -> None:
    workspace = Workspace(tmp_path / "repo", tmp_path)
    with pytest.raises(RunnerFailure) as failed:
        await workspace.prepare(bootstrap(repositories / "sample.git", branch), "token")
    assert failed.value.code == "branch_missing"
    assert branch in failed.value.reason


async def test_a_second_runner_does_not_clone_again(workspace: Workspace, repositories: Path) -> None:
    (workspace.folder / "kept.txt").write_text("x")
    await workspace.prepare(bootstrap(repositories / "sample.git"), "token")
    assert (workspace.folder / "kept.txt").exists()


def test_the_token_is_for_one_host_and_never_shown() -> None:
    variables = bearer_header("http://ship.internal/git/x.git", "secret-token")
    assert variables["GIT_CONFIG_KEY_0"] == "http.http://ship.internal/.extraHeader"
    configuration = bearer_configuration("http://ship.internal/git/x.git", "secret-token")
    assert (
        configuration
        == '[http "http://ship.internal/"]\n\textraHeader = "Authorization: Bearer secret-token"\n'
    )
    failure = clone_failure(GitFailed("clone", 128, "fatal: bad header secret-token"), "secret-token")
    assert "secret-token" not in failure.reason


@pytest.mark.parametrize(
    ("stderr", "code"),
    [("fatal: repository not found", "clone_failed"), ("write error: No space left on device", "disk_full")],
)
def test_a_failed_clone_says_what_to_do(stderr: str, code: str) -> None:
    failure = clone_failure(GitFailed("clone", 128, stderr), "")
    assert failure.code == code
    assert failure.hint


def test_renames_and_binary_files_are_read_from_the_listing() -> None:
    listing = (
        b":100644 100644 aaa bbb R090\0old name\0new name\0:100644 000000 aaa 000 D\0gone\0"
        b"1\t2\t\0old name\0new name\0-\t-\tgone\0"
    )
    assert changed_files(listing) == [
        {"path": "new name", "status": "R", "additions": 1, "deletions": 2},
        {"path": "gone", "status": "D", "additions": 0, "deletions": 0},
    ]


async def test_git_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    with pytest.raises(TimeoutError):
        await Git(tmp_path).run("-c", "alias.x=!sleep 30", "x", timeout=0.3)
