"""The process that starts sandboxes: its children are what was asked for, whoever goes away meanwhile."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import traces
from conftest import Host, eventually

from ship_sandboxd.errors import LaunchFailed
from ship_sandboxd.isolation.forkserver import FIRST_FD, ForkServer, Launch

pytestmark = pytest.mark.system


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ForkServer]:
    made = ForkServer.start(tmp_path, "")
    yield made
    made.close()


def launch(*argv: str) -> Launch:
    return Launch(argv, None, ())


async def run(server: ForkServer, *argv: str, theirs: tuple[int, ...] = ()) -> tuple[int, bytes]:
    """Answers its pid and what it wrote."""
    reading, writing = os.pipe()
    try:
        pid = await server.launch(launch(*argv), writing, None, theirs)
    finally:
        os.close(writing)
    with os.fdopen(reading, "rb") as file:
        return pid, await asyncio.to_thread(file.read)


async def test_a_child_has_its_descriptors_no_environment_and_no_other_descriptor(server: ForkServer) -> None:
    code = "import os; print(os.getpid(), dict(os.environ), sorted(map(int, os.listdir('/proc/self/fd'))))"
    pid, said = await run(server, sys.executable, "-I", "-c", code, theirs=(0,))
    number, _, rest = said.decode().partition(" ")
    assert int(number) == pid
    # The last one is that of the listing itself.
    assert rest.endswith(f"[0, 1, 2, 3, {FIRST_FD}]\n")
    assert "PYTHONPATH" not in rest


async def test_a_program_that_cannot_run_is_told(server: ForkServer) -> None:
    with pytest.raises(LaunchFailed, match="No such file"):
        await run(server, "/no/such/program")


async def test_an_answer_goes_to_the_one_who_asked(server: ForkServer) -> None:
    """Also when somebody before it went away without waiting for the own one."""
    gone = [asyncio.create_task(run(server, "/bin/sleep", "1000.25")) for _ in range(5)]
    await asyncio.sleep(0)
    for task in gone:
        task.cancel()
    pid, said = await run(server, "/bin/sh", "-c", "echo $$")
    assert said.decode() == f"{pid}\n"
    await asyncio.gather(*gone, return_exceptions=True)
    eventually(lambda: traces.processes(set(), {"1000.25"}) == [])


async def test_a_fork_server_that_ended_is_started_anew(host: Host) -> None:
    kept = host.create()
    first = traces.fork_server(host)
    os.kill(first, signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{first}/exe").exists())
    sandbox = host.create()
    assert [made.commands.run("echo ok").stdout for made in (kept, sandbox)] == ["ok\n", "ok\n"]
    assert traces.fork_server(host) != first
    for made in (kept, sandbox):
        made.kill()
