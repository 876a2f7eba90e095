"""Which sandbox host the commands speak to, and which of its sandboxes is meant."""

import os
from collections.abc import Sequence
from pathlib import Path

from ship import errors
from ship.app import sandbox_host
from ship.cli.connection import data_folder
from ship.client.client import server_root
from ship.sandboxes.e2b_console import E2BConsole

START_HINT = (
    "Start Ship with `ship up`, or a host alone with `ship sandboxd`; name another one with --url and --api-key, "
    "or E2B_API_URL and E2B_API_KEY."
)


def find(url: str | None, api_key: str | None, data: Path | None) -> E2BConsole:
    """The host to speak to: the one named, by E2B's own variables, too; else the one that ``ship up`` runs on the data folder.

    Raises:
        as ``address``.
    """
    key, host = address(url, api_key, data)
    domain = os.environ.get("E2B_DOMAIN", "")
    reached_by_name = not url and not os.environ.get("E2B_API_URL") and domain
    sandbox_url = "" if reached_by_name else os.environ.get("E2B_SANDBOX_URL") or host
    return E2BConsole(key, host, sandbox_url)


def address(url: str | None, api_key: str | None, data: Path | None) -> tuple[str, str]:
    """The key of the host that ``find`` finds, and its address.

    Raises:
        InvalidInput: ``url_malformed``.
        Unavailable: ``sandbox_host_unknown`` when none is named and none runs.
        Unauthenticated: ``sandbox_key_missing`` when there is no key for it.
    """
    domain = os.environ.get("E2B_DOMAIN", "")
    named = url or os.environ.get("E2B_API_URL") or (f"https://api.{domain}" if domain else "")
    own = sandbox_host.running_host(data_folder(data))
    if not named and own is None:
        raise errors.Unavailable(
            f"no sandbox host runs on {data_folder(data)}", code="sandbox_host_unknown", hint=START_HINT
        )
    host = server_root(named) if named else own[0] if own else ""
    # The key of this machine's own host opens that one; it is not shown to any other.
    key = own[1] if own and own[0] == host and not api_key else api_key or _key_of_environment()
    if not key:
        raise errors.Unauthenticated(
            f"there is no key for {host}",
            code="sandbox_key_missing",
            hint="Give it with --api-key, E2B_API_KEY or SHIP_SANDBOXD_API_KEY.",
        )
    return key, host


def _key_of_environment() -> str:
    return os.environ.get("E2B_API_KEY") or os.environ.get("SHIP_SANDBOXD_API_KEY", "")


async def sandbox_ids(console: E2BConsole, prefixes: Sequence[str]) -> list[str]:
    """The one sandbox that each of these begins, in their order and each once.

    Raises:
        NotFound: ``sandbox_not_found``.
        InvalidInput: ``sandbox_ambiguous`` when several begin so.
    """
    known = [one.sandbox_id for one in await console.sandboxes()]
    return list(dict.fromkeys(_only(prefix, known) for prefix in prefixes))


async def sandbox_id(console: E2BConsole, prefix: str) -> str:
    """As ``sandbox_ids``, for one."""
    return (await sandbox_ids(console, [prefix]))[0]


def _only(prefix: str, known: Sequence[str]) -> str:
    found = [one for one in known if prefix and one.startswith(prefix)]
    if prefix in found or len(found) == 1:
        return prefix if prefix in found else found[0]
    if not found:
        raise errors.NotFound(
            f"there is no sandbox {prefix or 'without an id'}",
            code="sandbox_not_found",
            hint="List them with `ship sandbox ls`.",
        )
    shown = ", ".join(found[:5]) + (", …" if len(found) > 5 else "")
    raise errors.InvalidInput(
        f"{prefix} may be any of {shown}", code="sandbox_ambiguous", hint="Give more of the id."
    )
