"""Answers under idempotency keys, tokens and secrets."""

import asyncio

from ship.ports.store import Append, FirstAnswer, StoredToken

from .two_nodes import Check, Stores


async def answers_are_forgotten_by_age(stores: Stores) -> None:
    """``first_answer`` and ``forget_answers``; a key belongs to its scope."""
    store = stores.one
    old, new = FirstAnswer("age", "old", "f1", b"1"), FirstAnswer("age", "new", "f2", b"\x00")
    await store.append(Append("age", 0, 100, first_answer=old))
    await store.append(Append("age", 0, 200, first_answer=new))
    assert await store.first_answer("age", "old") == old
    assert await store.first_answer("other scope", "old") is None
    await store.append(Append("age", 0, 200, first_answer=old._replace(scope="other scope")))
    await store.forget_answers(200)
    assert await store.first_answer("age", "old") is None
    assert await store.first_answer("age", "new") == new
    await store.append(Append("age", 0, 300, first_answer=old))


async def tokens_live_until_their_time_is_over(stores: Stores) -> None:
    """``add_token``, ``find_token``, ``tokens``."""
    store = stores.one
    forever = StoredToken("d1", "api", "laptop", 100, None)
    short = StoredToken("d2", "api", "guest", 200, 300)
    await store.add_token(short)
    await store.add_token(forever)
    await store.add_token(StoredToken("d3", "browser", "laptop", 150, None))
    assert await stores.other.find_token("d2", 299) == short
    assert await store.find_token("d2", 300) is None
    assert await store.find_token("none", 0) is None
    assert await store.tokens("api") == [forever, short]
    await store.add_token(StoredToken("d4", "login", "later", 300, None))
    assert await store.tokens("api") == [forever], "adding one drops those whose time is over"
    assert await store.tokens("no such kind") == []


async def a_secret_is_made_once(stores: Stores) -> None:
    """``secret``: whoever comes first."""
    found = await asyncio.gather(
        *(store.secret("key", f"{n}") for n in range(4) for store in (stores.one, stores.other))
    )
    assert len(set(found)) == 1
    assert await stores.other.secret("key", "later") == found[0]
    assert await stores.one.secret("another", "fresh") == "fresh"


async def a_token_is_revoked_once(stores: Stores) -> None:
    """``remove_token`` says who was first; ``remove_tokens_named`` how many."""
    await stores.one.add_token(StoredToken("r1", "login", "link", 1, None))
    outcomes = await asyncio.gather(
        *(store.remove_token("r1") for store in (stores.one, stores.other, stores.one, stores.other))
    )
    assert sorted(outcomes) == [False, False, False, True]
    for digest in ("r2", "r3"):
        await stores.one.add_token(StoredToken(digest, "api", "named", 1, None))
    assert await stores.other.remove_tokens_named("named") == 2
    assert await stores.other.remove_tokens_named("named") == 0
    assert await stores.one.find_token("r2", 0) is None


CHECKS: tuple[Check, ...] = (
    answers_are_forgotten_by_age,
    tokens_live_until_their_time_is_over,
    a_secret_is_made_once,
    a_token_is_revoked_once,
)
