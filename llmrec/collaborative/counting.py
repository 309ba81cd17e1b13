"""Baselines that count events, and baselines that use text neighbours.

They are popularity, first-order Markov, item-kNN, text-kNN, decayed Markov (pairs of items a few steps apart, with less
weight for more steps), and smoothed Markov (decayed Markov whose transitions items with similar texts share).
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.preprocessing import normalize

from llmrec.collaborative.base import BaselineSystem, incidence

RECENCY = 0.6
"""Weight of a history item in item-kNN relative to the one after it."""


DAMPING = 0.35
"""Exponent of an item's number of users in item-kNN's norm: 0.5 is the cosine; less favours popular neighbours."""


class Popularity(BaselineSystem):
    """Scores each item by its number of training events; the history does not matter."""

    name = "popularity"

    def _learn(self, train_sequences: list[np.ndarray], n_items: int) -> None:
        """Learn nothing more: `fit` has counted popularity."""

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        return np.tile(self.popularity, (len(histories), 1))


class Markov(BaselineSystem):
    """Counts how often an item directly followed the last one; popularity breaks ties and orders unseen pairs."""

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
    """Item-kNN (Deshpande & Karypis 2004).

    The similarity of items i and j is |users of both| / (|users of i| |users of j|)^DAMPING. The score of an item is
    the sum of its similarities to the items of the history, with more weight for later items.
    """

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
        # Popularity orders the items that are similar to no item of the history.
        return (weighted @ self.similarity).toarray() + np.float32(1e-6) * self.popularity


TEXT_RECENCY = 0.4
"""Weight of a history item relative to the one after it; chosen on Beauty's validation part."""


class TextKNN(BaselineSystem):
    """Sum of the cosines of text vectors over the items of the history, with more weight for later items.

    Args:
        vectors: text vectors of the N items, float [N, D].
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
"""Number of items whose text neighbours are computed at a time."""


@dataclass(frozen=True)
class TransitionSettings:
    """Settings of decayed and smoothed Markov: how they count transitions and how they weight a history."""

    window: int = 5
    """Maximum number of steps between the two items of a pair."""
    decay: float = 0.7
    """Weight of a pair s + 1 steps apart, relative to a pair s steps apart."""
    backward: float = 0.5
    """Weight of the transition from the later item of a pair to the earlier one."""
    shrinkage: float = 3.0
    """Added to the sum that a row is divided by, so that the transitions of rare items have little weight."""
    recency: float = 0.5
    """Weight of a history item relative to the one after it."""
    neighbours: int = 20
    """Number of text neighbours of an item, without itself (smoothed Markov only)."""
    power: float = 4.0
    """Exponent of the cosine in the weight of a text neighbour (smoothed Markov only)."""


class DecayedMarkov(BaselineSystem):
    """Transitions over several steps, in both directions; popularity breaks ties and orders items without any."""

    name = "decayed-markov"

    def __init__(self, settings: TransitionSettings | None = None) -> None:
        self.settings = settings or TransitionSettings()

    def _learn(self, train_sequences: list[np.ndarray], n_items: int) -> None:
        self.transitions = count_transitions(train_sequences, n_items, self.settings)

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        return self.expected(histories) + np.float32(1e-6) * self.popularity

    def expected(self, histories: list[np.ndarray]) -> np.ndarray:
        """The transitions from each of B histories to each item, float32 [B, N]; 0 if there are none."""
        return np.asarray((self._recent(histories) @ self.transitions).todense(), np.float32)

    def _recent(self, histories: list[np.ndarray]) -> sparse.csr_matrix:
        recency = [self.settings.recency ** np.arange(len(history))[::-1] for history in histories]
        return incidence(histories, recency, len(self.popularity))


class SmoothedMarkov(DecayedMarkov):
    """Decayed Markov whose transitions T are shared among text neighbours W: the scores are history @ W T W^T.

    Args:
        vectors: text vectors of the N items, float [N, D].
        settings: how transitions are counted and shared.
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
    """Transitions T, float32 [N, N], from U int arrays of items in time order; each row sums to less than 1."""
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
    """Text neighbours W, float32 [N, N]: the weights of each item's neighbours, which are itself and `count` others.

    The neighbours are the nearest by the cosine of the centred `vectors` [N, D]. A weight is max(cosine, 0) ** `power`,
    divided so that each row sums to 1.
    """
    unit = normalize(np.asarray(vectors, np.float32) - np.asarray(vectors, np.float32).mean(axis=0))
    n_items, kept = len(unit), min(count + 1, len(unit))
    rows, columns, weights = [], [], []
    for start in range(0, n_items, BLOCK):
        cosines = unit[start : start + BLOCK] @ unit.T
        own = np.arange(len(cosines))
        cosines[own, start + own] = 1.0  # an item is its own nearest neighbour, also without text
        best = np.argpartition(-cosines, kept - 1, axis=1)[:, :kept]
        rows.append(np.repeat(start + own, kept))
        columns.append(best.ravel())
        weights.append(np.maximum(np.take_along_axis(cosines, best, axis=1), 0).ravel() ** power)
    entries = (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns)))
    matrix = sparse.csr_matrix(entries, shape=(n_items, n_items))
    return sparse.csr_matrix(normalize(matrix, norm="l1", axis=1))
