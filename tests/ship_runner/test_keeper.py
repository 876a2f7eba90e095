"""The process that keeps the runner alive."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

CHILD = """
import os, sys, time
from pathlib import Path
from ship_runner.keeper import keep

def child():
    with open(sys.argv[1], "a") as file:
        file.write(f"{os.getpid()}\\n")
    lines = Path(sys.argv[1]).read_text().splitlines()
    if len(lines) >= 3:
        return 0
    if sys.argv[2] == "fail":
        raise RuntimeError("broken")
    time.sleep(60)
    return 1

sys.exit(keep(child))
"""


async def started(record: Path, mode: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, str(record), mode, stderr=asyncio.subprocess.PIPE
    )


async def children(record: Path, count: int) -> list[int]:
    async with asyncio.timeout(20):
        while not record.exists() or len(record.read_text().splitlines()) < count:
            await asyncio.sleep(0.01)
    return [int(line) for line in record.read_text().splitlines()]


async def gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while Path(f"/proc/{pid}").exists() and ") Z" not in Path(f"/proc/{pid}/stat").read_text():
            await asyncio.sleep(0.01)


async def test_a_child_that_is_killed_is_started_again_until_it_ends_well(tmp_path: Path) -> None:
    record = tmp_path / "record"
    keeper = await started(record, "sleep")
    for count in (1, 2):
        os.kill((await children(record, count))[-1], signal.SIGKILL)
    assert await asyncio.wait_for(keeper.wait(), 20) == 0
    assert len(await children(record, 3)) == 3


async def test_a_child_that_fails_is_started_again(tmp_path: Path) -> None:
    keeper = await started(tmp_path / "record", "fail")
    _, said = await asyncio.wait_for(keeper.communicate(), 20)
    assert keeper.returncode == 0
    assert b"RuntimeError: broken" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_child_does_not_outlive_its_keeper(tmp_path: Path, number: signal.Signals) -> None:
    record = tmp_path / "record"
    keeper = await started(record, "sleep")
    (child,) = await children(record, 1)
    keeper.send_signal(number)
    await keeper.communicate()
    await gone(child)


@pytest.mark.parametrize(("arguments", "status"), [(["dance"], 2), ([], 2), (["diff"], 1)])
async def test_wrong_use_is_said(tmp_path: Path, arguments: list[str], status: int) -> None:
    environment = {"PATH": "/usr/bin:/bin", "SHIP_STATE": str(tmp_path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ship_runner", *arguments, env=environment, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode == status
    assert said.strip()
