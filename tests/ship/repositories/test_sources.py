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
