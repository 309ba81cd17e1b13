"""The systems that an evaluation ranks with: the baselines, and llmrec itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from llmrec.checks import checked
from llmrec.collaborative.base import BATCH, Answers, BaselineSystem, System, only, ranks_from_scores, top, without
from llmrec.collaborative.cornac import CornacSASRec, CornacTIGER
from llmrec.collaborative.counting import EASE, DecayedMarkov, ItemKNN, Markov, Popularity, SmoothedMarkov, TextKNN
from llmrec.collaborative.experts import TRAINED
from llmrec.collaborative.fused import FusedExperts
from llmrec.collaborative.fusion import CUT
from llmrec.collaborative.lisa import LISA
from llmrec.collaborative.rpg import RPG
from llmrec.console import get_logger, track
from llmrec.data import Catalog, Split
from llmrec.data.sequences import EvalExamples
from llmrec.decode.filters import Filter
from llmrec.decode.ranker import ItemRanker
from llmrec.decode.rankings.hybrid import interleave
from llmrec.embed import as_vectors
from llmrec.errors import UserError
from llmrec.evaluation.config import READS_TEXT, EvaluateConfig
from llmrec.evaluation.metrics import INTERVAL_METRICS, per_user, ranks_from_lists
from llmrec.evaluation.protocol import (
    OURS,
    Metrics,
    evaluate_cold_candidates,
    evaluate_systems,
    make_slices,
    select_cases,
)
from llmrec.evaluation.significance import compare_with_best, paired_difference
from llmrec.quantize.classical.product import fit_opq
from llmrec.recommender.recommender import Recommender

log = get_logger(__name__)


class SASRecKNN(System):
    """Of the first k of a ranking, floor(quota k) are the cold items that text-kNN puts first, the others SASRec's.

    Args:
        sasrec: fitted; scores -inf what has no training events.
        text_knn: fitted.
        cold: rows of the items without training events, int [E].
        quota: share of the cold items.
        depth: items that a user gets, the largest cut-off.
    """

    def __init__(
        self, sasrec: BaselineSystem, text_knn: BaselineSystem, cold: np.ndarray, quota: float, depth: int
    ) -> None:
        self.name = f"sasrec-knn@{100 * quota:g}%"
        self.sasrec = sasrec
        self.text_knn = text_knn
        self.cold = cold
        self.quota = quota
        self.depth = depth

    def answers(
        self, cases: EvalExamples, filter_seen: bool, among: np.ndarray | None = None, listed: int = 0
    ) -> Answers:
        """As `System.answers`; a target that is not among the first `depth` is not ranked."""
        parts = [Answers(np.empty(0), np.empty((0, listed), np.int64))]
        for start in range(0, len(cases), BATCH):
            histories, targets = cases.histories[start : start + BATCH], cases.targets[start : start + BATCH]
            warm, cold = self.sasrec.scores(histories), only(self.text_knn.scores(histories), self.cold)
            if among is not None:
                warm, cold = only(warm, among), only(cold, among)
            if filter_seen:
                warm, cold = without(warm, histories, targets), without(cold, histories, targets)
            parts.append(self._answers(warm, cold, targets, listed))
        return Answers.joined(parts)

    def _answers(self, warm: np.ndarray, cold: np.ndarray, targets: np.ndarray, listed: int) -> Answers:
        """Of B targets, whose ranks in the two rankings, ties against them, tell their place in the merged one."""
        n_items, ordinals = warm.shape[1], np.arange(max(self.depth, listed))
        # Ranks are merged, not items: an item's order among its ties must not come into it.
        first, second = (
            np.where(ordinals < np.isfinite(scores).sum(axis=1)[:, None], ordinals + offset, -1)
            for scores, offset in ((warm, 0), (cold, n_items))
        )
        merged = interleave(first, second, self.quota, len(ordinals))
        own = np.minimum(ranks_from_scores(warm, targets), ranks_from_scores(cold, targets) + n_items) - 1
        hits = merged[:, : self.depth] == own[:, None]
        places, width = merged[:, :listed], len(ordinals)
        orders = np.concatenate([top(warm, width), top(cold, width)], axis=1)
        at = np.where(places < n_items, places, places - n_items + width)
        items = np.where(places < 0, -1, np.take_along_axis(orders, np.maximum(at, 0), axis=1))
        return Answers(np.where(hits.any(axis=1), 1.0 + hits.argmax(axis=1), np.inf), items)


COUNTING: dict[str, type[BaselineSystem]] = {
    "popularity": Popularity,
    "markov": Markov,
    "item-knn": ItemKNN,
    "ease": EASE,
}
SASREC_KNN = ("sasrec", "text-knn")
"""The baselines that sasrec-knn is made of."""


def fit_baselines(
    config: EvaluateConfig,
    train_sequences: list[np.ndarray],
    n_items: int,
    validation: EvalExamples,
    vectors: np.ndarray | None = None,
) -> list[System]:
    """What `config.baselines` names, in that order; sasrec-knn stands once for each quota, all on one SASRec.

    Args:
        config: names, quotas, sizes, seed.
        train_sequences: U int arrays of catalogue rows, oldest first, some perhaps empty.
        n_items: N.
        validation: cases that SASRec stops by; see there.
        vectors: of the N items' texts, float [N, D], for the baselines that go by text.

    Raises:
        UserError: a baseline lacks text vectors or its package, or there is too little to train it on.
    """
    names = [part for name in config.baselines for part in (SASREC_KNN if name == "sasrec-knn" else (name,))]
    made = {name: _make(name, config, validation, vectors) for name in names}
    fitted = {name: system.fit(train_sequences, n_items) for name, system in made.items()}
    systems: list[System] = []
    for name in config.baselines:
        if name == "sasrec-knn":
            sasrec, text_knn = (fitted[part] for part in SASREC_KNN)
            cold = np.flatnonzero(sasrec.popularity == 0)
            systems += [SASRecKNN(sasrec, text_knn, cold, quota, max(config.k)) for quota in config.quotas]
        else:
            systems.append(fitted[name])
    return systems


def _make(name: str, config: EvaluateConfig, validation: EvalExamples, vectors: np.ndarray | None) -> BaselineSystem:
    if name == "rpg":
        return RPG(config.rpg, validation, config.seed, vectors, fit_opq)
    if name in TRAINED:
        return TRAINED[name](getattr(config, name), validation, config.seed, vectors)
    if name == "lisa":
        return LISA(config.lisa, validation, config.seed, vectors)
    if name == "cornac-sasrec":
        return CornacSASRec(config.sasrec, validation, config.seed)
    if name == "decayed-markov":
        return DecayedMarkov(validation=validation)
    if name not in READS_TEXT:
        return COUNTING[name]()
    if vectors is None:
        raise UserError(
            f"--evaluate.baselines {' '.join(config.baselines)}: text-knn, sasrec-knn, smoothed-markov and "
            "cornac-tiger need text_vectors, the vectors of the items' texts"
        )
    if name == "cornac-tiger":
        return CornacTIGER(vectors, max(config.k), validation, config.seed)
    return SmoothedMarkov(vectors, validation=validation) if name == "smoothed-markov" else TextKNN(vectors)


class GenerativeSystem(System):
    """Ranks as its ranker does; a target that it does not return is not ranked.

    Args:
        ranker: of the model to measure.
        depth: how many items each user gets, the largest cut-off.
        name: in the report.
    """

    def __init__(self, ranker: ItemRanker, depth: int, name: str = OURS) -> None:
        self.ranker = ranker
        self.depth = depth
        self.name = name

    def answers(
        self, cases: EvalExamples, filter_seen: bool, among: np.ndarray | None = None, listed: int = 0
    ) -> Answers:
        """As `System.answers`, with the first `depth` items of each ranking: no other target is ranked."""
        parts = [Answers(np.empty(0), np.empty((0, listed), np.int64))]
        size = 8 * self.ranker.search.config.batch_size
        for start in track(range(0, len(cases), size), "decoding", unit="users"):
            histories, targets = cases.histories[start : start + size], cases.targets[start : start + size]
            requests = [self.ranker.prompt_ids(history) for history in histories]
            filters = None
            if filter_seen or among is not None:
                seen = histories if filter_seen else [history[:0] for history in histories]
                filters = [Filter(among, np.setdiff1d(h, t)) for h, t in zip(seen, targets, strict=True)]
            ranking = self.ranker.rank(requests, self.depth, filters)
            ranks = ranks_from_lists(ranking.items, ranking.scores, targets)
            parts.append(Answers(ranks, ranking.items[:, :listed].astype(np.int64)))
        return Answers.joined(parts)

    def decode_stats(self) -> dict[str, Any]:
        """As `ItemRanker.stats`."""
        return self.ranker.stats()


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        metrics: the contract of `metrics.json`.
        per_user: one row per user and system with the target's rank.
    """

    metrics: Metrics
    per_user: pl.DataFrame


@checked
def evaluate(
    recommender: Recommender,
    split: Split,
    config: EvaluateConfig | None = None,
    text_vectors: ArrayLike | None = None,
) -> Evaluation:
    """Full ranking of a recommender and the baselines on the same users, and of the cold items alone.

    Args:
        recommender: fitted on the training part of `split`.
        split: its log; baselines are fitted on its training part.
        config: part, cut-offs, baselines, filter; defaults of `EvaluateConfig`.
        text_vectors: of the recommender's items, float [N, D], for the baselines that go by text.

    Raises:
        UserError: no user has an event in the part and a history before it; a baseline lacks text vectors, or events
            to be trained on.
    """
    config, catalog, store = config or EvaluateConfig(), recommender.catalog, recommender.store
    baselines = fit_baselines(
        config,
        split.sequences(catalog).train_sequences(),
        len(catalog),
        split.validation_examples(catalog),
        vectors=None if text_vectors is None else as_vectors(text_vectors, "text_vectors", catalog.ids),
    )
    systems: list[System] = [*generative_systems(recommender, config)]
    systems += [*([] if store.experts is None else [store.experts]), *baselines]
    return measure(systems, catalog, split, config, [system.name for system in baselines])


def generative_systems(recommender: Recommender, config: EvaluateConfig) -> list["GenerativeSystem"]:
    """The recommender with its own ranking, as llmrec, and with each of `config.rankings`."""
    depth = _depth(recommender.ranker, config)
    return [
        GenerativeSystem(recommender.ranker, depth),
        *(GenerativeSystem(recommender.ranked_by(name), depth, name) for name in config.rankings),
    ]


def measure(
    systems: Sequence[System],
    catalog: Catalog,
    split: Split,
    config: EvaluateConfig,
    baselines: Sequence[str] = (),
) -> Evaluation:
    """Full ranking of fitted systems on the same cases.

    Args:
        systems: with distinct names, at least one.
        catalog: N items.
        split: its log.
        config: part, cut-offs, filter.
        baselines: names of the systems that the others are compared with.

    Raises:
        UserError: no user has an event in the part and a history before it.
    """
    sequences = split.sequences(catalog)
    cases = select_cases(sequences, config)
    if not len(cases):
        raise UserError(
            f"--evaluate.part {config.part}: no user has an event there and a history before it; "
            "see split.json for what was dropped, or choose another --data.split."
        )
    train_counts = sequences.train_counts(len(catalog))
    cold = np.flatnonzero(train_counts == 0)
    users = sum(len(sequence) > 0 for sequence in sequences.train_sequences())
    slices = make_slices(cases, sequences, len(catalog))
    protocol = _protocol(split) | {"items": len(catalog), "cold_items": len(cold)}
    metrics, ranks = evaluate_systems(systems, cases, slices, config, protocol, train_counts, users)
    values = {
        metric: {name: per_user(each, CUT)[metric] for name, each in ranks.items()} for metric in INTERVAL_METRICS
    }
    if paired := compare_systems(values, baselines, cases.users, config):
        metrics["paired"] = paired
    if cold_candidates := evaluate_cold_candidates(systems, cases, cold, config):
        metrics["cold_candidates"] = cold_candidates
    return Evaluation(metrics, cases.per_user_table(ranks, sequences.users, catalog.ids))


def compare_pair(a: np.ndarray, b: np.ndarray, users: np.ndarray, config: EvaluateConfig) -> dict[str, Any]:
    """As `paired_difference`, ready for JSON: `difference`, `interval`, `p`."""
    found = paired_difference(a, b, users, config.bootstrap, config.seed)
    return {"difference": found.mean, "interval": [found.low, found.high], "p": found.p}


def compare_systems(
    by_metric: Mapping[str, Mapping[str, np.ndarray]],
    baselines: Sequence[str],
    users: np.ndarray,
    config: EvaluateConfig,
) -> dict[str, Any]:
    """Paired differences on the same cases, by metric.

    Args:
        by_metric: metric -> system -> float64 [n], case by case.
        baselines: names of the systems that the others are compared with.
        users: int [n].
        config: resamples and seed.

    Returns:
        Metric -> `best`, `systems` (see `compare_with_best`), and, where the experts rank alone too, `experts`: what
        llmrec gains over them, which is the worth of its language model. Empty if there is nothing to compare.
    """
    found: dict[str, Any] = {}
    for metric, values in by_metric.items():
        entry: dict[str, Any] = {}
        if baselines and set(baselines) < values.keys():
            entry |= compare_with_best(values, baselines, users, config.bootstrap, config.seed)
        if {OURS, FusedExperts.name} <= values.keys():
            entry["experts"] = compare_pair(values[OURS], values[FusedExperts.name], users, config)
        if entry:
            found[metric] = entry
    return found


def _depth(ranker: ItemRanker, config: EvaluateConfig) -> int:
    """How many answers each user gets; said aloud where they take more beams than were asked for."""
    depth, beams = max(config.k), ranker.search.config.beams
    if beams < depth:
        log.warning("--decode.beams %d: widened to the %d answers of --evaluate.k %s.", beams, depth, config.k)
    return depth


def _protocol(split: Split) -> dict[str, Any]:
    """What the metrics say about the split: its kind, and how items and users came to be cold."""
    said = ("regime", "cold", "simulated_items", "cold_users")
    return {"split": split.protocol["kind"]} | {name: split.protocol[name] for name in said if name in split.protocol}
