"""Which server the commands speak to, and with which token."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from ship import errors
from ship.client import Client
from ship.client.client import server_root
from ship.client.stream import START_HINT
from ship.config import Settings


@dataclass(frozen=True)
class Address:
    """A server's root and a token for it."""

    url: str
    token: str
    noted_in: Path | None = None
    """The data folder that the token was read from: a restarted server notes another one there."""

    def client(self) -> Client:
        """A client of that server; it outlives restarts of this machine's own."""
        return Client(self.url, self.current_token)

    def current_token(self) -> str:
        """The token that holds now."""
        noted = recall(self.noted_in) if self.noted_in else None
        return noted.token if noted and noted.url == self.url else self.token


def data_folder(chosen: Path | None) -> Path:
    """Where Ship keeps what it knows: ``--data``, ``SHIP_DATA``, else the default of the settings."""
    data = str(chosen) if chosen else os.environ.get("SHIP_DATA")
    return (Settings(data=data) if data else Settings()).data_path


def find(url: str | None, token: str | None, data: Path | None) -> Address:
    """The server to speak to: the one named, else the one that ``ship up`` noted in the data folder.

    Raises:
        InvalidInput: ``url_malformed``.
        Unavailable: ``not_reachable`` when none is known.
        Unauthenticated: ``token_missing`` when there is no token for it.
    """
    noted = recall(data_folder(data))
    if url is None and noted is None:
        folder = data_folder(data)
        raise errors.Unavailable(f"no server has run on {folder} yet", code="not_reachable", hint=START_HINT)
    address = server_root(url) if url else noted.url if noted else ""
    # The local token opens this machine's server; it is not shown to any other.
    if not token and noted and noted.url == address:
        return noted
    if not token:
        raise errors.Unauthenticated(
            f"there is no token for {address}",
            code="token_missing",
            hint="Give one with --token or SHIP_TOKEN; `ship token create` makes it on the server's machine.",
        )
    return Address(address, token)


def recall(folder: Path) -> Address | None:
    """What ``ship up`` noted in this data folder, if it ever ran there."""
    file = folder / "cli.json"
    if not file.is_file():
        return None
    try:
        noted = json.loads(file.read_text())
        return Address(noted["url"].rstrip("/"), noted["token"], folder)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.ConfigurationError(
            f"{file} is not what `ship up` writes",
            code="cli_file_malformed",
            hint="Delete it and start Ship again.",
        ) from error


async def session_id(client: Client, prefix: str) -> str:
    """The one session whose id begins so, with or without ``ses_``.

    Raises:
        NotFound: ``session_not_found``.
        InvalidInput: ``session_ambiguous`` when several do.
    """
    found = [
        one.id
        async for one in client.all_sessions()
        if one.id.removeprefix("ses_").startswith(prefix.removeprefix("ses_"))
    ]
    if prefix in found or len(found) == 1:
        return prefix if prefix in found else found[0]
    if not found:
        raise errors.NotFound(
            f"no session {prefix}", code="session_not_found", hint="List them with `ship ls --all`."
        )
    shown = ", ".join(found[:5]) + (", …" if len(found) > 5 else "")
    raise errors.InvalidInput(
        f"{prefix} may be any of {shown}", code="session_ambiguous", hint="Give more of the id."
    )
