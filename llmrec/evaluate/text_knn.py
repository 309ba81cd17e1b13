"""Neighbours by text: what reads like the history. Needs no event of an item, so it ranks cold items like any other."""

import numpy as np
from sklearn.preprocessing import normalize

from llmrec.evaluate.baselines import BaselineSystem, incidence

RECENCY = 0.4
"""Weight of a history item relative to the one after it; chosen on Beauty's validation part."""


class TextKNN(BaselineSystem):
    """Cosine of text vectors, summed over the history by recency.

    Args:
        vectors: of the N items' texts, float [N, D].
    """

    name = "text-knn"

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = normalize(vectors.astype(np.float32))

    def _learn(self, train_sequences: list[np.ndarray], n_items: int) -> None:
        if len(self.vectors) != n_items:
            raise ValueError(f"{len(self.vectors)} text vectors for {n_items} items")

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        recency = [RECENCY ** np.arange(len(history))[::-1] for history in histories]
        weighted = incidence(histories, recency, len(self.vectors))
        return np.asarray((weighted @ self.vectors) @ self.vectors.T)
