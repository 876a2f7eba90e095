"""The sandbox port: the host in memory and the official SDK against our own host keep one contract."""

import asyncio
import json
import os
import sys
from pathlib import Path

import httpx
import pytest

from ship.errors import NotFound, SandboxFailed
from ship.sandboxes.e2b_host import E2BHost
from ship.testing.contracts import check_sandbox_host
from ship.testing.sandbox_hosts import PretendSandboxHost

KEY = "e2b_" + "0" * 40


async def test_the_host_in_memory_keeps_the_contract() -> None:
    await check_sandbox_host(PretendSandboxHost(), "base")


@pytest.mark.system
async def test_our_own_host_keeps_the_contract_by_the_official_sdk(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ship_sandboxd", "--listen", "127.0.0.1:0", "--data", str(tmp_path)),
        env={**os.environ, "SHIP_SANDBOXD_API_KEY": KEY},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout
    try:
        url = json.loads(await process.stdout.readline())["url"]
        await check_sandbox_host(E2BHost(KEY, url), "base")
        await check_bounded_output(E2BHost(KEY, url))
        with pytest.raises(SandboxFailed) as refused:
            await E2BHost("e2b_" + "1" * 40, url).find({})
        assert refused.value.code == "sandbox_key_refused"
    finally:
        process.terminate()
        await process.wait()


async def check_bounded_output(host: E2BHost) -> None:
    sandbox_id = await host.create("base", {}, 60)
    assert len((await host.run(sandbox_id, "head -c 1000000 /dev/zero | tr '\\0' x", 20)).stdout) == 1_000_000
    with pytest.raises(SandboxFailed) as refused:
        await host.run(sandbox_id, "yes", 20)
    assert refused.value.code == "output_too_large"
    assert not await host.running(sandbox_id, "yes")
    await host.kill(sandbox_id)


async def test_a_host_that_is_not_there_is_an_error_with_a_name() -> None:
    with pytest.raises(SandboxFailed) as refused:
        await E2BHost(KEY, "http://127.0.0.1:9").find({})
    assert refused.value.code == "sandbox_host_unreachable"


async def test_a_node_keeps_in_mind_the_sandboxes_that_it_used_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other nodes end some of them, of which it hears nothing."""
    connected = []

    class Sandbox:
        def __init__(self, sandbox_id: str) -> None:
            self.sandbox_id = sandbox_id

        @classmethod
        async def connect(cls, sandbox_id: str, **options: object) -> "Sandbox":
            connected.append(sandbox_id)
            return cls(sandbox_id)

        async def set_timeout(self, timeout_s: int) -> None:
            """It has more time."""

    monkeypatch.setattr("e2b.AsyncSandbox", Sandbox)
    monkeypatch.setattr("ship.sandboxes.e2b_host.CONNECTED", 2)
    host = E2BHost(KEY)
    for sandbox_id in "abacab":
        await host.extend(sandbox_id, 60)
    assert "".join(connected) == "abcb"
    assert set(host._open) == {"a", "b"}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("The sandbox was not found: it ran out of memory", "the sandbox ran out of memory"),
        ("The sandbox was not found", "the sandbox host does not have it any more"),
        (None, "the sandbox host does not have it any more"),
    ],
)
async def test_who_finds_it_gone_is_told_why(
    monkeypatch: pytest.MonkeyPatch, answer: str | None, reason: str
) -> None:
    from e2b.exceptions import SandboxNotFoundException, format_sandbox_unavailable_exception

    told = (
        httpx.ConnectError("no such name") if answer is None else format_sandbox_unavailable_exception(answer)
    )

    class Sandbox:
        def __init__(self, sandbox_id: str) -> None:
            self.sandbox_id = sandbox_id
            self.commands = self

        @classmethod
        async def connect(cls, sandbox_id: str, **options: object) -> "Sandbox":
            return cls(sandbox_id)

        async def set_timeout(self, timeout_s: int) -> None:
            raise SandboxNotFoundException(f"Sandbox {self.sandbox_id} not found")

        async def list(self) -> None:
            raise told

    monkeypatch.setattr("e2b.AsyncSandbox", Sandbox)
    with pytest.raises(NotFound) as raised:
        await E2BHost(KEY).extend("a", 60)
    assert (raised.value.code, str(raised.value)) == ("sandbox_not_found", reason)
