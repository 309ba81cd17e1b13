"""Recommenders that any claim has to stand beside: popularity, first-order Markov, item-kNN, and what others build on.

All are fitted on the users' training sequences and score the whole catalogue. Those that read texts or train a
network have modules of their own.
"""

from abc import ABC, abstractmethod

import numpy as np
from scipy import sparse

from llmrec.data.split import Cases
from llmrec.evaluate.metrics import ranks_from_scores

BATCH = 256
RECENCY = 0.6
"""Weight of a history item in item-kNN relative to the one after it."""
DAMPING = 0.35
"""Exponent of an item's count in item-kNN's norm; 0.5 is the cosine, less favours popular neighbours."""


class BaselineSystem(ABC):
    """What training sequences teach, and how it turns histories into scores [B, N]."""

    name: str

    def fit(self, train_sequences: list[np.ndarray], n_items: int) -> "BaselineSystem":
        """Learn from U int arrays of catalogue rows (oldest first, some perhaps empty); returns itself.

        Raises:
            ValueError: no events at all.
        """
        items = np.concatenate(train_sequences) if train_sequences else np.empty(0, np.int64)
        if not len(items):
            raise ValueError(f"{self.name}: the training part has no events")
        counts = np.bincount(items, minlength=n_items)
        # Below 1, the smallest count, so that popularity only ever breaks ties.
        self.popularity = (counts / (counts.max() + 1)).astype(np.float32)
        self._learn(train_sequences, n_items)
        return self

    def ranks(self, cases: Cases, filter_seen: bool, among: np.ndarray | None = None) -> np.ndarray:
        """Rank of each case's target among all items, or the rows `among` (int [E]) of them, float64 [n]."""
        ranks = [np.empty(0)]
        for start in range(0, len(cases), BATCH):
            histories = cases.histories[start : start + BATCH]
            scores = self.scores(histories)
            if among is not None:
                scores = only(scores, among)
            seen = histories if filter_seen else None
            ranks.append(ranks_from_scores(scores, cases.targets[start : start + BATCH], seen))
        return np.concatenate(ranks)

    @abstractmethod
    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        """Scores of all items after each of B non-empty histories, float32 [B, N]."""

    @abstractmethod
    def _learn(self, train_sequences: list[np.ndarray], n_items: int) -> None:
        """Keep what `scores` needs beside popularity, which is there."""


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


def only(scores: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The scores [B, N] of the columns `among` (int [E]); -inf in all others."""
    kept = np.full_like(scores, -np.inf)
    kept[:, among] = scores[:, among]
    return kept


def incidence(sequences: list[np.ndarray], weights: list[np.ndarray], n_items: int) -> sparse.csr_matrix:
    """Rows of weights over items, float32 [len(sequences), N]; repeated items add up."""
    rows = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
    entries = (np.concatenate(weights).astype(np.float32), (rows, np.concatenate(sequences)))
    return sparse.csr_matrix(entries, shape=(len(sequences), n_items))
