"""Learn the weights of the fusion on validation cases, some of which have new items as targets.

Weights are those of a conditional logit (McFadden 1974): the likelihood that the target comes out among the candidates,
for trained and for new items apart. The bonus of new items is then the one with the greatest product of the recall@10
of both kinds, which is Nash's solution of a bargain (1950) and asks for no exchange rate between them, among those that
leave trained items `floor` times the recall@10 of the beams alone.
"""

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from llmrec.console import get_logger, track
from llmrec.data import Cases
from llmrec.decode.filters import Filter
from llmrec.decode.ranker import ItemRanker
from llmrec.decode.rankings.base import FEATURES, FusionWeights
from llmrec.decode.rankings.fusion import FusionRanking

log = get_logger(__name__)
LEAST = 20
"""Validation cases of a kind, at least, that weights are learnt from."""
CUT = 10
"""Of the recall that the floor is about."""


def calibrate(ranker: ItemRanker, cases: Cases, floor: float) -> FusionWeights | None:
    """Weights learnt on n cases; None if there are too few of them. Where too few have a new item as target, new items
    are weighed as the others.

    Args:
        ranker: by fusion.
        cases: that the model was not trained on.
        floor: as above.
    """
    method, targets = _fusion(ranker), cases.targets
    items, features, beam_hits = gather(ranker, cases)
    new = method.facts.new
    is_new = new[targets]
    sides, there = new[np.maximum(items, 0)], items >= 0
    trained = _fit(items, features, targets, there & ~sides, ~is_new)
    if trained is None:
        log.warning("the fusion is not calibrated: fewer than %d validation cases found their target", LEAST)
        return None
    fresh = _fit(items, features, targets, there & sides, is_new)
    if fresh is None:
        log.info("fusion: fewer than %d validation cases found a new item: new items are weighed as the others", LEAST)
        fresh = trained
    weights = FusionWeights(trained.tolist(), fresh.tolist(), 0.0, {})
    bars = bonus_bars(weights, items, features, targets, new)
    beams = float(beam_hits[~is_new].mean())
    bonus = fair_bonus(bars, is_new, floor * beams)
    measured = {
        "trained_cases": int((~is_new).sum()),
        "new_cases": int(is_new.sum()),
        "beam_recall@10_trained": beams,
        "recall@10_trained": float((bars[~is_new] > bonus).mean()),
    }
    if is_new.any():
        measured["recall@10_new"] = float((bars[is_new] < bonus).mean())
    log.info("fusion: %s", ", ".join(f"{name} {value:.4g}" for name, value in measured.items()))
    return FusionWeights(weights.trained, weights.new, bonus, measured)


def bonus_bars(
    weights: FusionWeights, items: np.ndarray, features: np.ndarray, targets: np.ndarray, new: np.ndarray
) -> np.ndarray:
    """The bonus of new items at which each of n cases turns, whatever that of `weights`: float64 [n].

    A trained target is among the first 10 below it, a new one above it; -inf (trained) or inf (new) if never.

    Args:
        weights: of the features.
        items: int64 [n, M], candidates, -1 for none.
        features: float [n, M, 4].
        targets: int64 [n].
        new: bool [N].
    """
    sides = new[np.maximum(items, 0)]
    scores = weights.scores(features, sides) - weights.bonus * sides
    scores = np.where(items >= 0, scores, -np.inf)
    bars = np.empty(len(targets))
    for case, target in enumerate(targets):
        side = sides[case]
        at = np.flatnonzero(items[case] == target)
        never = np.inf if new[target] else -np.inf
        if not len(at):
            bars[case] = never
            continue
        own = scores[case, at[0]]
        same = np.sort(scores[case][side == new[target]])[::-1]
        others = np.sort(scores[case][side != new[target]])[::-1]
        ahead = int((same >= own).sum()) - 1
        if ahead >= CUT:
            bars[case] = never
            continue
        room = CUT - 1 - ahead  # others that may stand before it
        rival = others[room] if room < len(others) else -np.inf
        bars[case] = rival - own if new[target] else own - rival
    return bars


def fair_bonus(bars: np.ndarray, is_new: np.ndarray, least: float) -> float:
    """The bonus with the greatest product of both kinds' recall, among those that leave trained targets `least`.

    Args:
        bars: float64 [n], of `bonus_bars`.
        is_new: bool [n], cases with new targets; without any, the bonus is 0 or what trained targets bear.
        least: recall of trained targets; where it is out of reach, what they have without any new item.
    """
    trained, new = np.sort(bars[~is_new]), np.sort(bars[is_new])
    limit = largest_bonus(trained, min(least, float((trained > -np.inf).mean())))
    before = np.nextafter(bars[np.isfinite(bars)].min(initial=0.0), -np.inf)
    found = np.append(np.nextafter(new[np.isfinite(new)], np.inf), before)  # right behind every turn, and before any
    found = found[found <= limit]
    kept = len(trained) - np.searchsorted(trained, found, side="right")
    product = kept * np.searchsorted(new, found)
    return float(found[product.argmax()]) if product.any() else min(0.0, limit)


def largest_bonus(bars: np.ndarray, least: float) -> float:
    """The largest bonus at which the share of `bars` [n] above it is at least `least`, which is in reach of all above
    -inf; inf if none is too large."""
    needed = int(np.ceil(least * len(bars) - 1e-9)) - int(np.isposinf(bars).sum())
    if needed <= 0:
        return np.inf
    return float(np.nextafter(np.sort(bars[np.isfinite(bars)])[-needed], -np.inf))


def gather(ranker: ItemRanker, cases: Cases) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Candidates of n cases, int64 [n, M], their features [n, M, 4], and whether the beams alone have the target among
    the first 10, bool [n]. What stands in a history is left out, the target excepted."""
    method, targets = _fusion(ranker), cases.targets
    prompts = [ranker.prompt_ids(history) for history in cases.histories]
    filters = [Filter(excluded=np.setdiff1d(h, t)) for h, t in zip(cases.histories, targets, strict=True)]
    batches = list(method.search.batches(prompts))
    found, hits = [], np.zeros(len(prompts), bool)
    for chosen in track(batches, "asking all that know items", total=len(batches)):
        opened = method.search.open([prompts[i] for i in chosen])
        scored = method.scored(opened, 2 * CUT, [filters[i] for i in chosen])
        hits[chosen] = (scored.beams.items[:, :CUT] == targets[chosen, None]).any(axis=1)
        found.append((chosen, scored))
    width = max((scored.items.shape[1] for _, scored in found), default=0)
    items = np.full((len(prompts), width), -1, np.int64)
    features = np.zeros((len(prompts), width, len(FEATURES)), np.float32)
    for chosen, scored in found:
        items[chosen, : scored.items.shape[1]] = scored.items
        features[chosen, : scored.items.shape[1]] = scored.features
    return items, features, hits


def _fusion(ranker: ItemRanker) -> FusionRanking:
    if not isinstance(ranker.method, FusionRanking):
        raise ValueError("expected a ranker by fusion")
    return ranker.method


def _fit(
    items: np.ndarray, features: np.ndarray, targets: np.ndarray, among: np.ndarray, cases: np.ndarray
) -> np.ndarray | None:
    """Weights [4] of the `cases` bool [n] whose target is a candidate; candidates are those `among`, bool [n, M]."""
    hit = (items == targets[:, None]) & among
    rows = np.flatnonzero(cases & hit.any(axis=1))
    if len(rows) < LEAST:
        return None
    x, y, open_ = features[rows].astype(np.float64), hit[rows].argmax(axis=1), among[rows]
    scale = x[open_].std(axis=0) + 1e-9
    x = x / scale

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        scores = np.where(open_, x @ weights, -np.inf)
        total = logsumexp(scores, axis=1)
        share = np.exp(scores - total[:, None])
        right = np.arange(len(rows)), y
        gradient = (share[..., None] * x).sum(axis=1) - x[right]
        ridge = 1e-3 * weights
        return float((total - scores[right]).mean() + 0.5 * ridge @ weights), gradient.mean(axis=0) + ridge

    return np.asarray(minimize(loss, np.zeros(x.shape[2]), jac=True, method="L-BFGS-B").x / scale)
