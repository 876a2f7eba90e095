"""``ship search``."""

import asyncio

from rich.text import Text

from ship.cli import terminal
from ship.cli.connection import Address
from ship.cli.terminal import clean, one_line
from ship.client.views import Found
from ship.errors import InvalidInput
from ship.model import SearchMode, SessionStatus

SAID_NOWHERE = "Nothing was found. All words have to be in one message or title; word* finds its beginnings."
MEANT_BY_NOTHING = "Nothing was found that means something like it."


def search(
    address: Address,
    query: str,
    *,
    by_meaning: bool,
    status: str,
    repository: str,
    limit: int,
    as_json: bool,
) -> None:
    """``ship search``"""

    known = [one.value for one in SessionStatus]
    if status and status not in known:
        raise InvalidInput(
            f"no session stands {status!r}", code="status_unknown", hint=f"One of {', '.join(known)}."
        )

    async def ask() -> tuple[Found, ...]:
        async with address.client() as client:
            return (
                await client.search(
                    query,
                    mode=SearchMode.MEANING if by_meaning else SearchMode.WORDS,
                    status=SessionStatus(status) if status else None,
                    repository=repository,
                    limit=limit,
                )
            ).items

    found = asyncio.run(ask())
    if as_json:
        terminal.print_json(list(found))
        return
    console = terminal.output()
    for one in found:
        head = Text.assemble(
            (one.session.id, "bold"), " ", (one.session.status, "dim"), "  ", one_line(one.session.title, 100)
        )
        console.print(head, soft_wrap=True)
        said = Text("    ")
        for mark in one.snippet:
            said.append(clean(mark.text), "bold yellow" if mark.match else "dim")
        if one.matches > 1:
            said.append(f"  (and {one.matches - 1} more)", "dim")
        console.print(said, soft_wrap=True)
    if not found:
        console.print(MEANT_BY_NOTHING if by_meaning else SAID_NOWHERE)
