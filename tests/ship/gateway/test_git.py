import asyncio
import base64
import gzip
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ship.blobs.folder import FolderBlobs
from ship.gateway import git, upstream
from ship.repositories.uploads import Uploads
from ship.testing import sample_repository
from ship.testing.serving import serving

from .conftest import STALE_TOKEN, TOKEN, RecordingGrants


class GitGateway:
    """A gateway for one source at a time; ``clone`` runs the real git against it."""

    def __init__(self, url: str, grants: RecordingGrants, folder: Path) -> None:
        self.url = url
        self.grants = grants
        self.folder = folder

    async def git(self, *arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
        command = ["git", "-c", f"http.extraHeader=Authorization: Bearer {token}", *arguments]
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.folder),
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_CONFIG_NOSYSTEM": "1",
            "LC_ALL": "C",
        }
        return await asyncio.to_thread(
            subprocess.run,
            command,
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    async def clone(self, source: str, *options: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
        self.grants.source = source
        return await self.git("clone", *options, f"{self.url}/git/repo.git", "clone", token=token)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    sample_repository.create(tmp_path / "allowed" / "sample")
    return tmp_path / "allowed" / "sample"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GitGateway]:
    grants = RecordingGrants()
    (tmp_path / "work").mkdir()
    async with upstream.client(upstream.Patience(connect_s=2.0)) as http:
        uploads = uploads_of(tmp_path)
        routes = git.routes(grants, http, local_roots=[str(tmp_path / "allowed")], uploads=uploads)
        async with serving(Starlette(routes=list(routes))) as url:
            yield GitGateway(url, grants, tmp_path / "work")


def uploads_of(folder: Path) -> Uploads:
    return Uploads(folder / "uploads", FolderBlobs(folder / "blobs"), 1 << 30)


def run_git(folder: Path, *arguments: str, said: str = "") -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=A", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, input=said, check=True, capture_output=True, text=True).stdout.strip()


def head(folder: Path) -> str:
    return run_git(folder, "rev-parse", "HEAD")


@pytest.mark.parametrize("version", ["0", "1", "2"])
async def test_a_repository_on_this_machine_is_cloned(
    gateway: GitGateway, repository: Path, version: str
) -> None:
    done = await gateway.clone(str(repository), "-c", f"protocol.version={version}")

    assert done.returncode == 0, done.stderr
    assert head(gateway.folder / "clone") == head(repository)


async def test_new_commits_are_fetched_and_a_shallow_clone_is_shallow(
    gateway: GitGateway, repository: Path
) -> None:
    shallow = await gateway.clone(str(repository), "--depth=1")
    run_git(repository, "commit", "-q", "--allow-empty", "-m", "more")
    fetched = await gateway.git("-C", "clone", "fetch")

    assert shallow.returncode == 0, shallow.stderr
    assert (gateway.folder / "clone/.git/shallow").is_file()
    assert fetched.returncode == 0, fetched.stderr
    there = await gateway.git("-C", "clone", "rev-parse", "origin/main")
    assert there.stdout.strip() == head(repository)


async def test_a_long_negotiation_finds_what_both_have(gateway: GitGateway, repository: Path) -> None:
    history = "".join(
        f"commit refs/heads/many\ncommitter A <a@b> {1_700_000_000 + number} +0000\ndata 1\nx\n"
        for number in range(3000)
    )
    cloned = await gateway.clone(str(repository))
    run_git(gateway.folder / "clone", "fast-import", "--quiet", said=history)
    run_git(repository, "commit", "-q", "--allow-empty", "-m", "more")

    fetched = await gateway.git("-C", "clone", "fetch", "--quiet")

    assert cloned.returncode == 0, cloned.stderr
    assert fetched.returncode == 0, fetched.stderr
    there = await gateway.git("-C", "clone", "rev-parse", "origin/main")
    assert there.stdout.strip() == head(repository)


async def test_compressed_requests_are_read(gateway: GitGateway, repository: Path) -> None:
    gateway.grants.source = str(repository)
    asked = b"0014command=ls-refs\n0001" + b"0014ref-prefix refs/" * 4000 + b"0000"
    headers = {
        "authorization": f"Bearer {TOKEN}",
        "content-encoding": "gzip",
        "git-protocol": "version=2",
    }
    async with httpx.AsyncClient(verify=False) as client:
        answer = await client.post(
            f"{gateway.url}/git/repo.git/git-upload-pack", content=gzip.compress(asked), headers=headers
        )

    assert answer.headers["content-type"] == "application/x-git-upload-pack-result"
    assert b"refs/heads/main" in answer.content


async def test_a_linked_worktree_and_a_bare_repository_are_cloned(
    gateway: GitGateway, repository: Path
) -> None:
    tree, bare = repository.parent / "tree", repository.parent / "bare.git"
    run_git(repository, "worktree", "add", "-q", str(tree), "-b", "side")
    run_git(repository, "clone", "-q", "--bare", ".", str(bare))

    from_tree = await gateway.clone(str(tree))
    (gateway.folder / "clone").rename(gateway.folder / "first")
    from_bare = await gateway.clone(str(bare))

    assert from_tree.returncode == 0, from_tree.stderr
    assert from_bare.returncode == 0, from_bare.stderr


async def test_an_upload_is_cloned_with_its_branch(
    gateway: GitGateway, repository: Path, tmp_path: Path
) -> None:
    run_git(repository, "switch", "-q", "-c", "feature")
    run_git(repository, "bundle", "create", "-q", "../b", "HEAD", "feature")
    content = (repository.parent / "b").read_bytes()

    async def stream() -> AsyncIterator[bytes]:
        yield content

    sha256 = await uploads_of(tmp_path).store(stream())
    done = await gateway.clone(f"upload:{sha256}")

    assert done.returncode == 0, done.stderr
    branch = await gateway.git("-C", "clone", "branch", "--show-current")
    assert branch.stdout.strip() == "feature"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("upload:" + "0" * 64, "repository_not_found"),
        ("{allowed}/nothing", "repository_not_found"),
        ("http://127.0.0.1:9/x.git", "repository_unreachable"),
        ("ssh://git@github.com/a/b", "repository_invalid"),
    ],
)
async def test_git_prints_why_a_repository_cannot_be_had(
    gateway: GitGateway, repository: Path, source: str, words: str
) -> None:
    done = await gateway.clone(source.replace("{allowed}", str(repository.parent)))

    assert done.returncode != 0
    assert "remote error:" in done.stderr
    assert words in done.stderr


async def test_paths_outside_the_allowed_folders_are_refused(gateway: GitGateway, repository: Path) -> None:
    outside = repository.parent.parent / "outside"
    sample_repository.create(outside)
    (repository.parent / "link").symlink_to(outside)
    (repository.parent / "file").mkdir()
    (repository.parent / "file/.git").write_text(f"gitdir: {outside}/.git\n")
    ways = [outside, repository.parent / "../outside", repository.parent / "link", repository.parent / "file"]

    for way in ways:
        done = await gateway.clone(str(way))
        assert done.returncode != 0
        assert "403" in done.stderr, way
        assert "repository_not_allowed" in done.stderr


async def test_a_token_is_wanted_and_may_come_as_a_password(gateway: GitGateway, repository: Path) -> None:
    gateway.grants.source = str(repository)
    address = f"{gateway.url}/git/repo.git/info/refs?service=git-upload-pack"
    basic = base64.b64encode(f"x:{TOKEN}".encode()).decode()
    async with httpx.AsyncClient(verify=False) as client:
        nobody = await client.get(address)
        stale = await client.get(address, headers={"authorization": f"Bearer {STALE_TOKEN}"})
        garbled = await client.get(address, headers={"authorization": "Basic %%%"})
        known = await client.get(address, headers={"authorization": f"Basic {basic}"})

    assert [nobody.status_code, stale.status_code, garbled.status_code] == [401, 409, 401]
    assert known.status_code == 200
    assert b"refs/heads/main" in known.content


async def test_a_repository_that_git_cannot_read_is_said_to_be_so(
    gateway: GitGateway, repository: Path
) -> None:
    (repository / ".git/config").write_text("[core\n")

    done = await gateway.clone(str(repository))

    assert "repository_unreadable" in done.stderr


async def test_a_repository_of_another_user_is_served(gateway: GitGateway, repository: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    for path in (repository, *repository.rglob("*")):
        os.chown(path, 12345, 12345)

    done = await gateway.clone(str(repository))

    assert done.returncode == 0, done.stderr


async def test_a_push_is_refused_in_words(gateway: GitGateway, repository: Path) -> None:
    await gateway.clone(str(repository))

    done = await gateway.git("-C", "clone", "push", "origin", "main:other")

    assert done.returncode != 0
    assert "push_not_allowed" in done.stderr


async def test_bodies_are_bounded_and_checked(
    gateway: GitGateway, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git, "REQUEST_LIMIT_BYTES", 100_000)
    gateway.grants.source = str(repository)
    headers = {"authorization": f"Bearer {TOKEN}", "content-encoding": "gzip"}
    address = f"{gateway.url}/git/repo.git/git-upload-pack"
    async with httpx.AsyncClient(verify=False) as client:
        bomb = await client.post(address, content=gzip.compress(b"0" * 10_000_000), headers=headers)
        garbled = await client.post(address, content=b"no gzip", headers=headers)

    assert bomb.status_code == 413
    assert b"git_request_invalid" in garbled.content


class Forge:
    """A forge in front of a repository: it asks for a credential, and may redirect."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.seen: list[dict[str, str]] = []
        self.redirect = ""

    async def answer(self, request: Request) -> Response:
        self.seen.append(dict(request.headers))
        if self.redirect and request.url.path.startswith("/old"):
            rest = request.url.path.removeprefix("/old/x.git")
            return RedirectResponse(f"{self.redirect}{rest}?{request.url.query}", 301)
        if request.url.path.startswith("/private"):
            return Response(status_code=401)
        command = ["git", "upload-pack", "--stateless-rpc"]
        body = await request.body()
        if request.method == "GET":
            command.append("--advertise-refs")
        done = await asyncio.to_thread(
            subprocess.run,
            [*command, str(self.repository)],
            input=body,
            capture_output=True,
            check=True,
            env={"PATH": "/usr/bin:/bin", "GIT_PROTOCOL": request.headers.get("git-protocol", "")},
        )
        kind = "advertisement" if request.method == "GET" else "result"
        return Response(done.stdout, media_type=f"application/x-git-upload-pack-{kind}")


@pytest.fixture
async def forge(repository: Path) -> AsyncIterator[tuple[Forge, str]]:
    forge = Forge(repository)
    app = Starlette(routes=[Route("/{path:path}", forge.answer, methods=["GET", "POST"])])
    async with serving(app) as url:
        yield forge, url


async def test_a_remote_repository_is_cloned_and_the_token_stays_here(
    gateway: GitGateway, repository: Path, forge: tuple[Forge, str]
) -> None:
    there, url = forge

    done = await gateway.clone(f"{url}/x.git")

    assert done.returncode == 0, done.stderr
    assert head(gateway.folder / "clone") == head(repository)
    assert there.seen
    assert TOKEN not in str(there.seen)


async def test_a_repository_that_moved_on_the_same_host_is_followed(
    gateway: GitGateway, repository: Path, forge: tuple[Forge, str]
) -> None:
    there, url = forge
    there.redirect = f"{url}/new.git"

    done = await gateway.clone(f"{url}/old/x.git")

    assert done.returncode == 0, done.stderr
    assert head(gateway.folder / "clone") == head(repository)


async def test_a_redirect_to_another_place_is_not_followed(
    gateway: GitGateway, forge: tuple[Forge, str]
) -> None:
    there, url = forge
    there.redirect = url.replace("127.0.0.1", "127.0.0.2") + "/new.git"

    done = await gateway.clone(f"{url}/old/x.git")

    assert "repository_unreachable" in done.stderr
    assert len(there.seen) == 1


async def test_a_private_repository_says_that_it_may_not_be_read(
    gateway: GitGateway, forge: tuple[Forge, str]
) -> None:
    done = await gateway.clone(f"{forge[1]}/private/x.git")

    assert "repository_not_found" in done.stderr
    assert "may not read it" in done.stderr
