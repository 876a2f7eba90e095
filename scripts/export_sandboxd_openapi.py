"""Writes src/ship_sandboxd/openapi.json: the REST API of the sandbox host, as a real one tells it. ``--check`` only
compares."""

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src"
TARGET = SOURCE / "ship_sandboxd" / "openapi.json"


def told() -> str:
    """The document of a host that is started for it."""
    with tempfile.TemporaryDirectory() as folder:
        host = subprocess.Popen(
            [sys.executable, "-m", "ship_sandboxd", "--listen", "127.0.0.1:0", "--data", f"{folder}/data"],
            env={**os.environ, "PYTHONPATH": str(SOURCE), "SHIP_SANDBOXD_API_KEY": "only-for-this"},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert host.stdout is not None
        with host.stdout:
            url = json.loads(host.stdout.readline())["url"]
            with urllib.request.urlopen(f"{url}/openapi.json", timeout=10) as answer:  # noqa: S310 - our own host
                document = json.load(answer)
        host.terminate()
        host.wait(10)
    return json.dumps(document, indent=2) + "\n"


def main() -> int:
    """Write it, or say whether it is up to date."""
    text = told()
    if "--check" in sys.argv:
        return 0 if TARGET.read_text() == text else 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
