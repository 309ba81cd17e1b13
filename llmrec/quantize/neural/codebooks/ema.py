"""Codes that are moving averages of the residuals they are chosen for (VQ-VAE-2, arXiv 1906.00446).

Per level as in RQ-Transformer (arXiv 2203.01941), whose bookkeeping of a reset code is kept too: without it, a
code placed on a sample would be averaged away by the next update.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from llmrec.quantize.neural.codebooks.base import MovableCodebook

SMOOTHING = 1e-5
"""Count added to every code, so that an unused one divides by more than 0."""

RESET_COUNT = 1.0
"""Moving count that a reset code starts with."""


class EMACodebook(MovableCodebook):
    """Codes s_k / n_k of the moving sum s_k and the moving count n_k of their residuals; no gradient."""

    codes: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, codes: int, dims: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("codes", torch.zeros(codes, dims))
        self.register_buffer("sums", torch.zeros(codes, dims))
        self.register_buffer("counts", torch.ones(codes))

    def effective(self) -> Tensor:
        return self.codes

    def loss(self, residual: Tensor, code: Tensor, beta: float) -> Tensor:
        """The commitment loss alone: averages follow no gradient."""
        return beta * F.mse_loss(residual, code)

    @torch.no_grad()
    def update(self, residual: Tensor, index: Tensor) -> None:
        counts = torch.bincount(index, minlength=len(self.codes)).to(self.counts)
        sums = torch.zeros_like(self.sums).index_add_(0, index, residual)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        total = self.counts.sum()
        smoothed = (self.counts + SMOOTHING) / (total + len(self.codes) * SMOOTHING) * total
        torch.div(self.sums, smoothed[:, None], out=self.codes)

    @torch.no_grad()
    def place(self, codes: Tensor) -> None:
        self.reset(torch.arange(len(codes), device=codes.device), codes)

    @torch.no_grad()
    def reset(self, dead: Tensor, vectors: Tensor) -> None:
        self.codes[dead] = vectors
        self.counts[dead] = RESET_COUNT
        self.sums[dead] = vectors * RESET_COUNT
