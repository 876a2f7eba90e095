"""Starting the host where something is amiss: each error says what to do, with a stable code."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import fill

from ship_sandboxd import envd, server


def start(
    data: Path, *options: str, path: str = os.environ["PATH"], key: str = "k"
) -> tuple[int, dict[str, str]]:
    """Run a host that must refuse; answers its exit status and its last words."""
    command = [
        sys.executable,
        "-m",
        "ship_sandboxd",
        "--listen",
        "127.0.0.1:0",
        "--data",
        str(data),
        *options,
    ]
    environment = {**os.environ, "PATH": path, "SHIP_SANDBOXD_API_KEY": key}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""
    return done.returncode, json.loads(done.stderr.splitlines()[-1])


def fake_bwrap(folder: Path, script: str) -> str:
    folder.mkdir()
    (folder / "bwrap").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bwrap").chmod(0o755)
    folder.chmod(0o755)
    return str(folder)


def test_a_missing_bubblewrap_is_named_with_how_to_install_it(tmp_path: Path) -> None:
    status, words = start(tmp_path / "data", path="")
    assert (status, words["code"]) == (3, "bubblewrap_missing")
    assert "apt install bubblewrap" in words["event"]


def test_an_old_bubblewrap_is_refused(tmp_path: Path) -> None:
    status, words = start(
        tmp_path / "data", path=fake_bwrap(tmp_path / "bin", "echo usage: --as-pid-1 --seccomp")
    )
    assert (status, words["code"]) == (3, "bubblewrap_too_old")


def test_a_kernel_that_allows_no_namespaces_is_named(open_path: Path) -> None:
    script = (
        'if [ "$1" = --help ]; then echo --disable-userns --as-pid-1 --block-fd --info-fd --seccomp; exit; fi\n'
        "echo 'bwrap: No permissions to create new namespace' >&2; exit 1"
    )
    status, words = start(open_path / "data", path=fake_bwrap(open_path / "bin", script))
    assert (status, words["code"]) == (3, "namespaces_refused")
    assert "No permissions to create new namespace" in words["event"]


def test_a_missing_key_is_refused(tmp_path: Path) -> None:
    status, words = start(tmp_path / "data", key="")
    assert (status, words["code"]) == (2, "api_key_missing")


@pytest.mark.system
def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, words = start(tmp_path / "data", "--listen", f"127.0.0.1:{port}")
    assert (status, words["code"]) == (2, "port_in_use")
    assert str(port) in words["event"]


@pytest.mark.system
def test_a_disk_without_room_for_the_first_start_is_named(small_disk: Path) -> None:
    fill(small_disk)
    status, words = start(small_disk / "data")
    assert (status, words["code"]) == (3, "disk_full")
    assert "make room" in words["event"]


@pytest.mark.system
def test_a_disk_without_room_to_compile_the_daemon_is_named(small_disk: Path) -> None:
    filler = fill(small_disk)
    code = [
        path for path in Path(envd.__file__).parent.rglob("*") if path.is_file() and path.suffix != ".pyc"
    ]
    room = sum(-(-path.stat().st_size // 4096) * 4096 for path in code)
    os.truncate(filler, filler.stat().st_size - room - 64 * 1024)
    status, words = start(small_disk / "data")
    assert (status, words["code"]) == (3, "disk_full")
    assert not list((small_disk / "data" / "envd").iterdir())


def test_what_a_killed_host_has_left_half_made_goes_at_the_next_start(tmp_path: Path) -> None:
    places = ("disks", "envd", "skeletons", "tls", "tls/sandboxes.localhost")
    for place in places:
        for name in (".killed", "kept"):
            (tmp_path / place / name / "inner").mkdir(parents=True)
    (tmp_path / "tls" / ".listing").touch()  # a person's or a file system's own
    os.close(server.claim(tmp_path))
    found = {
        str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.name in (".killed", "kept")
    }
    assert found == {f"{place}/kept" for place in places}


@pytest.mark.parametrize(
    "options",
    [
        ("--listen", "8080"),
        ("--upstream", "ship.internal"),
        ("--upstream", "a:b=c:d"),
        ("--upstream", "a:80=127.0.0.1:1,c"),
    ],
    ids=str,
)
def test_malformed_options_are_refused(tmp_path: Path, options: tuple[str, str]) -> None:
    status, words = start(tmp_path / "data", *options)
    assert (status, words["code"]) == (2, "option_invalid")
