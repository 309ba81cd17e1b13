"""Collaborative models that only count, and text neighbours.

Popularity; first-order Markov; item-kNN; text-kNN; transitions over the last few steps, decayed by their distance; and
the same transitions shared among items with similar texts.
"""

from dataclasses import dataclass

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


BLOCK = 1024
"""Items whose text neighbours are looked for at a time."""


@dataclass(frozen=True)
class TransitionSettings:
    """How transitions are counted and a history is read."""

    window: int = 5
    """Steps between two items of a pair at most."""
    decay: float = 0.7
    """Weight of a step relative to the one before."""
    backward: float = 0.5
    """Weight of a pair in the other direction."""
    shrinkage: float = 3.0
    """Added to the sum that a row is divided by, so that rare items say little."""
    recency: float = 0.5
    """Weight of a history item relative to the one after it."""
    neighbours: int = 20
    """Text neighbours of an item, beside itself (smoothed)."""
    power: float = 4.0
    """Exponent of the cosine in their weights (smoothed)."""


class DecayedMarkov(BaselineSystem):
    """Transitions over several steps, in both directions; popularity breaks ties and orders the rest."""

    name = "decayed-markov"

    def __init__(self, settings: TransitionSettings | None = None) -> None:
        self.settings = settings or TransitionSettings()

    def _learn(self, train_sequences: list[np.ndarray], n_items: int) -> None:
        self.transitions = count_transitions(train_sequences, n_items, self.settings)

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        return self.expected(histories) + np.float32(1e-6) * self.popularity

    def expected(self, histories: list[np.ndarray]) -> np.ndarray:
        """The transitions out of each of B histories, float32 [B, N], 0 where there are none."""
        return np.asarray((self._recent(histories) @ self.transitions).todense(), np.float32)

    def _recent(self, histories: list[np.ndarray]) -> sparse.csr_matrix:
        recency = [self.settings.recency ** np.arange(len(history))[::-1] for history in histories]
        return incidence(histories, recency, len(self.popularity))


class SmoothedMarkov(DecayedMarkov):
    """The same transitions between text neighbours.

    Args:
        vectors: of the N items' texts, float [N, D].
        settings: how they are counted and shared.
    """

    name = "smoothed-markov"

    def __init__(self, vectors: np.ndarray, settings: TransitionSettings | None = None) -> None:
        super().__init__(settings)
        self.vectors = vectors

    def _learn(self, train_sequences: list[np.ndarray], n_items: int) -> None:
        if len(self.vectors) != n_items:
            raise ValueError(f"{len(self.vectors)} text vectors for {n_items} items")
        super()._learn(train_sequences, n_items)
        self.neighbours = text_neighbours(self.vectors, self.settings.neighbours, self.settings.power)

    def expected(self, histories: list[np.ndarray]) -> np.ndarray:
        around = self._recent(histories) @ self.neighbours @ self.transitions
        return np.asarray((around @ self.neighbours.T).todense(), np.float32)


def count_transitions(sequences: list[np.ndarray], n_items: int, settings: TransitionSettings) -> sparse.csr_matrix:
    """The decayed transitions T, float32 [N, N], of U int arrays of items in time order; rows sum to less than 1."""
    items = np.concatenate(sequences) if sequences else np.empty(0, np.int64)
    users = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
    counts = sparse.csr_matrix((n_items, n_items), dtype=np.float32)
    for step in range(1, settings.window + 1):
        same = (users[:-step] == users[step:]) & (items[:-step] != items[step:])
        before, after = items[:-step][same], items[step:][same]
        weight = np.full(len(before), settings.decay ** (step - 1), np.float32)
        forward = sparse.coo_matrix((weight, (before, after)), shape=counts.shape).tocsr()
        counts = counts + forward + settings.backward * forward.T
    totals = np.asarray(counts.sum(axis=1)).ravel() + settings.shrinkage
    return sparse.csr_matrix(sparse.diags((1 / totals).astype(np.float32)) @ counts)


def text_neighbours(vectors: np.ndarray, count: int, power: float) -> sparse.csr_matrix:
    """W, float32 [N, N]: each item and its `count` nearest by the cosine of centred vectors [N, D]; rows sum to 1."""
    unit = normalize(np.asarray(vectors, np.float32) - np.asarray(vectors, np.float32).mean(axis=0))
    n_items, kept = len(unit), min(count + 1, len(unit))
    rows, columns, weights = [], [], []
    for start in range(0, n_items, BLOCK):
        cosines = unit[start : start + BLOCK] @ unit.T
        own = np.arange(len(cosines))
        cosines[own, start + own] = 1.0  # itself first, also an item without text
        best = np.argpartition(-cosines, kept - 1, axis=1)[:, :kept]
        rows.append(np.repeat(start + own, kept))
        columns.append(best.ravel())
        weights.append(np.maximum(np.take_along_axis(cosines, best, axis=1), 0).ravel() ** power)
    entries = (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns)))
    matrix = sparse.csr_matrix(entries, shape=(n_items, n_items))
    return sparse.csr_matrix(normalize(matrix, norm="l1", axis=1))
