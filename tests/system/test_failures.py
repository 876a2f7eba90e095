"""What can be wrong on a machine: each is said clearly, and once it is mended the session goes on."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.conftest import Ship, ended, types

from ship.testing import sample_repository

pytestmark = pytest.mark.system


async def test_a_branch_that_is_missing_is_said_and_the_session_goes_on_when_it_is_there(ship: Ship) -> None:
    repository = {"source": str(ship.repository), "branch": "later"}
    session_id = await ship.begin("echo", "hello", repository=repository)
    items = await ship.until(session_id, lambda log: "session.failed" in types(log))
    failure = items[-1]["data"]["failure"]
    assert failure["code"] == "branch_missing"
    assert "later" in failure["reason"]
    assert failure["hint"]
    subprocess.run(["git", "branch", "later"], cwd=ship.repository, check=True)
    shown = await asyncio.to_thread(ship.command, "show", session_id)
    assert failure["reason"].splitlines()[0] in " ".join(shown.stdout.split())
    async with ship.client() as client:
        assert (await client.post(f"/api/v1/sessions/{session_id}/retry")).status_code == 202
        items = await ship.until(session_id, lambda log: "task.completed" in types(log))
        await client.post(f"/api/v1/sessions/{session_id}/archive")


async def test_a_repository_that_cannot_be_reached_is_said(ship: Ship) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    session_id = await ship.begin("echo", "hi", repository={"source": f"http://127.0.0.1:{port}/none.git"})
    items = await ship.until(session_id, lambda log: "session.failed" in types(log))
    failure = items[-1]["data"]["failure"]
    assert failure["code"] == "clone_failed"
    assert "cannot be reached" in failure["reason"]
    async with ship.client() as client:
        none = {"repository": {"source": str(ship.repository.parent / "none")}}
        refused = await client.post("/api/v1/sessions", json=none)
        assert (refused.status_code, refused.json()["code"]) == (404, "repository_not_found")
        await client.post(f"/api/v1/sessions/{session_id}/archive")


@pytest.fixture(scope="module")
def locked_model() -> Iterator[str]:
    """A scripted model that takes one key only."""
    command = [sys.executable, "-m", "ship.testing.scripted_model", "--key", "sk-right", "--exit-with-stdin"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        yield process.stdout.readline().strip()
        process.stdin.close()


async def test_a_wrong_key_and_a_model_that_is_down_are_said_and_mended(
    tmp_path: Path, locked_model: str
) -> None:
    tmp_path.chmod(0o755)
    sample_repository.create(tmp_path / "repository")
    ship = Ship(tmp_path, locked_model, OPENAI_API_KEY="sk-wrong")
    await asyncio.to_thread(ship.start)
    try:
        session_id = await ship.begin("echo", "hello")
        items = await ship.until(session_id, ended)
        failure = items[-1]["data"]["failure"]
        assert failure["code"] == "model_key_refused"
        assert "OPENAI_API_KEY" in failure["reason"] + failure["hint"]
        assert "sk-wrong" not in str(items)
        ship.kill()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        ship.set(OPENAI_API_KEY="sk-right", OPENAI_BASE_URL=f"http://127.0.0.1:{port}/v1")
        await asyncio.to_thread(ship.start)
        async with ship.client() as client:
            await client.post(f"/api/v1/sessions/{session_id}/tasks", json={"prompt": "again"})
        items = await ship.until(session_id, lambda log: "agent.retried" in types(log))
        calls = [item["data"]["failure"] for item in items if item["type"] == "model.called"]
        assert calls[-1]["code"] == "model_unreachable"
        ship.kill()
        ship.set(OPENAI_BASE_URL=locked_model)
        await asyncio.to_thread(ship.start)
        items = await ship.until(session_id, lambda log: "task.completed" in types(log))
        assert types(items)[-1] == "task.completed"
    finally:
        await asyncio.to_thread(ship.stop)


def test_a_port_in_use_and_a_folder_in_use_are_said(ship: Ship, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        refused = ship.command("up", "--listen", f"127.0.0.1:{port}", "--data", str(tmp_path / "data"))
    assert refused.returncode != 0
    assert f"port {port}" in refused.stderr
    assert "--listen" in refused.stderr
    refused = ship.command("up", "--listen", "127.0.0.1:0", "--data", str(ship.data))
    assert refused.returncode != 0
    assert "another Ship uses the data folder" in refused.stderr


def test_a_missing_bubblewrap_is_said_and_what_to_install(ship: Ship, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in Path("/usr/bin").iterdir():
        if tool.name != "bwrap":
            (tools / tool.name).symlink_to(tool)
    ship.set(PATH=str(tools))
    try:
        refused = ship.command("up", "--listen", "127.0.0.1:0", "--data", str(tmp_path / "data"))
        examined = ship.command("doctor")
    finally:
        ship.set(PATH=os.environ["PATH"])
    for said in (refused, examined):
        assert said.returncode == 3, said.stdout + said.stderr
        assert "bubblewrap" in said.stdout + said.stderr
        assert "install" in said.stdout + said.stderr
