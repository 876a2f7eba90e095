"""The link to a control plane that behaves badly."""

import asyncio
import json
import time
from pathlib import Path

from websockets.asyncio.server import ServerConnection, serve

from ship_runner import facts
from ship_runner.instructions import Instruction
from ship_runner.link import Link
from ship_runner.spool import Spool


async def ignore(instruction: Instruction) -> None:
    raise AssertionError(f"nothing was said, but {instruction} came")


async def test_only_an_acknowledgement_makes_the_link_come_back_fast_again(tmp_path: Path) -> None:
    """A frame that the control plane ends the connection for must not be sent many times a second."""
    spool = Spool(tmp_path / "spool")
    spool.report(facts.task_completed("tsk_1"))
    spool.report(facts.task_completed("tsk_2"))
    came: list[float] = []
    enough = asyncio.Event()

    async def welcome_and_close(socket: ServerConnection) -> None:
        await socket.recv()
        came.append(time.monotonic())
        await socket.send(json.dumps({"t": "welcome", "acked": 0}))
        await socket.recv()
        if len(came) == 7:
            await socket.send(json.dumps({"t": "ack", "n": 1}))
        if len(came) == 8:
            enough.set()
        await socket.close(1009)

    async with serve(welcome_and_close, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        link = Link(f"http://127.0.0.1:{port}", "token", 1, spool, connected=lambda: None, instructed=ignore)
        running = asyncio.create_task(link.run())
        try:
            async with asyncio.timeout(30):
                await enough.wait()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            spool.close()
    assert came[6] - came[0] > 1.5
    assert came[7] - came[6] < 1.5
