"""Product quantization: the D dimensions are split into L blocks, and each block has its own k-means.

If L does not divide D, the first blocks have one dimension more than the others.

PQ is from Jegou, Douze and Schmid (TPAMI 2011). OPQ (Ge, He, Ke and Sun, CVPR 2013) also learns a rotation of the
input; it alternates between the rotation and the codebooks. The levels have equal weight and no order: one level more
does not refine the codes before it, but splits the dimensions into other blocks.
"""

from collections.abc import Sequence

import numpy as np

from llmrec.console import track
from llmrec.errors import UserError
from llmrec.quantize.base import Quantizer
from llmrec.quantize.classical.kmeans import cluster_means, kmeans, nearest
from llmrec.quantize.config import TokenizeConfig


class ProductQuantizer(Quantizer):
    """Approximates x by the concatenation of one centroid per block."""

    codebooks: list[np.ndarray]
    """Centroids of each block, L arrays of float32 [C_l, width of the block]."""

    @property
    def dims(self) -> int:
        return sum(codebook.shape[1] for codebook in self.codebooks)

    def tensors(self) -> dict[str, np.ndarray]:
        return {f"codebook.{level}": codebook for level, codebook in enumerate(self.codebooks)}

    def _restore(self, tensors: dict[str, np.ndarray]) -> None:
        self.codebooks = [tensors[f"codebook.{level}"] for level in range(self.levels)]

    def _fit(self, x: np.ndarray, collaborative: np.ndarray | None, texts: Sequence[str] | None) -> None:
        config = self._config
        if x.shape[1] < config.levels:
            raise UserError(
                f"--tokenize.levels is {config.levels}, but method {config.method} cuts the {x.shape[1]} dimensions of "
                f"the embeddings into one block per level; choose {x.shape[1]} or fewer levels"
            )
        self.codebooks = [
            kmeans(block, self.level_sizes[level], config.iterations, config.seed + level)
            for level, block in enumerate(track(self._blocks(x), config.method))
        ]

    def _blocks(self, x: np.ndarray) -> list[np.ndarray]:
        """The L blocks [N, D // L or D // L + 1] of `x` [N, D]."""
        return [np.ascontiguousarray(block) for block in np.array_split(x, self.levels, axis=1)]

    def _encode(self, x: np.ndarray) -> np.ndarray:
        labels = [nearest(block, codebook) for block, codebook in zip(self._blocks(x), self.codebooks, strict=True)]
        return np.column_stack(labels)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        return np.hstack([codebook[codes[:, level]] for level, codebook in enumerate(self.codebooks)])


class OptimizedProductQuantizer(ProductQuantizer):
    """Product quantization of (x - mean) @ R. Without the subtraction, an offset would distort R and cost precision.

    The fit repeats to the last bit only with the same number of threads: they decide the order of the sums in the
    singular value decomposition, each round starts from the rotation before it, and so rounding can change some codes.
    """

    mean: np.ndarray
    """Mean of the fitted rows, float32 [D]."""
    rotation: np.ndarray
    """R, float32 [D, D], orthogonal."""

    def tensors(self) -> dict[str, np.ndarray]:
        return {**super().tensors(), "mean": self.mean, "rotation": self.rotation}

    def _restore(self, tensors: dict[str, np.ndarray]) -> None:
        super()._restore(tensors)
        self.mean, self.rotation = tensors["mean"], tensors["rotation"]

    def _fit(self, x: np.ndarray, collaborative: np.ndarray | None, texts: Sequence[str] | None) -> None:
        """Start with PQ and R = I. No step increases the error, so it is at most the error of PQ of x - mean."""
        self.mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.rotation = np.eye(x.shape[1], dtype=np.float32)
        centred = x - self.mean
        super()._fit(centred, collaborative, texts)
        for _ in track(range(self._config.iterations), self._config.method, unit="rounds"):
            self.improve(centred)

    def improve(self, centred: np.ndarray) -> None:
        """One round on x - mean (`centred`, float32 [N, D]): find the nearest codes, then the best R, then codebooks.

        R solves the orthogonal Procrustes problem min |(x - mean) R - decoded codes|^2.
        """
        codes = super()._encode(centred @ self.rotation)
        u, _, vt = np.linalg.svd(centred.T.astype(np.float64) @ super()._decode(codes))
        self.rotation = (u @ vt).astype(np.float32)
        for level, block in enumerate(self._blocks(centred @ self.rotation)):
            self.codebooks[level] = cluster_means(block, codes[:, level], self.codebooks[level])

    def _encode(self, x: np.ndarray) -> np.ndarray:
        return super()._encode((x - self.mean) @ self.rotation)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        return super()._decode(codes) @ self.rotation.T + self.mean


def fit_opq(x: np.ndarray, levels: int, codes: int, seed: int) -> dict[str, np.ndarray]:
    """What OPQ learns from `x` (float32 [N, D]), as `OptimizedProductQuantizer.tensors` gives it.

    For the collaborative models, whose folder cannot import this one.

    Raises:
        UserError: as `Quantizer.fit`.
    """
    config = TokenizeConfig(method="opq", levels=levels, codes=codes, seed=seed)
    return OptimizedProductQuantizer(config).fit(x).tensors()
