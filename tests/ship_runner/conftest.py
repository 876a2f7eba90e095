"""The sandbox's tree, built once and kept between runs, a sample repository to clone, and a runner with a control plane of its own."""

import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.ship_runner.control_plane import FakeControlPlane
from tests.ship_runner.runner import Runner

from ship.sandboxes.template import build_ship_template


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ship"
    return build_ship_template(tmp_path_factory.mktemp("templates"), cache, report=print)


def git(folder: Path, *arguments: str) -> str:
    identity = {
        "GIT_AUTHOR_NAME": "t",
        "GIT_AUTHOR_EMAIL": "t@t",
        "GIT_COMMITTER_NAME": "t",
        "GIT_COMMITTER_EMAIL": "t@t",
    }
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env={
            "PATH": "/usr/bin:/bin",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_NOSYSTEM": "1",
            **identity,
        },
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


@pytest.fixture(scope="session")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bare repositories ``sample.git`` (branches ``main`` and ``other``) and ``empty.git``."""
    folder = tmp_path_factory.mktemp("repositories")
    work = folder / "work"
    work.mkdir()
    git(work, "init", "-q", "-b", "main")
    (work / "README.md").write_text("sample\n")
    (work / "old.txt").write_text("one\ntwo\nthree\n" * 10)
    (work / ".gitignore").write_text("*.log\n")
    git(work, "add", ".")
    git(work, "commit", "-q", "-m", "Start")
    git(work, "branch", "other")
    git(work, "clone", "-q", "--bare", ".", str(folder / "sample.git"))
    git(folder, "init", "-q", "--bare", "-b", "main", "empty.git")
    return folder


@pytest_asyncio.fixture
async def plane(repositories: Path) -> AsyncIterator[FakeControlPlane]:
    plane = FakeControlPlane(repositories)
    await plane.start()
    yield plane
    await plane.stop()


@pytest_asyncio.fixture
async def runner(plane: FakeControlPlane, tmp_path: Path, tree: Path) -> AsyncIterator[Runner]:
    runner = Runner(plane, tmp_path, tree)
    yield runner
    await runner.stop()
