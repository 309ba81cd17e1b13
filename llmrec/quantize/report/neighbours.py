"""Neighbourhoods before and after quantization: who is near whom, and how far the two orders agree."""

import numpy as np

from llmrec.quantize.report.rows import Rows, blocks, unit

NEIGHBOURS = 20
"""k, length of the lists."""
MAX_QUERIES = 1000
"""Items whose neighbours are compared; a seeded sample in a larger catalogue."""
PERSISTENCE = 0.9
"""p of rank-biased overlap: the weight of each place against the one above it."""


def nearest(x: Rows, queries: np.ndarray, k: int = NEIGHBOURS) -> np.ndarray:
    """Rows of `x` [N, D] nearest by cosine to its rows `queries` [Q], nearest first, themselves left out.

    Returns int64 [Q, min(k, N - 1)]. Streams over `x`: always against all N, never a copy of them.
    """
    import faiss

    k = min(k, len(x) - 1)
    asked = unit(np.asarray(x[queries], np.float32))
    scores = np.empty((len(queries), 0), np.float32)
    found = np.empty((len(queries), 0), np.int64)
    for where, block in blocks(x):
        near = min(k + 1, len(block))
        block_scores, rows = faiss.knn(asked, unit(block), near, metric=faiss.METRIC_INNER_PRODUCT)
        scores = np.hstack([scores, block_scores])
        found = np.hstack([found, rows + where.start])
        best = np.argsort(-scores, axis=1, kind="stable")[:, : k + 1]
        scores, found = np.take_along_axis(scores, best, 1), np.take_along_axis(found, best, 1)
    # among k + 1 items with equal vectors the item itself may be missing: then the last one goes
    is_self = found == queries[:, None]
    is_self[~is_self.any(axis=1), -1] = True
    return found[~is_self].reshape(len(queries), k)


def jaccard(before: np.ndarray, after: np.ndarray) -> float:
    """Mean Jaccard overlap of two lists of neighbours [Q, k] each; 1 where there are no neighbours to lose."""
    k = before.shape[1]
    if k == 0:
        return 1.0
    shared = _overlaps(before, after)[:, -1]
    return float((shared / (2 * k - shared)).mean())


def rank_biased_overlap(before: np.ndarray, after: np.ndarray, p: float = PERSISTENCE) -> float:
    """Mean rank-biased overlap of two ranked lists [Q, k] each: 1 for equal lists, 0 for lists without a common item.

    The estimate that takes the agreement at depth k to hold further down (RBO_ext; Webber, Moffat and Zobel 2010,
    "A similarity measure for indefinite rankings").
    """
    k = before.shape[1]
    if k == 0:
        return 1.0
    depth = np.arange(1, k + 1)
    agreement = _overlaps(before, after) / depth
    overlap = agreement[:, -1] * p**k + (1 - p) / p * (agreement * p**depth).sum(axis=1)
    return float(overlap.mean())


def _overlaps(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Items common to the first 1, 2, ... k of both lists, int64 [Q, k]."""
    k = before.shape[1]
    place = np.arange(k)
    # an item at places i and j counts from depth max(i, j) on
    deeper = np.maximum(place[:, None], place[None, :])
    common = np.zeros((len(before), k), np.int64)
    query, i, j = np.nonzero(before[:, :, None] == after[:, None, :])
    np.add.at(common, (query, deeper[i, j]), 1)
    return common.cumsum(axis=1)
