"""Writes openapi.json: the HTTP API with the shapes of every event. ``--check`` only compares."""

import json
import sys
from pathlib import Path

from ship.api.application import create_api
from ship.api.openapi import document

TARGET = Path(__file__).parent.parent / "openapi.json"


def main() -> int:
    """Write it, or say whether it is up to date."""
    text = json.dumps(document(create_api()), indent=2, sort_keys=True) + "\n"
    if "--check" in sys.argv:
        return 0 if TARGET.read_text() == text else 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
