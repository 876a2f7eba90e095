"""Credentials by the data folder alone: for the command line, whether the server runs or not."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from ship.accounts.tokens import Tokens
from ship.app import storage
from ship.app.folder import DataFolder
from ship.errors import ConfigurationError

T = TypeVar("T")
SERVER_FILE = "cli.json"


class ListedToken(NamedTuple):
    """An API token without its secret."""

    name: str
    created_at_ms: int


def now_ms() -> int:
    """Milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


def create_token(data: Path, name: str) -> str:
    """A new API token of that name; the secret is shown only here."""
    return _with_tokens(data, lambda tokens: tokens.create(name))


def list_tokens(data: Path) -> list[ListedToken]:
    """The API tokens, oldest first."""

    async def listed(tokens: Tokens) -> list[ListedToken]:
        return [ListedToken(token.name, token.created_at_ms) for token in await tokens.listed()]

    return _with_tokens(data, listed)


def revoke_token(data: Path, name: str) -> None:
    """Make the tokens of that name worthless. Raises NotFound (``token_not_found``)."""
    _with_tokens(data, lambda tokens: tokens.revoke(name))


def login_link(data: Path) -> str:
    """A link that signs one browser in, once.

    Raises:
        ConfigurationError: ``server_unknown`` when no server has been started on this folder.
    """
    url = DataFolder(data).read_json(SERVER_FILE).get("url")
    if not url:
        raise ConfigurationError(
            "no server has been started on this data folder", code="server_unknown", hint="Run `ship up`."
        )
    secret = _with_tokens(data, lambda tokens: tokens.create_login("owner"))
    return f"{url}/login?token={secret}"


def _with_tokens(data: Path, use: Callable[[Tokens], Awaitable[T]]) -> T:
    async def run() -> T:
        folder = DataFolder(data)
        # The store of the server that ran here last; before the first one, what the environment says.
        database = folder.read_json(SERVER_FILE).get("database", os.environ.get("SHIP_DATABASE", ""))
        store = storage.store(database, folder, exclusive=False)
        await store.open()
        try:
            return await use(Tokens(store, now_ms))
        finally:
            await store.close()

    return asyncio.run(run())
