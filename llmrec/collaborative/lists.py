"""What lists of recommendations are like, whatever the targets: coverage, popularity, novelty, concentration."""

import numpy as np


def beyond_accuracy(items: np.ndarray, train_counts: np.ndarray, n_users: int, k: int) -> dict[str, float]:
    """Coverage, popularity, novelty and concentration of top-k lists.

    - `coverage@k`: share of the N items that stand in any list.
    - `popularity@k`: share of the training events that a listed item has (average recommendation popularity, Yin et al.
      2012, as a share).
    - `novelty@k`: -log2 of the share of users who know a listed item (Vargas & Castells 2011, self-information without
      their discount by rank). That share is (count + 1) / (n_users + 1), so a cold item's is not 0; it is at most 1,
      since a user may buy an item twice.
    - `gini@k`: Gini index of how often each of the N items is listed: 0 if all equally often, 1 - 1 / N if only one is.

    Popularity and novelty are means over each list's items, then over the lists that are not empty.

    Args:
        items: int [B, K], catalogue rows, best first, each at most once in a row; -1 is padding.
        train_counts: int [N], training events of each item.
        n_users: number of users of the training part.
        k: length of the lists, 1 to K; what stands behind it is ignored.

    Raises:
        ValueError: a k or an item out of range, no training events, or no items in the lists.
    """
    if items.ndim != 2 or not 1 <= k <= items.shape[1]:
        raise ValueError(f"k {k}: expected 1 to K for lists [B, K], got lists {items.shape}")
    top, total = items[:, :k], train_counts.sum()
    if top.max(initial=-1) >= len(train_counts) or top.min(initial=-1) < -1:
        raise ValueError(f"items {top.min()} to {top.max()}: expected -1 to {len(train_counts) - 1}")
    if total <= 0 or n_users < 1:
        raise ValueError(f"{total} training events of {n_users} users: expected at least one")
    listed = top >= 0
    lengths = listed.sum(axis=1)
    if not lengths.any():
        raise ValueError("no list has an item")
    known = np.minimum((train_counts + 1) / (n_users + 1), 1)
    exposure = np.bincount(top[listed], minlength=len(train_counts))

    def mean(of_item: np.ndarray) -> float:
        sums = np.where(listed, of_item[top], 0).sum(axis=1)
        return float((sums[lengths > 0] / lengths[lengths > 0]).mean())

    return {
        f"coverage@{k}": float((exposure > 0).mean()),
        f"popularity@{k}": mean(train_counts / total),
        f"novelty@{k}": mean(-np.log2(known)),
        f"gini@{k}": gini(exposure),
    }


def gini(counts: np.ndarray) -> float:
    """Gini index of counts, int [N], not all 0: the mean absolute difference of two, over twice their mean."""
    n = len(counts)
    weights = 2 * np.arange(1, n + 1) - n - 1
    return float(weights @ np.sort(counts) / (n * counts.sum()))
