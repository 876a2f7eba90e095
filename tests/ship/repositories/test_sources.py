import shutil
import subprocess
from pathlib import Path

import pytest

from ship.errors import Forbidden, InvalidInput, NotFound
from ship.repositories import sources
from ship.repositories.sources import LocalSource, RemoteSource, UploadSource, parse_source
from ship.testing import sample_repository


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("https://github.com/owner/name", RemoteSource("https://github.com/owner/name")),
        ("http://git.local:3000/x.git/", RemoteSource("http://git.local:3000/x.git")),
        ("/srv/git/x", LocalSource(Path("/srv/git/x"))),
        ("upload:" + "a1" * 32, UploadSource("a1" * 32)),
    ],
)
def test_the_three_forms_are_understood(text: str, source: sources.Source) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize(
    "text",
    [
        "",
        "relative/path",
        "~/home",
        "file:///etc",
        "ext::sh -c id",
        "--upload-pack=touch /tmp/x",
        "upload:abc",
        "upload:" + "A1" * 32,
        "upload:../../etc",
        "https://",
        "https://user:secret@host/x",
        "https://host/x y",
        "https://host/x\nHost: evil",
        "https://host/x?token=1",
        "https://host:port/x",
        "https://[::1/x",
        "/etc\0/passwd",
        "/srv/git/a\nb",
        "/srv/git/\ud800",
        "https://host/\ud800",
        "https://host/" + "x" * 3000,
    ],
)
def test_everything_else_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_source(text)

    assert refused.value.code == "repository_invalid"
    assert refused.value.hint
    assert "secret" not in refused.value.message


def test_an_ssh_address_is_answered_with_the_https_one() -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_source("git@github.com:owner/name.git")

    assert "https://github.com/owner/name.git" in refused.value.hint


def test_a_path_is_checked_for_its_folder_and_for_being_a_repository(tmp_path: Path) -> None:
    sample_repository.create(tmp_path / "roots/sample")
    sample_repository.create(tmp_path / "roots-beside")
    (tmp_path / "roots/plain").mkdir()
    roots = [str(tmp_path / "roots")]

    sources.check(LocalSource(tmp_path / "roots/sample"), roots)
    sources.check(RemoteSource("https://github.com/owner/name"), [])
    with pytest.raises(Forbidden) as outside:
        sources.check(LocalSource(tmp_path / "roots-beside"), roots)
    with pytest.raises(NotFound) as plain:
        sources.check(LocalSource(tmp_path / "roots/plain"), roots)
    with pytest.raises(NotFound):
        sources.check(LocalSource(tmp_path / "roots/missing"), roots)

    assert outside.value.code == "repository_not_allowed"
    assert plain.value.code == "repository_not_found"


def test_a_home_folder_may_be_a_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    sample_repository.create(tmp_path / "sample")

    git = sources.local_git_folder(LocalSource(tmp_path / "sample"), ["~"])

    assert git == (tmp_path / "sample/.git").resolve()


def bare(folder: Path) -> Path:
    """A bare repository with a commit."""
    sample_repository.create(folder.with_suffix(".checkout"))
    run(["git", "clone", "--quiet", "--bare", str(folder.with_suffix(".checkout")), str(folder)])
    return folder


def run(command: list[str], folder: Path | None = None) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def refusal(path: Path, root: Path) -> str:
    """The code of the refusal."""
    with pytest.raises((Forbidden, NotFound)) as refused:
        sources.check(LocalSource(path), [str(root)])
    return refused.value.code


def test_a_path_that_the_system_cannot_follow_names_no_repository(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/.git").write_bytes(b"gitdir: a\0b")
    (tmp_path / "large").mkdir()
    (tmp_path / "large/.git").write_bytes(b"x" * 100_000)

    for name in ("circle", "circle/inner", "broken", "large", "x" * 300, "\0"):
        assert refusal(tmp_path / name, tmp_path) == "repository_not_found"


@pytest.mark.parametrize(
    "line",
    ["{outside}/objects", "../../../outside.git/objects", "deep/../../../../outside.git/objects"],
)
def test_objects_are_not_borrowed_from_outside_the_roots(tmp_path: Path, line: str) -> None:
    outside, inside = bare(tmp_path / "outside.git"), bare(tmp_path / "roots/inside.git")
    borrower = bare(tmp_path / "roots/borrower.git")
    (inside / "objects/deep").symlink_to(inside / "objects/info")
    sources.check(LocalSource(inside), [str(tmp_path / "roots")])
    (borrower / "objects/info/alternates").write_text(f"# a comment\n{inside}/objects\n")
    sources.check(LocalSource(borrower), [str(tmp_path / "roots")])

    (inside / "objects/info/alternates").write_text(line.format(outside=outside) + "\n")

    assert refusal(inside, tmp_path / "roots") == "repository_not_allowed"
    assert refusal(borrower, tmp_path / "roots") == "repository_not_allowed"


@pytest.mark.parametrize(
    "link", ["objects", "objects/pack", "objects/info", "objects/ff", "objects/pack/x.pack"]
)
def test_links_among_the_objects_do_not_lead_outside_the_roots(tmp_path: Path, link: str) -> None:
    outside, inside = bare(tmp_path / "outside.git"), bare(tmp_path / "roots/inside.git")
    target = inside / link
    if target.is_dir():
        target.rename(inside / "before")
    target.symlink_to(outside / link)

    assert refusal(inside, tmp_path / "roots") == "repository_not_allowed"


def test_the_folder_that_a_worktree_shares_must_be_below_the_roots(tmp_path: Path) -> None:
    (tmp_path / "roots").mkdir()
    main = tmp_path / "main"
    sample_repository.create(main)
    run(["git", "worktree", "add", "--quiet", "--detach", str(tmp_path / "roots/tree")], main)
    copy = tmp_path / "roots/copy.git"
    shutil.copytree(main / ".git/worktrees/tree", copy)
    (copy / "commondir").write_text(f"{main}/.git\n")

    sources.check(LocalSource(tmp_path / "roots/tree"), [str(tmp_path)])
    assert refusal(tmp_path / "roots/tree", tmp_path / "roots") == "repository_not_allowed"
    assert refusal(copy, tmp_path / "roots") == "repository_not_allowed"


def test_a_chain_of_borrowing_that_does_not_end_is_refused(tmp_path: Path) -> None:
    circle = bare(tmp_path / "circle.git")
    (circle / "objects/info/alternates").write_text(f"{circle}/objects\n")
    sources.check(LocalSource(circle), [str(tmp_path)])
    (circle / "objects/info/alternates").write_text("".join(f"{tmp_path}/{each}\n" for each in range(100)))

    assert refusal(circle, tmp_path) == "repository_not_allowed"
