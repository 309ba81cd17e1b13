"""llmrec itself under the evaluator, beside the baselines."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl

from llmrec.console import get_logger, track
from llmrec.data import Cases, Catalog, Split
from llmrec.decode.filters import Filter
from llmrec.decode.ranker import ItemRanker
from llmrec.errors import UserError
from llmrec.evaluate.baselines import BASELINES
from llmrec.evaluate.config import EvaluateConfig
from llmrec.evaluate.metrics import ranks_from_lists
from llmrec.evaluate.protocol import (
    Metrics,
    System,
    evaluate_systems,
    per_user_table,
    select_cases,
    warm_cold_slices,
)

log = get_logger(__name__)


class GenerativeSystem:
    """Ranks by beam search; a target that no beam reaches is not ranked.

    Args:
        ranker: of the model to measure.
        depth: how many items each user gets, the largest cut-off.
    """

    name = "llmrec"

    def __init__(self, ranker: ItemRanker, depth: int) -> None:
        self.ranker = ranker
        self.depth = depth

    def ranks(self, cases: Cases, filter_seen: bool) -> np.ndarray:
        """Rank of each case's target, float64 [n], inf where it is not among the answers."""
        result = np.empty(len(cases))
        size = 8 * self.ranker.search.config.batch_size
        for start in track(range(0, len(cases), size), "decoding"):
            chosen = slice(start, start + size)
            histories, targets = cases.histories[chosen], cases.targets[chosen]
            requests = [self.ranker.prompt_ids(history) for history in histories]
            filters = None
            if filter_seen:
                filters = [Filter(excluded=np.setdiff1d(h, t)) for h, t in zip(histories, targets, strict=True)]
            ranking = self.ranker.rank(requests, self.depth, filters)
            result[chosen] = ranks_from_lists(ranking.items, ranking.scores, targets)
        return result

    def decode_stats(self) -> dict[str, Any]:
        """As `ItemRanker.stats`."""
        return self.ranker.stats()


class HasRanker(Protocol):
    """A recommender, as far as measuring it goes."""

    @property
    def catalog(self) -> Catalog: ...

    @property
    def ranker(self) -> ItemRanker: ...


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        metrics: the contract of `metrics.json`.
        per_user: one row per user and system with the target's rank.
    """

    metrics: Metrics
    per_user: pl.DataFrame


def evaluate(recommender: HasRanker, split: Split, config: EvaluateConfig | None = None) -> Evaluation:
    """Full ranking of a recommender and the baselines on the same users.

    Args:
        recommender: fitted on the training part of `split`.
        split: its log; baselines are fitted on its training part.
        config: part, cut-offs, baselines, filter; defaults of `EvaluateConfig`.

    Raises:
        UserError: no user has an event in the part and a history before it.
    """
    config = config or EvaluateConfig()
    catalog = recommender.catalog
    sequences = split.sequences(catalog)
    cases = select_cases(sequences, config)
    if not len(cases):
        raise UserError(
            f"--evaluate.part {config.part}: no user has an event there and a history before it; "
            "see split.json for what was dropped, or choose another --data.split."
        )
    train = sequences.train_sequences()
    systems: list[System] = [BASELINES[name]().fit(train, len(catalog)) for name in config.baselines]
    systems.insert(0, GenerativeSystem(recommender.ranker, _depth(recommender.ranker, config)))
    metrics, ranks = evaluate_systems(
        systems,
        cases,
        warm_cold_slices(cases, sequences.train_counts(len(catalog))),
        config,
        {"split": split.protocol["kind"], "items": len(catalog)},
    )
    return Evaluation(metrics, per_user_table(ranks, cases, sequences, catalog))


def _depth(ranker: ItemRanker, config: EvaluateConfig) -> int:
    """How many answers each user gets; said aloud where they take more beams than were asked for."""
    depth, beams = max(config.k), ranker.search.config.beams
    if beams < depth:
        log.warning("--decode.beams %d: widened to the %d answers of --evaluate.k %s.", beams, depth, config.k)
    return depth
