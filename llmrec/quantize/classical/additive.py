"""Additive quantization: a sum of codes whose codebooks are learned together (Babenko and Lempitsky, CVPR 2014).

It starts with residual k-means, then alternates between encoding by beam search and a least-squares fit of all
codebooks.
"""

from collections.abc import Sequence

import numpy as np

from llmrec.console import get_logger, track
from llmrec.quantize.base import BLOCK
from llmrec.quantize.classical.kmeans import cluster_sums
from llmrec.quantize.classical.residual import RQKMeans, decode_sum, encode_sum

log = get_logger(__name__)

RIDGE = 1e-2
"""Weight of the ridge term that pulls each code towards its present value; an item has weight 1. It makes the
solution unique (an offset can move from one level to another without changing any sum), and a code without items keeps
its value."""
LEAST_GAIN = 1e-4
"""Fitting stops after a round that lowers the error by less than this share."""


class AdditiveQuantizer(RQKMeans):
    """Approximates x by the sum of one code per level, found by beam search."""

    def _fit(self, x: np.ndarray, collaborative: np.ndarray | None, texts: Sequence[str] | None) -> None:
        super()._fit(x, collaborative, texts)
        best = codebooks = self.codebooks
        lowest = np.inf
        for turn in track(range(self._config.iterations + 1), self._config.method, unit="rounds"):
            codes = encode_sum(x, codebooks, self._config.encoding_beams)
            residual = _residual(x, codes, codebooks)
            error = float(np.square(residual).sum(dtype=np.float64))
            log.debug("aq: round %d, mean squared error %.6f", turn, error / len(x))
            won = lowest - error
            if won > 0:
                lowest, best = error, codebooks
            if not won > LEAST_GAIN * lowest:
                break
            codebooks = solve_codebooks(residual, codes, codebooks)
        self.codebooks = best


def solve_codebooks(residual: np.ndarray, codes: np.ndarray, codebooks: list[np.ndarray]) -> list[np.ndarray]:
    """The codebooks (float32 [C_l, D] each) with the lowest squared error for `codes` [N, L], plus a ridge term.

    With A the one-hot matrix of the codes [N, sum of C_l], it solves (A'A + RIDGE I) M = A' `residual` for the change
    M of the codebooks. A'A contains the counts of codes and of pairs of codes.

    Args:
        residual: x minus the sum of its codes in the present codebooks, [N, D].
        codes: the codes of x, ints [N, L].
        codebooks: the present codebooks, float32 [C_l, D] each.
    """
    from scipy.linalg import solve

    sizes = [len(codebook) for codebook in codebooks]
    offsets = np.cumsum([0, *sizes])
    counts = np.zeros((offsets[-1], offsets[-1]))
    sums = np.empty((offsets[-1], residual.shape[1]))
    for a, size_a in enumerate(sizes):
        sums[offsets[a] : offsets[a + 1]] = cluster_sums(residual, codes[:, a], size_a)
        for b, size_b in enumerate(sizes):
            pairs = np.bincount(codes[:, a].astype(np.int64) * size_b + codes[:, b], minlength=size_a * size_b)
            counts[offsets[a] : offsets[a + 1], offsets[b] : offsets[b + 1]] = pairs.reshape(size_a, size_b)
    moves = np.split(solve(counts + RIDGE * np.eye(len(counts)), sums, assume_a="pos"), offsets[1:-1])
    return [(codebook + move).astype(np.float32) for codebook, move in zip(codebooks, moves, strict=True)]


def _residual(x: np.ndarray, codes: np.ndarray, codebooks: list[np.ndarray]) -> np.ndarray:
    """x minus the sum of its codes, [N, D]."""
    residual = np.empty_like(x)
    for start in range(0, len(x), BLOCK):
        block = slice(start, start + BLOCK)
        residual[block] = x[block] - decode_sum(codes[block], codebooks)
    return residual
