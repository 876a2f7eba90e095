"""What the ``source`` of a repository names.

Three forms: an ``http(s)://`` URL, an absolute path on this machine below one of the allowed folders, and
``upload:<sha256>`` for a bundle that a client has sent.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ship.errors import Forbidden, InvalidInput, NotFound

_LENGTH_LIMIT = 2048
_UPLOAD = re.compile(r"upload:([0-9a-f]{64})")
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f\ud800-\udfff]")
_NO_PATH = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_STORES_LIMIT = 32
"""Of folders of objects that one repository may borrow from."""

_POINTER_LIMIT_BYTES = 64 * 1024
"""Of a file in which git names other folders."""

_SSH = re.compile(r"(?:ssh://)?(?:[\w.-]+@)([\w.-]+)[:/](.+)")


@dataclass(frozen=True)
class UploadSource:
    """A bundle that ``uploads.Uploads`` keeps."""

    sha256: str


@dataclass(frozen=True)
class LocalSource:
    """A repository on this machine; the path is absolute."""

    path: Path


@dataclass(frozen=True)
class RemoteSource:
    """A repository behind smart HTTP. The URL has neither credentials nor a query."""

    url: str


Source = UploadSource | LocalSource | RemoteSource


def parse_source(text: str) -> Source:
    """What the text names; whether it exists is not looked at.

    Raises:
        InvalidInput: ``repository_invalid``.
    """
    if len(text) > _LENGTH_LIMIT:
        raise _invalid("the repository's address is too long", "Use a shorter one.")
    if upload := _UPLOAD.fullmatch(text):
        return UploadSource(upload[1])
    if text.startswith("/"):
        if _NO_PATH.search(text):
            raise _invalid("the path has control characters", "Copy it again.")
        return LocalSource(Path(text))
    if text.startswith(("http://", "https://")):
        return _remote(text)
    if ssh := _SSH.fullmatch(text):
        raise _invalid("repositories are read over HTTPS, not SSH", f"Try https://{ssh[1]}/{ssh[2]}")
    raise _invalid(
        f"{text[:200]!r} is no repository",
        "Name an https:// URL, an absolute path, or upload:<sha256> of a bundle.",
    )


def check(source: Source, local_roots: Iterable[str]) -> None:
    """Whether sessions may name it; see ``local_git_folder`` for what is raised."""
    if isinstance(source, LocalSource):
        local_git_folder(source, local_roots)


def local_git_folder(source: LocalSource, local_roots: Iterable[str]) -> Path:
    """The git folder of a repository on this machine, with every link followed.

    Raises:
        Forbidden: ``repository_not_allowed``: it, or a place that it has objects from, is not below one of the roots, which may
            start with ``~``.
        NotFound: ``repository_not_found``: there is no git repository.
    """
    roots = [Path(root).expanduser().resolve() for root in local_roots]
    try:
        return _checked_git_folder(source, roots)
    except (OSError, RuntimeError, ValueError) as error:
        # Names that are too long, links that lead in circles, folders that Ship may not read.
        raise _not_found(source) from error


def _checked_git_folder(source: LocalSource, roots: list[Path]) -> Path:
    folder = source.path.resolve()
    _require_below(folder, roots, source)
    git = _git_folder(folder)
    if git is None:
        raise _not_found(source)
    for place in (git, *_places_of_objects(git)):
        _require_below(place, roots, source)
    return git


def _not_found(source: LocalSource) -> NotFound:
    return NotFound(
        f"there is no git repository at {source.path}",
        code="repository_not_found",
        hint="Check the path; it is one of the machine that Ship runs on.",
    )


def _require_below(folder: Path, roots: list[Path], source: LocalSource) -> None:
    if not any(folder.is_relative_to(root) for root in roots):
        raise _not_allowed(f"{source.path} is not below a folder that sessions may use")


def _not_allowed(message: str) -> Forbidden:
    return Forbidden(
        message,
        code="repository_not_allowed",
        hint="Add its folder to repositories.local_roots in Ship's settings.",
    )


def _git_folder(folder: Path) -> Path | None:
    """``folder`` itself when it is bare, its ``.git``, or where a ``.git`` file points to."""
    inside = folder / ".git"
    if inside.is_file():
        inside = folder / _pointer(inside).removeprefix("gitdir:").strip()
    candidates = (each.resolve() for each in (inside, folder))
    return next((each for each in candidates if (each / "HEAD").is_file()), None)


def _places_of_objects(git: Path) -> Iterator[Path]:
    """Every place that git reads the repository's objects from, with links followed.

    A repository may share another one's folder (``commondir``), borrow objects (``objects/info/alternates``, which may go on
    from there) or have links anywhere in between.
    Source: https://git-scm.com/docs/gitrepository-layout

    Raises:
        Forbidden: ``repository_not_allowed`` for more of them than can be checked.
    """
    shared = git
    if (git / "commondir").is_file():
        shared = (git / _pointer(git / "commondir")).resolve()
        yield shared
    pending, seen = [shared / "objects"], set[Path]()
    while pending:
        objects = pending.pop().resolve()
        if objects in seen:
            continue
        seen.add(objects)
        if len(seen) > _STORES_LIMIT:
            raise _not_allowed("the repository borrows objects from too many folders")
        yield objects
        for folder in (objects, objects / "info", objects / "pack"):
            yield from _links_in(folder)
        pending += _borrowed(objects)


def _links_in(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        with os.scandir(folder) as entries:
            yield from (Path(entry.path).resolve() for entry in entries if entry.is_symlink())


def _borrowed(objects: Path) -> Iterator[Path]:
    alternates = objects / "info" / "alternates"
    if not alternates.is_file():
        return
    for line in _pointer(alternates).split("\n"):
        if line.startswith('"'):
            raise _not_allowed("the repository borrows objects from a folder with a quoted name")
        if line and not line.startswith("#"):
            # Git takes `..` away before it follows links, the system after.
            yield objects / line
            yield Path(os.path.normpath(objects / line))


def _pointer(file: Path) -> str:
    """What a file says in which git names other folders. Raises ValueError when it is too large to be one."""
    with file.open("rb") as stream:
        content = stream.read(_POINTER_LIMIT_BYTES + 1)
    if len(content) > _POINTER_LIMIT_BYTES:
        raise ValueError(f"{file} is too large")
    return os.fsdecode(content).strip("\r\n")


def _remote(text: str) -> RemoteSource:
    if _UNPRINTABLE.search(text):
        raise _invalid("the URL has blanks or control characters", "Copy the address again.")
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise _invalid(f"not a URL: {error}", "Copy the address again.") from error
    if not host:
        raise _invalid("the URL has no host", "Use one like https://github.com/owner/name.")
    if "@" in parts.netloc:
        raise _invalid(
            "the URL holds a user name or password",
            "Leave it out: everybody who sees the session would read it.",
        )
    if parts.query or parts.fragment:
        raise _invalid("the URL has a query or a fragment", "Use the address that git clone takes.")
    return RemoteSource(text.rstrip("/"))


def _invalid(message: str, hint: str) -> InvalidInput:
    return InvalidInput(message, code="repository_invalid", hint=hint)
