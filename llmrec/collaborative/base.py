"""What a collaborative model is: fitted on training sequences, it scores every item after a history."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from llmrec.data.sequences import EvalExamples


def ranks_from_scores(scores: np.ndarray, targets: np.ndarray, seen: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """Rank of each target among all N items: 1 + the number of other items that score at least as high.

    Args:
        scores: float [B, N], higher is better; -inf marks an item that the system cannot recommend.
        targets: int [B], catalogue rows.
        seen: B int arrays of items to leave out of the ranking; a target is never left out.

    Returns:
        float64 [B], from 1; inf for a target that scores -inf.

    Raises:
        ValueError: a score is NaN, or the lengths differ.
    """
    if len(scores) != len(targets) or (seen is not None and len(seen) != len(targets)):
        raise ValueError(f"{len(scores)} rows of scores for {len(targets)} targets")
    if np.isnan(scores).any():
        raise ValueError("a score is NaN, so its item has no place in a ranking")
    rows = np.arange(len(targets))
    own = scores[rows, targets]
    ahead = scores >= own[:, None]
    ahead[rows, targets] = False
    if seen is not None and len(seen):
        ahead[np.repeat(rows, [len(items) for items in seen]), np.concatenate(seen)] = False
    return np.where(own == -np.inf, np.inf, 1.0 + ahead.sum(axis=1))


BATCH = 256


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

    def ranks(self, cases: EvalExamples, filter_seen: bool, among: np.ndarray | None = None) -> np.ndarray:
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
