"""Residual k-means: each level clusters what the levels before it left over.

Euclidean, one k-means per level, as in OpenOneRec and GRID (arXiv 2507.22224); with one level it is plain k-means
(vector quantization). Encoding may search with beams instead of taking the nearest code at each level. Balanced, it
is OneRec's (arXiv 2502.18965): every code of a level takes equally many items of the catalogue.
"""

from functools import cached_property

import numpy as np

from llmrec.console import track
from llmrec.quantize.base import BLOCK, Quantizer, as_matrix
from llmrec.quantize.classical.kmeans import balanced_assignment, balanced_kmeans, kmeans, nearest
from llmrec.quantize.classical.residual import SumEncoder, costs_of_last, decode_sum, encode_sum

ROUNDING = 4 * np.finfo(np.float32).eps
"""Share of an item's norm below which its residual is nothing but rounding."""


class RQKMeans(Quantizer):
    """x is approximated by the sum of one centroid per level."""

    codebooks: list[np.ndarray]
    """Centroids of each level, float32 [C_l, D]."""

    @property
    def dims(self) -> int:
        return self.codebooks[0].shape[1]

    def tensors(self) -> dict[str, np.ndarray]:
        return {f"codebook.{level}": codebook for level, codebook in enumerate(self.codebooks)}

    def _restore(self, tensors: dict[str, np.ndarray]) -> None:
        self.codebooks = [tensors[f"codebook.{level}"] for level in range(self.levels)]

    @cached_property
    def _encoder(self) -> SumEncoder:
        return SumEncoder(self.codebooks)

    def _fit(self, x: np.ndarray, collaborative: np.ndarray | None) -> None:
        config = self._config
        self.__dict__.pop("_encoder", None)
        self.codebooks = []
        norms = np.linalg.norm(x, axis=1)
        residual = x.copy()
        for level in track(range(config.levels), config.method):
            cluster = balanced_kmeans if config.balanced else kmeans
            self.codebooks.append(cluster(residual, self.level_sizes[level], config.iterations, config.seed + level))
            if config.encoding_beams > 1:  # the next level meets what the search leaves, not what the nearest codes do
                codes = encode_sum(x, self.codebooks, config.encoding_beams)
                for start in range(0, len(x), BLOCK):
                    block = slice(start, start + BLOCK)
                    residual[block] = x[block] - decode_sum(codes[block], self.codebooks)
            else:
                self._subtract(residual, level)
            residual[np.linalg.norm(residual, axis=1) < ROUNDING * norms] = 0

    def _subtract(self, residual: np.ndarray, level: int) -> np.ndarray:
        """Take each row's code of `level` off `residual` [N, D], in place; returns the codes [N]."""
        codebook = self.codebooks[level]
        assign = balanced_assignment if self._config.balanced else nearest
        codes = assign(residual, codebook)
        for start in range(0, len(residual), BLOCK):
            residual[start : start + BLOCK] -= codebook[codes[start : start + BLOCK]]
        return codes

    def assign(self, x: np.ndarray) -> np.ndarray:
        """Codes (int32 [N, L]) of a whole catalogue `x` (floats [N, D]); balanced: at most ceil(N/C) items per code."""
        if not self._config.balanced:
            return self.encode(x)
        self._require_dims(x)
        residual = as_matrix(x).copy()
        return np.column_stack([self._subtract(residual, level) for level in range(self.levels)]).astype(np.int32)

    def decode_first(self, codes: np.ndarray) -> np.ndarray:
        return decode_sum(codes, self.codebooks)

    def last_level_costs(self, x: np.ndarray, codes: np.ndarray) -> np.ndarray:
        return costs_of_last(x, codes, self.codebooks)

    def _encode(self, x: np.ndarray) -> np.ndarray:
        return self._encoder.encode(x, self._config.encoding_beams)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        return decode_sum(codes, self.codebooks)
