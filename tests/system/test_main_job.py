"""A task in, a reviewed change out: real sandbox, real agent, real git."""

import asyncio
import json
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from io import FileIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.system.conftest import Ship, check_whole, ended, types

from ship.testing import sample_repository

pytestmark = pytest.mark.system


async def test_the_agent_fixes_the_bug_and_the_diff_makes_the_failing_test_pass(
    ship: Ship, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    session_id = await ship.begin()
    items = await ship.until(session_id, ended)
    check_whole(items)
    for expected in (
        "sandbox.ready",
        "reasoning.finished",
        "todos.updated",
        "tool.finished",
        "text.finished",
    ):
        assert expected in types(items)
    assert types(items)[-2:] == ["checkpoint.created", "task.completed"]
    session = await ship.session(session_id)
    assert session["status"] == "ready"
    assert session["usage"]["input_tokens"] > 0
    assert [step["status"] for step in session["sandbox"]["steps"]] == ["done"] * 4
    diff = (await client.get(f"/api/v1/sessions/{session_id}/diff")).content
    live = (await client.get(f"/api/v1/sessions/{session_id}/diff", params={"live": "true"})).content
    assert diff == live
    copy = tmp_path / "copy"
    subprocess.run(["git", "clone", "-q", str(ship.repository), str(copy)], check=True)
    assert subprocess.run(sample_repository.TEST_COMMAND, cwd=copy, capture_output=True).returncode != 0
    subprocess.run(["git", "apply"], cwd=copy, input=diff, check=True)
    assert subprocess.run(sample_repository.TEST_COMMAND, cwd=copy, capture_output=True).returncode == 0
    files = (await client.get(f"/api/v1/sessions/{session_id}/files")).json()["items"]
    assert "AGENTS.md" in [item["name"] for item in files]

    await follow_up_and_archive(ship, client, session_id)


async def follow_up_and_archive(ship: Ship, client: httpx.AsyncClient, session_id: str) -> None:
    path = f"/api/v1/sessions/{session_id}"
    before = len(await ship.events(session_id))
    await client.post(f"{path}/tasks", json={"prompt": "say it back", "model": "openai/echo"})
    items = await ship.until(session_id, lambda log: types(log)[before:].count("task.completed") == 1)
    assert "say it back" in str([item["data"] for item in items[before:] if item["type"] == "text.finished"])
    pids = await ship.processes(session_id)
    assert set(pids) == {"sandbox", "keeper", "runner", "agent"}
    await client.post(f"{path}/archive")
    async with asyncio.timeout(20):
        while any(Path(f"/proc/{pid}").exists() and not _zombie(pid) for pid in pids.values()):
            await asyncio.sleep(0.05)
    items = await ship.events(session_id)
    check_whole(items)
    assert types(items)[-1] == "session.archived"


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def test_no_key_enters_the_sandbox(ship: Ship) -> None:
    session_id = await ship.begin("echo", "hello")
    await ship.until(session_id, ended)
    pids = await ship.processes(session_id)
    secrets = [b"sk-canary-7f3d9b", signing_key(ship.data), ship.token.encode()]
    secrets.append((ship.data / "sandboxd.key").read_bytes()[:40])
    for pid in pids.values():
        assert_absent(pid, secrets)
    root = f"/proc/{pids['agent']}/root"
    for secret in secrets:
        found = subprocess.run(
            [
                "grep",
                "-rlaF",
                secret.decode(),
                *(f"{root}/{name}" for name in ("home", "workspace", "tmp", "etc", "run")),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.stdout == ""


def signing_key(data: Path) -> bytes:
    with closing(sqlite3.connect(data / "ship.db")) as connection:
        ((key,),) = connection.execute("SELECT value FROM secrets WHERE name = 'signing.key'")
    return str(key).encode()


PAGE = 4096
BLOCK_PAGES = 512


def assert_absent(pid: int, secrets: list[bytes]) -> None:
    """None of the secrets stands in the process's environment or writable memory."""
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert not [secret for secret in secrets if secret in environment]
    read_bytes = 0
    with (
        Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory,
        Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pages,
    ):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            bounds, rights, *_ = line.split()
            if rights.startswith("rw"):
                start, end = (int(bound, 16) for bound in bounds.split("-"))
                tail = b""
                for block in present_blocks(pages, start, end):
                    memory.seek(block)
                    chunk = memory.read(min(BLOCK_PAGES * PAGE, end - block))
                    assert not [secret for secret in secrets if secret in tail + chunk], f"{pid}: {line}"
                    tail = chunk[-100:]
                    read_bytes += len(chunk)
    assert read_bytes > 1_000_000, "the memory could not be read"


def present_blocks(pages: FileIO, start: int, end: int) -> Iterator[int]:
    """The addresses of the blocks that hold any page: most of an agent's address space is only reserved."""
    stride = 256
    for group in range(start, end, stride * BLOCK_PAGES * PAGE):
        pages.seek(group // PAGE * 8)
        entries = pages.read(min(stride * BLOCK_PAGES, (end - group) // PAGE) * 8)
        for offset in range(0, len(entries), BLOCK_PAGES * 8):
            if any(entries[offset : offset + BLOCK_PAGES * 8]):
                yield group + offset // 8 * PAGE


async def test_the_agent_asks_and_a_person_answers(ship: Ship, client: httpx.AsyncClient) -> None:
    session_id = await ship.begin("permission", "run it", approval="ask")
    path = f"/api/v1/sessions/{session_id}"
    items = await ship.until(session_id, lambda log: "request.asked" in types(log))
    (asked,) = (await ship.session(session_id))["requests"]
    assert asked["kind"] == "permission"
    await client.post(f"{path}/requests/{asked['id']}/answer", json={"reply": "once"})
    items = await ship.until(session_id, ended)
    assert "task.completed" in types(items)
    assert "tool.finished" in types(items)
    before = len(items)
    await client.post(f"{path}/tasks", json={"prompt": "ask me", "model": "openai/question"})
    await ship.until(session_id, lambda log: "request.asked" in types(log[before:]))
    (asked,) = (await ship.session(session_id))["requests"]
    assert asked["kind"] == "question"
    answers = [[question["options"][0]["label"]] for question in asked["questions"]]
    await client.post(f"{path}/requests/{asked['id']}/answer", json={"answers": answers})
    # It writes the answer to a file, for which it asks again: "always" this time.
    await ship.until(session_id, lambda log: types(log[before:]).count("request.asked") == 2)
    (asked,) = (await ship.session(session_id))["requests"]
    await client.post(f"{path}/requests/{asked['id']}/answer", json={"reply": "always"})
    items = await ship.until(session_id, lambda log: ended(log[before:]))
    assert types(items)[-1] == "task.completed"
    written = await client.get(f"{path}/files/content", params={"path": "greeting.txt"})
    assert answers[0][0] in written.text
    await client.post(f"{path}/archive")


async def test_a_running_task_is_stopped_and_the_next_one_runs(ship: Ship, client: httpx.AsyncClient) -> None:
    session_id = await ship.begin("long", "talk for 60 seconds")
    path = f"/api/v1/sessions/{session_id}"
    await client.post(f"{path}/tasks", json={"prompt": "after that", "model": "openai/echo"})
    await ship.until(session_id, lambda log: "task.started" in types(log))
    task = (await ship.session(session_id))["tasks"][0]
    await client.post(f"{path}/tasks/{task['id']}/cancel")
    items = await ship.until(session_id, lambda log: "task.completed" in types(log))
    check_whole(items)
    session = await ship.session(session_id)
    assert [task["status"] for task in session["tasks"]] == ["cancelled", "completed"]
    await client.post(f"{path}/archive")


async def test_two_sessions_at_once_do_not_see_each_other_and_thirty_tools_go_well(
    ship: Ship, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    large = ship.repository.parent / "large"
    make_large_repository(large, files=3_000)
    sessions = [
        await ship.begin("thirty_tools", "look around", repository={"source": str(large)}),
        await ship.begin("demo"),
    ]
    logs = [await ship.until(session_id, ended, 120) for session_id in sessions]
    for log in logs:
        check_whole(log)
        assert types(log)[-1] == "task.completed"
    assert types(logs[0]).count("tool.finished") >= 30
    names: list[set[str]] = []
    for session_id in sessions:
        listed = (await client.get(f"/api/v1/sessions/{session_id}/files")).json()["items"]
        names.append({item["name"] for item in listed})
    assert "folder-0" in names[0]
    assert "folder-0" not in names[1]
    pids = [await ship.processes(session_id) for session_id in sessions]
    owners = {Path(f"/proc/{pid['agent']}").stat().st_uid for pid in pids}
    if os.getuid() == 0:
        assert len(owners) == 2
    for session_id in sessions:
        await client.post(f"/api/v1/sessions/{session_id}/archive")


def make_large_repository(folder: Path, files: int) -> None:
    """A git repository of that many small Python files."""
    for number in range(files):
        path = folder / f"folder-{number % 30}" / f"module_{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'"""Module {number}."""\n\n\ndef value() -> int:\n    return {number}\n')
    sample_repository.create(folder / "sample")
    subprocess.run(["rm", "-rf", str(folder / "sample" / ".git")], check=True)
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    for arguments in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "Begin"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)


async def test_the_command_line_does_it_all(ship: Ship, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    sample_repository.create(checkout)
    (checkout / "README.md").write_text("changed and not committed\n")

    def ship_command(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return ship.command(*arguments, cwd=checkout)

    ran = await asyncio.to_thread(
        ship_command, "run", ".", sample_repository.PROMPT, "--model", "openai/demo"
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "timesheet/durations.py" in ran.stdout
    applied = await asyncio.to_thread(ship_command, "apply")
    assert applied.returncode == 0, applied.stdout + applied.stderr
    tests = subprocess.run(sample_repository.TEST_COMMAND, cwd=checkout, capture_output=True)
    assert tests.returncode == 0
    assert (checkout / "README.md").read_text() == "changed and not committed\n"
    for arguments in (("ls",), ("ls", "--json"), ("doctor", "--json")):
        assert (await asyncio.to_thread(ship_command, *arguments)).returncode == 0


async def test_a_stream_shows_growing_text(ship: Ship, client: httpx.AsyncClient) -> None:
    session_id = await ship.begin("long", "talk for 3 seconds")
    deltas: list[dict[str, Any]] = []
    async with client.stream("GET", f"/api/v1/sessions/{session_id}/events/stream", timeout=60) as stream:
        name = ""
        async for line in stream.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: ") and name == "delta":
                deltas.append(json.loads(line.removeprefix("data: ")))
                if len(deltas) == 5:
                    break
            elif not line:
                name = ""
    growing = [delta for delta in deltas if delta["part_id"] == deltas[-1]["part_id"]]
    assert [delta["offset"] for delta in growing] == sorted({delta["offset"] for delta in growing})
    await client.post(f"/api/v1/sessions/{session_id}/archive")
