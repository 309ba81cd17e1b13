"""llmrec itself under the evaluator, beside the baselines."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from llmrec.console import get_logger, track
from llmrec.data import EvalExamples, Split
from llmrec.decode.filters import Filter
from llmrec.decode.ranker import ItemRanker
from llmrec.errors import UserError
from llmrec.evaluation.baselines import fit_baselines
from llmrec.evaluation.config import EvaluateConfig
from llmrec.evaluation.metrics import ranks_from_lists
from llmrec.evaluation.protocol import (
    OURS,
    Metrics,
    System,
    evaluate_cold_candidates,
    evaluate_systems,
    make_slices,
    per_user_table,
    select_cases,
)
from llmrec.recommender.recommender import Recommender

log = get_logger(__name__)


class GenerativeSystem:
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

    def ranks(self, cases: EvalExamples, filter_seen: bool, among: np.ndarray | None = None) -> np.ndarray:
        """Rank of each case's target, float64 [n], inf where it is not among the answers; `among` as in `System`."""
        result = np.empty(len(cases))
        size = 8 * self.ranker.search.config.batch_size
        for start in track(range(0, len(cases), size), "decoding"):
            chosen = slice(start, start + size)
            histories, targets = cases.histories[chosen], cases.targets[chosen]
            requests = [self.ranker.prompt_ids(history) for history in histories]
            filters = None
            if filter_seen or among is not None:
                seen = histories if filter_seen else [history[:0] for history in histories]
                filters = [Filter(among, np.setdiff1d(h, t)) for h, t in zip(seen, targets, strict=True)]
            ranking = self.ranker.rank(requests, self.depth, filters)
            result[chosen] = ranks_from_lists(ranking.items, ranking.scores, targets)
        return result

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


def evaluate(
    recommender: Recommender,
    split: Split,
    config: EvaluateConfig | None = None,
    text_vectors: np.ndarray | None = None,
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
    config = config or EvaluateConfig()
    catalog = recommender.catalog
    sequences = split.sequences(catalog)
    cases = select_cases(sequences, config)
    if not len(cases):
        raise UserError(
            f"--evaluate.part {config.part}: no user has an event there and a history before it; "
            "see split.json for what was dropped, or choose another --data.split."
        )
    cold = np.flatnonzero(sequences.train_counts(len(catalog)) == 0)
    depth = _depth(recommender.ranker, config)
    systems: list[System] = [
        GenerativeSystem(recommender.ranker, depth),
        *(GenerativeSystem(recommender.ranked_by(name), depth, name) for name in config.rankings),
        *fit_baselines(
            config, sequences.train_sequences(), len(catalog), split.validation_examples(catalog), vectors=text_vectors
        ),
    ]
    slices = make_slices(cases, sequences, len(catalog))
    protocol = _protocol(split) | {"items": len(catalog), "cold_items": len(cold)}
    metrics, ranks = evaluate_systems(systems, cases, slices, config, protocol)
    if cold_candidates := evaluate_cold_candidates(systems, cases, cold, config):
        metrics["cold_candidates"] = cold_candidates
    return Evaluation(metrics, per_user_table(ranks, cases, sequences, catalog))


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
