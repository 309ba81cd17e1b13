"""k-means with a progressive start, balanced k-means, and LC-Rec's uniform mapping of vectors to codes."""

import numpy as np
import torch
from torch import Tensor

from llmrec.quantize.base import BLOCK, Rows


@torch.no_grad()
def uniform_mapping(distances: Tensor, epsilon: float, iterations: int = 50) -> Tensor:
    """Transport plan (float64 [..., B, K]) that spreads B vectors evenly over K codes; a row's code is its argmax.

    Column sums are B / K; row sums converge to 1. With a smaller `epsilon`, the plan prefers the nearest codes more
    strongly and converges more slowly. These are Sinkhorn's iterations, as in LC-Rec (arXiv 2311.09049).

    Args:
        distances: squared distances, floats [B, K], or a stack of independent problems [..., B, K].
        epsilon: strength of the entropy term, above 0, for distances scaled to a range of width 2.
        iterations: number of rounds; a round divides each row by its sum, then each column by its sum.
    """
    vectors, codes = distances.shape[-2:]
    distances = distances.double()  # exp(-2 / .003) underflows in float32
    high, low = distances.amax((-2, -1), keepdim=True), distances.amin((-2, -1), keepdim=True)
    distances = distances / ((high - low) / 2 + 1e-5)
    # Subtract each row's minimum, so that exp can't overflow. The plan stays the same: the first step divides each row
    # by its sum.
    kernel = (distances.amin(-1, keepdim=True) - distances).div_(epsilon).exp_()
    # plan = rows * kernel * columns; updating only the two factors costs two matrix-vector products per round
    columns = kernel.new_ones(*kernel.shape[:-2], codes, 1)
    for _ in range(iterations):
        rows = _reciprocal(kernel @ columns, vectors)
        columns = _reciprocal(kernel.mT @ rows, codes)
    return kernel.mul_(rows).mul_(columns.mT).mul_(vectors)


def _reciprocal(sums: Tensor, count: int) -> Tensor:
    """1 / (sums * count), in place; finite even if a code is so far from all vectors that its sum underflows to 0."""
    return sums.mul_(count).clamp_min_(torch.finfo(torch.float64).tiny).reciprocal_()


PROGRESSIVE_DIMS = 128
"""Minimum D for the progressive start; for a smaller D, k-means++ reaches the same error in a fifth of the time."""


def kmeans(x: np.ndarray, codes: int, iterations: int, seed: int) -> np.ndarray:
    """Centroids (float32 [C, D]) of `x` (float32 [N, D], N >= C) after at most `iterations` Lloyd steps per stage.

    If `x` has at least C distinct rows, each centroid is the nearest one of some row; otherwise the surplus centroids
    stay unused.
    """
    n, dims = x.shape
    start = _progressive(x, codes, iterations, seed) if dims >= PROGRESSIVE_DIMS and n > max(dims, codes) else None
    return _fill_unused(x, _lloyd(x, codes, iterations, seed, start))


def _progressive(x: np.ndarray, codes: int, iterations: int, seed: int) -> np.ndarray:
    """Centroids [C, D] by k-means on the first principal components of `x` [N, D], with more of them at each stage."""
    import faiss

    settings = faiss.ProgressiveDimClusteringParameters()
    settings.niter, settings.seed = iterations, seed
    settings.min_points_per_centroid, settings.max_points_per_centroid = 1, len(x)  # all rows, without a warning
    clustering = faiss.ProgressiveDimClustering(x.shape[1], codes, settings)
    rows = faiss.swig_ptr(np.ascontiguousarray(x))
    clustering.train(len(x), rows, faiss.ProgressiveDimIndexFactory())  # type: ignore[call-overload]  # faiss's stub errs
    return faiss.vector_to_array(clustering.centroids).reshape(codes, -1)


def _lloyd(x: np.ndarray, codes: int, iterations: int, seed: int, start: np.ndarray | None) -> np.ndarray:
    """Centroids [C, D] by Lloyd's algorithm from `start` [C, D]; if None, from rows chosen by k-means++."""
    import faiss

    trainer = faiss.Kmeans(
        x.shape[1], codes, niter=iterations, seed=seed, min_points_per_centroid=1, max_points_per_centroid=len(x)
    )
    trainer.cp.init_method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    trainer.train(np.ascontiguousarray(x), init_centroids=start)
    return np.asarray(trainer.centroids, np.float32)


def _fill_unused(x: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Move each unused centroid [C, D] onto a row with a large error; repeat while the total error decreases."""
    lowest, moved = np.inf, False
    while True:
        labels = nearest(x, centroids)
        errors = squared_errors(x, centroids, labels)
        unused = np.setdiff1d(np.arange(len(centroids)), labels)
        if not errors.sum() < lowest or not (moved or len(unused)):
            return centroids
        lowest, moved = errors.sum(), len(unused) > 0
        centroids = cluster_means(x, labels, centroids)
        if moved:
            order = np.argsort(-errors, kind="stable")[: 4 * len(unused)]
            first, _ = distinct_rows(x[order])
            worst = order[np.sort(first)[: len(unused)]]
            centroids[unused[: len(worst)]] = x[worst]


def nearest(x: Rows, centroids: np.ndarray) -> np.ndarray:
    """Index (int64 [N]) of the centroid [C, D] with the lowest Euclidean distance to each row of `x` [N, D]."""
    labels = np.empty(len(x), np.int64)
    centred, bias = _scorer(centroids)
    for start in range(0, len(x), BLOCK):
        block = x[start : start + BLOCK]
        labels[start : start + BLOCK] = (block @ centred.T - bias).argmax(axis=1)
    return labels


def _scorer(centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E (float32 [C, D]) and b (float32 [C]) such that x @ E.T - b = -|x - c|^2 / 2 + |x - m|^2 / 2.

    m is the mean of the centroids c. E = c - m, so a large common offset does not cost precision. The last term is the
    same for all centroids, so the argmax is the nearest one.
    """
    mean = centroids.mean(axis=0, dtype=np.float64)
    centred = centroids - mean
    return centred.astype(np.float32), (centred @ mean + 0.5 * (centred**2).sum(axis=1)).astype(np.float32)


def squared_errors(x: np.ndarray, centroids: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """|x - c|^2 (float32 [N]) between each row of `x` [N, D] and the centroid c of its label."""
    errors = np.empty(len(x), np.float32)
    for start in range(0, len(x), BLOCK):
        block = slice(start, start + BLOCK)
        errors[block] = ((x[block] - centroids[labels[block]]) ** 2).sum(axis=1)
    return errors


def cluster_sums(x: np.ndarray, labels: np.ndarray, codes: int) -> np.ndarray:
    """Sum of the rows of `x` [N, D] that have each label, [C, D]."""
    from scipy.sparse import csr_array

    rows = np.arange(len(x))
    return csr_array((np.ones(len(x), x.dtype), (labels, rows)), shape=(codes, len(x))) @ x


def cluster_means(x: np.ndarray, labels: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Mean of the rows of `x` [N, D] that have each label (float32 [C, D]); a label without rows keeps its centroid."""
    sizes = np.bincount(labels, minlength=len(centroids))
    means = cluster_sums(x, labels, len(centroids)) / np.maximum(sizes, 1)[:, None]
    return np.where(sizes[:, None] > 0, means, centroids).astype(np.float32)


def distinct_rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first, inverse): where each distinct row of `x` [N, D] occurs first, int64 [M]; x == x[first][inverse]."""
    rows = np.ascontiguousarray(x).view(np.dtype((np.void, x.dtype.itemsize * x.shape[1]))).ravel()
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    return first, inverse


def balanced_assignment(x: Rows, centroids: np.ndarray) -> np.ndarray:
    """Label of each row (int64 [N]): each centroid gets floor(N/C) or ceil(N/C) rows, its nearest rows first.

    `x` [N, D] is read in blocks.
    """
    labels = np.full(len(x), -1, np.int64)
    _take_nearest(x, centroids, labels, len(x) // len(centroids))
    _take_nearest(x, centroids, labels, 1)
    return labels


def _take_nearest(x: Rows, centroids: np.ndarray, labels: np.ndarray, capacity: int) -> None:
    """Label rows of label -1, in place, until none is left or each centroid has `capacity` more rows.

    In each round, each unlabelled row chooses the nearest centroid that is not full, and each centroid accepts the
    nearest of the rows that chose it.
    """
    room = np.full(len(centroids), capacity)
    waiting = np.flatnonzero(labels < 0)
    while len(waiting) and room.any():
        candidates = np.flatnonzero(room)
        asked, distances = np.empty(len(waiting), np.int64), np.empty(len(waiting), np.float32)
        for start in range(0, len(waiting), BLOCK):
            block = slice(start, start + BLOCK)
            rows = x[waiting[block]]
            asked[block] = candidates[nearest(rows, centroids[candidates])]
            distances[block] = squared_errors(rows, centroids, asked[block])
        order = np.lexsort((distances, asked))
        first = np.searchsorted(asked[order], asked[order])
        accepted = order[np.arange(len(order)) - first < room[asked[order]]]
        labels[waiting[accepted]] = asked[accepted]
        room -= np.bincount(asked[accepted], minlength=len(room))
        waiting = np.delete(waiting, accepted)


def balanced_kmeans(x: np.ndarray, codes: int, iterations: int, seed: int) -> np.ndarray:
    """Centroids (float32 [C, D]) for a `balanced_assignment` of `x` (float32 [N, D], N >= C) with a low error.

    It starts with `kmeans`, then alternates between a balanced assignment and the means of its clusters, at most
    `iterations` times. It returns the centroids with the lowest error.
    """
    centroids = kmeans(x, codes, iterations, seed)
    lowest, best, previous = np.inf, centroids, None
    for _ in range(iterations):
        labels = balanced_assignment(x, centroids)
        error = squared_errors(x, centroids, labels).sum(dtype=np.float64)
        if error < lowest:
            lowest, best = error, centroids
        if previous is not None and (labels == previous).all():
            break
        previous, centroids = labels, cluster_means(x, labels, centroids)
    return best
