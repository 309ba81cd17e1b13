"""Collaborative models that only count, and text neighbours: popularity, first-order Markov, item-kNN, text-kNN."""

import numpy as np
from scipy import sparse
from sklearn.preprocessing import normalize

from llmrec.collaborative.base import BaselineSystem, incidence

RECENCY = 0.6
"""Weight of a history item in item-kNN relative to the one after it."""


DAMPING = 0.35
"""Exponent of an item's count in item-kNN's norm; 0.5 is the cosine, less favours popular neighbours."""


class Popularity(BaselineSystem):
    """The items with most training events, whatever the history."""

    name = "popularity"

    def _learn(self, train_sequences: list[np.ndarray], n_items: int) -> None:
        """Popularity is all there is to know."""

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        return np.tile(self.popularity, (len(histories), 1))


class Markov(BaselineSystem):
    """How often an item directly followed the last one; ties and unseen pairs fall back on popularity."""

    name = "markov"

    def _learn(self, train_sequences: list[np.ndarray], n_items: int) -> None:
        previous = np.concatenate([sequence[:-1] for sequence in train_sequences])
        following = np.concatenate([sequence[1:] for sequence in train_sequences])
        ones = np.ones(len(previous), np.float32)
        self.transitions = sparse.csr_matrix((ones, (previous, following)), shape=(n_items, n_items))

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        last = [history[-1] for history in histories]
        return self.transitions[last].toarray() + self.popularity


class ItemKNN(BaselineSystem):
    """Users in common over damped norms (Deshpande & Karypis 2004), summed over the history by recency."""

    name = "item-knn"

    def _learn(self, train_sequences: list[np.ndarray], n_items: int) -> None:
        events = incidence(train_sequences, [np.ones(len(s)) for s in train_sequences], n_items)
        users = events.sign()  # an item bought twice by one user counts once
        norms = np.maximum(np.asarray(users.sum(axis=0)).ravel(), 1) ** -DAMPING
        users = users @ sparse.diags(norms)
        self.similarity = (users.T @ users).tocsr()
        self.similarity.setdiag(0)

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        recency = [RECENCY ** np.arange(len(history))[::-1] for history in histories]
        weighted = incidence(histories, recency, len(self.popularity))
        # Popularity orders the items that no history item is similar to.
        return (weighted @ self.similarity).toarray() + np.float32(1e-6) * self.popularity


TEXT_RECENCY = 0.4
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
        recency = [TEXT_RECENCY ** np.arange(len(history))[::-1] for history in histories]
        weighted = incidence(histories, recency, len(self.vectors))
        return np.asarray((weighted @ self.vectors) @ self.vectors.T)
