import subprocess
from pathlib import Path

import pytest
from tests.ship.cli.conftest import commit, git

from ship import errors
from ship.cli.checkout import Checkout, last_session, remember


def state_of(folder: Path) -> tuple[object, ...]:
    """All that a person sees of a repository, and every object and ref in it."""
    objects = sorted(str(path.relative_to(folder)) for path in (folder / ".git").rglob("*") if path.is_file())
    index = (folder / ".git" / "index").read_bytes()
    return (
        git(folder, "status", "--porcelain"),
        git(folder, "for-each-ref"),
        git(folder, "stash", "list"),
        objects,
        index,
    )


def cloned(bundle: Path, folder: Path) -> Path:
    git(folder.parent, "clone", "--quiet", str(bundle), str(folder))
    return folder


def diff_of(folder: Path) -> bytes:
    """The change of a clone as the runner makes it: everything, binary, against where it started."""
    git(folder, "add", "--all")
    command = ["git", "diff", "--cached", "--binary", "HEAD"]
    return subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout


def test_a_clean_checkout_is_bundled_with_its_history_and_branch(checkout: Path, tmp_path: Path) -> None:
    snapshot = Checkout.at(checkout).bundle(tmp_path / "bundle")
    clone = cloned(tmp_path / "bundle", tmp_path / "clone")
    assert not snapshot.dirty
    assert git(clone, "rev-parse", "HEAD") == git(checkout, "rev-parse", "HEAD") == snapshot.commit
    assert git(clone, "branch", "--show-current") == "trunk"
    assert git(clone, "rev-list", "--count", "HEAD") == "2"


def test_what_is_not_committed_goes_along_and_the_repository_stays_untouched(
    checkout: Path, tmp_path: Path
) -> None:
    (checkout / "app.py").write_text("changed\n")
    (checkout / "new file.txt").write_text("new\n")
    (checkout / "noise.log").write_text("ignored\n")
    (checkout / "staged.txt").write_text("staged\n")
    git(checkout, "add", "staged.txt")
    (checkout / "gone.txt").unlink()
    before = state_of(checkout)
    snapshot = Checkout.at(checkout / ".").bundle(tmp_path / "bundle")
    assert state_of(checkout) == before
    clone = cloned(tmp_path / "bundle", tmp_path / "clone")
    assert snapshot.dirty
    assert (clone / "app.py").read_text() == "changed\n"
    assert (clone / "new file.txt").read_text() == "new\n"
    assert (clone / "staged.txt").exists()
    assert not (clone / "noise.log").exists()
    assert not (clone / "gone.txt").exists()
    assert git(clone, "rev-parse", "HEAD^") == git(checkout, "rev-parse", "HEAD")


def test_a_folder_inside_a_checkout_and_a_worktree_are_good_enough(checkout: Path, tmp_path: Path) -> None:
    inner = checkout / "inner"
    inner.mkdir()
    assert Checkout.at(inner).root == checkout
    git(checkout, "worktree", "add", "--quiet", "-b", "side", str(tmp_path / "tree"))
    (tmp_path / "tree" / "more.txt").write_text("more\n")
    Checkout.at(tmp_path / "tree").bundle(tmp_path / "bundle")
    clone = cloned(tmp_path / "bundle", tmp_path / "clone")
    assert git(clone, "branch", "--show-current") == "side"
    assert (clone / "more.txt").exists()


def test_another_branch_is_sent_as_it_was_committed(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "branch", "old", "HEAD^")
    (checkout / "app.py").write_text("changed\n")
    snapshot = Checkout.at(checkout).bundle(tmp_path / "bundle", "old")
    clone = cloned(tmp_path / "bundle", tmp_path / "clone")
    assert snapshot.commit == git(checkout, "rev-parse", "old")
    assert git(clone, "branch", "--show-current") == "old"
    with pytest.raises(errors.InvalidInput, match="no branch nowhere"):
        Checkout.at(checkout).bundle(tmp_path / "bundle", "nowhere")


def test_a_detached_head_and_a_shallow_clone_can_be_sent(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "checkout", "--quiet", "--detach")
    Checkout.at(checkout).bundle(tmp_path / "detached")
    assert git(cloned(tmp_path / "detached", tmp_path / "one"), "branch", "--show-current") == "main"
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{checkout}", "shallow")
    snapshot = Checkout.at(tmp_path / "shallow").bundle(tmp_path / "bundle")
    assert snapshot.shallow
    clone = cloned(tmp_path / "bundle", tmp_path / "two")
    assert (clone / "README").read_text() == "hello\n"
    assert git(clone, "rev-list", "--count", "HEAD") == "1"


def test_what_is_no_checkout_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidInput, match="is not a git checkout"):
        Checkout.at(tmp_path)
    with pytest.raises(errors.InvalidInput, match="is not a folder"):
        Checkout.at(tmp_path / "none")
    git(tmp_path, "init", "--quiet", "empty")
    with pytest.raises(errors.InvalidInput, match="has no commit yet"):
        Checkout.at(tmp_path / "empty").bundle(tmp_path / "bundle")


@pytest.fixture
def change(checkout: Path, tmp_path: Path) -> bytes:
    """Edits, adds (text, binary, executable, in a new folder), deletes."""
    clone = tmp_path / "session"
    git(tmp_path, "clone", "--quiet", str(checkout), str(clone))
    (clone / "app.py").write_text((clone / "app.py").read_text().replace("line 10\n", "line ten\n"))
    (clone / "gone.txt").unlink()
    (clone / "image.bin").write_bytes(bytes(reversed(range(256))))
    (clone / "deep" / "er").mkdir(parents=True)
    (clone / "deep" / "er" / "tool.sh").write_text("#!/bin/sh\n")
    (clone / "deep" / "er" / "tool.sh").chmod(0o755)
    (clone / "blob.bin").write_bytes(b"\0\1\2" * 100)
    return diff_of(clone)


def test_a_change_comes_back_whole_and_unstaged(checkout: Path, change: bytes) -> None:
    paths = Checkout.at(checkout).apply(change)
    assert paths == ["app.py", "blob.bin", "deep/er/tool.sh", "gone.txt", "image.bin"]
    assert "line ten\n" in (checkout / "app.py").read_text()
    assert not (checkout / "gone.txt").exists()
    assert (checkout / "image.bin").read_bytes() == bytes(reversed(range(256)))
    assert (checkout / "blob.bin").read_bytes() == b"\0\1\2" * 100
    assert (checkout / "deep" / "er" / "tool.sh").stat().st_mode & 0o111
    assert git(checkout, "diff", "--cached", "--name-only") == ""


def test_a_check_changes_nothing(checkout: Path, change: bytes) -> None:
    before = state_of(checkout)
    assert len(Checkout.at(checkout).apply(change, check=True)) == 5
    assert state_of(checkout) == before


def test_ones_own_changes_and_later_commits_are_merged_with_it(checkout: Path, change: bytes) -> None:
    lines = (checkout / "app.py").read_text()
    (checkout / "app.py").write_text("new first line\n" + lines)
    commit(checkout, "moved on")
    (checkout / "app.py").write_text("new first line\n" + lines + "my own last line\n")
    (checkout / "mine.txt").write_text("mine\n")
    Checkout.at(checkout).apply(change)
    merged = (checkout / "app.py").read_text()
    assert merged.startswith("new first line\n")
    assert "line ten\n" in merged
    assert merged.endswith("my own last line\n")
    assert (checkout / "mine.txt").read_text() == "mine\n"


def test_a_conflict_is_refused_by_name_and_nothing_changes(checkout: Path, change: bytes) -> None:
    (checkout / "app.py").write_text((checkout / "app.py").read_text().replace("line 10\n", "my ten\n"))
    before = state_of(checkout)
    with pytest.raises(errors.Conflict, match=r"app\.py") as caught:
        Checkout.at(checkout).apply(change)
    assert caught.value.code == "diff_conflicts"
    assert state_of(checkout) == before
    assert (checkout / "gone.txt").exists()


def test_a_change_that_is_there_already_is_refused_with_gits_error_and_not_its_progress(
    checkout: Path, change: bytes
) -> None:
    Checkout.at(checkout).apply(change)
    with pytest.raises(errors.Conflict) as caught:
        Checkout.at(checkout).apply(change)
    assert caught.value.message == (
        "the change does not apply: gone.txt: does not exist in index; nothing was changed"
    )


def test_a_change_that_leaves_the_checkout_is_refused(checkout: Path, tmp_path: Path) -> None:
    outside = b"--- /dev/null\n+++ b/../outside.txt\n@@ -0,0 +1 @@\n+escaped\n"
    hooks = b"diff --git a/.git/hooks/x b/.git/hooks/x\nnew file mode 100755\n--- /dev/null\n+++ b/.git/hooks/x\n@@ -0,0 +1 @@\n+escaped\n"
    (checkout / "link").symlink_to(tmp_path)
    through = b"diff --git a/link/x b/link/x\nnew file mode 100644\n--- /dev/null\n+++ b/link/x\n@@ -0,0 +1 @@\n+escaped\n"
    for hostile in (outside, hooks, through):
        with pytest.raises(errors.Conflict):
            Checkout.at(checkout).apply(hostile)
    assert not (tmp_path / "outside.txt").exists()
    assert not (tmp_path / "x").exists()
    assert not (checkout / ".git" / "hooks" / "x").exists()


def test_a_checkout_remembers_its_last_session(checkout: Path, tmp_path: Path) -> None:
    local = Checkout.at(checkout)
    with pytest.raises(errors.InvalidInput, match="no session was started from"):
        last_session(local)
    remember(local, "ses_1")
    remember(Checkout(tmp_path), "ses_other")
    remember(local, "ses_2")
    assert last_session(local) == "ses_2"
    assert "ses" not in git(checkout, "status", "--porcelain")
