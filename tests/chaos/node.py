"""One node of Ship as `ship up` runs it, with faults planted: ``python -m tests.chaos.node FAULTS SANDBOXES``.

Settings come from the environment. Only its sandbox host is not the real one: it is a folder that outlives every node.
"""

import os
import sys
from pathlib import Path
from typing import Any

from tests.chaos import points
from tests.chaos.sandboxes import FolderSandboxHost

from ship import config
from ship.app import serve


def main(faults: Path, sandboxes: Path) -> None:
    """Serve until it is ended."""

    async def host(*composition: Any) -> FolderSandboxHost:
        return FolderSandboxHost(sandboxes)

    assert callable(serve._sandbox_host)
    setattr(serve, "_sandbox_host", host)  # noqa: B010 — its type is narrower than the port
    points.plant(faults)
    serve.serve(config.load(None, os.environ))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
