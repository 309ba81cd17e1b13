"""What the residual chain asks of a level's codebook."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmrec.quantize.sinkhorn import uniform_mapping


class Codebook(nn.Module, ABC):
    """C codes of d dimensions: how they are found, learned and moved."""

    @abstractmethod
    def effective(self) -> Tensor:
        """The codes as training and decoding see them, float32 [C, d]."""

    def select(self, residual: Tensor, codes: Tensor, epsilon: float = 0.0) -> Tensor:
        """Index (int64 [B]) into `codes` [C, d], which `effective` gave, for each residual [B, d].

        The nearest code; with `epsilon` above 0, the code that LC-Rec's uniform mapping of the batch gives.
        """
        if epsilon == 0:
            return nearest_code(residual, codes)
        with torch.no_grad():
            return uniform_mapping(squared_distances(residual, codes), epsilon).argmax(1)

    def loss(self, residual: Tensor, code: Tensor, beta: float) -> Tensor:
        """Mean over elements of |sg r - c|^2 + beta |r - sg c|^2, scalar; `residual` and `code` are [B, d]."""
        return F.mse_loss(code, residual.detach()) + beta * F.mse_loss(residual, code.detach())

    def update(self, residual: Tensor, index: Tensor) -> None:
        """Learn, without gradients, from the residuals [B, d] that took the codes `index` [B]; most don't."""


class PlacedCodebook(Codebook):
    """Its codes need a place to start."""

    @abstractmethod
    def place(self, codes: Tensor) -> None:
        """Start from `codes` [C, d]."""


class MovableCodebook(PlacedCodebook):
    """Its codes can be moved in the course of training, too."""

    @abstractmethod
    def reset(self, dead: Tensor, vectors: Tensor) -> None:
        """Move the codes `dead` (int64 [n]) onto `vectors` [n, d]."""


@torch.no_grad()
def nearest_code(residual: Tensor, codes: Tensor) -> Tensor:
    """Row of the code [C, d] nearest to each residual [B, d], int64 [B]."""
    # |r - c|^2 without |r|^2, which does not change the order
    return torch.addmm(codes.square().sum(1), residual, codes.T, alpha=-2).argmin(1)


def squared_distances(residual: Tensor, codes: Tensor) -> Tensor:
    """Squared distance (float32 [B, C]) of every residual [B, d] to every code [C, d]."""
    cross = torch.addmm(codes.square().sum(1), residual, codes.T, alpha=-2)
    return (cross + residual.square().sum(1, keepdim=True)).clamp_min(0)
