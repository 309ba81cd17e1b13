"""Learn the weights of the fusion on validation examples; `collaborative/fusion.py` has the formulas."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np

from llmrec.collaborative.base import ndcg
from llmrec.collaborative.config import ExpertsConfig
from llmrec.collaborative.fusion import CUT, LEAST, Best, FusionWeights, fit_fusion
from llmrec.collaborative.ranker import LearnedRanker, Lists
from llmrec.console import get_logger, track
from llmrec.data import EvalExamples
from llmrec.decode.filters import Filter
from llmrec.decode.queries import Queries
from llmrec.decode.ranker import ItemRanker
from llmrec.decode.rankings.fusion import FusionRanking
from llmrec.decode.rankings.prompts import PromptRanking
from llmrec.decode.search import Prompt, Ranking

log = get_logger(__name__)


def calibrate(
    ranker: ItemRanker, examples: EvalExamples, floor: float, queries: Queries | None = None
) -> FusionWeights | None:
    """Learn the weights on n examples.

    Args:
        ranker: by fusion.
        examples: validation examples; the model was not trained on them.
        floor: least recall@10 of warm targets, as a multiple of that of the beams alone. If another ranking without
            weights (the dense head, two streams) has a higher NDCG@10 than the fusion, as a multiple of that ranking's.
        queries: requests in words, from which their own weights are learnt; as for `calibrate_prompts`.

    Returns:
        The weights; None if fewer than 20 examples have their warm target among the candidates. If fewer than 20 have
        their cold target there, cold items get the weights of warm items.
    """
    method, targets = _fusion(ranker), examples.targets
    items, features, single = gather(ranker, examples)
    is_cold = method.facts.is_cold
    beams, experts = _warm_recall(single["beam"], is_cold[targets]), method.facts.experts
    share = 0.0 if experts is None else experts.config.warm_floor
    learnt_on = items, features, targets, is_cold, method.features
    limits = floor * beams, share
    weights = fit_fusion(*learnt_on, *limits)
    if weights is None:
        log.warning("the fusion is not calibrated: fewer than %d validation examples found their target", LEAST)
        return None
    if is_cold.any() and weights.cold == weights.warm:
        log.info(
            "fusion: fewer than %d examples found a cold target: cold items weigh as warm ones; more examples have one "
            "with --data.cold.simulated_share 0.02",
            LEAST,
        )
    single["dense"] = _ranks(items, features[..., method.features.index("dense")], targets)
    chances = compare_rankings(*learnt_on, single, limits)
    if is_cold.any() and (best := best_ranking(chances)) in single and best != "beam":  # beams have their floor already
        limits = floor * _warm_recall(single[best], is_cold[targets]), share
        weights = fit_fusion(*learnt_on, *limits)
        assert weights is not None, "it has learnt from these examples before"
        chances = compare_rankings(*learnt_on, single, limits)
    learned = None
    if experts is not None and experts.config.learned:
        learned = _learned_order(ranker, examples, items, features, weights, experts.config)
    if learned is not None:
        chances["fusion"] = chances["fusion"] + learned.gain
    if experts is not None and experts.ranker is not None and "experts" in chances:
        chances["experts"] = chances["experts"] + experts.ranker.gain
    best = best_ranking(chances)
    compared = {f"ndcg@10_{name}": float(each.mean()) for name, each in chances.items()}
    measured = {"beam_recall@10_warm": beams, **weights.measured, **compared}
    log.info("fusion: %s", ", ".join(f"{name} {value:.4g}" for name, value in measured.items()))
    prompts = calibrate_prompts(ranker, queries) if queries else None
    in_words = asdict(prompts) if prompts else None
    order = None if learned is None else learned.content
    return replace(weights, measured=measured, learned=order, prompts=in_words, best=best)


def compare_rankings(
    items: np.ndarray,
    features: np.ndarray,
    targets: np.ndarray,
    is_cold: np.ndarray,
    names: Sequence[str],
    single: Mapping[Best, np.ndarray],
    limits: tuple[float, float],
) -> dict[Best, np.ndarray]:
    """NDCG@10 of n validation examples, float64 [n], by each of the rankings that `ranking: auto` may mean.

    The weights of a half of the examples rank the other half. Arguments are those of `fit_fusion`, whose least and
    share are the `limits`; `single` are the ranks of the targets, float64 [n], by rankings without weights. Where a
    half has too few examples to learn from, there is only the fusion, with zeros.
    """
    experts = [column for column, name in enumerate(names) if name.startswith("experts.")]
    columns: dict[Best, list[int]] = {"fusion": list(range(len(names)))}
    if experts:
        columns["experts"] = experts
    half = np.random.default_rng(0).permutation(len(targets)) % 2
    ranks = {name: np.full(len(targets), np.inf) for name in columns}
    for name, own in columns.items():
        for learn, rest in ((half == 0, half == 1), (half == 1, half == 0)):
            table = items[learn], features[learn][..., own], targets[learn]
            weights = fit_fusion(*table, is_cold, [names[column] for column in own], *limits)
            if weights is None:
                return {"fusion": np.zeros(len(targets))}
            ranks[name][rest] = _ranks(
                items[rest], weights.scores(features[rest][..., own], is_cold[items[rest]]), targets[rest]
            )
    return {name: ndcg(each, CUT) for name, each in (ranks | dict(single)).items()}


def best_ranking(chances: Mapping[Best, np.ndarray]) -> Best:
    """The ranking with the largest mean of float64 [n]. The fusion, which has all that the others have, is kept unless
    one is better by more than the standard error of the paired difference."""
    differences = {name: each - chances["fusion"] for name, each in chances.items()}
    error = {name: each.std() / np.sqrt(max(len(each), 1)) for name, each in differences.items()}
    ahead = {name: each.mean() for name, each in differences.items() if each.mean() > error[name]}
    return max(ahead, key=lambda name: ahead[name], default="fusion")


def _warm_recall(ranks: np.ndarray, cold_target: np.ndarray) -> float:
    """Recall@10 of the targets with ranks float64 [n] that are not cold; 0 if all are."""
    warm = ranks[~cold_target]
    return float((warm <= CUT).mean()) if len(warm) else 0.0


def _ranks(items: np.ndarray, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Ranks of the targets among the candidates int64 [n, M], ties against them: float64 [n], inf for no candidate."""
    hits = items == targets[:, None]
    own = np.where(hits, scores, -np.inf).max(axis=1)
    ahead = ((scores >= own[:, None]) & (items >= 0) & ~hits).sum(axis=1)
    return np.where(hits.any(axis=1), 1.0 + ahead, np.inf)


def _learned_order(
    ranker: ItemRanker,
    examples: EvalExamples,
    items: np.ndarray,
    features: np.ndarray,
    weights: FusionWeights,
    config: ExpertsConfig,
) -> LearnedRanker | None:
    """A learned order of the best candidates; None if it would not help."""
    method, targets = _fusion(ranker), examples.targets
    lengths = np.array([len(ranker.renderer.shown(history)) for history in examples.histories])
    is_cold = method.facts.is_cold[items]
    scores = np.where(items >= 0, weights.scores(features, is_cold), -np.inf).astype(np.float32)
    lists = Lists.best(scores, features, is_cold, lengths)
    listed = np.where(lists.items >= 0, np.take_along_axis(items, np.maximum(lists.items, 0), axis=1), -1)
    hits = listed == targets[:, None]
    found = hits.any(axis=1)
    return LearnedRanker.fit(lists.where(found), hits[found], config.seed, config.warm_floor, len(targets))


def gather(ranker: ItemRanker, examples: EvalExamples) -> tuple[np.ndarray, np.ndarray, dict[Best, np.ndarray]]:
    """The candidates of n examples; items of the history are left out unless they are the target.

    Returns:
        Candidates int64 [n, M] (-1 for none), their features float32 [n, M, F], and the target's rank by the beams
        alone (`beam`) and by two streams, where there are two (`streams`), float64 [n], inf if it is not among the
        first 10.
    """
    method, targets = _fusion(ranker), examples.targets
    prompts = [ranker.prompt_ids(history) for history in examples.histories]
    filters = [Filter(excluded=np.setdiff1d(h, t)) for h, t in zip(examples.histories, targets, strict=True)]
    return _gather(method, prompts, targets, filters)


def calibrate_prompts(ranker: ItemRanker, queries: Queries) -> FusionWeights | None:
    """Learn the weights of `PromptRanking` on n requests in words.

    Args:
        ranker: by any method; its facts have a dense head and the items' texts.
        queries: that the model was not trained on.

    Returns:
        The weights; None if fewer than 20 requests have their warm item among the candidates.
    """
    own = ranker.method
    assert own is not None, "a ranker with facts"
    method = PromptRanking(own.search, own.facts, own.config)
    prompts = [ranker.prompt_ids(query=text) for text in queries.texts]
    items, features, _ = _gather(method, prompts, queries.targets, [Filter()] * len(queries))
    weights = fit_fusion(items, features, queries.targets, method.facts.is_cold, method.features)
    if weights is None:
        log.warning("the fusion is not calibrated for requests in words: fewer than %d found their item", LEAST)
    return weights


def _gather(
    method: FusionRanking, prompts: Sequence[Prompt], targets: np.ndarray, filters: Sequence[Filter]
) -> tuple[np.ndarray, np.ndarray, dict[Best, np.ndarray]]:
    """As `gather`, of n prompts with targets int64 [n]."""
    batches = list(method.search.batches(prompts))
    names: list[Best] = ["beam"] if method.facts.behaviour is None else ["streams", "beam"]
    found, ranks = [], {name: np.full(len(prompts), np.inf) for name in names}
    for chosen in track(batches, "calibrating the fusion", unit="batches"):
        prefilled = method.search.prefill([prompts[i] for i in chosen])
        scored = method.scored(prefilled, 2 * CUT, [filters[i] for i in chosen])
        lists: dict[Best, Ranking | None] = {"streams": scored.streams, "beam": scored.beams}
        for name, ranking in lists.items():
            if ranking is not None:
                hits = ranking.items[:, :CUT] == targets[chosen, None]
                ranks[name][chosen] = np.where(hits.any(axis=1), 1.0 + hits.argmax(axis=1), np.inf)
        found.append((chosen, scored))
    width = max((scored.items.shape[1] for _, scored in found), default=0)
    items = np.full((len(prompts), width), -1, np.int64)
    features = np.zeros((len(prompts), width, len(method.features)), np.float32)
    for chosen, scored in found:
        items[chosen, : scored.items.shape[1]] = scored.items
        features[chosen, : scored.items.shape[1]] = scored.features
    return items, features, ranks


def _fusion(ranker: ItemRanker) -> FusionRanking:
    if not isinstance(ranker.method, FusionRanking):
        raise ValueError("expected a ranker by fusion")
    return ranker.method
