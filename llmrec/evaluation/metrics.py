"""Recall, NDCG and MRR from the rank of each target; an item with the target's score ranks before the target."""

from collections.abc import Sequence

import numpy as np

from llmrec.collaborative.base import ndcg

INTERVAL_METRICS = ("recall@10", "ndcg@10")


DRAWN_AT_ONCE = 4_000_000
"""Counts that the bootstrap holds at a time: 64 MB, half of it as integers and half as floats."""


def ranks_from_lists(items: np.ndarray, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Rank of each target in a list of K items: 1 + the number of other items that score at least as high.

    Args:
        items: int [B, K], catalogue rows in any order, each at most once; -1 is padding.
        scores: float [B, K]; the scores of padding are ignored.
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

    With one target, recall is 1 if rank <= k, NDCG is 1 / log2(rank + 1) (Järvelin & Kekäläinen 2002) and MRR is
    1 / rank. All are 0 if rank > k.
    """
    hit = ranks <= k
    return {
        f"recall@{k}": hit.astype(np.float64),
        f"ndcg@{k}": ndcg(ranks, k),
        f"mrr@{k}": np.where(hit, 1 / ranks, 0.0),
    }


def summarise(
    ranks: np.ndarray, ks: Sequence[int], bootstrap: int, seed: int, users: np.ndarray | None = None
) -> dict[str, float | list[float]]:
    """Means of the metrics over n targets, with a 95% interval for recall@10 and ndcg@10.

    Args:
        ranks: float64 [n], from 1; inf where the target was not ranked.
        ks: cut-offs, 10 among them.
        bootstrap: number of resamples of the users.
        seed: seed of the resampling.
        users: int [n], the user of each target; None: each user has one target.

    Returns:
        `users`, the number of distinct users; `targets`, n, only if a user has several targets; the mean of each metric
        under its name; `recall@10_ci` and `ndcg@10_ci`, each [low, high].

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
    """Percentile bootstrap 95% interval of the mean of `values` [n]; arguments as in `resampled_means`."""
    return percentiles(resampled_means(values, bootstrap, seed, users))


def percentiles(means: np.ndarray) -> tuple[float, float]:
    """The 95% interval of resampled means, float64 [bootstrap]."""
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def resampled_means(values: np.ndarray, bootstrap: int, seed: int, users: np.ndarray | None = None) -> np.ndarray:
    """Mean of `values` in each resample of the users (Efron 1979), float64 [bootstrap].

    A resample is drawn as multinomial counts. With one value per user, it counts how often each distinct value comes:
    there are few, so the cost does not grow with n. Where a user has several values, they are not independent, and
    whole users are drawn (a cluster bootstrap).

    Args:
        values: float64 [n].
        bootstrap: number of resamples.
        seed: of these.
        users: int [n], whose the values are; None: each user has one.
    """
    of = None if users is None else np.unique(users, return_inverse=True)[1]
    if of is None or of.max() + 1 == len(of):
        sums, drawn = np.unique(values, return_counts=True)
        sizes = np.ones(len(sums))
    else:
        sums, sizes = np.bincount(of, weights=values), np.bincount(of).astype(np.float64)
        drawn = np.ones(len(sizes), dtype=np.int64)
    total, rng, block = int(drawn.sum()), np.random.default_rng(seed), max(1, DRAWN_AT_ONCE // len(sums))
    means = []
    for start in range(0, bootstrap, block):
        draws = rng.multinomial(total, drawn / total, size=min(block, bootstrap - start)).astype(np.float64)
        means.append(draws @ sums / (draws @ sizes))
    return np.concatenate(means)
