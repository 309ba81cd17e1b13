"""Residual k-means with normalised residuals, as in GRID (arXiv 2507.22224).

Each level scales its residual r to length 1, and leaves r / |r| - c to the next level, with c the nearest code. So
all levels quantize directions, and the codes do not say how long the residuals were. To reconstruct an item, each
level's residual is taken to be as long as the mean |r| of the fitted items at that level.
"""

from collections.abc import Sequence

import numpy as np

from llmrec.console import track
from llmrec.quantize.base import Quantizer
from llmrec.quantize.classical.kmeans import kmeans, nearest
from llmrec.quantize.classical.residual import ROUNDING


class NormalizedRQKMeans(Quantizer):
    """Approximates x by s_1 (c_1 + s_2 (c_2 + ...)), with c_l the code and s_l the mean length of level l."""

    codebooks: list[np.ndarray]
    """Centroids of each level, L arrays of float32 [C_l, D]."""
    scales: np.ndarray
    """Mean length of the fitted residuals before each level, float32 [L]."""

    @property
    def dims(self) -> int:
        return self.codebooks[0].shape[1]

    def tensors(self) -> dict[str, np.ndarray]:
        return {
            **{f"codebook.{level}": codebook for level, codebook in enumerate(self.codebooks)},
            "scales": self.scales,
        }

    def _restore(self, tensors: dict[str, np.ndarray]) -> None:
        self.codebooks = [tensors[f"codebook.{level}"] for level in range(self.levels)]
        self.scales = tensors["scales"]

    def _fit(self, x: np.ndarray, collaborative: np.ndarray | None, texts: Sequence[str] | None) -> None:
        config, scales = self._config, []
        self.codebooks = []
        residual = x
        for level in track(range(config.levels), config.method):
            direction, lengths = directions(residual)
            scales.append(lengths.mean(dtype=np.float64))
            self.codebooks.append(kmeans(direction, self.level_sizes[level], config.iterations, config.seed + level))
            residual = self._left(direction, level, nearest(direction, self.codebooks[level]))
        self.scales = np.array(scales, np.float32)

    def _left(self, direction: np.ndarray, level: int, codes: np.ndarray) -> np.ndarray:
        """`direction` [B, D] minus the `codes` [B] of `level`; 0 where the difference is only rounding error."""
        residual = direction - self.codebooks[level][codes]
        residual[np.linalg.norm(residual, axis=1) < ROUNDING] = 0
        return residual

    def _encode(self, x: np.ndarray) -> np.ndarray:
        codes = np.empty((len(x), self.levels), np.int32)
        for level, codebook in enumerate(self.codebooks):
            direction, _ = directions(x)
            codes[:, level] = nearest(direction, codebook)
            x = self._left(direction, level, codes[:, level])
        return codes

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        return self.decode_first(codes)

    def decode_first(self, codes: np.ndarray) -> np.ndarray:
        total = np.zeros((len(codes), self.dims), np.float32)
        for level in reversed(range(codes.shape[1])):
            total = self.scales[level] * (self.codebooks[level][codes[:, level]] + total)
        return total

    def last_level_costs(self, x: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Cost (float32 [N, C]) of each code c of the last level: |r - c|^2, with r the residual of length 1."""
        for level in range(self.levels - 1):
            x = self._left(directions(x)[0], level, codes[:, level])
        direction, last = directions(x)[0], self.codebooks[-1]
        costs = (direction**2).sum(axis=1)[:, None] - 2 * direction @ last.T + (last**2).sum(axis=1)
        return np.maximum(costs, 0)


def directions(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `x` [N, D] scaled to length 1, and their lengths float32 [N]; a row of zeros stays zeros."""
    lengths = np.linalg.norm(x, axis=1).astype(np.float32)
    return x / np.where(lengths > 0, lengths, np.float32(1))[:, None], lengths
