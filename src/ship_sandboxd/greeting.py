"""What the host says when it is ready: a line of JSON for programs, and for a person what to do next."""

import json
import sys
from collections.abc import Mapping
from typing import Any

from .settings import Settings


def announce(ready: Mapping[str, Any], settings: Settings) -> None:
    """Says it on standard output. ``ready`` holds the host's ``url`` and its ``pid``."""
    said = _for_people(ready["url"], settings) if sys.stdout.isatty() else json.dumps(ready) + "\n"
    sys.stdout.write(said)
    sys.stdout.flush()


def _for_people(url: str, settings: Settings) -> str:
    key, where = _key(settings)
    return f"""The sandbox host is up at {url}, on {settings.data}.
Its API key is {where}. In another terminal, with E2B's SDK (pip install e2b):

    export E2B_API_URL={url} E2B_SANDBOX_URL={url} E2B_API_KEY={key}
    python3 -c 'from e2b import Sandbox; print(Sandbox.create().commands.run("uname -a").stdout)'

Ctrl-C stops the host; sandboxes run on until their time is up, and the next host on {settings.data} finds them.

"""


def _key(settings: Settings) -> tuple[str, str]:
    """How to write the key in a shell, and where it is. The key itself is not shown: screens are shared."""
    if not settings.api_key:
        return "KEY", f"one of those in {settings.keys}"
    variable = settings.api_key_variable
    return (
        (f'"${variable}"', f"the one in {variable}") if variable else ("KEY", "the one given with --api-key")
    )
