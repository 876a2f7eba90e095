"""What the host tells the daemon in a sandbox, over its control socket. What answers is not trusted."""

import asyncio
import json

from ..errors import LaunchFailed
from .sandbox import Sandbox

_TIMEOUT_S = 5.0
_MAX_ANSWER_BYTES = 4096


async def hand_out(sandbox: Sandbox, envs: dict[str, str]) -> None:
    """Tell a warm sandbox what its new owner adds to the environment. Raises OSError, LaunchFailed."""
    await _post(sandbox, "/init", {"envVars": envs})


async def out_of_memory(sandbox: Sandbox) -> None:
    """Tell that the kernel has ended a process of it for want of memory. Raises OSError, LaunchFailed."""
    await _post(sandbox, "/out-of-memory", {})


async def _post(sandbox: Sandbox, path: str, content: dict[str, object]) -> None:
    body = json.dumps(content).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: envd\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"X-Access-Token: {sandbox.record.token}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    async with asyncio.timeout(_TIMEOUT_S):
        reader, writer = await sandbox.connect()
        try:
            writer.write(head.encode() + body)
            await writer.drain()
            answer = await reader.read(_MAX_ANSWER_BYTES)
        finally:
            writer.close()
    if not answer.startswith(b"HTTP/1.1 2"):
        raise LaunchFailed(f"the daemon answers {path} with {answer[:80]!r}")
