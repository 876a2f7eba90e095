"""The static embeddings of wordllama: each token has a vector, a text that of their mean.

Of the package only the data is used, which lies in its wheel. Its own loader looks for the tokenizer in a folder that is not there,
and would fetch it from the network; its inference keeps the weights in twice the memory, and pads short texts to the longest.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from ship.errors import ConfigurationError
from ship.words import passages

CONFIG, DIMENSIONS = "l2_supercat", 256
ONE = 300
"""What stands for 1 in a vector that is kept: of length 1, each number in a byte. A cosine is off by 0.001 or so; a number
over 0.42, which hardly one has, is cut."""

Floats = npt.NDArray[np.float32]


class WordLlama:
    """An ``EmbeddingModel``, in 256 bytes a passage."""

    name = f"wordllama/{CONFIG}_{DIMENSIONS}"

    def __init__(self) -> None:
        """Reads the weights, 16 MB.

        Raises:
            ConfigurationError: ``semantic_search_broken``: the package is another one than this was written for.
        """
        spec = find_spec("wordllama")
        folder = Path(spec.origin).parent if spec and spec.origin else Path()
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / f"tokenizers/{CONFIG}_tokenizer_config.json"))
            self._weights: npt.NDArray[np.float16] = load_file(
                folder / f"weights/{CONFIG}_{DIMENSIONS}.safetensors"
            )["embedding.weight"]
        except Exception as error:  # what the tokenizer raises has no other type
            raise ConfigurationError(
                f"the weights of wordllama cannot be read: {error}",
                code="semantic_search_broken",
                hint="pip install --force-reinstall 'ship-agents[semantic]'",
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def embed(self, texts: Sequence[str]) -> list[bytes]:
        """As the port says."""
        return [b"".join(map(self._vector, passages(text))) for text in texts]

    def nearness(self, wanted: bytes, vectors: Sequence[bytes]) -> list[float]:
        """As the port says."""
        counts = np.array([len(each) // DIMENSIONS for each in vectors], dtype=np.int64)
        nearest = np.full(len(vectors), -1.0, dtype=np.float32)
        if counts.any():
            # Not by BLAS: its threads cost more than they save here.
            cosines = np.einsum("ij,j->i", _floats(b"".join(vectors)), _floats(wanted)[0] / ONE**2)
            firsts = (np.cumsum(counts) - counts)[counts > 0]
            nearest[counts > 0] = np.maximum.reduceat(cosines, firsts)
        found: list[float] = nearest.tolist()
        return found

    def _vector(self, passage: str) -> bytes:
        # One at a time: what encodes several at once starts threads that a fork does not survive.
        tokens = self._tokenizer.encode(passage, add_special_tokens=False).ids
        mean = self._weights[tokens].mean(axis=0, dtype=np.float32)
        vector = mean * (ONE / max(float(np.linalg.norm(mean)), 1e-9))
        return bytes(np.rint(vector).clip(-127, 127).astype(np.int8).data)


def _floats(vectors: bytes) -> Floats:
    return np.frombuffer(vectors, dtype=np.int8).reshape(-1, DIMENSIONS).astype(np.float32)
