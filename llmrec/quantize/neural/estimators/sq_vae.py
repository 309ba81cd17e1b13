"""SQ-VAE: stochastic quantization whose spread is learned and shrinks by itself (arXiv 2205.07547)."""

import math

import torch
from torch import Tensor, nn

from llmrec.quantize.neural.codebooks.base import squared_distances
from llmrec.quantize.neural.estimators.gumbel import sample

COOLING = 1e-5
"""Rate at which the temperature falls, per step."""

LEAST_VARIANCE = 1e-6
"""Smallest sigma^2 to start from."""


class SQVAE(nn.Module):
    """Soft codes sampled from p(k | r) ~ exp(-|r - c_k|^2 / 2 sigma^2), sigma^2 learned per level.

    The loss is the paper's regulariser over D, the dimensions of the input: with a reconstruction error that is a mean
    over as many elements, their sum is the evidence bound per element, under a fixed variance of 1/2.
    """

    def __init__(self, temperature: float, levels: int, dims: int) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(levels))
        self.initial_temperature = temperature
        self.dims = dims
        self.draws = 0

    @property
    def temperature(self) -> float:
        """Temperature of the present step, which draws once per level."""
        return self.initial_temperature * math.exp(-COOLING * self.draws / len(self.log_variance))

    @torch.no_grad()
    def start(self, level: int, residual: Tensor, code: Tensor) -> None:
        """Set sigma^2 of `level` to the variance per dimension that `residual` [B, d] has around `code` [B, d]."""
        self.log_variance[level] = (residual - code).square().mean().clamp_min(LEAST_VARIANCE).log()

    def forward(self, residual: Tensor, codes: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """Soft code (float [B, d]), the code it leans to most (int64 [B]) and loss (scalar) of `residual` [B, d]."""
        precision = 0.5 * torch.exp(-self.log_variance[level])
        logits = -squared_distances(residual, codes) * precision
        weights = sample(logits, self.temperature)
        self.draws += 1
        code = weights @ codes
        return code, weights.argmax(1), regulariser(logits, residual, code, precision) / self.dims


def regulariser(logits: Tensor, residual: Tensor, code: Tensor, precision: Tensor) -> Tensor:
    """Mean over rows of sum p log p + |r - c|^2 / 2 sigma^2, at least -log C, scalar.

    Args:
        logits: unnormalised log p, [B, C].
        residual: r [B, d].
        code: c [B, d].
        precision: 1 / 2 sigma^2, scalar.
    """
    log_p = logits.log_softmax(1)
    return (log_p.exp() * log_p).sum(1).mean() + precision * (residual - code).square().sum(1).mean()
