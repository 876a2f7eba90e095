"""The commands about a session's life, as processes of their own against the real API."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from tests.ship.api.conftest import Served, served  # noqa: F401 - pytest finds the fixture by its name here
from tests.ship.api.test_lifecycle_api import Work, until
from tests.ship.api.test_runner_link import sandboxed
from tests.ship.cli.conftest import subprocess_ship

from ship.cli.exits import Exit
from ship.client import Client

Command = Callable[..., "Awaitable[subprocess.CompletedProcess[str]]"]


@pytest.fixture
def ship(served: Served) -> Command:  # noqa: F811 - the fixture itself
    env = {"SHIP_URL": served.url, "SHIP_TOKEN": served.token}

    async def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return await asyncio.to_thread(subprocess_ship, *arguments, env=env)

    return command


@pytest.fixture
async def client(served: Served) -> AsyncIterator[Client]:  # noqa: F811 - the fixture itself
    async with Client(served.url, served.token) as connected:
        yield connected


async def test_the_queue_is_seen_and_changed(client: Client, ship: Command) -> None:
    session = await client.create_session("/r", prompt="first")
    second = await client.add_task(session.id, "second")
    third = await client.add_task(session.id, "third")
    moved = await ship("queue", "move", session.id, third.task_id, "--before", second.task_id)
    assert moved.stdout.startswith(f"moved {third.task_id} before")
    edited = await ship(
        "queue", "edit", session.id, second.task_id, "--prompt", "better", "--max-tokens", "500"
    )
    assert edited.returncode == Exit.OK, edited.stderr
    assert (await ship("queue", "rm", session.id, session.tasks[0].id)).returncode == Exit.OK
    listed = (await ship("queue", "ls", session.id)).stdout
    assert [line.split()[0] for line in listed.splitlines()[1:]] == [third.task_id, second.task_id]
    assert "better" in listed
    assert "500 tokens" in listed
    again = await ship("queue", "rm", session.id, session.tasks[0].id)
    assert (again.returncode, "does not wait" in again.stderr) == (Exit.REFUSED, True)
    as_json = json.loads((await ship("queue", "ls", session.id, "--json")).stdout)
    assert as_json[1]["limits"]["tokens"] == 500


async def test_a_checkpoint_is_waited_for_listed_and_forked(
    served: Served,  # noqa: F811 - the fixture itself
    client: Client,
    ship: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = await sandboxed(served, prompt="do it")
    async with Work(served, session["id"]) as work:
        await work.runner.until("prompt")
        asking = asyncio.create_task(ship("checkpoint", session["id"]))
        wanted = await work.runner.until("checkpoint")
        await work.keep(wanted["checkpoint_id"], "")
        assert (await asking).stdout.strip() == wanted["checkpoint_id"]
        await until(served, session["id"], "checkpoint.created")
    listed = (await ship("checkpoints", session["id"])).stdout
    assert wanted["checkpoint_id"] in listed
    assert "1 file +2 -1" in listed
    monkeypatch.setenv("COLUMNS", "50")
    assert wanted["checkpoint_id"] in (await ship("checkpoints", session["id"])).stdout
    forked = (await ship("fork", session["id"], "go on", "--model", "scripted/echo")).stdout.strip()
    fork = await client.session(forked)
    assert (fork.model, fork.tasks[0].prompt) == ("scripted/echo", "go on")
    shown = (await ship("show", forked)).stdout
    assert f"forked from  {session['id']}" in shown


async def test_a_log_is_played_again_to_an_event_that_it_has(client: Client, ship: Command) -> None:
    session = await client.create_session("/r", prompt="first")
    first = json.loads((await ship("replay", session.id, "--to", "1", "--json")).stdout)
    assert (first["status"], first["head_seq"], first["tasks"]) == ("created", 1, [])
    late = await ship("replay", session.id, "--to", "999")
    assert (late.returncode, "this log ends at" in late.stderr) == (Exit.USAGE, True)
