"""Residual k-means: each level clusters what the levels before it left over.

As in OpenOneRec and GRID (arXiv 2507.22224): greedy, Euclidean, one k-means per level.
"""

import numpy as np

from llmrec.console import track
from llmrec.quantize.base import BLOCK, Quantizer
from llmrec.quantize.kmeans import kmeans, nearest


class RQKMeans(Quantizer):
    """x is approximated by the sum of one centroid per level."""

    codebooks: np.ndarray
    """Centroids, float32 [L, C, D]."""

    @property
    def dims(self) -> int:
        return self.codebooks.shape[2]

    def tensors(self) -> dict[str, np.ndarray]:
        return {"codebooks": self.codebooks}

    def _restore(self, tensors: dict[str, np.ndarray]) -> None:
        self.codebooks = tensors["codebooks"]

    def _fit(self, x: np.ndarray) -> None:
        config = self._config
        self.codebooks = np.empty((config.levels, config.codes, x.shape[1]), np.float32)
        residual = x.copy()
        for level in track(range(config.levels), "rq-kmeans"):
            centroids = kmeans(residual, config.codes, config.iterations, config.seed + level)
            for start in range(0, len(residual), BLOCK):
                block = residual[start : start + BLOCK]
                block -= centroids[nearest(block, centroids)]
            self.codebooks[level] = centroids

    def _encode(self, x: np.ndarray) -> np.ndarray:
        residual = x.copy()
        codes = np.empty((len(x), self.levels), np.int32)
        for level, centroids in enumerate(self.codebooks):
            codes[:, level] = nearest(residual, centroids)
            residual -= centroids[codes[:, level]]
        return codes

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        return sum(centroids[codes[:, level]] for level, centroids in enumerate(self.codebooks))
