"""The tree that sandboxes run from."""

import json
import subprocess
from pathlib import Path

import pytest

from ship.errors import ConfigurationError
from ship.sandboxes.template import build_ship_template

pytestmark = pytest.mark.system


def test_a_second_build_does_nothing(tree: Path, tmp_path: Path) -> None:
    said: list[str] = []
    assert build_ship_template(tmp_path, tree.parent, report=said.append) == tree
    assert said == []
    document = json.loads((tmp_path / "ship" / "template.json").read_text())
    assert document["mounts"] == [{"source": str(tree), "target": "/opt/ship"}]
    assert document["env"]["PATH"].startswith("/opt/ship/bin:")


def test_everyone_may_read_it(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        wanted = 0o005 if path.is_dir() or path.parent == tree / "bin" else 0o004
        assert path.stat().st_mode & wanted == wanted, path


@pytest.mark.parametrize("program", ["opencode", "node"])
def test_its_programs_run(tree: Path, program: str) -> None:
    done = subprocess.run(
        [tree / "bin" / program, "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip()


def test_the_runner_imports_nothing_from_where_it_is_started(tree: Path, tmp_path: Path) -> None:
    for name in ("httpx", "websockets", "ship_runner", "logging"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a trap')")
    done = subprocess.run(
        ["/usr/bin/python3", "-I", tree / "lib" / "python"],
        cwd=tmp_path,
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "SHIP_URL is not set" in done.stderr


def test_a_registry_that_cannot_be_reached_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    with pytest.raises(ConfigurationError) as failed:
        build_ship_template(tmp_path / "templates", tmp_path / "cache", report=print)
    assert failed.value.code == "template_failed"
    assert "registry" in failed.value.hint
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]
    assert not (tmp_path / "templates").exists()
