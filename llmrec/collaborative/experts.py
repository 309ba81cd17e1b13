"""Everything that a log and the texts of its items teach without a language model, in one ranking.

Each expert gives every item a value after a history; `FusionWeights` says how much it counts. Values of counts enter
as log(x + 10^-3): raw ones fuse worse.

    fused = FusedExperts(ExpertsConfig(models=["smoothed-markov", "text", "popularity"]), vectors, validation)
    fused.fit(train_sequences, n_items).scores(histories)    # float32 [B, N]
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy import sparse
from scipy.special import log_softmax
from sklearn.preprocessing import normalize

from llmrec.checks import check_fields
from llmrec.collaborative.base import BaselineSystem, BSARecConfig, SASRecConfig, incidence
from llmrec.collaborative.bsarec import BSARec
from llmrec.collaborative.counting import DecayedMarkov, ItemKNN, SmoothedMarkov, centred
from llmrec.collaborative.fusion import LearnedRanker, fit_fusion
from llmrec.collaborative.sasrec import SASRec
from llmrec.console import get_logger
from llmrec.data.sequences import EvalExamples
from llmrec.errors import UserError

log = get_logger(__name__)

ExpertName = Literal[
    "popularity", "decayed-markov", "smoothed-markov", "item-knn", "text", "last-text", "sasrec", "bsarec"
]
BY_TEXT: set[ExpertName] = {"smoothed-markov", "text", "last-text"}
"""Experts that go by the items' text vectors; they alone know cold items."""
TRAINED: set[ExpertName] = {"sasrec", "bsarec"}
"""Experts that are Transformers, trained here."""
FLOOR = 1e-3
"""Added to values before their logarithm."""
RECENCY = 0.6
"""Weight of a history's item relative to the one after it, in the direction of its texts."""
BATCH = 128
LISTED = 100
"""Items that the learned ranker orders."""


@dataclass
class ExpertsConfig:
    """Collaborative models and text neighbours that rank beside the language model."""

    models: list[ExpertName] = field(default_factory=list)
    """The experts. popularity: training events; decayed-markov: transitions over five steps; smoothed-markov: the same
    between text neighbours; item-knn: users in common; text, last-text: cosine of
    the text with those of the history, and of its last item; sasrec, bsarec: Transformers over items, trained here."""
    sasrec: SASRecConfig = field(default_factory=SASRecConfig)
    """The Transformer sasrec."""
    bsarec: BSARecConfig = field(default_factory=BSARecConfig)
    """The Transformer bsarec."""
    candidates: int = 50
    """Best items of each expert among which the weights of the fusion are learnt."""
    examples: int = 6000
    """Validation examples with a warm target that the weights are learnt from, at most, drawn by the seed."""
    learned: bool = False
    """Order the best hundred items of the fused ranking by LambdaRank, trained on validation examples (the extra
    `ranker`)."""
    warm_floor: float = 1.0
    """Least recall@10 of warm targets that cold items must leave, as a share of what the experts reach without them."""
    seed: int = 0
    """Seed of the trained experts and of the draw of validation examples."""

    def __post_init__(self) -> None:
        check_fields(self, "experts", at_least={0: ("seed",), 1: ("candidates", "examples")}, positive=("warm_floor",))
        if len(set(self.models)) < len(self.models):
            raise UserError(f"--experts.models {self.models}: expected each expert at most once.")


class TextExpert(BaselineSystem):
    """Cosine of centred text vectors with those of the history, where recent items weigh more.

    Args:
        vectors: of the N items' texts, float [N, D].
        last: with the last item of the history alone.
    """

    def __init__(self, vectors: np.ndarray, last: bool) -> None:
        self.name = "last-text" if last else "text"
        self.vectors = vectors
        self.last = last

    def _learn(self, train_sequences: list[np.ndarray], n_items: int) -> None:
        self.unit = centred(self.vectors, np.flatnonzero(self.popularity))

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        if self.last:
            return np.asarray(self.unit[[history[-1] for history in histories]] @ self.unit.T)
        recency = [RECENCY ** np.arange(len(history))[::-1] for history in histories]
        return np.asarray(normalize(incidence(histories, recency, len(self.unit)) @ self.unit) @ self.unit.T)


class Experts:
    """Fitted experts, which give each item of a catalogue one value per expert.

    Items that come later are cold: experts that go by text know them at once. Items that go are no longer listed; what
    the experts learnt of them stays, so that no value of another item changes.

    Args:
        config: which experts, and their settings.
        vectors: of the N items' texts, float [N, D].
        validation: examples that trained experts stop by.
    """

    def __init__(self, config: ExpertsConfig, vectors: np.ndarray | None, validation: EvalExamples) -> None:
        self.names: list[ExpertName] = list(config.models)
        self.vectors = vectors
        self.systems: dict[ExpertName, BaselineSystem] = {
            name: _make(name, config, vectors, validation) for name in self.names if name != "popularity"
        }

    def fit(self, train_sequences: list[np.ndarray], n_items: int) -> "Experts":
        """Learn from U int arrays of catalogue rows, oldest first, some perhaps empty; returns itself."""
        for system in self.systems.values():
            system.fit(train_sequences, n_items)
        self.counts = np.bincount(np.concatenate([np.empty(0, np.int64), *train_sequences]), minlength=n_items)
        self.rows = np.arange(n_items)
        return self

    @property
    def is_cold(self) -> np.ndarray:
        """bool [N]: items without training events."""
        return self.counts[self.rows] == 0

    def values(self, histories: list[np.ndarray]) -> np.ndarray:
        """What each expert says of each item after each of B histories, float32 [F, B, N]; 0 where it knows nothing."""
        histories = [self.rows[history] for history in histories]
        values = np.empty((len(self.names), len(histories), len(self.rows)), np.float32)
        is_cold = self.is_cold
        for row, name in enumerate(self.names):
            values[row] = self._values(name, histories)[:, self.rows]
            if name not in BY_TEXT:
                values[row][:, is_cold] = 0
        return values

    def _values(self, name: ExpertName, histories: list[np.ndarray]) -> np.ndarray:
        if name == "popularity":
            return np.tile(np.log(np.maximum(self.counts, 1)).astype(np.float32), (len(histories), 1))
        system = self.systems[name]
        if isinstance(system, DecayedMarkov):
            return np.log(system.expected(histories) + np.float32(FLOOR))
        scores = system.scores(histories)
        if name in TRAINED:
            return np.asarray(log_softmax(scores, axis=1), np.float32)
        return np.log(np.maximum(scores, 0) + FLOOR) if name == "item-knn" else scores

    def with_items(self, vectors: np.ndarray) -> "Experts":
        """The experts of a catalogue with M more items at its end, whose texts have the vectors float [M, D]."""
        grown = copy.copy(self)
        grown.vectors = None if self.vectors is None else np.concatenate([self.vectors, vectors])
        grown.counts = np.append(self.counts, np.zeros(len(vectors), np.int64))
        grown.rows = np.append(self.rows, np.arange(len(self.counts), len(grown.counts)))
        grown.systems = {name: self._grown(system, grown) for name, system in self.systems.items()}
        return grown

    def _grown(self, system: BaselineSystem, grown: "Experts") -> BaselineSystem:
        """A system that knows the items of `grown` too."""
        old, n_items = len(self.counts), len(grown.counts)
        system = copy.copy(system)
        system.popularity = np.append(system.popularity, np.zeros(n_items - old, np.float32))
        unit = None
        if grown.vectors is not None:
            unit = centred(grown.vectors, np.flatnonzero(grown.counts))
        if isinstance(system, TextExpert) and unit is not None:
            system.unit = unit
        elif isinstance(system, DecayedMarkov):
            system.transitions = _resized(system.transitions, n_items)
            if isinstance(system, SmoothedMarkov) and unit is not None:
                more = system.find_neighbours(unit, np.flatnonzero(grown.counts), old)
                system.neighbours = sparse.vstack([_resized(system.neighbours, n_items)[:old], more]).tocsr()
        elif isinstance(system, ItemKNN):
            system.similarity = _resized(system.similarity, n_items)
        elif isinstance(system, SASRec):
            system.places = np.append(system.places, np.full(n_items - old, -1))
        return system

    def without_items(self, stays: np.ndarray) -> "Experts":
        """The experts of the catalogue's rows `stays`, int [M], in that order."""
        kept = copy.copy(self)
        kept.rows = self.rows[stays]
        return kept


def _resized(matrix: sparse.csr_matrix, n_items: int) -> sparse.csr_matrix:
    """A copy with n_items rows and columns, empty where they are new."""
    matrix = matrix.copy()
    matrix.resize((n_items, n_items))
    return matrix


class FusedExperts(BaselineSystem):
    """The experts in one ranking, with weights learnt on validation examples.

    Args:
        config: the experts, and how their weights are learnt.
        vectors: of the N items' texts, float [N, D].
        validation: examples that trained experts stop by.
        calibration: examples that the weights are learnt from, some with cold targets; default: `validation`.
    """

    name = "experts"

    def __init__(
        self,
        config: ExpertsConfig,
        vectors: np.ndarray | None,
        validation: EvalExamples,
        calibration: EvalExamples | None = None,
    ) -> None:
        self.config = config
        self.experts = Experts(config, vectors, validation)
        self.examples = validation if calibration is None else calibration

    def _learn(self, train_sequences: list[np.ndarray], n_items: int) -> None:
        self.experts.fit(train_sequences, n_items)
        self.calibrate()

    def calibrate(self) -> None:
        """Learn the weights of the fitted experts.

        Raises:
            UserError: fewer than 20 validation examples have their target among the experts' candidates.
        """
        is_cold = self.experts.is_cold
        cold = is_cold[self.examples.targets]
        chosen = cold.copy()
        warm = np.flatnonzero(~cold)
        chosen[np.random.default_rng(self.config.seed).permutation(warm)[: self.config.examples]] = True
        examples = self.examples.where(chosen)
        items, features = gather(self.experts, examples, self.config.candidates)
        weights = fit_fusion(items, features, examples.targets, is_cold, 0.0, self.experts.names)
        if weights is None:
            raise UserError("--experts.models: too few validation examples find their target; leave the experts out.")
        self.weights = weights
        self.ranker = self._learn_ranker(self.examples) if self.config.learned else None
        log.info("experts: %s", ", ".join(f"{n} {w:.3g}" for n, w in zip(weights.features, weights.warm, strict=True)))

    def _learn_ranker(self, examples: EvalExamples) -> LearnedRanker | None:
        """LambdaRank on the lists of all examples that hold their target; None if it would not help."""
        parts: list[tuple[np.ndarray, ...]] = []
        for start in range(0, len(examples), BATCH):
            histories, targets = examples.histories[start : start + BATCH], examples.targets[start : start + BATCH]
            values = self.experts.values(histories)
            scores = self._fused(values)
            seen = [np.setdiff1d(h, t) for h, t in zip(histories, targets, strict=True)]
            items, listed, fused = self._lists(values, scores, seen)
            hits = items == targets[:, None]
            found = hits.any(axis=1)
            lengths = np.array([len(history) for history in histories])
            parts.append((listed[found], fused[found], self.experts.is_cold[items][found], lengths[found], hits[found]))
        values, fused, is_cold, lengths, hits = map(np.concatenate, zip(*parts, strict=True))
        return LearnedRanker.fit(values, fused, is_cold, lengths, hits, self.config.seed)

    def _lists(
        self, values: np.ndarray, scores: np.ndarray, seen: list[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The best items for B histories, without `seen`: int64 [B, M], their values [B, M, F], their scores [B, M]."""
        scores = scores.copy()
        for row, items in enumerate(seen):
            scores[row, items] = -np.inf
        most = min(LISTED, scores.shape[1])
        best = np.argpartition(-scores, most - 1, axis=1)[:, :most]
        rows = np.arange(len(scores))[:, None]
        best = best[rows, np.argsort(-scores[rows, best], axis=1, kind="stable")]
        return best, np.moveaxis(values[:, rows, best], 0, -1), scores[rows, best]

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        values = self.experts.values(histories)
        scores = self._fused(values)
        if self.ranker is not None:
            items, listed, fused = self._lists(values, scores, histories)
            lengths = np.array([len(history) for history in histories])
            order = self.ranker.order(listed, fused, self.experts.is_cold[items], lengths)
            # The listed items exchange their scores, so that all others keep their places.
            rows = np.arange(len(items))[:, None]
            scores[rows, items[rows, order]] = fused
        return scores

    def _fused(self, values: np.ndarray) -> np.ndarray:
        """Scores float32 [B, N] of values float32 [F, B, N]."""
        scores = np.tensordot(np.array(self.weights.warm, np.float32), values, 1)
        cold = self.experts.is_cold
        if cold.any():
            weights = np.array(self.weights.cold, np.float32)
            scores[:, cold] = np.tensordot(weights, values[:, :, cold], 1) + self.weights.bonus
        return np.asarray(scores, np.float32)


def gather(experts: Experts, examples: EvalExamples, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The candidates of n examples: the `most` best of each expert, warm and cold apart, without those of the history.

    Returns:
        Candidates int64 [n, M] (-1 for none), and their features float32 [n, M, F].
    """
    parts = list(_batches(experts, examples, most))
    width = max((items.shape[1] for items, _ in parts), default=0)
    items = np.full((len(examples), width), -1, np.int64)
    features = np.zeros((len(examples), width, len(experts.names)), np.float32)
    start = 0
    for found, values in parts:
        items[start : start + len(found), : found.shape[1]] = found
        features[start : start + len(found), : found.shape[1]] = values
        start += len(found)
    return items, features


def _batches(experts: Experts, examples: EvalExamples, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(examples), BATCH):
        histories, targets = examples.histories[start : start + BATCH], examples.targets[start : start + BATCH]
        values = experts.values(histories)
        open_ = np.ones(values.shape[1:], bool)
        for row, (history, target) in enumerate(zip(histories, targets, strict=True)):
            open_[row, np.setdiff1d(history, target)] = False
        chosen = np.zeros(open_.shape, bool)
        for side in (experts.is_cold, ~experts.is_cold):
            if side.any():
                kept = min(most, int(side.sum()))
                for expert in values:
                    best = np.argpartition(-np.where(open_ & side, expert, -np.inf), kept - 1, axis=1)[:, :kept]
                    np.put_along_axis(chosen, best, True, axis=1)
        chosen &= open_
        counts = chosen.sum(axis=1)
        items = np.full((len(histories), counts.max()), -1, np.int64)
        items[np.arange(items.shape[1]) < counts[:, None]] = np.nonzero(chosen)[1]
        rows = np.arange(len(items))[:, None]
        yield items, np.moveaxis(values[:, rows, np.maximum(items, 0)], 0, -1)


def _make(
    name: ExpertName, config: ExpertsConfig, vectors: np.ndarray | None, validation: EvalExamples
) -> BaselineSystem:
    if name in BY_TEXT:
        if vectors is None:
            raise UserError(f"--experts.models {name}: needs the vectors of the items' texts.")
        return SmoothedMarkov(vectors) if name == "smoothed-markov" else TextExpert(vectors, name == "last-text")
    if name == "sasrec":
        return SASRec(config.sasrec, validation, config.seed)
    if name == "bsarec":
        return BSARec(config.bsarec, validation, config.seed)
    return ItemKNN() if name == "item-knn" else DecayedMarkov()
