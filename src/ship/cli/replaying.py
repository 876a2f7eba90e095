"""``ship replay``: the log folded again on this machine, which shows that all that is true of a session is in it."""

import asyncio

import msgspec

from ship import errors
from ship.cli import showing, terminal
from ship.cli.connection import Address, session_id
from ship.client import Client
from ship.client.views import Session
from ship.sessions import views
from ship.sessions.fold import evolve
from ship.sessions.state import SessionState

PAGE = 500


def replay(address: Address, prefix: str, *, to: int | None, as_json: bool) -> None:
    """``ship replay``"""

    async def work() -> tuple[str, SessionState]:
        async with address.client() as client:
            session = await session_id(client, prefix)
            return session, await folded(client, session, to)

    session, state = asyncio.run(work())
    view = views.session(session, state)
    if as_json:
        terminal.print_json(view)
    else:
        terminal.messages().print(
            f"after event {state.head_seq}, {terminal.moment(state.updated_at_ms)}", style="dim"
        )
        showing.describe(terminal.output(), msgspec.convert(view, Session), address.url)


async def folded(client: Client, session: str, to: int | None) -> SessionState:
    """The state after the event ``to``, or after the last one.

    Raises:
        InvalidInput: ``after_past_head`` when the log does not have that event yet.
    """
    state: SessionState | None = None
    while True:
        after = state.head_seq if state else 0
        limit = PAGE if to is None else min(PAGE, to - after)
        page = await client.event_page(session, after=after, limit=limit)
        if to is not None and to > page.head_seq:
            raise errors.InvalidInput(
                f"this log ends at {page.head_seq}, before {to}",
                code="after_past_head",
                hint="Leave out --to.",
            )
        for record in page.items:
            state = evolve(state, record)
        if state is not None and state.head_seq >= (page.head_seq if to is None else to):
            return state
