"""A network of our own: each node behind a cable to a bridge, servers with an address each, and any two of them cut off from each other.

All of it lies in network namespaces that are made for one test and are gone after it; nothing outside them is touched.
"""

import asyncio
import contextlib
import ctypes
import os
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

PEOPLE, DATABASE, BUS, BLOBS, SANDBOXES = "10.77.0.1", "10.77.0.10", "10.77.0.11", "10.77.0.12", "10.77.0.13"


def possible() -> str:
    """Why there can be no such network here; empty when there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    tried = subprocess.run(
        ["unshare", "--net", "ip", "link", "add", "bridge0", "type", "bridge"],
        check=False,
        capture_output=True,
    )
    return "" if tried.returncode == 0 else f"no bridge can be made: {tried.stderr.decode().strip()}"


class Cable:
    """A node's namespace: what is started with ``prefix`` has ``address`` and nothing else."""

    def __init__(self, number: int) -> None:
        self.address = f"10.77.0.{20 + number}"
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"],
            stdin=subprocess.DEVNULL,
        )
        self.prefix: Sequence[str] = ("nsenter", f"--net=/proc/{self._holder.pid}/ns/net")

    async def lay(self, number: int) -> None:
        """Connect it to the bridge."""
        own = Path("/proc/thread-self/ns/net").readlink()
        async with asyncio.timeout(10):
            while Path(f"/proc/{self._holder.pid}/ns/net").readlink() == own:
                await asyncio.sleep(0.01)
        ip("link", "add", f"bridge-{number}", "type", "veth", "peer", "name", f"node-{number}")
        ip("link", "set", f"bridge-{number}", "master", "bridge0", "up")
        ip("link", "set", f"node-{number}", "netns", str(self._holder.pid))
        ip("link", "set", "lo", "up", prefix=self.prefix)
        ip("addr", "add", f"{self.address}/24", "dev", f"node-{number}", prefix=self.prefix)
        ip("link", "set", f"node-{number}", "up", prefix=self.prefix)

    def end(self) -> None:
        """Take it away."""
        self._holder.kill()
        self._holder.wait()


class Lab:
    """The bridge, the servers' addresses and the nodes' cables. Used inside ``laboratory``, on the thread that runs the loop."""

    def __init__(self) -> None:
        self.cables: list[Cable] = []
        self._servers: list[asyncio.Server] = []

    async def add_node(self) -> Cable:
        """A cable for one more node."""
        cable = Cable(len(self.cables))
        self.cables.append(cable)
        await cable.lay(len(self.cables))
        return cable

    async def expose(self, address: str, port: int, target: Path | int) -> None:
        """Let that address lead to a Unix socket, or to a port of this namespace's loopback."""

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                there = await (
                    asyncio.open_unix_connection(target)
                    if isinstance(target, Path)
                    else asyncio.open_connection("127.0.0.1", target)
                )
            except OSError:
                writer.close()
                return
            await asyncio.gather(_pump(reader, there[1]), _pump(there[0], writer), return_exceptions=True)

        self._servers.append(await asyncio.start_server(relay, address, port))

    def cut(self, address: str, node: str) -> None:
        """Nothing that this address sends to that node arrives any more; nobody is told."""
        ip("rule", "add", "from", address, "to", node, "blackhole")

    def mend(self, address: str, node: str) -> None:
        """Undo ``cut``."""
        ip("rule", "del", "from", address, "to", node, "blackhole")

    async def end(self) -> None:
        """Take all of it away."""
        for server in self._servers:
            server.close()
        for cable in self.cables:
            cable.end()


@contextlib.asynccontextmanager
async def laboratory() -> AsyncIterator[Lab]:
    """The calling thread, and what it starts, is in a network of its own for as long as the block runs."""
    with _own_network():
        ip("link", "set", "lo", "up")
        ip("link", "add", "bridge0", "type", "bridge")
        ip("link", "set", "bridge0", "up")
        for address in (PEOPLE, DATABASE, BUS, BLOBS, SANDBOXES):
            ip("addr", "add", f"{address}/24", "dev", "bridge0")
        lab = Lab()
        try:
            yield lab
        finally:
            await lab.end()


def ip(*arguments: str, prefix: Sequence[str] = ()) -> None:
    """Run `ip`. Raises CalledProcessError."""
    subprocess.run([*prefix, "ip", *arguments], check=True, capture_output=True)


@contextlib.contextmanager
def _own_network() -> Iterator[None]:
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked(_libc.unshare(_CLONE_NEWNET))
        yield
    finally:
        _checked(_libc.setns(before, _CLONE_NEWNET))
        os.close(before)


def _checked(outcome: int) -> None:
    if outcome:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while content := await reader.read(1 << 16):
            writer.write(content)
            await writer.drain()
    finally:
        writer.close()
