"""A daemon that lies: it is in the sandbox, and may be its tenant's own. What the host asks it for ends in time and in bounded
memory, and keeps nobody else waiting."""

import ast
import asyncio
import os
import socket
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from ship_sandboxd.edge import front
from ship_sandboxd.edge.front import Unreachable
from ship_sandboxd.edge.streams import StreamConnection
from ship_sandboxd.envd.http1 import CHUNK_BYTES, CHUNKED, BrokenStreamError, frame
from ship_sandboxd.errors import ApiError
from ship_sandboxd.isolation import bubblewrap, lines
from ship_sandboxd.isolation.backend import Backend, Streams
from ship_sandboxd.lifecycle import commands, notices, startup
from ship_sandboxd.lifecycle.records import SandboxRecord
from ship_sandboxd.lifecycle.sandbox import Sandbox
from ship_sandboxd.moments import Moment
from ship_sandboxd.pids import ProcessIdentity
from ship_sandboxd.templates import Template

LIAR = Path(__file__).parent / "attacks" / "liar.py"
BOUND_S = 0.3
"""What the host's own bounds are made for these tests."""
ENDS_WITHIN_S = 2.0
MAX_GROWTH_BYTES = 16 * 1024 * 1024
MAX_PAUSE_S = 0.1


def lies() -> list[str]:
    """The functions of the liar that are marked as lies."""
    return [
        node.name
        for node in ast.parse(LIAR.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.decorator_list
    ]


@pytest.fixture(scope="module")
def liar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the sockets that lies are told on, one each."""
    folder = tmp_path_factory.mktemp("liar")
    with subprocess.Popen(
        [sys.executable, LIAR, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield folder


class Connected:
    """As much of a backend as is needed to reach a daemon."""

    async def connect(self, folder: Path) -> Streams:
        return await asyncio.open_unix_connection(folder / "envd.sock", limit=CHUNK_BYTES)


@pytest.fixture
def lied_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """A sandbox in a folder in which there is no daemon yet."""
    for module, name in (
        (notices, "_TIMEOUT_S"),
        (startup, "READY_WITHIN_S"),
        (bubblewrap, "_HANDOVER_TIMEOUT_S"),
        (front, "_CONNECT_TIMEOUT_S"),
    ):
        monkeypatch.setattr(module, name, BOUND_S)
    record = SandboxRecord(
        id="x",
        template="base",
        token="token",
        traffic_token="token",
        started_at=0,
        end=Moment.after(60),
        timeout_s=60,
        cpu_count=1,
        memory_mb=64,
        disk_mb=64,
        uid=None,
        made_of=Template("base"),
    )
    return Sandbox(record, tmp_path, cast("Backend", Connected()))


async def start_command(sandbox: Sandbox) -> None:
    await startup.start(sandbox, Template("base", start_command="serve", ready_command="check"))


async def step_of_a_build(sandbox: Sandbox) -> None:
    async with asyncio.timeout(BOUND_S):
        await commands.run(
            sandbox, "true", user="user", workdir="/", env={}, on_output=lambda kind, data: None
        )


async def file_of_a_build(sandbox: Sandbox) -> None:
    path = sandbox.folder / "archive"
    path.write_bytes(b"x" * 1_000_000)
    async with asyncio.timeout(BOUND_S):
        await commands.send(sandbox, path, "/tmp/archive")


async def handing_out(sandbox: Sandbox) -> None:
    await notices.hand_out(sandbox, {"A": "B"})


async def listeners(sandbox: Sandbox) -> None:
    nothing = cast("Any", (None,) * 3)
    backend = bubblewrap.Bubblewrap("bwrap", *nothing, seccomp=b"", freezes=False, redirects=False)
    await backend.listeners(sandbox.folder, "token", ProcessIdentity(os.getpid(), 0))


async def visit_of_a_port(sandbox: Sandbox) -> None:
    await (await front._open(sandbox, 3000, is_stream=False)).close()


async def hanging_up(sandbox: Sandbox) -> None:
    """Before the memory of a sandbox of gVisor's is written out, within the time that this may take."""
    key = lines.new_key(sandbox.folder, os.getuid())
    found = lines.Lines(sandbox.folder)
    await found.open()
    dialling = asyncio.create_task(_dial(sandbox.folder, key))
    try:
        async with asyncio.timeout(BOUND_S):
            await found.hang_up("token")
    finally:
        dialling.cancel()
        await found.close()
        await asyncio.gather(dialling, return_exceptions=True)


async def _dial(folder: Path, key: str) -> None:
    """Bring to the host what the liar says."""
    liar, asked = await asyncio.open_unix_connection(folder / "envd.sock")
    _, line = await asyncio.open_unix_connection(folder / "link" / lines.CONTROL)
    try:
        line.write(key.encode() + b"\n")
        asked.write(b"x")
        while said := await liar.read(65536):
            line.write(said)
            await line.drain()
    finally:
        for writer in (asked, line):
            writer.transport.abort()


CALLS = [
    start_command,
    step_of_a_build,
    file_of_a_build,
    handing_out,
    listeners,
    visit_of_a_port,
    hanging_up,
]
CONTENT_WITH_A_STATUS = {file_of_a_build, handing_out, visit_of_a_port}


@pytest.mark.parametrize("call", CALLS, ids=lambda call: str(call.__name__))
@pytest.mark.parametrize("lie", lies())
async def test_what_the_host_asks_a_liar_for_ends_in_time_and_costs_little(
    liar: Path, lied_to: Sandbox, lie: str, call: Callable[[Sandbox], Awaitable[None]]
) -> None:
    (lied_to.folder / "envd.sock").symlink_to(liar / lie)
    pauses: list[float] = []
    watching = asyncio.create_task(_watch_the_loop(pauses))
    began = time.monotonic()
    tracemalloc.start()
    try:
        await call(lied_to)
        assert call in CONTENT_WITH_A_STATUS
    except (ApiError, OSError, Unreachable):
        pass
    finally:
        grown = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        await asyncio.sleep(0)
        watching.cancel()
    assert time.monotonic() - began < ENDS_WITHIN_S
    assert grown < MAX_GROWTH_BYTES
    assert max(pauses) < MAX_PAUSE_S


async def _watch_the_loop(pauses: list[float]) -> None:
    """For how long a processor was kept from others, each time, in seconds."""
    while True:
        before = time.thread_time()
        await asyncio.sleep(0)
        pauses.append(time.thread_time() - before)


@pytest.mark.parametrize(
    ("body", "is_whole"),
    [
        (b"", True),
        (b"\0\0\0\0\2{}", True),
        (b"\0\0\0\0\2{}\0\0\0\0\0", True),
        (b"\0\0\0\0\2{}\0\0\0", False),
        (b"\0\0\0\0\2{", False),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 100])
async def test_a_stream_is_ended_only_between_two_messages(body: bytes, is_whole: bool, size: int) -> None:
    """In the midst of one, the end would be taken for its rest."""
    here, there = socket.socketpair()
    with there:
        pieces = [body[start : start + size] for start in range(0, len(body), size)]
        there.sendall(b"".join(frame(CHUNKED, piece) for piece in pieces))
    connection = StreamConnection(*await asyncio.open_unix_connection(sock=here))
    with pytest.raises(BrokenStreamError):
        async for _ in connection.body((CHUNKED, 0)):
            pass
    end = b'{"error": {"code": "unavailable", "message": "it ended"}}'
    whole = frame(CHUNKED, struct.pack(">BI", 2, len(end)) + end) + b"0\r\n\r\n"
    assert connection.end("unavailable", "it ended") == (whole if is_whole else b"")
    await connection.close()
