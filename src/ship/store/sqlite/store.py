"""The port's store in one SQLite file: each call is one plain function on a connection of the database."""

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from functools import partial
from pathlib import Path

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
from ship.store.sqlite import answers, carrying, log, meanings, outbox, packing, search, tokens
from ship.store.sqlite.appends import append_all
from ship.store.sqlite.database import Database
from ship.store.tables import MEANINGS


class SqliteStore:
    """A ``Store`` in one file. One that is not ``exclusive`` may be opened beside the process that owns the file, for a few calls."""

    shared = False

    def __init__(self, path: Path, *, exclusive: bool = True) -> None:
        self._path = path
        self._db = Database(path, exclusive=exclusive)

    async def open(self) -> None:
        """As the port says."""
        await self._db.open()

    async def join(self, *, alone: bool) -> None:
        """As the port says: ``open`` has taken the file."""

    async def close(self) -> None:
        """As the port says."""
        await self._db.close()

    async def probe(self) -> None:
        """As the port says."""
        await self._db.write(_probe)

    def append(self, append: Append) -> "asyncio.Future[None]":
        """As the port says."""
        return self._db.write_together(append_all, append, append.break_chain)

    async def head(self, session_id: str) -> int:
        """As the port says."""
        return self._db.glance(lambda c: log.head(c, session_id))

    async def heads(self, session_ids: Sequence[str]) -> dict[str, int]:
        """As the port says."""
        return await self._db.read(lambda c: log.heads(c, session_ids))

    async def events(
        self, session_id: str, after: int, limit: int, types: Sequence[str] = (), up_to: int | None = None
    ) -> list[tuple[int, bytes]]:
        """As the port says."""
        if limit == 1:
            return self._db.glance(lambda c: log.page(c, session_id, after, limit, types, up_to))
        return await self._db.read(lambda c: log.page(c, session_id, after, limit, types, up_to))

    async def messages(self, session_id: str, before: int | None, limit: int) -> list[tuple[int, bytes]]:
        """As the port says."""
        return await self._db.read(lambda c: log.messages(c, session_id, before, limit))

    async def snapshot(self, session_id: str, shape: int) -> Snapshot | None:
        """As the port says."""
        return await self._db.read(lambda c: log.snapshot(c, session_id, shape))

    async def pack(self, session_id: str, packed: Packed, snapshot: Snapshot) -> None:
        """As the port says."""
        await self._db.write(lambda c: packing.pack(c, session_id, packed, snapshot))

    async def packed(self, session_id: str) -> Packed | None:
        """As the port says."""
        return await self._db.read(lambda c: packing.find(c, session_id))

    async def summaries(
        self, status: str | None, before: tuple[int, str] | None, limit: int
    ) -> list[tuple[int, str, bytes]]:
        """As the port says."""
        return await self._db.read(lambda c: log.summaries(c, status, before, limit))

    async def first_answer(self, scope: str, key: str) -> FirstAnswer | None:
        """As the port says."""
        return self._db.glance(lambda c: answers.find(c, scope, key))

    async def forget_answers(self, before_ms: int) -> None:
        """As the port says."""
        await self._db.write(lambda c: answers.forget_before(c, before_ms))

    async def claim_effects(self, now_ms: int, lease_ms: int, limit: int) -> list[DueEffect]:
        """As the port says."""
        return await self._db.write(lambda c: outbox.claim(c, now_ms, lease_ms, limit))

    async def postpone_effect(self, effect_id: str, due_at_ms: int) -> None:
        """As the port says."""
        await self._db.write(lambda c: outbox.postpone(c, effect_id, due_at_ms))

    async def finish_effect(self, effect_id: str) -> None:
        """As the port says."""
        await self._db.write(lambda c: outbox.finish(c, effect_id))

    async def release_effects(self, now_ms: int) -> None:
        """As the port says."""
        await self._db.write(lambda c: outbox.release_all(c, now_ms))

    async def claim_alarms(self, now_ms: int, lease_ms: int, limit: int) -> list[DueAlarm]:
        """As the port says."""
        return await self._db.write(lambda c: outbox.claim_alarms(c, now_ms, lease_ms, limit))

    async def finish_alarm(self, alarm: DueAlarm) -> None:
        """As the port says."""
        await self._db.write(lambda c: outbox.finish_alarm(c, alarm))

    async def set_alarm(self, session_id: str, alarm: NewAlarm) -> None:
        """As the port says."""
        await self._db.write(lambda c: outbox.set_alarm(c, session_id, alarm))

    async def postpone_alarms(self, names: Sequence[str], due_at_ms: int) -> None:
        """As the port says."""
        await self._db.write(lambda c: outbox.postpone_alarms(c, names, due_at_ms))

    async def move_due(self, by_ms: int) -> None:
        """As the port says."""
        await self._db.write(lambda c: outbox.move_due(c, by_ms))

    async def next_due_ms(self) -> int | None:
        """As the port says."""
        return await self._db.read(outbox.next_due_ms)

    async def add_token(self, token: StoredToken) -> None:
        """As the port says."""
        await self._db.write(lambda c: tokens.add(c, token))

    async def find_token(self, digest: str, now_ms: int) -> StoredToken | None:
        """As the port says."""
        return self._db.glance(lambda c: tokens.find(c, digest, now_ms))

    async def remove_token(self, digest: str) -> bool:
        """As the port says."""
        return await self._db.write(lambda c: tokens.remove(c, digest))

    async def remove_tokens_named(self, name: str) -> int:
        """As the port says."""
        return await self._db.write(lambda c: tokens.remove_named(c, name))

    async def secret(self, name: str, fresh: str) -> str:
        """As the port says."""
        return await self._db.write(lambda c: tokens.secret(c, name, fresh))

    async def tokens(self, kind: str) -> list[StoredToken]:
        """As the port says."""
        return await self._db.read(lambda c: tokens.listed(c, kind))

    async def index(self, limit: int) -> int:
        """As the port says."""
        waiting = await self._db.read(lambda c: search.waiting(c, limit))
        return await self._db.write(lambda c: search.index(c, waiting)) if waiting else 0

    async def search(self, wanted: Search, offset: int, limit: int) -> list[Found]:
        """As the port says."""
        return await self._db.read(lambda c: search.search(c, wanted, offset, limit))

    async def embed(self, model: EmbeddingModel, limit: int) -> int:
        """As the port says."""
        waiting = await self._db.read(lambda c: meanings.waiting(c, limit))
        if not waiting:
            return 0
        vectors = await asyncio.to_thread(model.embed, [text.text for text in waiting])
        return await self._db.write(lambda c: meanings.keep(c, model.name, waiting, vectors))

    async def meanings(
        self, model: str, status: str | None = None, repository: str | None = None
    ) -> AsyncGenerator[Meanings, None]:
        """As the port says."""
        after = 0
        while True:
            page, after = await self._db.read(
                partial(
                    meanings.page,
                    model=model,
                    status=status,
                    repository=repository,
                    after=after,
                    limit=MEANINGS,
                )
            )
            if not after:
                return
            yield page

    async def found(self, places: Sequence[tuple[str, int]]) -> list[Found]:
        """As the port says."""
        return await self._db.read(lambda c: meanings.found(c, places))

    def dump(self) -> AsyncGenerator[Page, None]:
        """As the port says."""
        return carrying.dump(self._path)

    async def fill(self, pages: AsyncIterable[Page]) -> None:
        """As the port says."""
        await carrying.fill(self._path, pages)


def _probe(connection: sqlite3.Connection) -> None:
    """Writes the version that is there: a page and an fsync, with nothing changed."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    connection.execute(f"PRAGMA user_version = {version}")
