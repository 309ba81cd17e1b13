"""One ranking of several experts: an item's score is a weighted sum of what each expert says of it.

A conditional logit (McFadden 1974) learns one weight per feature: it maximises the probability of the target among the
candidates. Warm items (with training events) and cold items (without) have weights of their own.

Cold items also get a bonus b. A larger b raises the recall of cold targets and lowers that of warm ones:

    b = argmax recall@10(warm; b) * recall@10(cold; b)    subject to    recall@10(warm; b) >= least

The product is Nash's solution of a bargain (1950). It needs no exchange rate between the two kinds.

The best hundred items of a fused ranking can be ordered anew by LambdaRank (Burges 2010) with LightGBM's trees:

    ranker = LearnedRanker.fit(values, fused, is_cold, lengths, hits, seed=0)
    ranker.order(values, fused, is_cold, lengths)    # int64 [n, M], the list's places in their new order
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from llmrec.console import get_logger
from llmrec.errors import UserError

LEAST = 20
"""Examples of a kind that weights are learnt from at least."""
CUT = 10
"""Cut-off of the recall."""


@dataclass(frozen=True)
class FusionWeights:
    """An item's score is the weighted sum of its F features, plus a bonus if the item is cold (has no training events).

    Attributes:
        warm: one weight per feature, for warm items.
        cold: the same for cold items.
        bonus: added to the score of cold items.
        measured: what the calibration measured, for the record.
        features: their names.
    """

    warm: list[float]
    cold: list[float]
    bonus: float
    measured: dict[str, float]
    features: Sequence[str]

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
            weights = cls(**{{"trained": "warm", "new": "cold"}.get(name, name): raw[name] for name in raw})  # 0.1
            numbers = [*weights.warm, *weights.cold, weights.bonus]
            if any(isinstance(number, bool | str) for number in numbers):
                raise ValueError("expected numbers")
            if not all(isinstance(name, str) for name in weights.features):
                raise ValueError("expected names of features")
            if len(numbers) != 2 * len(weights.features) + 1 or not np.isfinite(np.array(numbers, float)).all():
                raise ValueError("expected one finite number per feature")
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path}: not fusion weights that llmrec saved: {error}.") from None
        return weights


def fit_fusion(
    items: np.ndarray,
    features: np.ndarray,
    targets: np.ndarray,
    is_cold: np.ndarray,
    least: float,
    names: Sequence[str],
) -> FusionWeights | None:
    """Learn the weights on n examples.

    Args:
        items: int64 [n, M], candidates, -1 for none.
        features: float [n, M, F].
        targets: int64 [n].
        is_cold: bool [N].
        least: least recall@10 of warm targets.
        names: of the F features.

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
        cold = warm
    weights = FusionWeights(warm.tolist(), cold.tolist(), 0.0, {}, list(names))
    limits = bonus_limits(weights, items, features, targets, is_cold)
    bonus = best_bonus(limits, cold_target, least)
    measured = {
        "warm_examples": int((~cold_target).sum()),
        "cold_examples": int(cold_target.sum()),
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
    scores = np.where(items >= 0, scores, -np.inf)
    limits = np.empty(len(targets))
    for row, target in enumerate(targets):
        never = np.inf if is_cold[target] else -np.inf
        at = np.flatnonzero(items[row] == target)
        if not len(at):
            limits[row] = never
            continue
        own = scores[row, at[0]]
        same_kind = cold_candidate[row] == is_cold[target]
        same = np.sort(scores[row][same_kind])[::-1]
        others = np.sort(scores[row][~same_kind])[::-1]
        ahead = int((same >= own).sum()) - 1
        if ahead >= CUT:
            limits[row] = never
            continue
        room = CUT - 1 - ahead  # items of the other kind that may stand before the target
        rival = others[room] if room < len(others) else -np.inf
        limits[row] = rival - own if is_cold[target] else own - rival
    return limits


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


log = get_logger(__name__)

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


class LearnedRanker:
    """Trees that order a list of M candidates.

    Args:
        booster: of LightGBM.
    """

    def __init__(self, booster: Any) -> None:
        self.booster = booster

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
        try:
            import lightgbm
        except ImportError:
            raise UserError("--experts.learned true needs lightgbm: pip install 'llmrec[ranker]'.") from None
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
        ranker = cls(booster)
        order = ranker.order(values[decide], fused[decide], is_cold[decide], lengths[decide])
        gain = _ndcg(np.take_along_axis(hits[decide], order, axis=1)) - _ndcg(hits[decide])
        worth = gain.mean() > gain.std() / np.sqrt(len(gain))
        log.info("learned ranker: NDCG@10 %+.4f on %d lists%s", gain.mean(), len(gain), "" if worth else "; left out")
        return ranker if worth else None

    def order(self, values: np.ndarray, fused: np.ndarray, is_cold: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The places of n lists in their new order, int64 [n, M]; ties stay as they are. Arguments as in `fit`."""
        table = list_features(values, fused, is_cold, lengths)
        scores = self.booster.predict(table.reshape(-1, table.shape[2])).reshape(fused.shape)
        return np.argsort(-scores, axis=1, kind="stable")


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
