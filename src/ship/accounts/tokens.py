"""Credentials of people and programs: API tokens, browser sign-ins, one-time sign-in links.

A secret is shown once and kept only as a digest, which is also what is looked up: no secret is ever compared byte by byte.
"""

import asyncio
import hashlib
import secrets
from collections.abc import Callable

from ship.errors import NotFound, Unauthenticated
from ship.model import Actor, ActorKind
from ship.ports.store import StoredToken, TokenStore

BELIEVED_MS = 1_000
"""How long a credential that was just looked up is believed without looking again: what is revoked elsewhere ends within that."""
BELIEVED = 10_000
LOGIN_LIFE_MS = 24 * 3_600_000
BROWSER_LIFE_MS = 30 * 24 * 3_600_000


class Tokens:
    """All credentials of this store."""

    def __init__(self, store: TokenStore, now_ms: Callable[[], int]) -> None:
        self._store = store
        self._now_ms = now_ms
        self._believed: dict[str, tuple[int, Actor]] = {}
        self._asking: dict[str, asyncio.Task[Actor]] = {}

    async def create(self, name: str) -> str:
        """A new API token of that name; returns the secret, which nothing can show again."""
        return await self._add("api", name, None)

    async def create_login(self, name: str) -> str:
        """A one-time secret that signs a browser in, for a day."""
        return await self._add("login", name, LOGIN_LIFE_MS)

    async def sign_in(self, login: str) -> str:
        """Trade a one-time secret for a browser's own.

        Raises:
            Unauthenticated: ``login_spent`` when it was used before or is too old.
        """
        digest = _digest(login)
        found = await self._store.find_token(digest, self._now_ms())
        if found is None or found.kind != "login" or not await self._store.remove_token(digest):
            raise Unauthenticated(
                "this sign-in link was used already or is too old",
                code="login_spent",
                hint="`ship login-link` prints a new one.",
            )
        return await self._add("browser", found.name, BROWSER_LIFE_MS)

    async def authenticate(self, secret: str) -> Actor:
        """Who holds this secret, or held it less than ``BELIEVED_MS`` ago.

        Raises:
            Unauthenticated: nobody does.
        """
        digest = _digest(secret)
        until_ms, actor = self._believed.get(digest, (0, None))
        if actor is not None and self._now_ms() < until_ms:
            return actor
        asking = self._asking.get(digest)
        if asking is None:  # who comes meanwhile waits for the same answer
            asking = self._asking[digest] = asyncio.create_task(self._look_up(digest))
            asking.add_done_callback(lambda done: self._asking.pop(digest, None))
            asking.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(asking)

    async def _look_up(self, digest: str) -> Actor:
        now_ms = self._now_ms()
        found = await self._store.find_token(digest, now_ms)
        if found is None or found.kind == "login":
            raise Unauthenticated(
                "this token is not known here",
                hint="`ship token create` makes one; in a browser use the link of `ship login-link`.",
            )
        actor = Actor(kind=ActorKind.USER, name=found.name)
        if len(self._believed) >= BELIEVED:
            self._believed.clear()
        until_ms = now_ms + BELIEVED_MS
        self._believed[digest] = (min(until_ms, found.expires_at_ms or until_ms), actor)
        return actor

    async def listed(self) -> list[StoredToken]:
        """The API tokens, without their secrets."""
        return await self._store.tokens("api")

    async def revoke(self, name: str) -> None:
        """Make every API token and browser sign-in of that name worthless.

        Raises:
            NotFound: ``token_not_found``.
        """
        removed = await self._store.remove_tokens_named(name)
        self._believed.clear()
        if not removed:
            raise NotFound(f"there is no token named {name}", code="token_not_found")

    async def _add(self, kind: str, name: str, life_ms: int | None) -> str:
        secret = f"ship_{secrets.token_urlsafe(32)}"
        now_ms = self._now_ms()
        expires_at_ms = None if life_ms is None else now_ms + life_ms
        await self._store.add_token(StoredToken(_digest(secret), kind, name, now_ms, expires_at_ms))
        return secret


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
