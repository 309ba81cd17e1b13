"""The experts in one ranking: weights learnt on validation examples, and perhaps a learned order of the best hundred.

    fused = FusedExperts(ExpertsConfig(models=["smoothed-markov", "text", "popularity"]), vectors, validation)
    fused.fit(train_sequences, n_items).scores(histories)    # float32 [B, N]

The best hundred items can be ordered anew by LambdaRank (Burges 2010) with LightGBM's trees:

    ranker = LearnedRanker.fit(values, fused, is_cold, lengths, hits, seed=0)
    ranker.order(values, fused, is_cold, lengths)    # int64 [n, M], the list's places in their new order
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from llmrec.atomic import write_text
from llmrec.collaborative.base import BaselineSystem, ExpertsConfig, popularity
from llmrec.collaborative.experts import TRAINED, Experts
from llmrec.collaborative.fusion import CUT, FusionWeights, fit_fusion
from llmrec.console import get_logger
from llmrec.data.sequences import EvalExamples
from llmrec.errors import UserError

log = get_logger(__name__)

BATCH = 128
CONFIG, ARRAYS, RANKER = "experts.json", "experts.safetensors", "experts.ranker.txt"
FILES = (CONFIG, ARRAYS, RANKER)
"""What a bundle and a stage hold of the experts."""
FAULTS = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, SafetensorError)
"""What damaged files make json, safetensors, scipy and torch raise."""
LISTED = 100
"""Items that the learned ranker orders."""

SHARES = (0.7, 0.85)
"""Examples up to the first share are learnt from, up to the second they tell when to stop, the rest decide."""
SETTINGS = {
    "objective": "lambdarank",
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_data_in_leaf": 200,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambdarank_truncation_level": 20,
    "metric": "ndcg",
    "eval_at": [10],
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


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
        is_cold = self.experts.is_cold
        cold = is_cold[self.examples.targets]
        chosen = cold.copy()
        warm = np.flatnonzero(~cold)
        chosen[np.random.default_rng(self.config.seed).permutation(warm)[: self.config.examples]] = True
        examples = self.examples.where(chosen)
        items, features = gather(self.experts, examples, self.config.candidates)
        weights = fit_fusion(
            items, features, examples.targets, is_cold, self.experts.names, share=self.config.warm_floor
        )
        if weights is None:
            raise UserError("--experts.models: too few validation examples find their target; leave the experts out.")
        self.weights = weights
        self.ranker = self._learn_ranker(self.examples) if self.config.learned else None
        log.info("experts: %s", ", ".join(f"{n} {w:.3g}" for n, w in zip(weights.features, weights.warm, strict=True)))

    def _learn_ranker(self, examples: EvalExamples) -> "LearnedRanker | None":
        """LambdaRank on the lists of all examples that hold their target; None if it would not help."""
        parts: list[tuple[np.ndarray, ...]] = []
        for start in range(0, len(examples), BATCH):
            histories, targets = examples.histories[start : start + BATCH], examples.targets[start : start + BATCH]
            values = self.experts.values(histories)
            scores = self.fused(values)
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

    def with_items(self, vectors: np.ndarray) -> Self:
        """As `Experts.with_items`, with the same weights."""
        return self._with(self.experts.with_items(vectors))

    def with_texts(self, rows: np.ndarray, vectors: np.ndarray) -> Self:  # type: ignore[override]
        """As `Experts.with_texts`, with the same weights."""
        return self._with(self.experts.with_texts(rows, vectors))

    def of_rows(self, rows: np.ndarray) -> Self:
        """As `Experts.of_rows`, with the same weights."""
        return self._with(self.experts.of_rows(rows))

    def _with(self, experts: Experts) -> Self:
        changed = copy.copy(self)
        changed.experts = experts
        return changed

    def save(self, folder: Path) -> None:
        """Write `FILES` into a folder; the ranker's only if there is one."""
        content = {"config": asdict(self.config), "weights": asdict(self.weights)}
        write_text(folder / CONFIG, json.dumps(content, indent=1) + "\n")
        arrays = {name: np.ascontiguousarray(array) for name, array in self.experts.arrays().items()}
        save_file(arrays, folder / ARRAYS)
        (folder / RANKER).unlink(missing_ok=True)
        if self.ranker is not None:
            write_text(folder / RANKER, self.ranker.text)

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
            nested = {name: replace(getattr(default, name), **raw.get(name, {})) for name in TRAINED}
            config = ExpertsConfig(**{**raw, **nested})
            fused = cls(config, Experts.restored(config, load_file(folder / ARRAYS)))
            fused.popularity = popularity(fused.experts.counts)
            fused.weights = FusionWeights.of(content["weights"], fused.experts.names)
            fused.ranker = LearnedRanker.load(folder / RANKER) if (folder / RANKER).exists() else None
        except FAULTS as e:
            raise UserError(f"{folder}: {CONFIG} and {ARRAYS} hold no experts that llmrec saved: {e}.") from None
        return fused

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        values = self.experts.values(histories)
        scores = self.fused(values)
        if self.ranker is not None:
            items, listed, fused = self._lists(values, scores, histories)
            lengths = np.array([len(history) for history in histories])
            order = self.ranker.order(listed, fused, self.experts.is_cold[items], lengths)
            rows = np.arange(len(items))[:, None]
            # In a small catalogue the list ends with items of the history; they stay at its end.
            order = order[rows, np.argsort(np.isneginf(fused)[rows, order], axis=1, kind="stable")]
            # The listed items exchange their scores, so that all others keep their places.
            exchanged = scores.copy()
            exchanged[rows, items[rows, order]] = fused
            scores = np.where(np.isneginf(exchanged), scores, exchanged)
        return scores

    def fused(self, values: np.ndarray) -> np.ndarray:
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


class LearnedRanker:
    """Trees that order a list of M candidates.

    LightGBM is needed where lists are ordered, and not to load a bundle.

    Args:
        text: the booster, as LightGBM writes it.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def booster(self) -> Any:
        """The trees.

        Raises:
            UserError: LightGBM is not installed, or can't read the text.
        """
        lightgbm = _lightgbm()
        try:
            return lightgbm.Booster(model_str=self.text)
        except (ValueError, lightgbm.basic.LightGBMError) as error:
            raise UserError(f"{RANKER}: no model of LightGBM: {error}.") from None

    @classmethod
    def fit(
        cls,
        values: np.ndarray,
        fused: np.ndarray,
        is_cold: np.ndarray,
        lengths: np.ndarray,
        hits: np.ndarray,
        seed: int = 0,
    ) -> Self | None:
        """Learn from n lists that hold their target.

        Returns:
            The ranker; None if it does not raise the NDCG@10 of lists that it has not seen by more than one standard
            error: with few examples the fused order is better.

        Args:
            values: float32 [n, M, F], each expert's.
            fused: float32 [n, M], not increasing within a list.
            is_cold: bool [n, M].
            lengths: int [n], items of the histories.
            hits: bool [n, M], the targets, one per list.
            seed: of the split of the lists and of the trees.

        Raises:
            UserError: LightGBM is not installed.
        """
        lightgbm = _lightgbm()
        table = list_features(values, fused, is_cold, lengths)
        n, size, width = table.shape
        learn, stop, decide = np.split(np.random.default_rng(seed).permutation(n), [int(n * share) for share in SHARES])
        if not len(learn) or not len(stop) or len(decide) < 2:
            return None
        data = [
            lightgbm.Dataset(table[rows].reshape(-1, width), hits[rows].ravel().astype(int), group=[size] * len(rows))
            for rows in (learn, stop)
        ]
        data[1].set_reference(data[0])
        stopping: list[Any] = [lightgbm.early_stopping(30, verbose=False)]
        booster = lightgbm.train({**SETTINGS, "seed": seed}, data[0], 500, valid_sets=[data[1]], callbacks=stopping)
        ranker = cls(booster.model_to_string(num_iteration=booster.best_iteration))
        order = ranker.order(values[decide], fused[decide], is_cold[decide], lengths[decide])
        gain = _ndcg(np.take_along_axis(hits[decide], order, axis=1)) - _ndcg(hits[decide])
        worth = gain.mean() > gain.std() / np.sqrt(len(gain))
        log.info("learned ranker: NDCG@10 %+.4f on %d lists%s", gain.mean(), len(gain), "" if worth else "; left out")
        return ranker if worth else None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the text of a booster; where LightGBM is installed, see whether it can read it.

        Raises:
            UserError: it can't.
        """
        ranker = cls(path.read_text(encoding="utf-8"))
        if find_spec("lightgbm") is not None:
            _ = ranker.booster
        return ranker

    def order(self, values: np.ndarray, fused: np.ndarray, is_cold: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The places of n lists in their new order, int64 [n, M]; ties stay as they are. Arguments as in `fit`."""
        table = list_features(values, fused, is_cold, lengths)
        scores = self.booster.predict(table.reshape(-1, table.shape[2])).reshape(fused.shape)
        return np.argsort(-scores, axis=1, kind="stable")


def _lightgbm() -> Any:
    try:
        import lightgbm
    except ImportError:
        raise UserError("--experts.learned true needs lightgbm: pip install 'llmrec[ranker]'.") from None
    return lightgbm


def _ndcg(hits: np.ndarray) -> np.ndarray:
    """NDCG@10, float64 [n], of lists with one target each, bool [n, M]."""
    place = hits.argmax(axis=1)
    return np.where(place < CUT, 1 / np.log2(place + 2), 0.0)


def list_features(values: np.ndarray, fused: np.ndarray, is_cold: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """What the trees see of n lists of M items: float32 [n, M, 3 F + 4]. Arguments as in `LearnedRanker.fit`."""
    n, size, _ = values.shape
    places = np.argsort(np.argsort(-values, axis=1, kind="stable"), axis=1)
    behind = values - values.max(axis=1, keepdims=True)
    own = np.broadcast_to(np.arange(size), (n, size))
    whole = np.broadcast_to(lengths[:, None], (n, size))
    single = np.stack([fused - fused[:, :1], own, whole, is_cold], axis=2)
    return np.concatenate([values, places, behind, single], axis=2).astype(np.float32)
