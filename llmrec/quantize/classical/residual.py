"""Residual k-means, and the encoder that approximates a vector by a sum of codes, one per level.

Encoding is greedy or a beam search. Additive quantization (Babenko and Lempitsky, CVPR 2014) uses it too; the beam
search is from that paper. With p the sum of the codes chosen so far,
-|x - p - c|^2 / 2 = -|x - p|^2 / 2 + x.c - p.c - |c|^2 / 2, so the score of every code follows from one product of x
with all codebooks and a table of the products between codebooks. Large codebooks have no such table, which grows with
the square of C; then each level is searched with the residuals x - p.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from llmrec.console import track
from llmrec.device import resolve_device
from llmrec.quantize.base import BLOCK, Quantizer, as_matrix, require_finite_rows
from llmrec.quantize.classical.kmeans import balanced_assignment, balanced_kmeans, kmeans, nearest

ROWS = 4096
"""Number of rows encoded at a time."""


CANDIDATES = 1 << 23
"""Maximum number of scores in one step of the beam search; limits the memory for many beams."""


MOST_PRODUCTS = 1 << 26
"""Maximum number of products between codebooks in the table, 256 MiB: 3 x 4,096 codes have one, 3 x 8,192 have none."""


class SumEncoder:
    """Encodes with L codebooks (float32 [C_l, D] each); computes the tables for it once."""

    def __init__(self, codebooks: Sequence[np.ndarray], device: str = "auto") -> None:
        self.device = resolve_device(device)
        # Subtract the mean of its level from each code and put the mean into the bias, so that a large common offset
        # does not cost precision.
        means = [codebook.mean(axis=0, dtype=np.float64) for codebook in codebooks]
        centred = [codebook - mean for codebook, mean in zip(codebooks, means, strict=True)]
        offsets = np.cumsum(means, axis=0)
        bias = np.concatenate(
            [-code @ offset - 0.5 * (code**2).sum(axis=1) for code, offset in zip(centred, offsets, strict=True)]
        )
        # Of equal codes, only the first can be chosen. Otherwise rounding, which depends on the block, decides the tie.
        bias[np.concatenate([_repeats(codebook) for codebook in codebooks])] = -np.inf
        self._sizes = [len(codebook) for codebook in codebooks]
        ends = np.cumsum(self._sizes)
        self._products: list[Tensor] | None = None
        if sum(size * int(ends[-1] - end) for size, end in zip(self._sizes, ends, strict=True)) <= MOST_PRODUCTS:
            self._codes = self._tensor(np.concatenate(centred).T)
            self._bias = self._tensor(bias)
            codes = np.concatenate(codebooks)
            self._products = [self._tensor(code @ codes[end:].T) for code, end in zip(centred, ends, strict=True)]
        else:
            first = np.split(np.isneginf(bias), ends[:-1])
            self._levels = [
                self._level(codebook, code, mean, repeats)
                for codebook, code, mean, repeats in zip(codebooks, centred, means, first, strict=True)
            ]

    def _level(
        self, codebook: np.ndarray, centred: np.ndarray, mean: np.ndarray, repeats: np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The codes [C, D] of a level; their transpose minus the level's mean [D, C]; the bias [C]; the mean [D, 1].

        For a residual r, r.c - |c|^2 / 2 is r.(c - m) + bias + r.m up to a constant of the level; bias is -infinity for
        codes that equal an earlier one.
        """
        bias = -centred @ mean - 0.5 * (centred**2).sum(axis=1)
        bias[repeats] = -np.inf
        return self._tensor(codebook), self._tensor(centred.T), self._tensor(bias), self._tensor(mean[:, None])

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(self.device)

    @torch.inference_mode()
    def encode(self, x: np.ndarray, beams: int = 1) -> np.ndarray:
        """Codes (int32 [N, L]) of `x` (float32 [N, D]): greedy with one beam, otherwise by beam search."""
        codes = np.empty((len(x), len(self._sizes)), np.int32)
        step = min(ROWS, max(1, CANDIDATES // (beams * max(self._sizes))))
        for start in range(0, len(x), step):
            block = torch.from_numpy(np.require(x[start : start + step], np.float32, ["C", "W"])).to(self.device)
            if self._products is None:
                chosen = self._search_residuals(block, beams)
            else:
                scores = torch.addmm(self._bias, block, self._codes)
                chosen = (self._greedy if beams == 1 else self._search)(scores, self._products, beams)
            codes[start : start + step] = chosen.cpu().numpy()
        return codes

    def _search_residuals(self, block: Tensor, beams: int) -> Tensor:
        """Codes [B, L] of `block` [B, D] without a table; greedy with one beam."""
        rows = torch.arange(len(block), device=self.device)[:, None]
        residual = block[:, None]  # [B, K, D]
        total = block.new_zeros(len(block), 1)  # [B, K]
        chosen = torch.empty(len(block), 1, 0, dtype=torch.int64, device=self.device)
        for codes, centred, bias, mean in self._levels:
            candidates = (residual @ centred).add_(bias).add_(total[:, :, None] + residual @ mean).flatten(1)
            total, best = candidates.topk(min(beams, candidates.shape[1]))
            beam, code = best // len(codes), best % len(codes)
            chosen = torch.cat([chosen[rows, beam], code[:, :, None]], 2)
            residual = residual[rows, beam] - codes[code]
        return chosen[:, 0]

    def _greedy(self, scores: Tensor, all_products: list[Tensor], beams: int) -> Tensor:
        """Codes [B, L], each the best one after the codes before it; overwrites `scores` [B, sum of C_l]."""
        chosen = []
        for size, products in zip(self._sizes, all_products, strict=True):
            chosen.append(scores[:, :size].max(1).indices)  # takes half the time of argmax
            scores = scores[:, size:].sub_(products.index_select(0, chosen[-1]))
        return torch.stack(chosen, 1)

    def _search(self, scores: Tensor, all_products: list[Tensor], beams: int) -> Tensor:
        """Codes [B, L] by beam search from `scores` [B, sum of C_l]; each level keeps the best `beams` partial sums."""
        rows = torch.arange(len(scores), device=self.device)[:, None]
        scores = scores[:, None]  # [B, K, sum of C_l of the levels left], after each beam's codes
        total = scores.new_zeros(len(scores), 1)  # [B, K]
        chosen = torch.empty(len(scores), 1, 0, dtype=torch.int64, device=self.device)
        for size, products in zip(self._sizes, all_products, strict=True):
            candidates = (total[:, :, None] + scores[:, :, :size]).flatten(1)
            total, best = candidates.topk(min(beams, candidates.shape[1]))
            beam, code = best // size, best % size
            chosen = torch.cat([chosen[rows, beam], code[:, :, None]], 2)
            scores = scores[:, :, size:][rows, beam] - products[code]
        return chosen[:, 0]


def encode_sum(x: np.ndarray, codebooks: Sequence[np.ndarray], beams: int) -> np.ndarray:
    """Codes (int32 [N, L]) that approximate `x` (float32 [N, D]) by a sum of codes, one per codebook ([C_l, D])."""
    return SumEncoder(codebooks).encode(x, beams)


def decode_sum(codes: np.ndarray, codebooks: Sequence[np.ndarray]) -> np.ndarray:
    """The sum (float32 [N, D]) over levels of the codebook rows (float32 [C_l, D]) that `codes` [N, L] select."""
    total = codebooks[0][codes[:, 0]]
    for level in range(1, codes.shape[1]):
        total += codebooks[level][codes[:, level]]
    return total


def costs_of_last(x: np.ndarray, codes: np.ndarray, codebooks: Sequence[np.ndarray]) -> np.ndarray:
    """Squared error (float32 [N, C_L]) of `x` [N, D] against the sum of `codes` [N, L-1] and each last code."""
    rest = x - decode_sum(codes, codebooks) if codes.shape[1] else np.asarray(x, np.float32)
    last = codebooks[-1]
    costs = (rest**2).sum(axis=1)[:, None] - 2 * rest @ last.T + (last**2).sum(axis=1)
    return np.maximum(costs, 0)


def _repeats(codebook: np.ndarray) -> np.ndarray:
    """Whether each code of `codebook` [C, D] equals an earlier one, bool [C]."""
    seen: set[bytes] = set()
    repeats = np.zeros(len(codebook), bool)
    for row, code in enumerate(codebook + 0.0):  # -0.0 becomes 0.0
        repeats[row] = code.tobytes() in seen
        seen.add(code.tobytes())
    return repeats


class Residual:
    """`x` [N, D] minus the sum of its `codes` [N, l] in the first l `codebooks`; computed when rows are asked for."""

    def __init__(self, x: np.ndarray, codes: np.ndarray, codebooks: Sequence[np.ndarray]) -> None:
        self._x, self._codes, self._codebooks = x, codes, codebooks

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        residual = as_matrix(self._x[rows]).copy()
        for codebook, chosen in zip(self._codebooks, self._codes[rows].T, strict=False):
            residual -= codebook[chosen]
        return residual


ROUNDING = 4 * np.finfo(np.float32).eps
"""If |residual| / |x| is below this, the residual is only rounding error and is set to 0."""


@dataclass(frozen=True, eq=False)
class Shift:
    """Moves a vector before it is encoded: x + max(0, x @ inner + bias) @ outer. `quantize/refine.py` learns it.

    Attributes:
        inner: float32 [D, H].
        bias: float32 [H].
        outer: float32 [H, D].

    Raises:
        ValueError: the shapes do not fit together, or a number is not finite.
    """

    inner: np.ndarray
    bias: np.ndarray
    outer: np.ndarray

    def __post_init__(self) -> None:
        if self.inner.ndim != 2 or self.outer.shape != self.inner.T.shape or self.bias.shape != self.outer.shape[:1]:
            raise ValueError(f"a shift of inner {self.inner.shape}, bias {self.bias.shape}, outer {self.outer.shape}")
        if not all(np.isfinite(each).all() for each in (self.inner, self.bias, self.outer)):
            raise ValueError("a shift with numbers that are not finite")

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The moved vectors, float32 [N, D], of `x`, floats [N, D]; in blocks."""
        moved = np.empty(x.shape, np.float32)
        inner, bias, outer = (each.astype(np.float64) for each in (self.inner, self.bias, self.outer))
        for start in range(0, len(x), BLOCK):
            # In float64, so that a vector does not depend on the others of its block.
            block = as_matrix(x[start : start + BLOCK], start).astype(np.float64)
            moved[start : start + BLOCK] = block + np.maximum(block @ inner + bias, 0) @ outer
        return moved


SHIFT = "shift."
"""Begins the names of the tensors of a `Shift`."""


class RQKMeans(Quantizer):
    """Residual k-means: approximates x by the sum of one centroid per level."""

    codebooks: list[np.ndarray]
    """Centroids of each level, L arrays of float32 [C_l, D]."""
    shift: Shift | None = None
    """Moves each vector before it is encoded; None: nothing does."""

    @property
    def dims(self) -> int:
        return self.codebooks[0].shape[1]

    def tensors(self) -> dict[str, np.ndarray]:
        shift = {} if self.shift is None else {SHIFT + name: array for name, array in vars(self.shift).items()}
        return {f"codebook.{level}": codebook for level, codebook in enumerate(self.codebooks)} | shift

    def _restore(self, tensors: dict[str, np.ndarray]) -> None:
        self.codebooks = [tensors[f"codebook.{level}"] for level in range(self.levels)]
        shift = {name.removeprefix(SHIFT): array for name, array in tensors.items() if name.startswith(SHIFT)}
        self.shift = Shift(**shift) if shift else None

    def trained(self, codebooks: list[np.ndarray], shift: Shift) -> Self:
        """The same quantizer with other codebooks (L arrays of float32 [C_l, D]) and another shift."""
        other = copy.copy(self)
        other.__dict__.pop("_encoder", None)
        other.codebooks, other.shift = codebooks, shift
        return other

    def _moved(self, x: np.ndarray) -> np.ndarray:
        return x if self.shift is None else self.shift(x)

    @cached_property
    def _encoder(self) -> SumEncoder:
        return SumEncoder(self.codebooks)

    def _fit(self, x: np.ndarray, collaborative: np.ndarray | None, texts: Sequence[str] | None) -> None:
        config = self._config
        self.__dict__.pop("_encoder", None)
        self.codebooks = []
        norms = np.linalg.norm(x, axis=1)
        residual = x.copy()
        for level in track(range(config.levels), config.method, unit="levels"):
            cluster = balanced_kmeans if config.balanced else kmeans
            self.codebooks.append(cluster(residual, self.level_sizes[level], config.iterations, config.seed + level))
            if config.encoding_beams > 1:  # the next level is fitted on the residual of the beam search
                codes = encode_sum(x, self.codebooks, config.encoding_beams)
                for start in range(0, len(x), BLOCK):
                    block = slice(start, start + BLOCK)
                    residual[block] = x[block] - decode_sum(codes[block], self.codebooks)
            else:
                self._subtract(residual, level)
            residual[np.linalg.norm(residual, axis=1) < ROUNDING * norms] = 0

    def _subtract(self, residual: np.ndarray, level: int) -> None:
        """Subtract each row's code of `level` from `residual` [N, D], in place."""
        codebook = self.codebooks[level]
        assign = balanced_assignment if self._config.balanced else nearest
        codes = assign(residual, codebook)
        for start in range(0, len(residual), BLOCK):
            residual[start : start + BLOCK] -= codebook[codes[start : start + BLOCK]]

    def assign(self, x: np.ndarray) -> np.ndarray:
        """Codes (int32 [N, L]) of a whole catalogue `x` (floats [N, D]); balanced: at most ceil(N/C) items per code."""
        if not self._config.balanced:
            return self.encode(x)
        self._require_dims(x)
        require_finite_rows(x)
        x = self._moved(x)
        codes = np.empty((len(x), self.levels), np.int32)
        for level, codebook in enumerate(self.codebooks):
            codes[:, level] = balanced_assignment(Residual(x, codes[:, :level], self.codebooks), codebook)
        return codes

    def decode_first(self, codes: np.ndarray) -> np.ndarray:
        return decode_sum(codes, self.codebooks)

    def last_level_costs(self, x: np.ndarray, codes: np.ndarray) -> np.ndarray:
        return costs_of_last(self._moved(x), codes, self.codebooks)

    def _encode(self, x: np.ndarray) -> np.ndarray:
        return self._encoder.encode(self._moved(x), self._config.encoding_beams)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        return decode_sum(codes, self.codebooks)
