"""Search: by words, which the store does, or by meaning, for which every text is held against what is looked for."""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from ship.errors import InvalidInput
from ship.ports.embeddings import EmbeddingModel
from ship.ports.store import Found, Searchable
from ship.words import Term, passages, snippet

NEAR = 0.2
"""The least cosine of a text that is found: most that have nothing in common stay below."""


def view(found: Found, terms: Sequence[Term]) -> dict[str, Any]:
    """A session, and the best of what was said in it."""
    return {
        "session": msgspec.Raw(found.body),
        "seq": found.seq,
        "matches": found.matches,
        "snippet": [mark._asdict() for mark in snippet(found.text, terms)],
    }


class _Nearest(NamedTuple):
    """The nearest text of a session; it compares as it is listed."""

    cosine: float
    session_id: str
    seq: int
    matches: int


class ByMeaning:
    """Search among the vectors that this model has made."""

    def __init__(self, store: Searchable, model: EmbeddingModel) -> None:
        self._store = store
        self.model = model
        # Several threads at once would not be done earlier, and would hold up everything else.
        self._turn = asyncio.Lock()

    async def search(
        self, query: str, status: str | None, repository: str | None, offset: int, limit: int
    ) -> list[dict[str, Any]]:
        """The sessions where something was said that means what the query does, the nearest first: views, each with the passage.

        Raises:
            InvalidInput: ``search_empty``.
        """
        async with self._turn:
            wanted = await asyncio.to_thread(_wanted, self.model, query)
            nearest = sorted((await self._nearest(wanted, status, repository)).values(), reverse=True)
            shown = {one.session_id: one for one in nearest[offset : offset + limit]}
            found = await self._store.found([(one.session_id, one.seq) for one in shown.values()])
            texts = [one.text for one in found]
            told = await asyncio.to_thread(lambda: [_passage(self.model, wanted, text) for text in texts])
        return [
            view(one._replace(text=passage, matches=shown[one.session_id].matches), ())
            for one, passage in zip(found, told, strict=True)
        ]

    async def _nearest(
        self, wanted: bytes, status: str | None, repository: str | None
    ) -> dict[str, _Nearest]:
        """Of each session that has a text which is near."""
        nearest: dict[str, _Nearest] = {}
        async for places, vectors in self._store.meanings(self.model.name, status, repository):
            cosines = await asyncio.to_thread(self.model.nearness, wanted, vectors)
            for (session_id, seq), cosine in zip(places, cosines, strict=True):
                if cosine >= NEAR:
                    before = nearest.get(session_id, _Nearest(0.0, session_id, 0, 0))
                    best = max((before.cosine, before.seq), (cosine, seq))
                    nearest[session_id] = _Nearest(best[0], session_id, best[1], before.matches + 1)
        return nearest


def _wanted(model: EmbeddingModel, query: str) -> bytes:
    """The vector of the query, as one passage."""
    cut = next(iter(passages(query)), None)
    if cut is None:
        raise InvalidInput("there is nothing to look for", code="search_empty", hint="Say what it is about.")
    return model.embed([cut])[0]


def _passage(model: EmbeddingModel, wanted: bytes, text: str) -> str:
    pieces = passages(text)
    nearness = model.nearness(wanted, model.embed(pieces))
    return max(zip(nearness, pieces, strict=True), default=(0.0, text))[1]
