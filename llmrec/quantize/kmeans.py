"""k-means and nearest-centroid search, shared by the quantizers."""

import numpy as np


def kmeans(x: np.ndarray, codes: int, iterations: int, seed: int) -> np.ndarray:
    """Centroids (float32 [C, D]) of `x` (float32 [N, D], N >= C): Lloyd's algorithm on every row.

    faiss splits the largest cluster wherever one runs empty, so no centroid is left without a use
    as long as `x` has C distinct rows.
    """
    import faiss

    trainer = faiss.Kmeans(
        x.shape[1],
        codes,
        niter=iterations,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(x),  # faiss would otherwise train on a sample
    )
    trainer.train(np.ascontiguousarray(x))
    return np.asarray(trainer.centroids, np.float32)


def nearest(x: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Row of the centroid [C, D] nearest to each row of `x` [N, D] in Euclidean distance, [N]."""
    # |x - c|^2 without |x|^2, which does not change the order
    return ((centroids**2).sum(axis=1) - 2 * (x @ centroids.T)).argmin(axis=1)
