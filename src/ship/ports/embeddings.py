"""Embedding models: texts as vectors, so that texts of like meaning lie close to each other."""

from collections.abc import Sequence
from typing import Protocol


class EmbeddingModel(Protocol):
    """A model on this machine. Both calls compute: make them in a thread. Vectors are bytes that only the model reads."""

    name: str
    """Vectors of models of different names cannot be compared."""

    def embed(self, texts: Sequence[str]) -> list[bytes]:
        """The vectors of each text, one after the other: one for each of its ``words.passages``. Empty when there are none."""
        ...

    def nearness(self, wanted: bytes, vectors: Sequence[bytes]) -> list[float]:
        """How near each text is, by its nearest passage, to the one passage of which ``wanted`` is the vector: a cosine, 1 for the same,
        about 0 for nothing in common, -1 for a text without vectors."""
        ...
