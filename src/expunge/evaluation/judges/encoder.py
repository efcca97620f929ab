"""How close the meanings of two texts are, by the angle between their sentence embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.core.errors import InputError
from expunge.evaluation.judges.loading import explain_failure

_SAMPLE = "The quick brown fox jumps over the lazy dog."


class Encoder:
    """A sentence encoder.

    Args:
        model: A `sentence_transformers.SentenceTransformer`.
        batch_size: Texts per batch.
    """

    def __init__(self, model: Any, *, batch_size: int = 32) -> None:
        self._model = model
        self._batch_size = batch_size

    @classmethod
    def load(cls, folder: Path, name: str, *, batch_size: int = 32, device: str = "cpu") -> Encoder:
        """The encoder in a folder, in float32.

        Args:
            folder: Its files.
            name: What messages call it.
            batch_size: Texts per batch.
            device: Where it runs.

        Raises:
            InputError: It cannot be loaded, or lacks some of its weights.
        """
        import torch

        with explain_failure(name), torch.random.fork_rng(devices=[]):
            found = []
            # Missing weights are filled with random numbers without a word that we could read;
            # they show when two seeds disagree. A pooling head that nothing reads does not.
            for seed in (0, 1):
                torch.manual_seed(seed)
                found.append(cls(_load(folder), batch_size=batch_size))
            first, second = (encoder.embed([_SAMPLE]) for encoder in found)
            if not np.array_equal(first, second):
                raise InputError(
                    f"{name}: the weights lack some of the model's tensors. Download or save it "
                    "again, or name another sentence encoder"
                )
            found[0]._model.to(device)
        return found[0]

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Embeddings, [N, D]; texts that are equal are embedded once."""
        # In an order of our own, so that batches and rounding do not depend on the caller's. The
        # library makes batches of similar length.
        distinct = sorted(set(texts), key=lambda text: (len(text), text))
        vectors = self._model.encode(
            distinct, batch_size=self._batch_size, show_progress_bar=False, convert_to_numpy=True
        )
        place = {text: number for number, text in enumerate(distinct)}
        rows = np.array([place[text] for text in texts], dtype=np.intp)
        return np.asarray(vectors, dtype=np.float64)[rows]

    def similarities(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Cosine of the two embeddings of every pair: -1..1, 1 for texts of the same meaning.

        The raw cosine; arXiv:2410.08109 sets negative values to 0 afterwards. Texts longer than
        the encoder's limit are cut. An empty text is embedded as it is.
        """
        if not pairs:
            return []
        vectors = self.embed([text for pair in pairs for text in pair])
        return [float(value) for value in cosines(vectors[0::2], vectors[1::2])]


def cosines(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine line by line, [N], of [N, D] and [N, D]; 0 where a vector is 0."""
    products = np.einsum("nd,nd->n", left, right)
    sizes = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    values = np.divide(products, sizes, out=np.zeros_like(products), where=sizes != 0)
    return np.asarray(np.clip(values, -1.0, 1.0))  # rounding can lead beyond


def _load(folder: Path) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(
        str(folder),
        device="cpu",
        trust_remote_code=False,
        local_files_only=True,
        model_kwargs={"use_safetensors": True, "dtype": torch.float32},
    )
