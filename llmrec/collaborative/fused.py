"""The experts in one ranking: weights learnt on validation examples, and perhaps a learned order of the best items.

fused = FusedExperts(ExpertsConfig(models=["smoothed-markov", "text", "popularity"]), vectors, validation)
fused.fit(train_sequences, n_items).scores(histories)    # float32 [B, N]
"""

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from llmrec.atomic import write_text
from llmrec.collaborative.base import BaselineSystem, popularity, ranks_from_scores, without
from llmrec.collaborative.config import ExpertName, ExpertsConfig
from llmrec.collaborative.experts import TRAINED, Experts
from llmrec.collaborative.fusion import FusionWeights, fit_fusion, frontier_of, limits_of
from llmrec.collaborative.ranker import LearnedRanker, Lists
from llmrec.console import get_logger, track
from llmrec.data.sequences import EvalExamples
from llmrec.errors import UserError

log = get_logger(__name__)

BATCH = 128
CONFIG, ARRAYS, RANKER = "experts.json", "experts.safetensors", "experts.ranker.json"
FILES = (CONFIG, ARRAYS, RANKER)
"""What a bundle and a stage hold of the experts."""
FAULTS = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, SafetensorError)
"""What damaged files make json, safetensors, scipy and torch raise."""


class FusedExperts(BaselineSystem):
    """The experts in one ranking, with weights learnt on validation examples.

    Args:
        config: how the weights are learnt.
        experts: of the same configuration.
        examples: what the weights are learnt from, some with cold targets; None if they are learnt already.
    """

    name = "experts"

    def __init__(self, config: ExpertsConfig, experts: Experts, examples: EvalExamples | None = None) -> None:
        self.config = config
        self.experts = experts
        self.examples = examples

    @property
    def names(self) -> list[str]:
        """The experts' names, in the order of their values."""
        return list(self.experts.names)

    def __len__(self) -> int:
        """N, the items of the catalogue."""
        return len(self.experts.rows)

    def values(self, histories: list[np.ndarray]) -> np.ndarray:
        """As `Experts.values`."""
        return self.experts.values(histories)

    def _learn(self, train_sequences: list[np.ndarray], n_items: int) -> None:
        """Fit the experts, then learn their weights.

        Raises:
            UserError: fewer than 20 examples have their target among the experts' candidates.
        """
        assert self.examples is not None, "experts that are fitted need examples"
        self.experts.fit(train_sequences, n_items)
        examples = self._chosen(self.examples)
        items, features = gather(self.experts, examples, self.config.candidates)
        self.weights = self._fit_weights(items, features, examples, self.names)
        self.ranker = self._learn_ranker(self.examples) if self.config.learned else None
        weights = zip(self.names, self.weights.warm, strict=True)
        log.info("experts: %s", ", ".join(f"{name} {weight:.3g}" for name, weight in weights))

    def _chosen(self, examples: EvalExamples) -> EvalExamples:
        """Those that the weights are learnt from: all with a cold target, and a sample of the others."""
        return examples.sample_warm(self.experts.is_cold, self.config.examples, self.config.seed)

    def _fit_weights(
        self, items: np.ndarray, features: np.ndarray, examples: EvalExamples, names: Sequence[str]
    ) -> FusionWeights:
        share = self.config.warm_floor
        weights = fit_fusion(items, features, examples.targets, self.experts.is_cold, names, share=share)
        if weights is None:
            raise UserError("--experts.models: too few validation examples find their target; leave the experts out.")
        return weights

    def without_each(self, examples: EvalExamples, cases: EvalExamples, filter_seen: bool) -> dict[str, np.ndarray]:
        """Ranks of the cases' targets by the weighted sum of all experts, and without each one.

        No learned order is in these. The weights are learnt again without the expert.

        Args:
            examples: as those that the weights were learnt from.
            cases: n cases.
            filter_seen: as in `System.answers`.

        Returns:
            `experts`, the ranks of all, float64 [n]; and those without an expert by its name.
        """
        chosen = self._chosen(examples)
        items, features = gather(self.experts, chosen, self.config.candidates)
        sums = {self.name: (list(range(len(self.names))), self.weights)}
        for place, name in enumerate(self.names):
            kept = [other for other in range(len(self.names)) if other != place]
            if kept:
                others = [self.names[other] for other in kept]
                sums[name] = (kept, self._fit_weights(items, features[..., kept], chosen, others))
        ranks: dict[str, list[np.ndarray]] = {name: [np.empty(0)] for name in sums}
        for start in track(range(0, len(cases), BATCH), "weighing experts", unit="users"):
            histories, targets = cases.histories[start : start + BATCH], cases.targets[start : start + BATCH]
            values = self.experts.values(histories)
            for name, (kept, weights) in sums.items():
                scores = self._sum(values[kept], weights)
                ranks[name].append(ranks_from_scores(scores, targets, histories if filter_seen else None))
        return {name: np.concatenate(parts) for name, parts in ranks.items()}

    def frontier(self, cases: EvalExamples) -> dict[str, Any]:
        """Recall@10 of warm and of cold targets over the bonus of cold items, by the weighted sum; see `frontier_of`.

        The items of a history are left out of its ranking.
        """
        cold, limits = self.experts.is_cold, []
        for start in track(range(0, len(cases), BATCH), "trading warm for cold", unit="users"):
            histories, targets = cases.histories[start : start + BATCH], cases.targets[start : start + BATCH]
            scores = self.fused(self.experts.values(histories))
            scores[:, cold] -= self.weights.bonus
            scores = without(scores, histories, targets)
            hits = np.zeros(scores.shape, bool)
            hits[np.arange(len(targets)), targets] = True
            limits.append(limits_of(scores, np.broadcast_to(cold, scores.shape), hits))
        return frontier_of(np.concatenate(limits), cold[cases.targets], self.weights.bonus)

    def _learn_ranker(self, examples: EvalExamples) -> LearnedRanker | None:
        """LambdaRank on the lists of all examples that hold their target; None if it would not help."""
        parts, hits = [], []
        for start in range(0, len(examples), BATCH):
            histories, targets = examples.histories[start : start + BATCH], examples.targets[start : start + BATCH]
            values = self.experts.values(histories)
            seen = [np.setdiff1d(h, t) for h, t in zip(histories, targets, strict=True)]
            lists = self._lists(values, self.fused(values), histories, seen)
            hit = lists.items == targets[:, None]
            found = hit.any(axis=1)
            parts.append(lists.where(found))
            hits.append(hit[found])
        share = self.config.warm_floor
        return LearnedRanker.fit(Lists.joined(parts), np.concatenate(hits), self.config.seed, share, len(examples))

    def _lists(
        self, values: np.ndarray, scores: np.ndarray, histories: list[np.ndarray], seen: list[np.ndarray]
    ) -> Lists:
        """The best items for B histories, without `seen`, whose scores are -inf."""
        scores = scores.copy()
        for row, items in enumerate(seen):
            scores[row, items] = -np.inf
        lengths = np.array([len(history) for history in histories])
        return Lists.best(scores, np.moveaxis(values, 0, -1), self.experts.is_cold, lengths)

    def with_items(self, vectors: np.ndarray) -> Self:
        """As `Experts.with_items`, with the same weights."""
        return self._with(self.experts.with_items(vectors))

    def with_texts(self, rows: np.ndarray, vectors: np.ndarray) -> Self:  # type: ignore[override]
        """As `Experts.with_texts`, with the same weights."""
        return self._with(self.experts.with_texts(rows, vectors))

    def of_rows(self, rows: np.ndarray) -> Self:
        """As `Experts.of_rows`, with the same weights."""
        return self._with(self.experts.of_rows(rows))

    def of_experts(self, names: Sequence[ExpertName], examples: EvalExamples) -> Self:
        """The weighted sum of some of the experts, without a learned order.

        Args:
            names: of the experts that stay.
            examples: as those that the weights were learnt from; the weights are learnt again.

        Raises:
            UserError: fewer than 20 examples have their target among the experts' candidates.
        """
        changed = self._with(copy.copy(self.experts))
        changed.experts.names, changed.ranker = list(names), None
        chosen = changed._chosen(examples)
        items, features = gather(changed.experts, chosen, self.config.candidates)
        changed.weights = changed._fit_weights(items, features, chosen, names)
        return changed

    def _with(self, experts: Experts) -> Self:
        changed = copy.copy(self)
        changed.experts = experts
        return changed

    def save(self, folder: Path) -> None:
        """Write `FILES` into a folder; the ranker's only if there is one."""
        content = {
            "config": asdict(self.config),
            "weights": asdict(self.weights),
            "seconds": self.experts.seconds,
        }
        write_text(folder / CONFIG, json.dumps(content, indent=1) + "\n")
        arrays = {name: np.ascontiguousarray(array) for name, array in self.experts.arrays().items()}
        save_file(arrays, folder / ARRAYS)
        (folder / RANKER).unlink(missing_ok=True)
        if self.ranker is not None:
            write_text(folder / RANKER, json.dumps(self.ranker.content) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            UserError: a file is missing, damaged, or of other experts.
        """
        try:
            content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            raw, default = content["config"], ExpertsConfig()
            # A file may be older than one of the sections.
            nested = {name: _section(getattr(default, name), raw.get(name, {})) for name in TRAINED}
            config = ExpertsConfig(**{**raw, **nested})
            fused = cls(config, Experts.restored(config, load_file(folder / ARRAYS)))
            fused.popularity = popularity(fused.experts.counts)
            fused.experts.seconds = dict(content["seconds"])
            fused.weights = FusionWeights.of(content["weights"], fused.experts.names)
            fused.ranker = _ranker(folder / RANKER)
        except FAULTS as e:
            raise UserError(f"{folder}: {CONFIG} and {ARRAYS} hold no experts that llmrec saved: {e}.") from None
        return fused

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        values = self.experts.values(histories)
        scores = self.fused(values)
        if self.ranker is not None:
            scores = self.ranker.reorder(scores, self._lists(values, scores, histories, histories))
        return scores

    def fused(self, values: np.ndarray) -> np.ndarray:
        """Scores float32 [B, N] of values float32 [F, B, N]."""
        return self._sum(values, self.weights)

    def _sum(self, values: np.ndarray, weights: FusionWeights) -> np.ndarray:
        scores = np.tensordot(np.array(weights.warm, np.float32), values, 1)
        cold = self.experts.is_cold
        if cold.any():
            own = np.array(weights.cold, np.float32)
            scores[:, cold] = np.tensordot(own, values[:, :, cold], 1) + weights.bonus
        return np.asarray(scores, np.float32)


def _ranker(path: Path) -> LearnedRanker | None:
    return LearnedRanker.of(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def _section(default: Any, raw: dict[str, Any]) -> Any:
    """The settings of one network: those of its file, in which a section inside may be missing."""
    inside = {"table": replace(default.table, **raw["table"])} if "table" in raw else {}
    return replace(default, **{**raw, **inside})


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
