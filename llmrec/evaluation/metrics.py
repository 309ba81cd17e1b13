"""Recall, NDCG and MRR from the rank of each user's one target, ties always against the system."""

from collections.abc import Sequence

import numpy as np

INTERVAL_METRICS = ("recall@10", "ndcg@10")


def ranks_from_lists(items: np.ndarray, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Rank of each target in a list of K items: 1 + the number of other items that score at least as high.

    Args:
        items: int [B, K], catalogue rows in any order, each at most once; -1 is padding.
        scores: float [B, K]; what stands beside padding is ignored.
        targets: int [B], catalogue rows.

    Returns:
        float64 [B], from 1; inf for a target that is not in its list.

    Raises:
        ValueError: the score of an item is NaN, or the shapes differ.
    """
    if items.shape != scores.shape or len(items) != len(targets):
        raise ValueError(f"items {items.shape}, scores {scores.shape}, targets {targets.shape} do not match")
    listed = items >= 0
    if np.isnan(scores[listed]).any():
        raise ValueError("a score is NaN, so its item has no place in a ranking")
    hits = items == targets[:, None]
    own = np.where(hits, scores, -np.inf).max(axis=1, initial=-np.inf)
    ahead = listed & ~hits & (scores >= own[:, None])
    return np.where(hits.any(axis=1), 1.0 + ahead.sum(axis=1), np.inf)


def per_user(ranks: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """`recall@k`, `ndcg@k` and `mrr@k` of each of U ranks, float64 [U] in [0, 1].

    With one target, recall is a hit or a miss, NDCG is 1 / log2(rank + 1) (Järvelin & Kekäläinen 2002) and
    MRR is 1 / rank, both 0 beyond k.
    """
    hit = ranks <= k
    return {
        f"recall@{k}": hit.astype(np.float64),
        f"ndcg@{k}": np.where(hit, 1 / np.log2(ranks + 1), 0.0),
        f"mrr@{k}": np.where(hit, 1 / ranks, 0.0),
    }


def summarise(
    ranks: np.ndarray, ks: Sequence[int], bootstrap: int, seed: int, users: np.ndarray | None = None
) -> dict[str, float | list[float]]:
    """Means over n targets, with a 95% interval `<name>_ci` for recall@10 and ndcg@10.

    Args:
        ranks: float64 [n], from 1; inf where the target was not ranked.
        ks: cut-offs, 10 among them.
        bootstrap: number of resamples of the users.
        seed: seed of the resampling.
        users: int [n], whose targets these are; None: each has one. Where users have several, `targets` counts those.

    Raises:
        ValueError: no users.
    """
    if not len(ranks):
        raise ValueError("no users to average over")
    values = {name: column for k in ks for name, column in per_user(ranks, k).items()}
    distinct = len(ranks) if users is None else len(np.unique(users))
    summary: dict[str, float | list[float]] = {"users": distinct}
    if distinct < len(ranks):
        summary["targets"] = len(ranks)
    summary |= {name: float(column.mean()) for name, column in values.items()}
    for name in INTERVAL_METRICS:
        summary[f"{name}_ci"] = list(interval(values[name], bootstrap, seed, users))
    return summary


def interval(values: np.ndarray, bootstrap: int, seed: int, users: np.ndarray | None = None) -> tuple[float, float]:
    """Percentile bootstrap 95% interval of the mean of `values` [n] (Efron 1979).

    `users`, int [n], are whose they are, None if each has one; where one has several, it is `user_interval`. A resample
    counts how often each distinct value is drawn, which is multinomial: with one target per user there are few distinct
    values, so the cost does not grow with n.
    """
    if users is not None and len(np.unique(users)) < len(users):
        return user_interval(values, users, bootstrap, seed)
    distinct, counts = np.unique(values, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=bootstrap)
    low, high = np.percentile(draws @ distinct / len(values), [2.5, 97.5])
    return float(low), float(high)


def user_interval(values: np.ndarray, users: np.ndarray, bootstrap: int, seed: int) -> tuple[float, float]:
    """The same interval where targets of one user [n] are not independent: whole users are drawn (a cluster bootstrap).

    Args:
        values: float64 [n].
        users: int [n].
        bootstrap: number of resamples of the users.
        seed: of these.
    """
    _, of = np.unique(users, return_inverse=True)
    counts, sums = np.bincount(of), np.bincount(of, weights=values)
    rng, share = np.random.default_rng(seed), np.full(len(counts), 1 / len(counts))
    draws = (rng.multinomial(len(counts), share) for _ in range(bootstrap))
    low, high = np.percentile([draw @ sums / (draw @ counts) for draw in draws], [2.5, 97.5])
    return float(low), float(high)
