"""Collaborative models without training: each is one small matrix, made in seconds.

Popularity; first-order Markov; item-kNN; text-kNN; transitions over the last few steps, decayed by their distance; the
same transitions shared among items with similar texts; and EASE (Steck, WWW 2019, arXiv 1905.03375).
"""

import copy
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from itertools import product
from typing import Any, ClassVar, Self

import numpy as np
from scipy import sparse
from sklearn.preprocessing import normalize

from llmrec.collaborative.base import BaselineSystem, incidence, ndcg, recent
from llmrec.console import get_logger
from llmrec.data.sequences import EvalExamples
from llmrec.errors import UserError

log = get_logger(__name__)

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
    matrices: ClassVar[tuple[str, ...]] = ("similarity",)

    def _learn(self, train_sequences: list[np.ndarray], n_items: int) -> None:
        events = incidence(train_sequences, [np.ones(len(s)) for s in train_sequences], n_items)
        users = events.sign()  # an item bought twice by one user counts once
        norms = np.maximum(np.asarray(users.sum(axis=0)).ravel(), 1) ** -DAMPING
        users = users @ sparse.diags(norms)
        self.similarity = (users.T @ users).tocsr()
        self.similarity.setdiag(0)

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        weighted = recent(histories, RECENCY, len(self.popularity))
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
        weighted = recent(histories, TEXT_RECENCY, len(self.vectors))
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

    def array(self) -> np.ndarray:
        """The settings as numbers, float64 [7], in the order above."""
        return np.array(astuple(self), np.float64)

    @classmethod
    def of(cls, array: np.ndarray) -> Self:
        """The settings of which `array` made these numbers.

        Raises:
            ValueError, TypeError: the array has another shape.
        """
        window, decay, backward, shrinkage, recency, neighbours, power = array.tolist()
        return cls(int(window), decay, backward, shrinkage, recency, int(neighbours), power)


TUNED_BY = 10_000
"""Maximum number of validation examples that settings are compared on."""


class DecayedMarkov(BaselineSystem):
    """Transitions over several steps, in both directions; popularity breaks ties and orders items without any.

    Args:
        settings: how transitions are counted and weighted.
        validation: examples that choose among `GRID`, by their NDCG@10; None: `settings` as they are.
    """

    name = "decayed-markov"
    matrices: ClassVar[tuple[str, ...]] = ("transitions",)
    GRID: ClassVar[dict[str, tuple[Any, ...]]] = {"recency": (0.5, 0.7)}

    def __init__(self, settings: TransitionSettings | None = None, validation: EvalExamples | None = None) -> None:
        self.settings = settings or TransitionSettings()
        self.validation = validation

    def _learn(self, train_sequences: list[np.ndarray], n_items: int) -> None:
        self.transitions = count_transitions(train_sequences, n_items, self.settings)
        self._tune()

    def _tune(self) -> None:
        """Choose the settings of `GRID` by validation; of equally good ones, the first."""
        if self.validation is None or not len(self.validation):
            return
        examples, best, chosen = self.validation.sample(TUNED_BY, 0), -1.0, self
        for values in product(*self.GRID.values()):
            tried = self._with(replace(self.settings, **dict(zip(self.GRID, values, strict=True))))
            ranks = tried.ranks(examples, filter_seen=True)
            figure = float(ndcg(ranks).mean())
            log.debug("%s, %s: validation ndcg@10 %.4f", self.name, tried.settings, figure)
            if figure > best:
                best, chosen = figure, tried
        log.info("%s: %s", self.name, ", ".join(f"{name} {getattr(chosen.settings, name):g}" for name in self.GRID))
        self.__dict__.update(chosen.__dict__)

    def _with(self, settings: TransitionSettings) -> Self:
        """A copy with other settings of `GRID`; transitions do not depend on these."""
        changed = copy.copy(self)
        changed.settings = settings
        return changed

    def arrays(self) -> dict[str, np.ndarray]:
        return super().arrays() | {"settings": self.settings.array()}

    def restore(self, arrays: Mapping[str, np.ndarray], counts: np.ndarray, unit: np.ndarray | None) -> None:
        super().restore(arrays, counts, unit)
        self.settings = TransitionSettings.of(arrays["settings"])

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        return self.expected(histories) + np.float32(1e-6) * self.popularity

    def expected(self, histories: list[np.ndarray]) -> np.ndarray:
        """The transitions from each of B histories to each item, float32 [B, N]; 0 if there are none."""
        return np.asarray((self._recent(histories) @ self.transitions).todense(), np.float32)

    def _recent(self, histories: list[np.ndarray]) -> sparse.csr_matrix:
        return recent(histories, self.settings.recency, len(self.popularity))


class SmoothedMarkov(DecayedMarkov):
    """The same transitions T between text neighbours: W T W^T, where W holds the neighbours of each item.

    Neighbours are warm items; so a cold item is reached through the warm items whose texts are like its own.

    Args:
        vectors: of the N items' texts, float [N, D].
        settings: how transitions are counted, weighted and shared.
        validation: as in `DecayedMarkov`.
    """

    name = "smoothed-markov"
    matrices: ClassVar[tuple[str, ...]] = ("transitions", "neighbours")
    GRID: ClassVar[dict[str, tuple[Any, ...]]] = {"neighbours": (20, 10), "power": (4.0, 2.0), "recency": (0.5, 0.7)}

    def __init__(
        self,
        vectors: np.ndarray,
        settings: TransitionSettings | None = None,
        validation: EvalExamples | None = None,
    ) -> None:
        super().__init__(settings, validation)
        self.vectors = vectors

    def _learn(self, train_sequences: list[np.ndarray], n_items: int) -> None:
        if len(self.vectors) != n_items:
            raise ValueError(f"{len(self.vectors)} text vectors for {n_items} items")
        self.unit = centred(self.vectors, np.flatnonzero(self.popularity))
        self.neighbours = self._find_neighbours(self.unit)
        super()._learn(train_sequences, n_items)
        del self.unit

    def _with(self, settings: TransitionSettings) -> Self:
        changed, own = super()._with(settings), self.settings
        if (settings.neighbours, settings.power) != (own.neighbours, own.power):
            changed.neighbours = changed._find_neighbours(self.unit)
        return changed

    def with_cold_items(self, n_items: int, unit: np.ndarray | None) -> Self:
        assert unit is not None, "smoothed-markov goes by text vectors"
        grown, old = super().with_cold_items(n_items, unit), len(self.popularity)
        grown.neighbours = sparse.vstack([grown.neighbours[:old], grown._find_neighbours(unit, old)]).tocsr()
        return grown

    def with_texts(self, unit: np.ndarray) -> Self:
        changed = super().with_texts(unit)
        changed.neighbours = changed._find_neighbours(unit)
        return changed

    def _find_neighbours(self, unit: np.ndarray, first: int = 0) -> sparse.csr_matrix:
        """As `text_neighbours`, with the settings of this model."""
        warm = np.flatnonzero(self.popularity)
        return text_neighbours(unit, self.settings.neighbours, self.settings.power, warm, first)

    def expected(self, histories: list[np.ndarray]) -> np.ndarray:
        return self.shared(self._recent(histories) @ self.neighbours @ self.transitions)

    def shared(self, transitions: sparse.csr_matrix) -> np.ndarray:
        """Transitions T [B, N] shared between the text neighbours of each item: T W^T, float32 [B, N].

        Hardly an element is 0, so T is made dense: this takes a quarter of the time of a sparse product.
        """
        return np.asarray((self.neighbours @ transitions.T.toarray()).T, np.float32)


def count_transitions(sequences: list[np.ndarray], n_items: int, settings: TransitionSettings) -> sparse.csr_matrix:
    """Transitions T, float32 [N, N], from U int arrays of items in time order; each row sums to less than 1."""
    counts = weighted_pairs(sequences, n_items, settings)
    totals = np.asarray(counts.sum(axis=1)).ravel() + settings.shrinkage
    return sparse.csr_matrix(sparse.diags((1 / totals).astype(np.float32)) @ counts)


def weighted_pairs(sequences: list[np.ndarray], n_items: int, settings: TransitionSettings) -> sparse.csr_matrix:
    """The sums of the weights of all pairs, float32 [N, N]: transitions before their rows are divided."""
    items = np.concatenate(sequences) if sequences else np.empty(0, np.int64)
    users = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
    counts = sparse.csr_matrix((n_items, n_items), dtype=np.float32)
    for step in range(1, settings.window + 1):
        same = (users[:-step] == users[step:]) & (items[:-step] != items[step:])
        before, after = items[:-step][same], items[step:][same]
        weight = np.full(len(before), settings.decay ** (step - 1), np.float32)
        forward = sparse.coo_matrix((weight, (before, after)), shape=counts.shape).tocsr()
        counts = counts + forward + settings.backward * forward.T
    return sparse.csr_matrix(counts)


def centred(vectors: np.ndarray, warm: np.ndarray) -> np.ndarray:
    """Vectors float [N, D] minus the mean of the rows `warm`, with length 1: float32 [N, D]."""
    vectors = np.asarray(vectors, np.float32)
    return np.asarray(normalize(vectors - vectors[warm].mean(axis=0)), np.float32)


def text_neighbours(unit: np.ndarray, count: int, power: float, warm: np.ndarray, first: int = 0) -> sparse.csr_matrix:
    """The neighbours of the items from row `first` on: W, float32 [N - first, N], whose rows sum to 1.

    Args:
        unit: float32 [N, D], as `centred` gives them.
        count: neighbours of an item; a warm item is a neighbour of itself beside them.
        power: exponent of the cosine in a neighbour's weight.
        warm: int [M], rows of the items that can be neighbours.
        first: row of the first item that is asked for.
    """
    kept = min(count + 1, len(warm))
    place = np.full(len(unit), -1)
    place[warm] = np.arange(len(warm))
    rows, columns, weights = [], [], []
    for start in range(first, len(unit), BLOCK):
        cosines = unit[start : start + BLOCK] @ unit[warm].T
        own = place[start : start + BLOCK]
        known = np.flatnonzero(own >= 0)
        cosines[known, own[known]] = 1.0  # itself first, also an item without text
        best = np.argpartition(-cosines, kept - 1, axis=1)[:, :kept]
        rows.append(np.repeat(np.arange(start, start + len(cosines)) - first, kept))
        columns.append(warm[best.ravel()])
        weights.append(np.maximum(np.take_along_axis(cosines, best, axis=1), 0).ravel() ** power)
    entries = (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns)))
    matrix = sparse.csr_matrix(entries, shape=(len(unit) - first, len(unit)), dtype=np.float32)
    return sparse.csr_matrix(normalize(matrix, norm="l1", axis=1))


MOST_ITEMS = 30_000
"""Maximum number of items; the inverse for more takes over 7 GB."""


class EASE(BaselineSystem):
    """The score of an item is the sum of its weights B over the history, with more weight for later items.

    Args:
        regularization: added to the diagonal of X^T X.
        recency: weight of a history item relative to the one after it.
    """

    name = "ease"

    def __init__(self, regularization: float = 120.0, recency: float = 0.8) -> None:
        self.regularization = regularization
        self.recency = recency

    def _learn(self, train_sequences: list[np.ndarray], n_items: int) -> None:
        if n_items > MOST_ITEMS:
            raise UserError(
                f"--evaluate.baselines ease: {n_items} items, expected at most {MOST_ITEMS}; its matrix has a row "
                "and a column per item. Leave ease out."
            )
        users = incidence(train_sequences, [np.ones(len(s)) for s in train_sequences], n_items).sign()
        gram = np.asarray((users.T @ users).todense(), np.float64)
        gram[np.diag_indices(n_items)] += self.regularization
        inverse = np.linalg.inv(gram)
        weights = inverse / -np.diag(inverse)
        np.fill_diagonal(weights, 0.0)
        self.weights = weights.astype(np.float32)

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        return np.asarray(recent(histories, self.recency, len(self.popularity)) @ self.weights, np.float32)
