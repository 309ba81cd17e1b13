"""One ranking of several experts: an item's score is a weighted sum of what each expert says of it.

A conditional logit (McFadden 1974) learns one weight per feature: it maximises the probability of the target among the
candidates. Warm items (with training events) and cold items (without) have weights of their own.

Cold items also get a bonus b. A larger b raises the recall of cold targets and lowers that of warm ones:

    b = argmax recall@10(warm; b) * recall@10(cold; b)    subject to    recall@10(warm; b) >= least

The product is Nash's solution of a bargain (1950). It needs no exchange rate between the two kinds.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from llmrec.console import get_logger
from llmrec.errors import UserError

log = get_logger(__name__)

LEAST = 20
"""Examples of a kind that weights are learnt from at least."""
CUT = 10
"""Cut-off of the recall."""
Best = Literal["fusion", "experts", "dense", "streams", "beam"]
"""Rankings of a bundle, of which validation chooses."""


@dataclass(frozen=True)
class FusionWeights:
    """An item's score is the weighted sum of its F features, plus a bonus if the item is cold (has no training events).

    Attributes:
        warm: one weight per feature, for warm items.
        cold: the same for cold items.
        bonus: added to the score of cold items.
        measured: what the calibration measured, for the record.
        features: their names.
        learned: what `LearnedRanker.content` gives, if the best items are put into a learned order; else None.
        prompts: the fields of the weights for requests in words, where they have been learnt; else None.
        best: the ranking that was best on validation, which `ranking: auto` means.
    """

    warm: list[float]
    cold: list[float]
    bonus: float
    measured: dict[str, float]
    features: Sequence[str]
    learned: dict[str, Any] | None = None
    prompts: dict[str, Any] | None = None
    best: Best = "fusion"

    def scores(self, features: np.ndarray, is_cold: np.ndarray) -> np.ndarray:
        """Float [...]: scores of items with features [..., F]; `is_cold`, bool [...], marks the cold ones."""
        return np.where(is_cold, features @ np.array(self.cold) + self.bonus, features @ np.array(self.warm))

    def save(self, path: Path) -> None:
        """Write JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            UserError: the file is damaged.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return cls.of({{"trained": "warm", "new": "cold"}.get(name, name): raw[name] for name in raw})  # 0.1
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path}: not fusion weights that llmrec saved: {error}.") from None

    @classmethod
    def of(cls, raw: dict[str, Any], names: Sequence[str] | None = None) -> Self:
        """The weights with these fields.

        Raises:
            ValueError, TypeError: a field is missing, unknown or no number, or the features are not `names`.
        """
        weights = cls(**raw)
        numbers = [*weights.warm, *weights.cold, weights.bonus]
        if any(isinstance(number, bool | str) for number in numbers):
            raise ValueError("expected numbers")
        if not isinstance(weights.features, list) or not all(isinstance(name, str) for name in weights.features):
            raise ValueError("expected names of features")
        if len(numbers) != 2 * len(weights.features) + 1 or not np.isfinite(np.array(numbers, float)).all():
            raise ValueError("expected one finite number per feature")
        if not isinstance(weights.prompts, dict | None):
            raise ValueError("expected the fields of weights in prompts")
        if weights.best not in get_args(Best):
            raise ValueError(f"expected best to be one of {', '.join(get_args(Best))}")
        if names is not None and weights.features != list(names):
            raise ValueError(f"weights of {', '.join(weights.features)}, expected {', '.join(names)}")
        return weights


def fit_fusion(
    items: np.ndarray,
    features: np.ndarray,
    targets: np.ndarray,
    is_cold: np.ndarray,
    names: Sequence[str],
    least: float = 0.0,
    share: float = 0.0,
) -> FusionWeights | None:
    """Learn the weights on n examples.

    Args:
        items: int64 [n, M], candidates, -1 for none.
        features: float [n, M, F].
        targets: int64 [n].
        is_cold: bool [N].
        names: of the F features.
        least: least recall@10 of warm targets.
        share: the same as a share of the recall@10 that warm targets have without any cold item.

    Returns:
        The weights; None if fewer than 20 examples have their warm target among the candidates. If fewer than 20 have
        their cold target there, cold items get the weights of warm items.
    """
    cold_target = is_cold[targets]
    cold_candidate, there = is_cold[np.maximum(items, 0)], items >= 0
    warm = fit_weights(items, features, targets, there & ~cold_candidate, ~cold_target)
    if warm is None:
        return None
    cold = fit_weights(items, features, targets, there & cold_candidate, cold_target)
    if cold is None:
        if is_cold.any():
            log.debug("fewer than %d examples found a cold target: cold items weigh as warm ones", LEAST)
        cold = warm
    weights = FusionWeights(warm.tolist(), cold.tolist(), 0.0, {}, list(names))
    limits = bonus_limits(weights, items, features, targets, is_cold)
    alone = float((limits[~cold_target] > -np.inf).mean())
    bonus = best_bonus(limits, cold_target, max(least, share * alone))
    measured = {
        "warm_examples": int((~cold_target).sum()),
        "cold_examples": int(cold_target.sum()),
        "recall@10_warm_alone": alone,
        "recall@10_warm": float((limits[~cold_target] > bonus).mean()),
    }
    if cold_target.any():
        measured["recall@10_cold"] = float((limits[cold_target] < bonus).mean())
    return FusionWeights(weights.warm, weights.cold, bonus, measured, list(names))


def bonus_limits(
    weights: FusionWeights, items: np.ndarray, features: np.ndarray, targets: np.ndarray, is_cold: np.ndarray
) -> np.ndarray:
    """The bonus at which each target enters or leaves the first 10, float64 [n].

    A warm target is among the first 10 for every bonus below its limit, a cold target for every bonus above it. A warm
    target that is never among them has the limit -inf, a cold one inf.

    Args:
        weights: of the features; their own bonus is ignored.
        items: int64 [n, M], candidates, -1 for none.
        features: float [n, M, F].
        targets: int64 [n].
        is_cold: bool [N].
    """
    cold_candidate = is_cold[np.maximum(items, 0)]
    scores = weights.scores(features, cold_candidate) - weights.bonus * cold_candidate
    return limits_of(np.where(items >= 0, scores, -np.inf), cold_candidate, items == targets[:, None], is_cold[targets])


def limits_of(
    scores: np.ndarray, is_cold: np.ndarray, hits: np.ndarray, cold_target: np.ndarray | None = None
) -> np.ndarray:
    """As `bonus_limits`, of candidates with scores.

    Args:
        scores: float [n, M], without any bonus; -inf for no candidate.
        is_cold: bool [n, M].
        hits: bool [n, M], the candidate that is the target, at most one per row.
        cold_target: bool [n]; needed if the target of a row may not be among its candidates.
    """
    if cold_target is None:
        cold_target = (hits & is_cold).any(axis=1)
    limits = np.where(cold_target, np.inf, -np.inf)
    for row in np.flatnonzero(hits.any(axis=1)):
        own = scores[row, hits[row].argmax()]
        same_kind = is_cold[row] == cold_target[row]
        same = scores[row][same_kind]
        others = np.sort(scores[row][~same_kind])[::-1]
        ahead = int((same >= own).sum()) - 1
        if ahead < CUT:
            room = CUT - 1 - ahead  # items of the other kind that may stand before the target
            rival = others[room] if room < len(others) else -np.inf
            limits[row] = rival - own if cold_target[row] else own - rival
    return limits


POINTS = 41
"""Number of points of a frontier."""


def frontier_of(limits: np.ndarray, cold_target: np.ndarray, bonus: float) -> dict[str, Any]:
    """Recall@10 of warm and of cold targets as a curve over the bonus of cold items.

    Args:
        limits: float64 [n], as `bonus_limits` gives them.
        cold_target: bool [n].
        bonus: the calibrated one.

    Returns:
        `targets`, the numbers of warm and cold targets; `points`, each with `bonus` and the recall@10 `warm` and
        `cold`, from the bonus with the most warm hits to the bonus with the most cold hits; and `calibrated`, the point
        of the calibrated bonus.
    """
    warm, cold = limits[~cold_target], limits[cold_target]

    def point(bonus: float) -> dict[str, float]:
        return {"bonus": bonus, "warm": float((warm > bonus).mean()), "cold": float((cold < bonus).mean())}

    turns = limits[np.isfinite(limits)]
    grid = np.quantile(turns, np.linspace(0, 1, POINTS)) if len(turns) else np.zeros(POINTS)
    grid[[0, -1]] = np.nextafter(grid[0], -np.inf), np.nextafter(grid[-1], np.inf)  # below and above all limits
    return {
        "targets": {"warm": len(warm), "cold": len(cold)},
        "calibrated": point(bonus),
        "points": [point(float(bonus)) for bonus in grid],
    }


def best_bonus(limits: np.ndarray, cold_target: np.ndarray, least: float) -> float:
    """The bonus with the greatest product of warm and cold recall, among those with a warm recall of at least `least`.

    Args:
        limits: float64 [n], as `bonus_limits` gives them.
        cold_target: bool [n]; if no target is cold, the bonus is 0, or less where `least` demands it.
        least: share of the warm targets; if no bonus reaches it, the share that is reached without any cold item.
    """
    warm, cold = np.sort(limits[~cold_target]), np.sort(limits[cold_target])
    most = largest_bonus(warm, min(least, float((warm > -np.inf).mean())))
    # The product changes only where a cold target enters: just above each of their limits, and below all limits.
    below = np.nextafter(limits[np.isfinite(limits)].min(initial=0.0), -np.inf)
    tried = np.append(np.nextafter(cold[np.isfinite(cold)], np.inf), below)
    tried = tried[tried <= most]
    warm_hits = len(warm) - np.searchsorted(warm, tried, side="right")
    product = warm_hits * np.searchsorted(cold, tried)
    return float(tried[product.argmax()]) if product.any() else min(0.0, most)


def largest_bonus(limits: np.ndarray, least: float) -> float:
    """The largest bonus at which a share `least` of the warm targets is among the first 10; inf if any bonus is.

    Args:
        limits: float64 [n], of warm targets; a target is among the first 10 for every bonus below its limit.
        least: a share of the n targets, not more than the share with a limit above -inf.
    """
    needed = int(np.ceil(least * len(limits) - 1e-9)) - int(np.isposinf(limits).sum())
    if needed <= 0:
        return np.inf
    return float(np.nextafter(np.sort(limits[np.isfinite(limits)])[-needed], -np.inf))


def fit_weights(
    items: np.ndarray, features: np.ndarray, targets: np.ndarray, among: np.ndarray, examples: np.ndarray
) -> np.ndarray | None:
    """Weights float64 [F], learnt from the `examples` (bool [n]) whose target is one of the candidates `among` (bool
    [n, M]); None if these are fewer than 20."""
    hit = (items == targets[:, None]) & among
    rows = np.flatnonzero(examples & hit.any(axis=1))
    if len(rows) < LEAST:
        return None
    x, y, open_ = features[rows].astype(np.float64), hit[rows].argmax(axis=1), among[rows]
    # A feature that is the same for all candidates says nothing, and gets the weight 0.
    spread, size = x[open_].std(axis=0), np.abs(x[open_]).max(axis=0)
    scale = np.where(spread > 1e-6 * size, spread, np.inf)
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
