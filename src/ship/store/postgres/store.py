"""The port's store in PostgreSQL: appends by group commit, everything else one statement on a pooled connection."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from functools import partial

from ship.ports.embeddings import EmbeddingModel
from ship.ports.store import (
    Append,
    DueAlarm,
    DueEffect,
    FirstAnswer,
    Found,
    Meanings,
    NewAlarm,
    Packed,
    Page,
    Search,
    Snapshot,
    StoredToken,
)
from ship.store.postgres import carrying, log, meanings, migrations, outbox, packing, search, tokens
from ship.store.postgres.group_commit import GroupCommit
from ship.store.postgres.membership import Membership
from ship.store.postgres.pool import Connection, Pool
from ship.store.tables import MEANINGS

DAY_MS = 24 * 3_600_000


class PostgresStore:
    """A ``Store`` in the database of a URL like ``postgresql://user:password@host/name``, shared by any number of nodes.

    ``read_back_s``: for how long it is asked what became of a commit whose connection broke.
    """

    shared = True

    def __init__(self, url: str, *, read_back_s: float = 30.0) -> None:
        self._pool = Pool(url)
        self._appends = GroupCommit(url, read_back_s)
        self._place = Membership(url)

    async def open(self) -> None:
        """As the port says; also ConfigurationError: ``database_refused``."""
        await self._pool.open()
        try:
            await self._pool.run(_prepare)
        except BaseException:
            await self._pool.close()
            raise

    async def join(self, *, alone: bool) -> None:
        """As the port says."""
        await self._place.take(alone=alone)

    async def close(self) -> None:
        """As the port says."""
        await self._place.close()
        await self._appends.close()
        await self._pool.close()

    async def probe(self) -> None:
        """As the port says."""
        await self._pool.run(
            lambda c: c.execute(
                "INSERT INTO writers (id, batch, at_ms) VALUES ('probe', 0, $1) "
                "ON CONFLICT (id) DO UPDATE SET at_ms = excluded.at_ms",
                int(time.time() * 1000),
            )
        )

    def append(self, append: Append) -> "asyncio.Future[None]":
        """As the port says."""
        return self._appends.append(append)

    async def head(self, session_id: str) -> int:
        """As the port says."""
        return (await self.heads([session_id])).get(session_id, 0)

    async def heads(self, session_ids: Sequence[str]) -> dict[str, int]:
        """As the port says."""
        return await self._pool.run(lambda c: log.heads(c, session_ids))

    async def events(
        self, session_id: str, after: int, limit: int, types: Sequence[str] = (), up_to: int | None = None
    ) -> list[tuple[int, bytes]]:
        """As the port says."""
        return await self._pool.run(lambda c: log.events(c, session_id, after, limit, types, up_to))

    async def messages(self, session_id: str, before: int | None, limit: int) -> list[tuple[int, bytes]]:
        """As the port says."""
        return await self._pool.run(lambda c: log.messages(c, session_id, before, limit))

    async def snapshot(self, session_id: str, shape: int) -> Snapshot | None:
        """As the port says."""
        return await self._pool.run(lambda c: log.snapshot(c, session_id, shape))

    async def pack(self, session_id: str, packed: Packed, snapshot: Snapshot) -> None:
        """As the port says."""
        await self._pool.run(lambda c: packing.pack(c, session_id, packed, snapshot))

    async def packed(self, session_id: str) -> Packed | None:
        """As the port says."""
        return await self._pool.run(lambda c: packing.find(c, session_id))

    async def summaries(
        self, status: str | None, before: tuple[int, str] | None, limit: int
    ) -> list[tuple[int, str, bytes]]:
        """As the port says."""
        return await self._pool.run(lambda c: log.summaries(c, status, before, limit))

    async def first_answer(self, scope: str, key: str) -> FirstAnswer | None:
        """As the port says."""
        return await self._pool.run(lambda c: log.first_answer(c, scope, key))

    async def forget_answers(self, before_ms: int) -> None:
        """As the port says."""
        await self._pool.run(lambda c: log.forget_answers(c, before_ms))

    async def claim_effects(self, now_ms: int, lease_ms: int, limit: int) -> list[DueEffect]:
        """As the port says."""
        return await self._pool.run(lambda c: outbox.claim_effects(c, now_ms, lease_ms, limit))

    async def postpone_effect(self, effect_id: str, due_at_ms: int) -> None:
        """As the port says."""
        await self._pool.run(lambda c: outbox.postpone_effect(c, effect_id, due_at_ms))

    async def finish_effect(self, effect_id: str) -> None:
        """As the port says."""
        await self._pool.run(lambda c: outbox.finish_effect(c, effect_id))

    async def release_effects(self, now_ms: int) -> None:
        """As the port says."""
        await self._pool.run(lambda c: outbox.release_effects(c, now_ms))

    async def claim_alarms(self, now_ms: int, lease_ms: int, limit: int) -> list[DueAlarm]:
        """As the port says."""
        return await self._pool.run(lambda c: outbox.claim_alarms(c, now_ms, lease_ms, limit))

    async def finish_alarm(self, alarm: DueAlarm) -> None:
        """As the port says."""
        await self._pool.run(lambda c: outbox.finish_alarm(c, alarm))

    async def set_alarm(self, session_id: str, alarm: NewAlarm) -> None:
        """As the port says."""
        await self._pool.run(lambda c: outbox.set_alarm(c, session_id, alarm))

    async def postpone_alarms(self, names: Sequence[str], due_at_ms: int) -> None:
        """As the port says."""
        await self._pool.run(lambda c: outbox.postpone_alarms(c, names, due_at_ms))

    async def move_due(self, by_ms: int) -> None:
        """As the port says."""
        await self._pool.run(lambda c: outbox.move_due(c, by_ms))

    async def next_due_ms(self) -> int | None:
        """As the port says."""
        return await self._pool.run(outbox.next_due_ms)

    async def add_token(self, token: StoredToken) -> None:
        """As the port says."""
        await self._pool.run(lambda c: tokens.add(c, token))

    async def find_token(self, digest: str, now_ms: int) -> StoredToken | None:
        """As the port says."""
        return await self._pool.run(lambda c: tokens.find(c, digest, now_ms))

    async def remove_token(self, digest: str) -> bool:
        """As the port says."""
        return await self._pool.run(lambda c: tokens.remove(c, digest), again=False)

    async def remove_tokens_named(self, name: str) -> int:
        """As the port says."""
        return await self._pool.run(lambda c: tokens.remove_named(c, name), again=False)

    async def secret(self, name: str, fresh: str) -> str:
        """As the port says."""
        return await self._pool.run(lambda c: tokens.secret(c, name, fresh))

    async def tokens(self, kind: str) -> list[StoredToken]:
        """As the port says."""
        return await self._pool.run(lambda c: tokens.of_kind(c, kind))

    async def index(self, limit: int) -> int:
        """As the port says."""
        return await self._pool.run(lambda c: search.index(c, limit))

    async def search(self, wanted: Search, offset: int, limit: int) -> list[Found]:
        """As the port says."""
        return await self._pool.run(lambda c: search.search(c, wanted, offset, limit))

    async def embed(self, model: EmbeddingModel, limit: int) -> int:
        """As the port says."""
        return await self._pool.run(lambda c: meanings.embed(c, model, limit))

    async def meanings(
        self, model: str, status: str | None = None, repository: str | None = None
    ) -> AsyncGenerator[Meanings, None]:
        """As the port says."""
        after = ("", -1)
        while True:
            page = await self._pool.run(
                partial(
                    meanings.page,
                    model=model,
                    status=status,
                    repository=repository,
                    after=after,
                    limit=MEANINGS,
                )
            )
            if not page.places:
                return
            yield page
            after = page.places[-1]

    async def found(self, places: Sequence[tuple[str, int]]) -> list[Found]:
        """As the port says."""
        return await self._pool.run(lambda c: meanings.found(c, places))

    async def dump(self) -> AsyncGenerator[Page, None]:
        """As the port says."""
        async with self._pool.connection() as connection:
            async for page in carrying.dump(connection):
                yield page

    async def fill(self, pages: AsyncIterable[Page]) -> None:
        """As the port says."""
        async with self._pool.connection() as connection:
            await carrying.fill(connection, pages)


async def _prepare(connection: Connection) -> None:
    await migrations.migrate(connection)
    await connection.execute(
        "DELETE FROM writers WHERE at_ms < $1", int(time.time() * 1000) - DAY_MS
    )  # of nodes that died
