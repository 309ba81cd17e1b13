"""Gumbel-softmax: a code is sampled softly by its nearness, and gradients reach all codes (arXiv 1611.01144)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec.quantize.neural.codebooks.base import squared_distances


class Gumbel(nn.Module):
    """Soft codes sampled from softmax(-|r - c|^2) at a constant temperature."""

    def __init__(self, temperature: float, beta: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.beta = beta

    def forward(self, residual: Tensor, codes: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """Soft code (float [B, d]), the code it leans to most (int64 [B]) and loss (scalar) of `residual` [B, d].

        The loss is the codebook and commitment loss of the soft code.
        """
        weights = sample(-squared_distances(residual, codes), self.temperature)
        code = weights @ codes
        loss = F.mse_loss(code, residual.detach()) + self.beta * F.mse_loss(residual, code.detach())
        return code, weights.argmax(1), loss


def sample(logits: Tensor, temperature: float) -> Tensor:
    """One draw of relaxed one-hot rows [B, C] whose argmax is distributed as softmax(logits)."""
    noise = torch.empty_like(logits).exponential_().log_()
    return ((logits - noise) / temperature).softmax(1)
