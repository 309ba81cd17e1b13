"""What a collaborative model is: fitted on training sequences, it scores every item after a history."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from llmrec.data.sequences import EvalExamples
from llmrec.errors import UserError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


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


def ndcg(ranks: np.ndarray, cut: int = 10) -> np.ndarray:
    """NDCG@cut of one target each, float64 [n], from ranks float64 [n]: 1 / log2(rank + 1) up to the cut, else 0."""
    return np.where(ranks <= cut, 1 / np.log2(ranks + 1), 0.0)


BATCH = 256
TEXT_DIRECTION = 0.6
"""Weight of a history item relative to the one after it in the sum of the history's text vectors."""


@dataclass(frozen=True)
class Answers:
    """What a system answers in n cases.

    Attributes:
        ranks: rank of each case's target, float64 [n] from 1; inf if the system does not rank it.
        items: the items that it ranks first, int64 [n, K] catalogue rows, best first; -1 where it ranks no more.
    """

    ranks: np.ndarray
    items: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence["Answers"]) -> "Answers":
        """The answers of all parts, one after the other; at least one part."""
        return cls(np.concatenate([each.ranks for each in parts]), np.concatenate([each.items for each in parts]))


class System(ABC):
    """Anything that ranks items; a system that decodes may also have `decode_stats() -> dict`."""

    name: str
    """In the report; no two systems share one."""

    @abstractmethod
    def answers(
        self, cases: EvalExamples, filter_seen: bool, among: np.ndarray | None = None, listed: int = 0
    ) -> Answers:
        """Rank the items after the history of each case.

        Args:
            cases: n cases.
            filter_seen: whether the items of a history are left out of its ranking; the target never is.
            among: int [E], catalogue rows of the items that compete, which include all targets; None: all items.
            listed: K, how many items the answers list.
        """

    def ranks(self, cases: EvalExamples, filter_seen: bool, among: np.ndarray | None = None) -> np.ndarray:
        """The ranks of `answers`, float64 [n]."""
        return self.answers(cases, filter_seen, among).ranks


class BaselineSystem(System):
    """What training sequences teach, and how it turns histories into scores [B, N].

    A system that is an expert can be written into a file, and it can take in items that are added later.
    """

    matrices: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes that are item-to-item matrices, sparse float32 [N, N]."""

    def fit(self, train_sequences: list[np.ndarray], n_items: int) -> Self:
        """Learn from U int arrays of catalogue rows (oldest first, some perhaps empty); returns itself.

        Raises:
            UserError: no events at all.
        """
        items = np.concatenate(train_sequences) if train_sequences else np.empty(0, np.int64)
        if not len(items):
            raise UserError(f"{self.name}: the training part has no events; give it at least one.")
        counts = np.bincount(items, minlength=n_items)
        self.popularity = popularity(counts)
        self._learn(train_sequences, n_items)
        return self

    def answers(
        self, cases: EvalExamples, filter_seen: bool, among: np.ndarray | None = None, listed: int = 0
    ) -> Answers:
        parts = [Answers(np.empty(0), np.empty((0, listed), np.int64))]
        for start in range(0, len(cases), BATCH):
            histories, targets = cases.histories[start : start + BATCH], cases.targets[start : start + BATCH]
            scores = self.scores(histories)
            if among is not None:
                scores = only(scores, among)
            seen = histories if filter_seen else None
            ranks = ranks_from_scores(scores, targets, seen)
            if listed and seen is not None:
                scores = without(scores, seen, targets)
            parts.append(Answers(ranks, top(scores, listed)))
        return Answers.joined(parts)

    @abstractmethod
    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        """Scores of all items after each of B non-empty histories, float32 [B, N]."""

    @abstractmethod
    def _learn(self, train_sequences: list[np.ndarray], n_items: int) -> None:
        """Keep what `scores` needs beside popularity, which is there."""

    def arrays(self) -> dict[str, np.ndarray]:
        """What was learnt beside popularity and the text vectors, by its names in a file."""
        parts = ("data", "indices", "indptr")
        return {f"{name}.{part}": getattr(getattr(self, name), part) for name in self.matrices for part in parts}

    def restore(self, arrays: Mapping[str, np.ndarray], counts: np.ndarray, unit: np.ndarray | None) -> None:
        """Take back what `arrays` gave.

        Args:
            arrays: by their names.
            counts: int [N], training events of each item.
            unit: float32 [N, D], the text vectors as `centred` gives them, if the system goes by them.

        Raises:
            KeyError, ValueError, RuntimeError: an array is missing, or has another shape or values out of range.
        """
        from scipy.sparse import csr_matrix

        self.popularity = popularity(counts)
        for name in self.matrices:
            parts = [arrays[f"{name}.{part}"] for part in ("data", "indices", "indptr")]
            matrix = csr_matrix(tuple(parts), shape=(len(counts), len(counts)))
            matrix.check_format(full_check=True)
            setattr(self, name, matrix)

    def with_cold_items(self, n_items: int, unit: np.ndarray | None) -> Self:
        """A copy that knows cold items from its last row up to `n_items`; `unit` [n_items, D] as in `restore`."""
        grown = copy.copy(self)
        grown.popularity = np.append(self.popularity, np.zeros(n_items - len(self.popularity), np.float32))
        for name in self.matrices:
            matrix = getattr(self, name).copy()
            matrix.resize((n_items, n_items))
            setattr(grown, name, matrix)
        return grown

    def with_texts(self, unit: np.ndarray) -> Self:
        """A copy for other text vectors of the same items; `unit` as in `restore`."""
        return copy.copy(self)


def popularity(counts: np.ndarray) -> np.ndarray:
    """Training events int [N] as shares below 1, the smallest count, so that they only ever break ties: float32 [N]."""
    return (counts / (counts.max() + 1)).astype(np.float32)


def only(scores: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The scores [B, N] of the columns `among` (int [E]); -inf in all others."""
    kept = np.full_like(scores, -np.inf)
    kept[:, among] = scores[:, among]
    return kept


def without(scores: np.ndarray, seen: Sequence[np.ndarray], targets: np.ndarray) -> np.ndarray:
    """The scores [B, N] in which what each user has seen is -inf, except the target."""
    rows, kept = np.arange(len(targets)), scores.copy()
    kept[np.repeat(rows, [len(items) for items in seen]), np.concatenate(seen)] = -np.inf
    kept[rows, targets] = scores[rows, targets]
    return kept


def top(scores: np.ndarray, most: int) -> np.ndarray:
    """The items with the largest scores [B, N], int64 [B, most], best first; -1 where fewer score more than -inf."""
    found = np.full((len(scores), most), -1, np.int64)
    kept = min(most, scores.shape[1])
    if kept:
        best = np.argpartition(-scores, kept - 1, axis=1)[:, :kept]
        values = np.take_along_axis(scores, best, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        best, values = (np.take_along_axis(each, order, axis=1) for each in (best, values))
        found[:, :kept] = np.where(np.isneginf(values), -1, best)
    return found


def incidence(sequences: list[np.ndarray], weights: list[np.ndarray], n_items: int) -> "csr_matrix":
    """Rows of weights over items, float32 [len(sequences), N]; repeated items add up."""
    from scipy.sparse import csr_matrix

    rows = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
    entries = (np.concatenate(weights).astype(np.float32), (rows, np.concatenate(sequences)))
    return csr_matrix(entries, shape=(len(sequences), n_items))


def recent(histories: list[np.ndarray], recency: float, n_items: int) -> "csr_matrix":
    """Histories as rows of weights, float32 [B, N]: 1 for the last item, `recency` times less for each one before."""
    return incidence(histories, [recency ** np.arange(len(history))[::-1] for history in histories], n_items)
