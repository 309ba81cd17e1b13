"""k-means with progressive starts, balanced k-means, and LC-Rec's uniform mapping of vectors to codes."""

import numpy as np
import torch
from torch import Tensor

from llmrec.quantize.base import BLOCK


@torch.no_grad()
def uniform_mapping(distances: Tensor, epsilon: float, iterations: int = 50) -> Tensor:
    """Transport plan (float64 [..., B, K]) that spreads B vectors evenly over K codes; a row's code is its argmax.

    Column sums are B / K; row sums tend to 1 with the iterations. The smaller `epsilon`, the closer the plan keeps
    to the nearest codes and the slower it evens out.

    Args:
        distances: squared distances, floats [B, K], or a stack [..., B, K] of problems, each solved alone.
        epsilon: strength of the entropy term, above 0, on distances scaled to -1..1.
        iterations: rounds of dividing rows, then columns, by their sums.
    """
    vectors, codes = distances.shape[-2:]
    distances = distances.double()  # exp(-2 / .003) is below float32
    high, low = distances.amax((-2, -1), keepdim=True), distances.amin((-2, -1), keepdim=True)
    distances = distances / ((high - low) / 2 + 1e-5)
    # the rows are divided by their sums first of all, so each may start from its own minimum, out of exp's overflow
    kernel = (distances.amin(-1, keepdim=True) - distances).div_(epsilon).exp_()
    # the rounds as two factors of the kernel: the same plan for two matrix-vector products each
    columns = kernel.new_ones(*kernel.shape[:-2], codes, 1)
    for _ in range(iterations):
        rows = _reciprocal(kernel @ columns, vectors)
        columns = _reciprocal(kernel.mT @ rows, codes)
    return kernel.mul_(rows).mul_(columns.mT).mul_(vectors)


def _reciprocal(sums: Tensor, count: int) -> Tensor:
    """1 / (sums * count), finite for a code so far from all vectors that its sum underflows."""
    return sums.mul_(count).clamp_min_(torch.finfo(torch.float64).tiny).reciprocal_()


PROGRESSIVE_DIMS = 128
"""Dimensions from which the progressive start pays; below, k-means++ ends as low in a fifth of the time."""


def kmeans(x: np.ndarray, codes: int, iterations: int, seed: int) -> np.ndarray:
    """Centroids (float32 [C, D]) of `x` (float32 [N, D], N >= C) after at most `iterations` Lloyd steps per stage.

    Every centroid has a row nearest to it if `x` has C distinct rows; centroids that are too many stay unused.
    """
    n, dims = x.shape
    start = _progressive(x, codes, iterations, seed) if dims >= PROGRESSIVE_DIMS and n > max(dims, codes) else None
    return _fill_unused(x, _lloyd(x, codes, iterations, seed, start))


def _progressive(x: np.ndarray, codes: int, iterations: int, seed: int) -> np.ndarray:
    """Centroids [C, D] by k-means in growing subspaces of the principal components."""
    import faiss

    settings = faiss.ProgressiveDimClusteringParameters()
    settings.niter, settings.seed = iterations, seed
    settings.min_points_per_centroid, settings.max_points_per_centroid = 1, len(x)  # all rows, without a warning
    clustering = faiss.ProgressiveDimClustering(x.shape[1], codes, settings)
    rows = faiss.swig_ptr(np.ascontiguousarray(x))
    clustering.train(len(x), rows, faiss.ProgressiveDimIndexFactory())  # type: ignore[call-overload]  # faiss's stub errs
    return faiss.vector_to_array(clustering.centroids).reshape(codes, -1)


def _lloyd(x: np.ndarray, codes: int, iterations: int, seed: int, start: np.ndarray | None) -> np.ndarray:
    """Centroids [C, D] by Lloyd's algorithm from `start` [C, D], or from rows drawn by k-means++."""
    import faiss

    trainer = faiss.Kmeans(
        x.shape[1], codes, niter=iterations, seed=seed, min_points_per_centroid=1, max_points_per_centroid=len(x)
    )
    trainer.cp.init_method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    trainer.train(np.ascontiguousarray(x), init_centroids=start)
    return np.asarray(trainer.centroids, np.float32)


def _fill_unused(x: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """`centroids` [C, D] with those that are nearest to no row moved onto the rows worst served, while that helps."""
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


def nearest(x: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Row of the centroid [C, D] nearest to each row of `x` [N, D] by Euclidean distance, int64 [N]."""
    labels = np.empty(len(x), np.int64)
    centred, bias = _scorer(centroids)
    for start in range(0, len(x), BLOCK):
        block = x[start : start + BLOCK]
        labels[start : start + BLOCK] = (block @ centred.T - bias).argmax(axis=1)
    return labels


def _scorer(centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(E, b) so that x @ E.T - b falls as |x - c|^2 / 2 rises; centred, so that a common offset cancels nothing."""
    mean = centroids.mean(axis=0, dtype=np.float64)
    centred = centroids - mean
    return centred.astype(np.float32), (centred @ mean + 0.5 * (centred**2).sum(axis=1)).astype(np.float32)


def squared_errors(x: np.ndarray, centroids: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """|x - c|^2 of each row [N] and the centroid of its label."""
    errors = np.empty(len(x), np.float32)
    for start in range(0, len(x), BLOCK):
        block = slice(start, start + BLOCK)
        errors[block] = ((x[block] - centroids[labels[block]]) ** 2).sum(axis=1)
    return errors


def cluster_sums(x: np.ndarray, labels: np.ndarray, codes: int) -> np.ndarray:
    """Sum of the rows of `x` [N, D] with each label, [C, D]."""
    from scipy.sparse import csr_array

    rows = np.arange(len(x))
    return csr_array((np.ones(len(x), x.dtype), (labels, rows)), shape=(codes, len(x))) @ x


def cluster_means(x: np.ndarray, labels: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Mean of the rows with each label (float32 [C, D]); a label without rows keeps its centroid."""
    sizes = np.bincount(labels, minlength=len(centroids))
    means = cluster_sums(x, labels, len(centroids)) / np.maximum(sizes, 1)[:, None]
    return np.where(sizes[:, None] > 0, means, centroids).astype(np.float32)


def distinct_rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each distinct row of `x` [N, D] first stands (int64 [U]), and which of them each row is (int64 [N])."""
    rows = np.ascontiguousarray(x).view(np.dtype((np.void, x.dtype.itemsize * x.shape[1]))).ravel()
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    return first, inverse


def balanced_assignment(x: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Label of each row (int64 [N]): each centroid takes floor(N/C) or ceil(N/C) of the rows, the near ones first."""
    labels = np.full(len(x), -1, np.int64)
    _take_nearest(x, centroids, labels, len(x) // len(centroids))
    _take_nearest(x, centroids, labels, 1)
    return labels


def _take_nearest(x: np.ndarray, centroids: np.ndarray, labels: np.ndarray, capacity: int) -> None:
    """Label rows of label -1 until none is left or each centroid has taken `capacity`.

    In rounds: each row asks the nearest centroid with room, and each centroid takes the nearest that ask.
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
    """Centroids (float32 [C, D]) whose `balanced_assignment` of `x` (float32 [N, D], N >= C) has a low error.

    Starts from `kmeans`; then assignments and means take turns, and the best of `iterations` is kept.
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
