"""Ending everything that works on a data folder: the server, the sandbox host, every sandbox."""

import asyncio
import sys
from pathlib import Path

from ship.app.folder import DataFolder
from ship.app.sandbox_host import FILE, end_process, is_running
from ship.app.tokens import SERVER_FILE
from ship.errors import ConfigurationError


def down(data: Path) -> None:
    """End them. The log stays; what a sandbox held past its last checkpoint is lost.

    Raises:
        ConfigurationError: ``sandboxes_not_ended``.
    """
    asyncio.run(_down(DataFolder(data)))


async def _down(folder: DataFolder) -> None:
    for file, module in ((SERVER_FILE, "ship"), (FILE, "ship_sandboxd")):
        pid = folder.read_json(file).get("pid")
        if pid and is_running(pid, module):
            await end_process(pid)
    if not folder.sandboxes.exists():
        return
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ship_sandboxd", "--data", str(folder.sandboxes), "--stop-all"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    if process.returncode:
        raise ConfigurationError(
            f"the sandboxes could not be ended: {said.decode(errors='replace')[-500:]}",
            code="sandboxes_not_ended",
        )
